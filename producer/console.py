"""What commands print for people: durations, counts, rates, money, tables, and a run's progress on stderr."""

import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from time import monotonic

from rich import progress as bars
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from capflow_tasks.store.figures import Activity, ClaimFigures, TextFigures
from capflow_tasks.store.states import Tally

_UNITS = (("d", 86_400), ("h", 3600), ("min", 60), ("s", 1))

_UNKNOWN = "-"

#: The folders of an absolute path, up to its last part.
_FOLDERS = re.compile(r"(?<![\w.:/])/(?:[^/\s'\"]+/)+(?=[^/\s])")

#: Between two lines where stderr is no terminal, seconds.
_LINE_SECONDS = 5.0
#: Between two questions about the fleet's activity, seconds; longer where the last one took long.
_ASK_SECONDS = 1.0
_RESTS = 20

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


def without_folders(message: str) -> str:
    """Shorten absolute paths to their last part, so that the reason is seen: `…/a.jpg is missing`."""
    return _FOLDERS.sub("…/", message)


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


def claims_line(claims: ClaimFigures) -> str:
    """Say what became of the claims of verified captions, and what it took."""
    tokens = claims.tokens
    return (
        f"{counted(claims.claims, 'claim')} of {counted(claims.captions, 'caption')} asked of the media one "
        f"by one: {count(claims.kept)} kept, {count(claims.unsure)} unsure, {count(claims.dropped)} dropped, "
        f"{counted(claims.rewritten, 'caption')} rewritten; {count(tokens.prompt)} prompt tokens "
        f"({count(tokens.cached)} cached) and {count(tokens.completion)} of answers"
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


@contextmanager
def waiting(what: str) -> Iterator[None]:
    """Say on stderr what is waited for; on a terminal with the seconds, until the block ends."""
    console = Console(stderr=True)
    if not console.is_terminal:
        print(what, file=sys.stderr, flush=True)
        yield
        return
    columns = bars.SpinnerColumn(), bars.TextColumn("{task.description}"), bars.TimeElapsedColumn()
    with bars.Progress(*columns, console=console, transient=True) as shown:
        shown.add_task(what, total=None)
        yield


class RunProgress:
    """How far a run is, from the moment when its first batch runs; shown as plain lines."""

    def __init__(self, total: int, ask: Callable[[], Activity], awaited: Callable[[int], str]) -> None:
        self.total = total
        #: None until the fleet was asked.
        self.activity: Activity | None = None
        self.has_begun = False
        self._ask = ask
        #: What a run waits for that has so many live workers.
        self._awaited = awaited
        self._next_at = 0.0
        self._is_finished = False
        self._shown_at = monotonic()
        self._waits_for, self._waits_since = "", monotonic()
        #: Between two lines about the same wait; it doubles.
        self._wait_line_seconds = _LINE_SECONDS
        self._line = ""

    def show(self, tally: Tally, has_begun: bool) -> None:
        is_last, speed, work = self.update(tally, has_begun)
        if not is_last and monotonic() - self._shown_at < self._line_seconds:
            return
        line = "; ".join(
            filter(None, (f"{tally.total}/{self.total} samples, {tally.failed} failed, {speed}", work))
        )
        self._shown_at = monotonic()
        self._wait_line_seconds *= 2 if self._waits_for else 1
        if line != self._line:
            print(line, file=sys.stderr, flush=True)
        self._line = line

    @property
    def _line_seconds(self) -> float:
        return self._wait_line_seconds if self._waits_for else _LINE_SECONDS

    def update(self, tally: Tally, has_begun: bool) -> tuple[bool, str, str]:
        """Whether the last sample has just finished; speed or what is waited for; stages and workers.

        Asks for the fleet's activity when that is due.
        """
        remaining = self.total - tally.total
        is_last = remaining <= 0 and not self._is_finished
        self._is_finished = remaining <= 0
        self.has_begun = self.has_begun or has_begun
        if not self.has_begun and remaining <= 0:
            return is_last, _NOTHING_LEFT, ""
        began = monotonic()
        if is_last or began >= self._next_at:
            self.activity = self._ask()
            self._next_at = began + max(_ASK_SECONDS, _RESTS * (monotonic() - began))
        activity = self.activity
        alive = activity.workers_alive if activity else 0
        self._wait_for("" if remaining <= 0 or (self.has_begun and alive) else self._awaited(alive))
        if self._waits_for or activity is None:
            seconds = round(monotonic() - self._waits_since)
            since = f"waiting for {duration(seconds)}: " if seconds else ""
            return is_last, f"{since}{self._waits_for}", ""
        throughput = activity.throughput
        stages = [f"{figures.running} in {figures.stage}" for figures in activity.stages if figures.running]
        return (
            is_last,
            f"{throughput.samples_per_second:.1f} samples/s, ETA {duration(activity.eta_seconds(remaining))}",
            f"{', '.join(stages) or 'none running'}; {short_count(throughput.tokens_per_second)} tokens/s, "
            f"{percent(throughput.tokens.prefix_hit_rate)} of prompts cached; "
            f"{counted(activity.workers_alive, 'worker')}",
        )

    def _wait_for(self, what: str) -> None:
        if what != self._waits_for:
            self._waits_for, self._waits_since = what, monotonic()
            self._wait_line_seconds = _LINE_SECONDS

    def share(self, tally: Tally) -> float:
        """The finished share of the run in samples; one that waits for its last stage of five counts 0.8."""
        stages = self.activity.stages if self.activity else ()
        begun = sum(place / len(stages) * sum(each.by_state.values()) for place, each in enumerate(stages))
        return min(self.total, tally.total + begun)


class _Bar(bars.Progress):
    """A bar for people, with speed and stages below; its clock starts when the first batch runs."""

    def __init__(self, run: RunProgress, console: Console) -> None:
        self._run = run
        self._below = Text()
        count = bars.TextColumn("{task.description}")
        super().__init__(bars.BarColumn(), count, bars.TimeElapsedColumn(), console=console)
        self._task = self.add_task(f"0/{run.total}", total=run.total, start=False)

    def get_renderables(self) -> Iterable[RenderableType]:
        yield self.make_tasks_table(self.tasks)
        yield self._below

    def show(self, tally: Tally, has_begun: bool) -> None:
        _, speed, work = self._run.update(tally, has_begun)
        if self._run.has_begun:
            # A task that has started stays as it is.
            self.start_task(self._task)
        failed = f", {tally.failed} failed" if tally.failed else ""
        self._below = Text("\n".join(filter(None, (speed, work))), "dim")
        done = f"{tally.total}/{self._run.total}{failed}"
        self.update(self._task, completed=self._run.share(tally), description=done)


@contextmanager
def progress(
    total: int, ask: Callable[[], Activity], awaited: Callable[[int], str]
) -> Iterator[RunProgress | _Bar]:
    """Yield a display whose `show(tally, has_begun)` may be called at any rate.

    `awaited` says what a run waits for that has so many live workers.
    """
    console, run = Console(stderr=True), RunProgress(total, ask, awaited)
    if not console.is_terminal:
        yield run
        return
    with _Bar(run, console) as bar:
        yield bar
