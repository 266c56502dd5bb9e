"""`python -m tests.benchmarks.gpu`: captions per hour on one GPU; writes build/gpu.json and build/gpu.png."""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from shutil import which

import click
from rich.console import Console

from capflow_tasks.records import JsonObject, Modality
from tests.benchmarks.gpu.model import ARCHITECTURES, write_model
from tests.benchmarks.gpu.summary import RIVALS, summary
from tests.benchmarks.report import draw, table, write_json

_PLAIN_WIDTH = 150


def parse_object(context: click.Context, option: click.Parameter, value: str) -> JsonObject:
    try:
        found = json.loads(value)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise click.BadParameter(f"{value!r} is not a JSON object such as {{}}")
    return found


@click.command(context_settings={"show_default": True})
@click.option("--model", default="7b", type=click.Choice(list(ARCHITECTURES)), help="Model to measure.")
@click.option("--images", default=512, type=click.IntRange(0), help="Pictures to caption, at most.")
@click.option("--videos", default=128, type=click.IntRange(0), help="Clips of 32 frames, at most.")
@click.option("--minutes", default=1.5, help="Time for each of the two, by the warm-up's pace.")
@click.option("--in-flight", default=64, type=click.IntRange(1), help="Samples that run at a time.")
@click.option(
    "--rival",
    "rivals",
    multiple=True,
    default=tuple(RIVALS),
    type=click.Choice([*RIVALS, "none"]),
    help="Measure this on the same requests as well; may be repeated.",
)
@click.option("--rival-samples", default=64, type=click.IntRange(1), help="Samples per rival, at most.")
@click.option("--engine-args", default="{}", callback=parse_object, help="More arguments of vLLM, JSON.")
@click.option("--tiny", is_flag=True, help="Rehearse on a CPU: small model, media and answers.")
@click.option("--work", type=click.Path(path_type=Path), help="Folder of logs.  [default: a temporary one]")
@click.option("--output", default="build", type=click.Path(path_type=Path), help="Folder of the results.")
def main(
    model: str,
    images: int,
    videos: int,
    minutes: float,
    in_flight: int,
    rivals: tuple[str, ...],
    rival_samples: int,
    engine_args: JsonObject,
    tiny: bool,
    work: Path | None,
    output: Path,
) -> None:
    """Measure the whole workflow with a model of true size and random weights."""
    if not tiny and which("nvidia-smi") is None:
        raise click.UsageError("there is no nvidia-smi, so no GPU; --tiny rehearses on a CPU")
    # Only now: `--help` need not wait for transformers.
    from tests.benchmarks.gpu.load import REALISTIC, TINY
    from tests.benchmarks.gpu.measure import Setup, measure

    name = "tiny" if tiny else model
    with tempfile.TemporaryDirectory(prefix="capflow-gpu-", ignore_cleanup_errors=True) as temporary:
        # PostgreSQL, which runs as another user when root starts it, must be able to read the folder.
        Path(temporary).chmod(0o755)
        folder = (work or Path(temporary)).absolute()
        write_model(folder / "model", ARCHITECTURES[name])
        counts = {Modality.IMAGE: images, Modality.VIDEO: videos}
        setup = Setup(
            name=name,
            model=folder / "model",
            load=TINY if tiny else REALISTIC,
            engine_args=ARCHITECTURES[name].engine_args | engine_args,
            in_flight=in_flight,
            samples={kind: count for kind, count in counts.items() if count},
            minutes=minutes,
            rivals=[rival for rival in rivals if rival != "none"],
            rival_samples=rival_samples,
            is_on_cpu=tiny,
        )
        rows = measure(setup, folder)
    write_json(rows, output / "gpu.json")
    draw(rows, output / "gpu.png")
    shown = table(rows)
    shown.title = "captioning on a GPU"
    Console(width=None if sys.stdout.isatty() else _PLAIN_WIDTH).print(shown, summary(rows, name))
    sys.exit(any(row.baseline.startswith("failed") for row in rows))


if __name__ == "__main__":
    main()
