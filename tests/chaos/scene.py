"""What a scenario acts on: a working fleet, and how soon the batches that a fault hit have moved on."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from random import Random
from threading import Event
from time import monotonic
from typing import TypeVar

from redis.exceptions import RedisError
from sqlalchemy import Engine, select
from sqlalchemy.exc import OperationalError

from capflow_tasks.errors import EXIT_SERVICE
from capflow_tasks.records import Stage
from capflow_tasks.store.states import BatchState
from capflow_tasks.store.tables import Batch
from tests.chaos.fleet import Fleet
from tests.chaos.services import Postgres, Redis

T = TypeVar("T")

_POLL_SECONDS = 0.02
#: Most starts of a producer, intended or not.
_MAX_STARTS = 200


class RunOver(Exception):
    """The run finished before the fault could be injected."""


@dataclass(frozen=True, slots=True)
class OpenBatch:
    id: int
    state: BatchState
    next_stage: Stage | None
    attempt: int
    owner: str | None


@dataclass(frozen=True, slots=True)
class _Hit:
    """The batches that a fault hit, and when."""

    at: float
    before: dict[int, Stage | None]
    #: Whether all of them must move on, or any.
    needs_all: bool


class Scene:
    """Wait for moments, restart workers while waiting, and time each recovery."""

    def __init__(
        self, fleet: Fleet, redis: Redis, postgres: Postgres, engine: Engine, random: Random
    ) -> None:
        self.fleet = fleet
        self.redis = redis
        self.postgres = postgres
        self.engine = engine
        self.random = random
        self.faults = 0
        self.recoveries: list[float] = []
        self.complaints: list[str] = []
        #: Called at every poll, for faults that continue.
        self.meanwhile: Callable[[], None] = lambda: None
        #: Lease owners whose process was killed.
        self.dead: set[str] = set()
        self._hits: list[_Hit] = []

    def open_batches(self) -> list[OpenBatch]:
        """Return the batches that have not finished."""
        columns = (Batch.id, Batch.state, Batch.next_stage, Batch.attempt, Batch.lease_owner)
        with self.engine.connect() as connection:
            rows = connection.execute(select(*columns).where(Batch.state != BatchState.DONE)).all()
        return [OpenBatch(*row) for row in rows]

    def held(self) -> list[OpenBatch]:
        """Return the batches that a living worker runs now."""
        return [
            batch
            for batch in self.open_batches()
            if batch.state == BatchState.RUNNING and batch.owner and batch.owner not in self.dead
        ]

    def struck(self, batches: Collection[OpenBatch], *, needs_all: bool = False) -> None:
        """Count a fault, and time how long the batches it hit take to move on."""
        self.faults += 1
        if batches:
            before = {batch.id: batch.next_stage for batch in batches}
            self._hits.append(_Hit(monotonic(), before, needs_all))

    def until(self, found: Callable[[], T | None], what: str, seconds: float = 60) -> T:
        """Poll `found` until it returns something. Raises RunOver or TimeoutError."""
        deadline = monotonic() + seconds
        while monotonic() < deadline:
            if value := self.poll(found):
                return value
            if self.fleet.producer.code is not None and not self._restarts_producer():
                raise RunOver(f"the run finished before {what}")
            Event().wait(_POLL_SECONDS)
        raise TimeoutError(f"{seconds:g} s passed before {what}")

    def until_recovered(self, seconds: float = 60) -> None:
        self.until(lambda: not self._hits, "all batches that were hit had moved on", seconds)

    def until_over(self, seconds: float) -> int:
        """Wait for the producer's exit code; restart it if it crashes. Raises TimeoutError."""
        deadline = monotonic() + seconds
        while monotonic() < deadline:
            self.poll(lambda: None)
            code = self.fleet.producer.code
            if code is not None and not self._restarts_producer():
                return code
            Event().wait(_POLL_SECONDS)
        raise TimeoutError(f"the run had not finished after {seconds:g} s")

    def poll(self, found: Callable[[], T | None]) -> T | None:
        """Restart workers and call `found`; None where a server is away."""
        self.fleet.tend()
        try:
            self.meanwhile()
            self._watch_recovery()
            return found()
        except (OperationalError, RedisError):
            return None

    def _restarts_producer(self) -> bool:
        """Restart a producer that crashed and note it; False if it had finished."""
        code = self.fleet.producer.code
        if code in (0, 1) or self.fleet.producer.starts > _MAX_STARTS:
            return False
        words = self.fleet.last_words()
        # A producer that starts while a server is away may exit; one that has started must wait.
        if code != EXIT_SERVICE or "cannot be reached" not in words:
            self.complaints.append(f"the producer exited with code {code}: {words}")
        self.fleet.producer.start()
        return True

    def _watch_recovery(self) -> None:
        if not self._hits:
            return
        now = {batch.id: batch.next_stage for batch in self.open_batches()}
        for hit in list(self._hits):
            moved = [now.get(batch, "done") != stage for batch, stage in hit.before.items()]
            if all(moved) if hit.needs_all else any(moved):
                self.recoveries.append(monotonic() - hit.at)
                self._hits.remove(hit)
