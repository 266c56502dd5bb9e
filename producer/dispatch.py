"""Sends batches, finds those that were lost, and hears which have finished."""

import logging
from collections.abc import Iterator
from itertools import islice
from threading import Event
from time import monotonic

from capflow_tasks.errors import SettingsError
from capflow_tasks.settings import Settings
from capflow_tasks.store import claims, runs, states, views
from producer import services

log = logging.getLogger(__name__)

#: Batches published in one transaction, at most.
_PUBLISH_CHUNK = 256
#: Between two checks for lost batches. One may miss a message that is being delivered, two don't.
CHECK_SECONDS = 2.0
#: Messages sent within this time of each other may stand in a queue in another order.
_ORDER_SECONDS = 5.0
#: Between the time that a batch has finished at and its commit, as a rule.
_LATE_SECONDS = 1.0
#: Batches in flight that are asked for by their ids, in one round.
_ASKED_BY_ID = 500


class Arrivals:
    """Finds the finished batches among those in flight, at a cost that does not grow with their number.

    A batch has finished by the time at which its transaction began, so one that commits late is not found by
    its time. That is why some of the batches in flight are asked for by their ids, in turn.
    """

    def __init__(self, views: views.Views, run_id: int) -> None:
        self._views = views
        self._run_id = run_id
        self._asked_at = monotonic()
        self._turn: Iterator[int] = iter(())

    def take_from(self, in_flight: set[int]) -> list[states.Tally]:
        """Remove the finished batches; return how each ended."""
        asked_at = monotonic()
        by_id = list(islice(self._turn, _ASKED_BY_ID))
        if len(by_id) < _ASKED_BY_ID:
            self._turn = iter(sorted(in_flight))
            by_id += islice(self._turn, _ASKED_BY_ID)
        seconds = asked_at - self._asked_at + _LATE_SECONDS
        finished = self._views.finished(self._run_id, seconds, by_id)
        self._asked_at = asked_at
        arrived = finished.keys() & in_flight
        in_flight -= arrived
        return [finished[batch_id] for batch_id in arrived]


class Dispatcher:
    """Sends the batches of one run, or of all, and finds those that were lost.

    A batch is lost when its lease ran out, because its worker died, or when it is queued and two checks in a
    row find that its message waits no longer and no worker has taken it. The lease, in PostgreSQL, decides,
    so any number of dispatchers may work at once.
    """

    def __init__(self, fleet: services.Fleet, run_id: int | None = None) -> None:
        self._runs = runs.RunStore(fleet.engine)
        self._workers = claims.WorkerStore(fleet.engine)
        self._broker = fleet.broker
        self._settings = fleet.settings
        self._run_id = run_id
        #: Since when the message of a queued batch waits no longer.
        self._silent_since: dict[int, float] = {}
        #: Those of them whose message a worker had taken; it starts the batch at once, unless it dies.
        self._taken: set[int] = set()
        self._checked_at = -CHECK_SECONDS

    def send(self) -> None:
        """Publish every batch that is ready, after making lost ones ready again when a check is due."""
        if monotonic() - self._checked_at >= CHECK_SECONDS:
            self._checked_at = monotonic()
            self._broker.drop_queues_of(self._workers.remove_silent(2 * self._settings.lease_seconds))
            if lost := self._runs.requeue_stale(self._run_id) + self._requeue_missing():
                batches = "1 batch was lost and is" if lost == 1 else f"{lost} batches were lost and are"
                log.warning("%s sent again", batches)
        is_more = True
        while is_more:
            with self._runs.publishing(_PUBLISH_CHUNK, self._settings.queue_seconds, self._run_id) as ready:
                for batch in ready:
                    self._broker.publish(batch)
            is_more = len(ready) == _PUBLISH_CHUNK

    def _requeue_missing(self) -> int:
        lease_seconds = self._settings.lease_seconds
        # The queues first: a message that is sent meanwhile must not seem to be missing from them twice.
        waiting = self._broker.waiting()
        if waiting is None:
            # The broker is away: nobody knows what it holds.
            return 0
        outside = self._runs.outside_queues(waiting, _ORDER_SECONDS, self._run_id)
        now = monotonic()
        self._silent_since = {each: self._silent_since.get(each, now) for each in outside}
        silent = {each for each, since in self._silent_since.items() if now - since >= CHECK_SECONDS}
        self._taken &= silent
        if silent - self._taken:
            taken = self._broker.taken_batches()
            if taken is None:
                return 0
            self._taken |= silent & taken
        died = {each for each in self._taken if now - self._silent_since[each] >= lease_seconds}
        gone = silent - self._taken | died
        return self._runs.requeue_lost(gone) if gone else 0


def reconcile_until_stopped(settings: Settings, stopping: Event) -> None:
    """Send lost batches of all runs again, for a fleet whose producers are gone. Raises ServiceError."""
    if not (settings.database_url and settings.broker_url):
        raise SettingsError("--reconcile needs a fleet: set CAPFLOW_DATABASE_URL and CAPFLOW_BROKER_URL")
    with services.reach_fleet(settings) as fleet:
        dispatcher = Dispatcher(fleet)
        while not stopping.wait(CHECK_SECONDS):
            services.through_outages(dispatcher.send, stopping)
