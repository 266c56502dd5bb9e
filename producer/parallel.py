"""Calls a function for many tasks in several processes, and prints progress now and then."""

import signal
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import active_children
from time import monotonic
from typing import TypeVar

from capflow_tasks.errors import EXIT_INTERRUPTED, ServiceError
from capflow_tasks.lifeline import exit_with_parent

T = TypeVar("T")
R = TypeVar("R")

#: Called with the number of finished tasks and the number of all.
Progress = Callable[[int, int], None]

#: Between two lines of progress.
_LINE_SECONDS = 5.0


class ProgressLines:
    """Prints a line on stderr every few seconds, and at the end."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._printed_at = monotonic()

    def __call__(self, done: int, total: int | None = None) -> None:
        if done != total and monotonic() - self._printed_at < _LINE_SECONDS:
            return
        self._printed_at = monotonic()
        of = "" if total is None else f"/{total}"
        print(f"{done}{of} {self._what}", file=sys.stderr, flush=True)


def call_all(call: Callable[[T], R], tasks: Sequence[T], processes: int, progress: Progress) -> list[R]:
    """Return what `call` returns for each task, in the order of the tasks; the first error ends all."""
    if min(processes, len(tasks)) < 2:
        results = []
        for done, task in enumerate(tasks, start=1):
            results.append(call(task))
            progress(done, len(tasks))
        return results
    with ProcessPoolExecutor(min(processes, len(tasks)), initializer=_follow_parent) as pool:
        try:
            futures = [pool.submit(call, task) for task in tasks]
            for done, future in enumerate(as_completed(futures), start=1):
                future.result()
                progress(done, len(tasks))
            return [future.result() for future in futures]
        except BrokenProcessPool as error:
            raise ServiceError(
                "a process that reads files was killed, perhaps for lack of memory; "
                "run again with --processes 1"
            ) from error
        except BaseException:
            for child in active_children():
                child.terminate()
            raise


def _follow_parent() -> None:
    """Leave Ctrl-C to the parent, and exit when it exits."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    exit_with_parent(EXIT_INTERRUPTED)
