"""`python -m tests.benchmarks.gpu`: captions per hour on one GPU; build/gpu.json and build/gpu.png."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from shutil import which
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console

from capflow_tasks.errors import UserError
from capflow_tasks.records import JsonObject, Modality
from producer.cli.options import Command
from tests.benchmarks.claims import Bench, Row, Study, rows_of
from tests.benchmarks.gpu.architectures import ARCHITECTURES, write_model
from tests.benchmarks.gpu.load import REALISTIC, TINY
from tests.benchmarks.gpu.tuning import TUNINGS, engine_args
from tests.benchmarks.report import draw, table, write_json

if TYPE_CHECKING:
    from tests.benchmarks.gpu.measure import Order
    from tests.benchmarks.gpu.scene import Setup

_PLAIN_WIDTH = 150


@click.command(cls=Command, context_settings={"show_default": True})
@click.option("--model", default="7b", type=click.Choice(list(ARCHITECTURES)), help="Architecture.")
@click.option("--images", default=512, type=click.IntRange(0), help="Pictures to caption, at most.")
@click.option("--videos", default=128, type=click.IntRange(0), help="Clips of 32 frames, at most.")
@click.option("--minutes", default=1.5, help="Time for each of the two, as the warm-up foresees it.")
@click.option("--in-flight", default=64, type=click.IntRange(1), help="Samples that run at a time.")
@click.option("--bare", is_flag=True, help="Give the same requests to the engine alone as well.")
@click.option("--rival-samples", default=64, help="Samples for static batches and --bare; 0: leave them out.")
@click.option("--tune", multiple=True, type=click.Choice(list(TUNINGS)), help="May be given several times.")
@click.option("--engine-args", default="{}", help="Further arguments of vLLM, JSON.")
@click.option("--tiny", is_flag=True, help="A rehearsal on a CPU: small model, media and answers.")
@click.option("--work", type=click.Path(path_type=Path), help="Folder of logs; else one that is thrown away.")
@click.option("--output", default="build", type=click.Path(path_type=Path), help="Folder of the results.")
def main(work: Path | None, output: Path, **options: Any) -> None:
    """Measure the whole workflow with a model of true size and random weights."""
    if not options["tiny"] and which("nvidia-smi") is None:
        raise UserError("there is no nvidia-smi, so no GPU; --tiny rehearses on a CPU")
    with _folder(work) as folder:
        rows = measure_all(folder, **options)
    write_json(rows, output / "gpu.json")
    draw(rows, output / "gpu.png")
    shown = table(rows)
    shown.title = "captioning on a GPU"
    Console(width=None if sys.stdout.isatty() else _PLAIN_WIDTH).print(shown)
    sys.exit(any(row.baseline.startswith("failed") for row in rows))


def measure_all(folder: Path, **options: Any) -> list[Row]:
    """A kind of media after the other, each with a fleet of its own."""
    from tests.benchmarks.gpu.measure import Order
    from tests.benchmarks.gpu.scene import Setup

    is_tiny = options["tiny"]
    name = "tiny" if is_tiny else options["model"]
    architecture = ARCHITECTURES[name]
    write_model(folder / "model", architecture)
    arguments = engine_args(architecture.engine_args, options["tune"], _json_object(options["engine_args"]))
    load = TINY if is_tiny else REALISTIC
    setup = Setup(folder / "model", load, arguments, options["in_flight"], is_on_cpu=is_tiny)
    rivals = ("static_batches", "bare")[: options["bare"] + 1 if options["rival_samples"] else 0]
    label = "+".join([name, *options["tune"]])
    rows: list[Row] = []
    for kind, count in ((Modality.IMAGE, options["images"]), (Modality.VIDEO, options["videos"])):
        order = Order(label, kind, count, options["minutes"], rivals, options["rival_samples"])
        if count:
            rows += _rows(folder / kind, setup, order)
    return rows


def _rows(folder: Path, setup: Setup, order: Order) -> list[Row]:
    from tests.benchmarks.gpu.measure import measure

    folder.mkdir(exist_ok=True)
    return rows_of(Study(order.goals, lambda bench: measure(bench.folder, setup, order)), Bench(folder))


def _json_object(text: str) -> JsonObject:
    try:
        found: JsonObject = json.loads(text)
    except ValueError:
        raise UserError(f"--engine-args {text!r} is no JSON object such as {{}}") from None
    return found


@contextmanager
def _folder(work: Path | None) -> Iterator[Path]:
    """Readable by the other user that PostgreSQL runs as when root starts it."""
    if work is not None:
        work.mkdir(parents=True, exist_ok=True)
        yield work.absolute()
        return
    with tempfile.TemporaryDirectory(prefix="capflow-gpu-", ignore_cleanup_errors=True) as name:
        Path(name).chmod(0o755)
        yield Path(name)


if __name__ == "__main__":
    main()
