"""Extends the leases of running batches, until the process stops or dies."""

import logging
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Event, Lock, Thread
from time import monotonic

from sqlalchemy.exc import SQLAlchemyError

from capflow_tasks import outages
from capflow_tasks.store.claims import WorkerStore

log = logging.getLogger(__name__)


class Heartbeat:
    """A thread that extends the leases of the batches inside `beating_for`, three times per lease."""

    def __init__(self, store: WorkerStore, owner: str, lease_seconds: float) -> None:
        self.owner = owner
        self._store = store
        self._lease_seconds = lease_seconds
        #: Counted, since two copies of a message may run one batch.
        self._batch_ids: Counter[int] = Counter()
        self._lock = Lock()
        self._beaten_at = float("-inf")
        #: Why the worker takes no work; None while it takes some.
        self._fault: str | None = None
        #: Set when a beat is due at once.
        self._wake = Event()
        self._is_stopping = False
        self._thread = Thread(target=self._beat_until_stopped, name="heartbeat", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._is_stopping = True
        self._wake.set()
        self._thread.join()
        self.resign()

    def resign(self) -> None:
        """Give back every batch that this owner holds."""
        try:
            self._store.resign(self.owner)
        except SQLAlchemyError as error:
            log.warning("leases are not given back and will run out: %s", outages.explained(error))

    def tell(self, fault: str | None) -> None:
        """Have the list of workers say from now on why this one takes no work; None when it takes some."""
        if fault != self._fault:
            self._fault = fault
            self._wake.set()

    @property
    def age_seconds(self) -> float:
        """Time since a beat reached the database."""
        return monotonic() - self._beaten_at

    @property
    def is_fresh(self) -> bool:
        """Whether this worker's leases still hold."""
        return self.age_seconds < self._lease_seconds

    @contextmanager
    def beating_for(self, batch_id: int) -> Iterator[None]:
        with self._lock:
            self._batch_ids[batch_id] += 1
        try:
            yield
        finally:
            with self._lock:
                self._batch_ids[batch_id] -= 1
                self._batch_ids += Counter()

    def is_beating_for(self, batch_id: int) -> bool:
        with self._lock:
            return batch_id in self._batch_ids

    def _beat_until_stopped(self) -> None:
        while True:
            with self._lock:
                batch_ids = sorted(self._batch_ids)
            try:
                self._store.beat(self.owner, batch_ids, self._lease_seconds, self._fault)
                self._beaten_at = monotonic()
            except SQLAlchemyError as error:
                # The next beat may succeed; a worker whose lease ran out meanwhile writes nothing.
                log.warning("leases are not extended: %s", outages.explained(error))
            self._wake.wait(self._lease_seconds / 3)
            self._wake.clear()
            if self._is_stopping:
                return
