"""What commands print for people: durations, counts, rates, money, tables, and a run's progress on stderr."""

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from time import monotonic

from rich import progress as bars
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from capflow_tasks.store.figures import Activity, TextFigures
from capflow_tasks.store.states import Tally

_UNITS = (("d", 86_400), ("h", 3600), ("min", 60), ("s", 1))

_UNKNOWN = "-"

#: Between two lines where stderr is no terminal, seconds.
_LINE_SECONDS = 5.0
#: Between two questions about the fleet's activity, seconds; longer where the last one took long.
_ASK_SECONDS = 3.0
_RESTS = 20

_WAITING = "waiting for a worker (the first one loads its model)"
_NOTHING_LEFT = "nothing left to do"


def duration(seconds: float | None) -> str:
    """The two largest units: `0.25 s`, `45 s`, `3 min 20 s`, `2 h 5 min`, `2 d 4 h`."""
    if seconds is None:
        return "unknown"
    if 0 < seconds < 9.5:
        return f"{seconds:.3g} s"
    parts: list[str] = []
    rest = round(seconds)
    for name, size in _UNITS:
        whole, rest = divmod(rest, size)
        if whole or parts:
            parts.append(f"{whole} {name}" if whole else "")
    return " ".join(filter(None, parts[:2])) or "0 s"


def count(number: int) -> str:
    return f"{number:,}"


def short_count(number: float) -> str:
    """Three digits and a unit: `950`, `12.3k`, `4.56M`."""
    for size, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g}{unit}"
    return f"{number:.3g}"


def percent(share: float | None) -> str:
    return _UNKNOWN if share is None else f"{share:.1%}"


def usd(amount: float | None) -> str:
    """Dollars and cents; below ten cents, two significant digits."""
    if amount is None:
        return _UNKNOWN
    if 0 < amount < 0.0001:
        return "less than $0.0001"
    if 0 < amount < 0.1:
        return f"${amount:.2g}"
    return f"${amount:,.2f}"


def counted(number: int, noun: str) -> str:
    """`1 sample`, `1,200 samples`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def own_judge_text(models: Sequence[str]) -> str:
    """Say that these models judge what they wrote themselves; empty without any."""
    if not models:
        return ""
    return (
        f"The judge is the captioner's own model ({', '.join(models)}), which tends to overlook its own "
        'errors; the how-to "A second model as judge" sets up another'
    )


def text_line(text: TextFigures) -> str:
    """Say what was read in pictures, and how far captions agree with it."""
    unread = f" ({counted(text.unread, 'sample')} could not be read)" if text.unread else ""
    return (
        f"Text read in the pictures of {counted(text.read, 'sample')}{unread}: {percent(text.quote_support)} "
        f"of {counted(text.quotes, 'quote')} stand there; captions hold {percent(text.text_coverage)} of "
        f"{counted(text.words, 'word')} surely read"
    )


def table(title: str | None, texts: Iterable[str], numbers: Iterable[str], *last: str) -> Table:
    """A table without rows: columns of text, then of numbers, then of text again."""
    made = Table(title=title, title_justify="left", caption_justify="left")
    for name in texts:
        made.add_column(name, overflow="fold")
    for name in numbers:
        made.add_column(name, justify="right")
    for name in last:
        made.add_column(name, overflow="fold")
    return made


class RunProgress:
    """How far a run is, from the moment when its first batch runs; shown as plain lines."""

    def __init__(self, total: int, ask: Callable[[], Activity]) -> None:
        self.total = total
        #: None until the first batch runs.
        self.activity: Activity | None = None
        self._ask = ask
        self._next_at = 0.0
        self._is_finished = False
        self._shown_at = monotonic()

    def show(self, tally: Tally, has_begun: bool) -> None:
        is_last, speed, work = self.update(tally, has_begun)
        if not is_last and monotonic() - self._shown_at < _LINE_SECONDS:
            return
        self._shown_at = monotonic()
        line = f"{tally.total}/{self.total} samples, {tally.failed} failed, {speed}"
        print("; ".join(filter(None, (line, work))), file=sys.stderr, flush=True)

    def update(self, tally: Tally, has_begun: bool) -> tuple[bool, str, str]:
        """Whether the last sample has just finished; speed and ETA; stages, tokens and workers.

        Asks for the fleet's activity when that is due.
        """
        remaining = self.total - tally.total
        is_last = remaining <= 0 and not self._is_finished
        self._is_finished = remaining <= 0
        began = monotonic()
        if (is_last or began >= self._next_at) and (has_begun or self.activity):
            self.activity = self._ask()
            self._next_at = began + max(_ASK_SECONDS, _RESTS * (monotonic() - began))
        if (activity := self.activity) is None:
            return is_last, _WAITING if remaining > 0 else _NOTHING_LEFT, ""
        throughput = activity.throughput
        stages = [f"{figures.running} in {figures.stage}" for figures in activity.stages if figures.running]
        return (
            is_last,
            f"{throughput.samples_per_second:.1f} samples/s, ETA {duration(activity.eta_seconds(remaining))}",
            f"{', '.join(stages) or 'none running'}; {short_count(throughput.tokens_per_second)} tokens/s, "
            f"{percent(throughput.tokens.prefix_hit_rate)} of prompts cached; "
            f"{counted(activity.workers_alive, 'worker')}",
        )


class _Bar(bars.Progress):
    """A bar for people, with a line below; its clock starts when the first batch runs."""

    def __init__(self, run: RunProgress, console: Console) -> None:
        self._run = run
        self._below = Text()
        description = bars.TextColumn("{task.description}")
        columns = (bars.BarColumn(), bars.MofNCompleteColumn(), bars.TimeElapsedColumn(), description)
        super().__init__(*columns, console=console)
        self._task = self.add_task(_WAITING, total=run.total, start=False)

    def get_renderables(self) -> Iterable[RenderableType]:
        yield self.make_tasks_table(self.tasks)
        yield self._below

    def show(self, tally: Tally, has_begun: bool) -> None:
        _, speed, work = self._run.update(tally, has_begun)
        if self._run.activity:
            # A task that has started stays as it is.
            self.start_task(self._task)
            speed = f"{tally.failed} failed, {speed}"
        self._below = Text(work, "dim")
        self.update(self._task, completed=tally.total, description=speed)


@contextmanager
def progress(total: int, ask: Callable[[], Activity]) -> Iterator[RunProgress | _Bar]:
    """Yield a display whose `show(tally, has_begun)` may be called at any rate."""
    console, run = Console(stderr=True), RunProgress(total, ask)
    if not console.is_terminal:
        yield run
        return
    with _Bar(run, console) as bar:
        yield bar
