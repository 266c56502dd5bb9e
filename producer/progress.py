"""Progress on stderr: a bar on a terminal, else a line every few seconds."""

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from time import monotonic

from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.text import Text

from capflow_tasks.store.figures import Activity
from capflow_tasks.store.states import Tally
from producer.console import duration, percent, short_count, workers_text

#: Between two lines where stderr is no terminal, seconds.
_LINE_SECONDS = 5.0
#: Between two questions about the fleet's activity, seconds; longer where the last one took long.
_ASK_SECONDS = 3.0
_RESTS = 20

_WAITING = "waiting for a worker (the first one loads its model)"
_NOTHING_LEFT = "nothing left to do"


class Meter:
    """What is shown of a run, from the moment when its first batch runs."""

    def __init__(self, total: int, ask: Callable[[], Activity]) -> None:
        self.total = total
        self._ask = ask
        self._activity: Activity | None = None
        self._next_at = 0.0
        self._is_finished = False

    @property
    def has_begun(self) -> bool:
        return self._activity is not None

    def update(self, tally: Tally, running: int) -> bool:
        """Whether the last sample has just finished; asks for the fleet's activity when that is due."""
        is_last = tally.total >= self.total and not self._is_finished
        self._is_finished = tally.total >= self.total
        began = monotonic()
        if (is_last or began >= self._next_at) and (running or self.has_begun):
            self._activity = self._ask()
            took = monotonic() - began
            self._next_at = began + max(_ASK_SECONDS, _RESTS * took)
        return is_last

    def texts(self, tally: Tally) -> tuple[str, str]:
        """Speed and ETA; stages, tokens and workers."""
        activity, remaining = self._activity, self.total - tally.total
        if activity is None:
            return (_WAITING if remaining > 0 else _NOTHING_LEFT), ""
        throughput = activity.throughput
        running = [f"{figures.running} in {figures.stage}" for figures in activity.stages if figures.running]
        return (
            f"{throughput.samples_per_second:.1f} samples/s, ETA {duration(activity.eta_seconds(remaining))}",
            f"{', '.join(running) or 'none running'}; {short_count(throughput.tokens_per_second)} tokens/s, "
            f"{percent(throughput.tokens.prefix_hit_rate)} of prompts cached; "
            f"{workers_text(activity.workers_alive)}",
        )


class _Lines:
    """Plain lines for logs."""

    def __init__(self, meter: Meter) -> None:
        self._meter = meter
        self._shown_at = monotonic()

    def show(self, tally: Tally, running: int) -> None:
        is_last = self._meter.update(tally, running)
        if not is_last and monotonic() - self._shown_at < _LINE_SECONDS:
            return
        self._shown_at = monotonic()
        speed, work = self._meter.texts(tally)
        line = f"{tally.total}/{self._meter.total} samples, {tally.failed} failed, {speed}"
        print("; ".join(filter(None, (line, work))), file=sys.stderr, flush=True)


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
        self._meter.update(tally, running)
        if self._meter.has_begun and not had_begun:
            self.start_task(self._task)
        speed, work = self._meter.texts(tally)
        self._below = Text(work, "dim")
        failed = f"{tally.failed} failed, " if self._meter.has_begun else ""
        self.update(self._task, completed=tally.total, description=failed + speed)


@contextmanager
def progress(total: int, ask: Callable[[], Activity]) -> Iterator[_Lines | _Bar]:
    """Yield a display whose `show(tally, running)` may be called at any rate."""
    console, meter = Console(stderr=True), Meter(total, ask)
    if not console.is_terminal:
        yield _Lines(meter)
        return
    with _Bar(meter, console) as bar:
        yield bar
