"""Progress on stderr: a bar where somebody looks, a line now and then where nobody does."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from time import monotonic

from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.text import Text

from capflow_tasks.store.figures import StageFigures, Throughput
from capflow_tasks.store.rows import Tally
from capflow_tasks.store.statistics import Statistics
from producer.amounts import duration, percent, short_count

#: Between two lines where stderr is no terminal, seconds.
_LINE_SECONDS = 5.0
#: Between two questions for what the fleet is doing, seconds; longer where the last one took long.
_ASK_SECONDS = 3.0
_RESTS = 20

_WAITING = "waiting for a worker (the first one loads its model)"
_NOTHING_LEFT = "nothing left to do"


@dataclass(frozen=True, slots=True)
class UnderWay:
    """What the fleet is doing for a run at one moment."""

    stages: Sequence[StageFigures]
    pace: Throughput
    workers_alive: int

    def speed(self, remaining: int) -> str:
        rate = self.pace.samples_per_second
        eta = duration(remaining / rate if rate else None) if remaining else "0 s"
        return f"{rate:.1f} samples/s, ETA {eta}"

    def work(self) -> str:
        """What runs where, at how many tokens."""
        running = [f"{figures.running} in {figures.stage}" for figures in self.stages if figures.running]
        workers = "worker" if self.workers_alive == 1 else "workers"
        return (
            f"{', '.join(running) or 'none running'}; {short_count(self.pace.tokens_per_second)} tokens/s, "
            f"{percent(self.pace.tokens.prefix_hit_rate)} of prompts cached; {self.workers_alive} {workers}"
        )


def under_way(statistics: Statistics, run_id: int, lease_seconds: float) -> UnderWay:
    workers = statistics.workers(lease_seconds)
    return UnderWay(
        statistics.stages(run_id), statistics.pace(run_id), sum(worker.is_alive for worker in workers)
    )


class Meter:
    """What is told of a run, from the moment when its first batch runs."""

    def __init__(self, total: int, ask: Callable[[], UnderWay]) -> None:
        self.total = total
        self._ask = ask
        self._seen: UnderWay | None = None
        self._next_at = 0.0
        self._has_ended = False

    @property
    def has_begun(self) -> bool:
        return self._seen is not None

    def look(self, tally: Tally, running: int) -> bool:
        """Whether the last sample has just come to its end; may be called as often as one likes."""
        is_last = tally.total >= self.total and not self._has_ended
        self._has_ended = tally.total >= self.total
        began = monotonic()
        if (is_last or began >= self._next_at) and (running or self.has_begun):
            self._seen = self._ask()
            took = monotonic() - began
            self._next_at = began + max(_ASK_SECONDS, _RESTS * took)
        return is_last

    def words(self, tally: Tally) -> tuple[str, str]:
        """Failures and speed, and what runs where."""
        if self._seen is None:
            return (_WAITING if tally.total < self.total else _NOTHING_LEFT), ""
        remaining = self.total - tally.total
        return self._seen.speed(remaining), self._seen.work()


class _Lines:
    """Plain lines for logs."""

    def __init__(self, meter: Meter) -> None:
        self._meter = meter
        self._shown_at = monotonic()

    def show(self, tally: Tally, running: int) -> None:
        is_last = self._meter.look(tally, running)
        if not is_last and monotonic() - self._shown_at < _LINE_SECONDS:
            return
        self._shown_at = monotonic()
        told = f"{tally.total}/{self._meter.total} samples, {tally.failed} failed"
        speed, work = self._meter.words(tally)
        print("; ".join(filter(None, (f"{told}, {speed}", work))), file=sys.stderr, flush=True)


class _Bar(Progress):
    """A bar for people, with a line below; its clock starts when the first batch runs."""

    def __init__(self, meter: Meter, console: Console) -> None:
        self._meter = meter
        self._below = Text()
        columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
        super().__init__(*columns, console=console)
        self._task = self.add_task(_WAITING, total=meter.total, start=False)

    def get_renderables(self) -> Iterable[RenderableType]:
        yield self.make_tasks_table(self.tasks)
        yield self._below

    def show(self, tally: Tally, running: int) -> None:
        had_begun = self._meter.has_begun
        self._meter.look(tally, running)
        if self._meter.has_begun and not had_begun:
            self.start_task(self._task)
        speed, work = self._meter.words(tally)
        self._below = Text(work, "dim")
        failed = f"{tally.failed} failed, " if self._meter.has_begun else ""
        self.update(self._task, completed=tally.total, description=failed + speed)


@contextmanager
def progress(total: int, ask: Callable[[], UnderWay]) -> Iterator[_Lines | _Bar]:
    """Something whose `show(tally, running)` may be called as often as one likes."""
    console, meter = Console(stderr=True), Meter(total, ask)
    if not console.is_terminal:
        yield _Lines(meter)
        return
    with _Bar(meter, console) as bar:
        yield bar
