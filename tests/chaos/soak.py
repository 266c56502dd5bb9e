"""`python -m tests.chaos.soak`: draw the resident memory of a worker and a producer over a long run."""

from __future__ import annotations

import signal
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from time import monotonic

import click
import numpy as np
import psutil
from rich.console import Console
from rich.table import Table
from sqlalchemy import Engine, func, select

from capflow_tasks.errors import EXIT_INTERRUPTED
from capflow_tasks.store.database import connect
from capflow_tasks.store.states import BatchState
from capflow_tasks.store.tables import Batch
from tests.chaos import engine as engines
from tests.chaos.fleet import Fleet, Service, running
from tests.chaos.services import postgres, running_redis
from tests.datasets import draw_picture, write_plan

#: More than a fleet captions here in an hour; annotation files are read as needed.
_SAMPLES = 1_000_000
#: Pictures that the samples share.
_PICTURES = 50
_SERVICES = ("worker", "producer")


@dataclass(frozen=True, slots=True)
class Reading:
    #: Seconds since the first reading.
    seconds: float
    #: Resident memory of worker and producer, MiB.
    resident_mib: tuple[float, float]
    #: Finished batches.
    batches: int


@click.command()
@click.option("--minutes", default=30.0, show_default=True, help="How long the fleet works.")
@click.option("--every", default=0.0, help="Seconds between two readings.  [default: 120 readings in all]")
@click.option(
    "--bound", default=5.0, show_default=True, help="Growth over the second half that counts as a leak, MiB."
)
@click.option(
    "--picture",
    default="build/soak.png",
    show_default=True,
    type=click.Path(path_type=Path),
    help="File of the graph.",
)
def main(minutes: float, every: float, bound: float, picture: Path) -> None:
    """Print and draw resident memory over time; exit code 1 when it still grows in the second half."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(EXIT_INTERRUPTED))
    with tempfile.TemporaryDirectory(prefix="capflow-soak-", ignore_cleanup_errors=True) as folder:
        readings = watch(Path(folder), minutes * 60, every or minutes * 60 / 120)
    growth = {name: growth_of(readings, position) for position, name in enumerate(_SERVICES)}
    Console(width=None if sys.stdout.isatty() else 120).print(table(readings))
    draw(readings, picture)
    for name, mib in growth.items():
        print(f"{name}: {mib:+.2f} MiB over the second half; limit {bound:g}")
    print(f"drawn in {picture}")
    sys.exit(any(mib > bound for mib in growth.values()))


def watch(folder: Path, seconds: float, every: float) -> list[Reading]:
    """Read the memory of a fleet of one worker while it works this long."""
    plan = _write_dataset(folder)
    with postgres(folder) as server, running_redis(folder) as redis:
        url = server.new_database()
        engine = connect(url)
        environment = {
            "CAPFLOW_ENGINE": "tests.chaos.engine:build",
            "CAPFLOW_HOME": str(folder),
            "CAPFLOW_OCR_PROCESSES": "0",
            "CAPFLOW_DATABASE_URL": url,
            "CAPFLOW_BROKER_URL": redis.url,
            "CAPFLOW_WINDOW": "64",
            engines.LATENCY: "0.02",
        }
        with running(Fleet(folder, environment, plan, workers=1)) as fleet:
            _wait_for_work(fleet, engine)
            readings = _read(fleet, engine, seconds, every)
        engine.dispose()
    return readings


def growth_of(readings: Sequence[Reading], position: int) -> float:
    """Return the growth of one process's memory over the second half of the run, MiB, by its slope."""
    late = readings[len(readings) // 2 :]
    seconds = [reading.seconds for reading in late]
    slope, _ = np.polyfit(seconds, [reading.resident_mib[position] for reading in late], 1)
    return float(slope * (seconds[-1] - seconds[0]))


def table(readings: Sequence[Reading], rows: int = 20) -> Table:
    shown = Table(title="Resident memory")
    for heading in ("minutes", "samples", *(f"{name} MiB" for name in _SERVICES)):
        shown.add_column(heading, justify="right")
    step = max(len(readings) // rows, 1)
    for reading in readings[::step]:
        resident = (f"{mib:.1f}" for mib in reading.resident_mib)
        shown.add_row(f"{reading.seconds / 60:.1f}", f"{reading.batches * 8:,}", *resident)
    return shown


def draw(readings: Sequence[Reading], path: Path) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(9, 4))
    minutes = [reading.seconds / 60 for reading in readings]
    for position, name in enumerate(_SERVICES):
        axes.plot(minutes, [reading.resident_mib[position] for reading in readings], label=name)
    axes.set(xlabel="minutes", ylabel="resident memory, MiB", title=f"{readings[-1].batches * 8:,} samples")
    axes.set_ylim(0, 1.2 * max(max(reading.resident_mib) for reading in readings))
    axes.legend()
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def _write_dataset(folder: Path) -> Path:
    for number in range(_PICTURES):
        draw_picture(folder / "media" / f"{number}.png", number)
    return write_plan(
        folder, [{"id": number, "image": f"{number % _PICTURES}.png"} for number in range(_SAMPLES)]
    )


def _wait_for_work(fleet: Fleet, engine: Engine) -> None:
    deadline = monotonic() + 120
    while not _finished(engine):
        if monotonic() > deadline or fleet.producer.code is not None:
            raise TimeoutError(f"no batch has finished; {fleet.last_words()}")
        Event().wait(0.2)


def _read(fleet: Fleet, engine: Engine, seconds: float, every: float) -> list[Reading]:
    (worker,) = fleet.workers.values()
    started = monotonic()
    readings: list[Reading] = []
    while (passed := monotonic() - started) < seconds:
        if worker.code is not None or fleet.producer.code is not None:
            raise RuntimeError(f"worker exited with {worker.code}, producer with {fleet.producer.code}")
        resident = (_resident_mib(worker), _resident_mib(fleet.producer))
        readings.append(Reading(passed, resident, _finished(engine)))
        Event().wait(every)
    return readings


def _finished(engine: Engine) -> int:
    """Count finished batches."""
    with engine.connect() as connection:
        done = select(func.count(Batch.id)).where(Batch.state == BatchState.DONE)
        return int(connection.execute(done).scalar_one())


def _resident_mib(service: Service) -> float:
    return float(psutil.Process(service.pid).memory_info().rss / 2**20)


if __name__ == "__main__":
    main()
