"""Sends what is ready, and makes lost batches ready again. One lease, in PostgreSQL, decides.

A batch is lost when its lease ran out, because its worker died or its message waited too long, or when it
should have a message in the broker and two checks in a row find none.
"""

from __future__ import annotations

import logging
from threading import Event
from time import monotonic

from sqlalchemy import Engine

from capflow_tasks.errors import SettingsError
from capflow_tasks.settings import Settings
from capflow_tasks.store.claims import WorkerStore
from capflow_tasks.store.runs import RunStore
from producer.broker import Broker, HeldBatches
from producer.services import reach_fleet, through_outages

log = logging.getLogger(__name__)

#: Between two checks. One check may miss a message that is being delivered, two don't.
_CHECK_SECONDS = 2.0
#: Batches published in one transaction, at most.
_PUBLISH_CHUNK = 256


def publish_ready(runs: RunStore, broker: Broker, queue_seconds: float, run_id: int | None = None) -> None:
    """Publish every batch that is ready, of one run or of all."""
    while True:
        with runs.publishing(_PUBLISH_CHUNK, queue_seconds, run_id) as ready:
            for batch in ready:
                broker.publish(batch)
        if len(ready) < _PUBLISH_CHUNK:
            return


class Reconciler:
    """Finds lost batches of one run, or of all; any number of reconcilers may work at once."""

    def __init__(
        self, engine: Engine, broker: Broker, lease_seconds: float, run_id: int | None = None
    ) -> None:
        self._runs = RunStore(engine)
        self._workers = WorkerStore(engine)
        self._broker = broker
        self._lease_seconds = lease_seconds
        self._run_id = run_id
        #: Since when no message of a queued batch has waited in the broker.
        self._silent_since: dict[int, float] = {}
        self._checked_at = -_CHECK_SECONDS

    def reconcile(self) -> int:
        """Make lost batches ready and return their number; no-op right after the last check."""
        if monotonic() - self._checked_at < _CHECK_SECONDS:
            return 0
        self._checked_at = monotonic()
        self._broker.drop_queues_of(self._workers.bury(2 * self._lease_seconds))
        lost = self._runs.requeue_stale(self._run_id) + self._requeue_missing()
        if lost:
            log.warning("%s lost and sent again", "1 batch was" if lost == 1 else f"{lost} batches were")
        return lost

    def _requeue_missing(self) -> int:
        queued = self._runs.queued(self._run_id)
        held = self._broker.held_batches() if queued else HeldBatches(set(), set())
        if held is None:
            # The broker is away: nobody knows what it holds.
            return 0
        now = monotonic()
        self._silent_since = {each: self._silent_since.get(each, now) for each in queued - held.waiting}
        gone = {
            each
            for each, since in self._silent_since.items()
            # A delivered message starts its batch at once, unless its worker dies before that.
            if now - since >= (self._lease_seconds if each in held.delivered else _CHECK_SECONDS)
        }
        for each in gone:
            del self._silent_since[each]
        return self._runs.requeue_lost(gone) if gone else 0


def reconcile_until_stopped(settings: Settings, stopping: Event) -> None:
    """Send lost batches of all runs again, for a fleet whose producers are gone. Raises ServiceError."""
    if not (settings.database_url and settings.broker_url):
        raise SettingsError("--reconcile needs a fleet: set CAPFLOW_DATABASE_URL and CAPFLOW_BROKER_URL")
    with reach_fleet(settings) as fleet:
        runs = RunStore(fleet.engine)
        reconciler = Reconciler(fleet.engine, fleet.broker, settings.lease_seconds)

        def send() -> None:
            reconciler.reconcile()
            publish_ready(runs, fleet.broker, settings.queue_seconds)

        while not stopping.wait(_CHECK_SECONDS):
            through_outages(send, stopping)
