"""Runs jobs on media files in child processes, so that a job that crashes or hangs harms only its own file.

A child has one job at a time and its own pipe, so it is always clear which job ended it. Children import
neither torch nor vLLM.
"""

import os
import signal
from collections.abc import Callable
from multiprocessing import get_context
from multiprocessing.connection import Connection
from queue import LifoQueue
from typing import Any, ClassVar, TypeVar

from capflow_tasks.errors import DecodersBroken, MediaCorrupt, MediaUnreadable, SampleError
from capflow_tasks.lifeline import exit_with_parent

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


class ChildProcesses:
    """Runs jobs in at most `count` child processes. Thread-safe."""

    #: What one child is, what it does, and what a file is when it is done: words of error messages.
    child_name: ClassVar[str] = "child"
    does: ClassVar[str] = "runs jobs"
    done: ClassVar[str] = "processed"
    #: Added to the children's niceness, 0 to 19: higher yields to the worker's own threads.
    niceness: ClassVar[int] = 0

    def __init__(self, count: int) -> None:
        #: One item per process that may run: an idle child, or None where none has been started.
        self._idle: LifoQueue[_Child | None] = LifoQueue()
        for _ in range(count):
            self._idle.put(None)

    def run(self, path: str, timeout_seconds: float, job: Callable[..., T], *arguments: Any) -> T:
        """Return the job's result or raise its SampleError.

        Also raises MediaUnreadable, MediaCorrupt, and DecodersBroken where no child starts.

        `path` is the file that errors name.
        """
        for _ in range(2):
            child = self._idle.get()
            try:
                child = child or _Child(self)
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
                f"no process that {self.does} starts on this node; check its memory, its limit of "
                "processes (ulimit -u) and this worker's log"
            )
        raise MediaUnreadable(
            f"{path}: its {self.child_name} process was killed twice; check the machine's memory."
        )

    def stop(self) -> None:
        """End the idle children; a later job starts new ones."""
        for child in [self._idle.get() for _ in range(self._idle.qsize())]:
            if child:
                child.kill()
            self._idle.put(None)


class _Child:
    def __init__(self, of: ChildProcesses) -> None:
        self._of = of
        context = get_context("spawn")
        self._pipe, theirs = context.Pipe()
        serves = (theirs, of.child_name, of.niceness)
        self._process = context.Process(target=_serve, args=serves, name=of.child_name, daemon=True)
        # Ctrl-C in the worker's terminal must not reach its children
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            self._process.start()
        except OSError as error:
            raise DecodersBroken(
                f"no process that {of.does} can be started: {error.strerror}; check this node's memory "
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
            raise MediaUnreadable(f"{path} was not {self._of.done} within {limit}.") from None
        except (EOFError, OSError):
            self._process.join(_GRACE_SECONDS)
            if not has_begun:
                return _NOT_STARTED
            ended_by = -(self._process.exitcode or 0)
            if ended_by in _CRASHES:
                reason = signal.Signals(ended_by).name
                raise MediaCorrupt(f"{path} crashed the {self._of.child_name} ({reason}).") from None
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


def _serve(pipe: Connection, name: str, niceness: int) -> None:
    """Run jobs until the parent ends; confirm each before it is run."""
    os.nice(niceness)
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
            answer = MediaCorrupt(f"the {name} failed: {type(error).__name__}: {error}")
        pipe.send(answer)
