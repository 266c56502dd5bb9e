"""The command python -m tests.chaos: plays scenarios and prints what became of the samples."""

from __future__ import annotations

import signal
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from random import SystemRandom

import click
from rich.console import Console
from rich.table import Table

from capflow_tasks.errors import EXIT_INTERRUPTED
from tests.chaos.audit import Verdict
from tests.chaos.scenarios import SCENARIOS, SHORT, SHORT_SAMPLES, play
from tests.chaos.services import postgres

#: Times that the random scenario is played in the long form, each with a seed of its own.
_RANDOM_ROUNDS = 5


@click.command()
@click.option("--seed", type=int, help="Of all that is random.  [default: a new one, which is printed]")
@click.option(
    "--scenario",
    "names",
    multiple=True,
    type=click.Choice(list(SCENARIOS)),
    help="Play these only; may be given several times.",
)
@click.option(
    "--samples", default=240, show_default=True, type=click.IntRange(16), help="Samples of a scenario."
)
@click.option("--rounds", default=1, show_default=True, type=click.IntRange(1), help="Seeds per scenario.")
@click.option("--short", is_flag=True, help="The form for every commit: three scenarios, few samples.")
@click.option("--keep", type=click.Path(path_type=Path), help="Folder to keep what each scenario logged in.")
def main(
    seed: int | None, names: tuple[str, ...], samples: int, rounds: int, short: bool, keep: Path | None
) -> None:
    """Break a fleet in every way and count what is lost, repeated or doubled; 1 unless nothing is."""
    # So that a harness that is told to stop stops what it has started.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(EXIT_INTERRUPTED))
    console = Console(stderr=True)
    first = SystemRandom().randrange(10_000) if seed is None else seed
    console.print(f"seed {first}")
    chosen = names or (SHORT if short else tuple(name for name in SCENARIOS if name != "medley"))
    with tempfile.TemporaryDirectory(prefix="capflow-chaos-", ignore_cleanup_errors=True) as folder:
        verdicts = []
        for verdict in run(
            _rounds(chosen, first, rounds, short), SHORT_SAMPLES if short else samples, keep or Path(folder)
        ):
            console.print(_line(verdict), markup=False, soft_wrap=True)
            verdicts.append(verdict)
    Console(width=None if sys.stdout.isatty() else 150).print(table(verdicts))
    sys.exit(not all(verdict.is_clean for verdict in verdicts))


def run(rounds: Iterable[tuple[str, int]], samples: int, folder: Path) -> Iterator[Verdict]:
    """Play scenarios, each with its seed, on one database server."""
    folder.mkdir(parents=True, exist_ok=True)
    with postgres(folder) as server:
        for name, seed in rounds:
            yield play(name, seed, samples, server, folder / f"{name}-{seed}")


def table(verdicts: Sequence[Verdict]) -> Table:
    shown = Table(title="What became of the samples")
    shown.add_column("scenario")
    for heading in (
        "seed",
        "samples",
        "faults",
        "lost",
        "repeated stages",
        "duplicate rows",
        "stranded messages",
        "seconds to recover",
        "seconds",
    ):
        shown.add_column(heading, justify="right")
    for each in verdicts:
        recovery = "" if each.recovery_seconds is None else f"{each.recovery_seconds:.1f}"
        counts = (
            each.seed,
            each.samples,
            each.faults,
            each.lost,
            each.repeated,
            each.duplicates,
            each.stranded,
        )
        style = None if each.is_clean else "red"
        shown.add_row(each.scenario, *map(str, counts), recovery, f"{each.seconds:.1f}", style=style)
    return shown


def _rounds(names: Sequence[str], first: int, rounds: int, short: bool) -> Iterator[tuple[str, int]]:
    for name in names:
        more = _RANDOM_ROUNDS if name == "random" and not short else 1
        yield from ((name, first + number) for number in range(rounds * more))


def _line(verdict: Verdict) -> str:
    complaints = "; ".join(verdict.complaints) or ("clean" if verdict.is_clean else "see the table")
    return f"{verdict.scenario} (seed {verdict.seed}), {verdict.seconds:.1f} s: {complaints}"


if __name__ == "__main__":
    main()
