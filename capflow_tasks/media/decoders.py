"""A few child processes that decode, so that a codec which crashes or hangs takes nothing else with it.

A child has one job at a time and a pipe of its own: whose job ended it is never in doubt. Knows nothing of
what the job is. A child imports what its jobs need, and so neither torch nor vLLM.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache, lru_cache
from multiprocessing import get_context
from multiprocessing.connection import Connection
from threading import BoundedSemaphore
from typing import Any, ParamSpec, TypeVar

import numpy as np
from numpy.typing import NDArray

from capflow_tasks.errors import MediaCorrupt, MediaUnreadable, SampleError
from capflow_tasks.lifeline import exit_with_parent
from capflow_tasks.media.budget import MediaBudget
from capflow_tasks.media.paths import check_file
from capflow_tasks.media.player import VideoFacts, measure_video, play_video

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
    # A job that hangs must not outlive a parent that was killed.
    exit_with_parent()
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


@cache
def shared_video_files(decoders: int) -> VideoFiles:
    """The one of this process: the stages and the engines know the same files."""
    return VideoFiles(Decoders(decoders))


#: Files whose facts are remembered.
_KNOWN_FILES = 1024


class VideoFiles:
    """Measures and plays videos in `decoders`."""

    def __init__(self, decoders: Decoders) -> None:
        self._decoders = decoders
        self._facts = lru_cache(_KNOWN_FILES)(self._measure)

    def measure(self, path: str, budget: MediaBudget) -> VideoFacts:
        """Return what is known of the file; opened only when it is new or has changed."""
        found = check_file(path, budget.max_file_bytes)
        limits = MediaBudget(
            max_file_bytes=budget.max_file_bytes,
            max_source_pixels=budget.max_source_pixels,
            timeout_seconds=budget.timeout_seconds,
        )
        return self._facts(path, limits, (found.st_size, found.st_mtime_ns))

    def play(
        self, path: str, budget: MediaBudget, facts: VideoFacts, times: Sequence[float], size: tuple[int, int]
    ) -> tuple[NDArray[np.uint8], list[float]]:
        arguments = (path, budget, facts, times, size)
        return self._decoders.run(path, budget.timeout_seconds, play_video, *arguments)

    def _measure(self, path: str, limits: MediaBudget, _state: tuple[int, int]) -> VideoFacts:
        return self._decoders.run(path, limits.timeout_seconds, measure_video, path, limits)
