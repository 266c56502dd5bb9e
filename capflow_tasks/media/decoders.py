"""Decodes videos in child processes, so that a codec that crashes or hangs harms only its own file.

A child has one job at a time and its own pipe, so it is always clear which job ended it. Children import
neither torch nor vLLM.
"""

import signal
from collections.abc import Callable, Sequence
from functools import cache, lru_cache
from multiprocessing import get_context
from multiprocessing.connection import Connection
from queue import LifoQueue
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from capflow_tasks.errors import DecodersBroken, MediaCorrupt, MediaUnreadable, SampleError
from capflow_tasks.lifeline import exit_with_parent
from capflow_tasks.media import paths, player
from capflow_tasks.media.budget import MediaBudget
from capflow_tasks.media.player import VideoFacts

T = TypeVar("T")

#: Signals of a process that crashed; any other signal comes from outside.
_CRASHES = {
    getattr(signal, name)
    for name in ("SIGSEGV", "SIGBUS", "SIGABRT", "SIGFPE", "SIGILL", "SIGTRAP", "SIGSYS")
}
#: The answer of a child that was killed from outside, perhaps before it took the job: another child is tried.
_KILLED = object()
#: The answer of a child that ended, or hung, before it took the job: the file has no part in it.
_NOT_STARTED = object()
#: Added to the job's time limit, so that the job can report the timeout itself.
_GRACE_SECONDS = 2.0


class VideoFiles:
    """Measures and plays videos in at most `count` child processes. Thread-safe."""

    def __init__(self, count: int) -> None:
        #: One item per process that may run: an idle child, or None where none has been started.
        self._idle: LifoQueue[_Child | None] = LifoQueue()
        for _ in range(count):
            self._idle.put(None)
        self._facts = lru_cache(1024)(self._measure)

    def measure(self, path: str, budget: MediaBudget) -> VideoFacts:
        """Return the facts of the file, which is opened only if it is new or has changed."""
        found = paths.check_file(path, budget.max_file_bytes)
        limits = MediaBudget(
            max_file_bytes=budget.max_file_bytes,
            max_source_pixels=budget.max_source_pixels,
            timeout_seconds=budget.timeout_seconds,
        )
        return self._facts(path, limits, (found.size, found.mtime_ns))

    def _measure(self, path: str, limits: MediaBudget, _state: tuple[int, int]) -> VideoFacts:
        return self.run(path, limits.timeout_seconds, player.measure, path, limits)

    def play(
        self, path: str, budget: MediaBudget, facts: VideoFacts, times: Sequence[float], size: tuple[int, int]
    ) -> tuple[NDArray[np.uint8], list[float]]:
        return self.run(path, budget.timeout_seconds, player.play, path, budget, facts, times, size)

    def run(self, path: str, timeout_seconds: float, job: Callable[..., T], *arguments: Any) -> T:
        """Return the job's result or raise its SampleError.

        Also raises MediaUnreadable, MediaCorrupt, and DecodersBroken where no child starts.

        `path` is the file that errors name.
        """
        for _ in range(2):
            child = self._idle.get()
            try:
                child = child or _Child()
                answer = child.ask(path, (job, arguments), timeout_seconds)
            finally:
                self._idle.put(child if child and child.is_ready else None)
            if isinstance(answer, SampleError):
                raise answer
            if answer not in (_KILLED, _NOT_STARTED):
                result: T = answer
                return result
        if answer is _NOT_STARTED:
            raise DecodersBroken(
                "no process that decodes videos starts on this node; check its memory, its limit of "
                "processes (ulimit -u) and this worker's log"
            )
        raise MediaUnreadable(f"{path}: its decoder process was killed twice; check the machine's memory.")

    def stop(self) -> None:
        """End the idle children; a later job starts new ones."""
        for child in [self._idle.get() for _ in range(self._idle.qsize())]:
            if child:
                child.kill()
            self._idle.put(None)


#: The shared instance of this process: stages and engines measure each file once.
shared_video_files = cache(VideoFiles)


class _Child:
    def __init__(self) -> None:
        context = get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs,), name="decoder", daemon=True)
        # Ctrl-C in the worker's terminal must not reach its decoders
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            self._process.start()
        except OSError as error:
            raise DecodersBroken(
                f"no process that decodes videos can be started: {error.strerror}; check this node's memory "
                "and its limits (ulimit -u, ulimit -n)"
            ) from error
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        theirs.close()
        #: Whether it can take a job.
        self.is_ready = False

    def ask(self, path: str, job: Any, timeout_seconds: float) -> Any:
        """Return the job's result or SampleError, _KILLED or _NOT_STARTED.

        Raises MediaUnreadable and MediaCorrupt.
        """
        self.is_ready = has_begun = False
        try:
            self._pipe.send(job)
            self._receive(60.0)  # a child that takes longer to start has failed
            has_begun = True
            answer = self._receive(timeout_seconds + _GRACE_SECONDS)
            self.is_ready = True
        except TimeoutError:
            if not has_begun:
                return _NOT_STARTED
            limit = f"its time limit of {timeout_seconds:g} s"
            raise MediaUnreadable(f"{path} was not decoded within {limit}.") from None
        except (EOFError, OSError):
            self._process.join(_GRACE_SECONDS)
            if not has_begun:
                return _NOT_STARTED
            ended_by = -(self._process.exitcode or 0)
            if ended_by in _CRASHES:
                reason = signal.Signals(ended_by).name
                raise MediaCorrupt(f"{path} crashed the decoder ({reason}).") from None
            return _KILLED
        finally:
            if not self.is_ready:
                self.kill()
        return answer

    def _receive(self, timeout_seconds: float) -> Any:
        if not self._pipe.poll(timeout_seconds):
            raise TimeoutError
        return self._pipe.recv()

    def kill(self) -> None:
        self._process.kill()
        self._process.join()
        self._pipe.close()


def _serve(pipe: Connection) -> None:
    """Run jobs until the parent ends; confirm each before it is run."""
    exit_with_parent()  # a job that hangs must not outlive a parent that was killed
    while True:
        try:
            job, arguments = pipe.recv()
        except EOFError:
            return
        pipe.send(None)
        try:
            answer = job(*arguments)
        except SampleError as error:
            answer = error
        except Exception as error:  # a reader may raise anything on a malformed file
            answer = MediaCorrupt(f"the decoder failed: {type(error).__name__}: {error}")
        pipe.send(answer)
