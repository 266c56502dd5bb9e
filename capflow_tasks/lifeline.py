"""Ties a child process to its parent, so that a killed worker leaves no engine behind on its GPU."""

from __future__ import annotations

import multiprocessing
import os
import signal
from contextlib import suppress
from ctypes import CDLL

_PR_SET_PDEATHSIG = 1


def die_with_parent(number: int = signal.SIGTERM) -> None:
    """Have the kernel send this process a signal when its parent ends, even when that one is killed.

    Linux only; elsewhere nothing happens. To be called in the child.
    """
    with suppress(OSError, AttributeError):
        CDLL(None).prctl(_PR_SET_PDEATHSIG, number)


def tie_engine_process() -> None:
    """VLLM's plugin hook: called in each of its processes, it ties those that vLLM has spawned."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return
    die_with_parent(signal.SIGKILL)
    if os.getppid() != parent.pid:
        # The parent ended before the line above.
        os._exit(1)
