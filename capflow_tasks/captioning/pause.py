"""Keeps a worker from taking batches while its node is at fault, and lets it try again afterwards."""

import logging
from collections.abc import Callable
from threading import Event, Lock, Thread
from time import monotonic

from capflow_tasks.errors import NodeFault

log = logging.getLogger(__name__)

#: Between two looks at whether the fault is over; also the first wait, which doubles while tries fail.
_LOOK_SECONDS = 2.0
#: After so long a batch is tried all the same: it may be of a run that the fault does not concern.
_LONGEST_SECONDS = 60.0
#: As a limit of open batches, since Celery takes 0 for one that is not set.
_NONE = -1


class Pause:
    """The pauses of one worker. Thread-safe.

    After a pause one batch at a time is tried, until one passes a stage.
    """

    def __init__(self, tell: Callable[[str | None], None]) -> None:
        """`tell` is called with the fault's text, with None once it is over, and at each look in between."""
        self._tell = tell
        self._wait_seconds = _LOOK_SECONDS
        self._lock = Lock()
        self._is_on_trial = False
        #: Why the worker takes no batches; None while it takes some.
        self.fault: NodeFault | None = None

    def begin(self, fault: NodeFault) -> None:
        """Take no batches until the fault is over; do nothing if the worker pauses already."""
        with self._lock:
            if self.fault is not None:
                return
            has_failed_again = self._is_on_trial and not fault.can_be_checked
            longer = min(2 * self._wait_seconds, _LONGEST_SECONDS)
            self._wait_seconds = longer if has_failed_again else _LOOK_SECONDS
            self.fault = fault
        log.warning("this worker takes no work: %s", fault)
        Thread(target=self._wait_until_over, args=(fault,), name="pause", daemon=True).start()

    def passed(self) -> None:
        """Note that a stage was finished, which ends the trial after a pause."""
        self._is_on_trial = False

    def limit(self, batches: int) -> int:
        """Return how many batches may be open, of those that could be."""
        if self.fault is not None:
            return _NONE
        return min(batches, 1) if self._is_on_trial else batches

    def _wait_until_over(self, fault: NodeFault) -> None:
        began, never = monotonic(), Event()
        self._tell(str(fault))
        never.wait(self._wait_seconds)
        while not fault.is_over() and monotonic() - began < _LONGEST_SECONDS:
            self._tell(str(fault))
            never.wait(_LOOK_SECONDS)
        self.fault, self._is_on_trial = None, True
        log.info("this worker takes work again")
        self._tell(None)
