"""Finds what was lost and makes it ready to be sent again. One lease, in PostgreSQL, decides.

Lost is: a batch whose lease ran out, since its worker died or its message waited for too long; and a
batch that should have a message in the broker and has none, twice in a row.
"""

from __future__ import annotations

import logging
from time import monotonic

from capflow_tasks.store.claims import WorkerStore
from capflow_tasks.store.runs import RunStore
from producer.broker import Broker, Held

log = logging.getLogger(__name__)

#: Between two looks, seconds. A message that is being delivered may be missed by one look, not by two.
LOOK_SECONDS = 2.0


class Reconciler:
    """Looks after one run, or after all of them; any number of reconcilers may look at once."""

    def __init__(
        self,
        runs: RunStore,
        workers: WorkerStore,
        broker: Broker,
        lease_seconds: float,
        run_id: int | None = None,
    ) -> None:
        self._runs = runs
        self._workers = workers
        self._broker = broker
        self._lease_seconds = lease_seconds
        self._run_id = run_id
        #: Since when a queued batch has had no message that waits.
        self._silent_since: dict[int, float] = {}
        self._looked_at = -LOOK_SECONDS

    def look(self) -> int:
        """How many batches were found lost and are ready again; does nothing right after the last look."""
        if monotonic() - self._looked_at < LOOK_SECONDS:
            return 0
        self._looked_at = monotonic()
        self._broker.drop_queues_of(self._workers.remove_silent(2 * self._lease_seconds))
        lost = self._runs.requeue_stale(self._run_id) + self._requeue_missing()
        if lost:
            log.warning("%s batches were lost and are sent again", lost)
        return lost

    def _requeue_missing(self) -> int:
        queued = self._runs.queued(self._run_id)
        held = self._broker.look() if queued else Held(set(), set())
        if held is None:
            # The broker is away: what it holds is not known.
            return 0
        now = monotonic()
        self._silent_since = {each: self._silent_since.get(each, now) for each in queued - held.waiting}
        gone = {
            each
            for each, since in self._silent_since.items()
            # A message that was delivered starts its batch at once, unless its worker died before that.
            if now - since >= (self._lease_seconds if each in held.delivered else LOOK_SECONDS)
        }
        for each in gone:
            del self._silent_since[each]
        return self._runs.requeue_lost(gone) if gone else 0
