"""Makes child processes end with their parent, so that a killed worker leaves no engine behind on its GPU."""

import multiprocessing
import os
import signal
from contextlib import suppress
from ctypes import CDLL
from threading import Thread

_PR_SET_PDEATHSIG = 1


def die_with_parent(number: int = signal.SIGTERM) -> None:
    """Have the kernel send this process a signal when the thread that started it ends. Linux only.

    Call it in the child, for example as `preexec_fn`; the parent must start the child from a lasting thread.
    """
    with suppress(OSError, AttributeError):
        CDLL(None).prctl(_PR_SET_PDEATHSIG, number)


def exit_with_parent(exit_code: int = 0) -> None:
    """Have this multiprocessing child exit when its parent process ends, whichever thread started it."""
    parent = multiprocessing.parent_process()

    def wait_and_exit() -> None:
        if parent is not None:
            parent.join()
            os._exit(exit_code)

    Thread(target=wait_and_exit, daemon=True).start()


def tie_engine_process() -> None:
    """Tie a process that vLLM spawned to its parent; vLLM calls this plugin in each of its processes."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return
    die_with_parent(signal.SIGKILL)
    if os.getppid() != parent.pid:
        # The parent ended before the kernel was asked.
        os._exit(1)
