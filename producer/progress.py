"""Progress on stderr: a bar where somebody looks, a line now and then where nobody does."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from capflow_tasks.store.rows import Tally

#: Between two lines where stderr is no terminal, seconds.
_LINE_SECONDS = 5.0

_WAITING = "waiting for a worker (the first one loads its model)"


class _RateColumn(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(f"{task.speed or 0:.1f} samples/s")


class _Lines:
    """Plain lines for logs."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._shown_at = monotonic()
        #: When the first batch began to run, and how much was done before that.
        self._began: tuple[float, int] | None = None

    def show(self, tally: Tally, running: int) -> None:
        now = monotonic()
        if self._began is None and running:
            self._began = now, tally.total
        if tally.total < self._total and now - self._shown_at < _LINE_SECONDS:
            return
        self._shown_at = now
        line = f"{tally.total}/{self._total} samples, {tally.failed} failed, {self._pace(tally, now)}"
        print(line, file=sys.stderr, flush=True)

    def _pace(self, tally: Tally, now: float) -> str:
        if self._began is None:
            return _WAITING if tally.total < self._total else "nothing left to do"
        began_at, done_before = self._began
        rate = (tally.total - done_before) / max(now - began_at, 1e-9)
        return f"{rate:.1f} samples/s, ETA {_eta(self._total - tally.total, rate)}"


class _Bar:
    """A bar for people; its clock starts when the first batch runs."""

    def __init__(self, progress: Progress, total: int) -> None:
        self._progress = progress
        self._task = progress.add_task(_WAITING, total=total, start=False)
        self._has_begun = False

    def show(self, tally: Tally, running: int) -> None:
        if not self._has_begun and running:
            self._has_begun = True
            self._progress.start_task(self._task)
        state = f"{tally.failed} failed, {running} batches running" if self._has_begun else _WAITING
        self._progress.update(self._task, completed=tally.total, description=state)


@contextmanager
def progress(total: int) -> Iterator[_Lines | _Bar]:
    """Something whose `show(tally, running)` may be called as often as one likes."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _Lines(total)
        return
    columns = (
        BarColumn(),
        MofNCompleteColumn(),
        _RateColumn(),
        TimeElapsedColumn(),
        TextColumn("ETA"),
        TimeRemainingColumn(),
        TextColumn("{task.description}"),
    )
    with Progress(*columns, console=console) as shown:
        yield _Bar(shown, total)


def _eta(remaining: int, rate: float) -> str:
    if remaining == 0:
        return "0 s"
    return f"{remaining / rate:.0f} s" if rate else "unknown"
