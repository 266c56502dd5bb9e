"""A few child processes that decode, so that a codec which crashes or hangs takes nothing else with it.

A child has one job at a time and a pipe of its own: whose job ended it is never in doubt. Knows nothing of
what the job is. A child imports what its jobs need, and so neither torch nor vLLM.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import get_context, parent_process
from multiprocessing.connection import Connection, wait
from threading import BoundedSemaphore, Thread
from typing import Any, ParamSpec, TypeVar

from capflow_tasks.errors import MediaCorrupt, MediaUnreadable, SampleError

P = ParamSpec("P")
T = TypeVar("T")

#: How a process ends that did something forbidden; any other end was somebody else's doing.
_CRASHES = {
    getattr(signal, name)
    for name in ("SIGSEGV", "SIGBUS", "SIGABRT", "SIGFPE", "SIGILL", "SIGTRAP", "SIGSYS")
}
#: A child that is not up by then never will be.
_START_SECONDS = 60.0
#: Beyond the job's own time limit, which it may keep itself.
_GRACE_SECONDS = 2.0


class Decoders:
    """Runs jobs in child processes, at most `count` at a time; for any number of threads."""

    def __init__(self, count: int) -> None:
        self._slots = BoundedSemaphore(count)
        self._idle: list[_Child] = []

    def run(
        self, path: str, timeout_seconds: float, job: Callable[P, T], *arguments: P.args, **options: P.kwargs
    ) -> T:
        """Return the job's result, or raise its SampleError, or why it came to no end; `path` is the file."""
        with self._slots:
            for _ in range(2):
                with self._child() as child:
                    try:
                        answer = child.ask((job, arguments, options), timeout_seconds + _GRACE_SECONDS)
                    except TimeoutError:
                        limit = f"its time limit of {timeout_seconds:g} s"
                        raise MediaUnreadable(f"{path} was not decoded within {limit}.") from None
                    except (EOFError, OSError):
                        ended_by = child.ended_by()
                        if ended_by in _CRASHES:
                            reason = signal.Signals(ended_by).name
                            raise MediaCorrupt(f"{path} crashed the decoder ({reason}).") from None
                        # stopped from outside, perhaps before it took this job: another one is asked
                        continue
                if isinstance(answer, SampleError):
                    raise answer
                result: T = answer
                return result
        raise MediaUnreadable(f"{path}: the process that decodes it was ended twice; is memory short?")

    def stop(self) -> None:
        """End the children that have nothing to do; a later job starts new ones."""
        while self._idle:
            self._idle.pop().kill()

    @contextmanager
    def _child(self) -> Iterator[_Child]:
        """Lend a child; one that has not answered is ended."""
        try:
            child = self._idle.pop()
        except IndexError:
            child = _Child()
        try:
            yield child
        finally:
            if child.is_ready:
                self._idle.append(child)
            else:
                child.kill()


class _Child:
    def __init__(self) -> None:
        context = get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs,), name="decoder", daemon=True)
        # A Ctrl-C that is typed at the worker is not meant for its decoders.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            self._process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        theirs.close()
        self._is_up = False
        #: Whether it may be given a job.
        self.is_ready = True

    def ask(self, job: Any, timeout_seconds: float) -> Any:
        self.is_ready = False
        if not self._is_up:
            self._receive(_START_SECONDS)
            self._is_up = True
        self._pipe.send(job)
        answer = self._receive(timeout_seconds)
        self.is_ready = True
        return answer

    def _receive(self, timeout_seconds: float) -> Any:
        if not self._pipe.poll(timeout_seconds):
            raise TimeoutError
        return self._pipe.recv()

    def ended_by(self) -> int:
        """Number of the signal that ended it, 0 if none did."""
        self._process.join(_GRACE_SECONDS)
        return max(0, -(self._process.exitcode or 0))

    def kill(self) -> None:
        self._process.kill()
        self._process.join()
        self._pipe.close()


def _serve(pipe: Connection) -> None:
    """Answer jobs until the parent has gone."""
    Thread(target=_end_with_parent, daemon=True).start()
    pipe.send(None)
    while True:
        try:
            job, arguments, options = pipe.recv()
        except EOFError:
            return
        try:
            answer = job(*arguments, **options)
        except SampleError as error:
            answer = error
        except Exception as error:  # a reader may raise anything on a malformed file
            answer = MediaCorrupt(f"the decoder failed: {type(error).__name__}: {error}")
        pipe.send(answer)


def _end_with_parent() -> None:
    """A job that hangs must not outlive a parent that was killed."""
    parent = parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(0)
