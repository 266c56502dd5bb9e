"""`python -m tests.chaos`: inject faults into a fleet and print what was lost, repeated or doubled."""

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

#: Rounds of the random scenario in the long form, each with its own seed.
_RANDOM_ROUNDS = 5


@click.command()
@click.option("--seed", type=int, help="Seed of everything random.  [default: a new one, which is printed]")
@click.option(
    "--scenario",
    "names",
    multiple=True,
    type=click.Choice(list(SCENARIOS)),
    help="Play only this scenario; repeatable.",
)
@click.option(
    "--samples", default=240, show_default=True, type=click.IntRange(16), help="Samples per scenario."
)
@click.option("--rounds", default=1, show_default=True, type=click.IntRange(1), help="Seeds per scenario.")
@click.option("--short", is_flag=True, help="Play four scenarios with few samples, as the test suite does.")
@click.option(
    "--keep", type=click.Path(path_type=Path), help="Folder in which to keep the logs of each scenario."
)
def main(
    seed: int | None, names: tuple[str, ...], samples: int, rounds: int, short: bool, keep: Path | None
) -> None:
    """Inject faults into a fleet and count what is lost, repeated or doubled; exit code 1 if anything is."""
    # Exit on SIGTERM, so that everything this process started is stopped.
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
    """Play scenarios on one database server, each with its seed."""
    folder.mkdir(parents=True, exist_ok=True)
    with postgres(folder) as server:
        for name, seed in rounds:
            try:
                # A scenario that could not be played may have left it stopped.
                server.start()
                verdict = play(name, seed, samples, server, folder / f"{name}-{seed}")
            except Exception as error:
                verdict = Verdict(name, seed, samples, complaints=[f"could not be played: {error!r}"])
            yield verdict


def table(verdicts: Sequence[Verdict]) -> Table:
    shown = Table(title="What the faults did to the samples")
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
