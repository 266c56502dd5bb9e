"""The producer's loop: keep a window of batches in flight until every sample has come to its end.

What was done before is skipped, what was lost is sent again; all of that is read from the database,
so the loop may be killed at any instant and started again.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from threading import Event

from capflow_tasks.errors import PlanError
from capflow_tasks.records import Shard
from capflow_tasks.store.rows import NewBatch, ShardRow, Tally
from capflow_tasks.store.runs import RunStore
from capflow_tasks.store.views import Views
from producer.broker import Broker, publish_ready
from producer.reconcile import Reconciler

log = logging.getLogger(__name__)

#: Gives the batches of a shard from an index on; raises PlanError where the file behind it breaks off.
Expand = Callable[[Shard, int], Iterator[NewBatch]]

#: Batches inserted in one transaction, at most.
_CHUNK = 64


@dataclass(frozen=True, slots=True)
class Pace:
    """How much is in flight, and how often things are looked at."""

    #: Batches in flight, at most.
    window: int
    #: A batch that waits in its queue for longer is sent again, seconds.
    queue_seconds: float
    #: Between two looks at what has finished, seconds.
    poll_seconds: float = 0.2


class Dispatcher:
    """Sends the shards of one run and watches them end."""

    def __init__(
        self,
        run_id: int,
        shards: Sequence[ShardRow],
        expand: Expand,
        runs: RunStore,
        views: Views,
        broker: Broker,
        reconciler: Reconciler,
        pace: Pace,
    ) -> None:
        self._run_id = run_id
        self._new_batches = expand
        self._runs = runs
        self._views = views
        self._broker = broker
        self._reconciler = reconciler
        self._pace = pace
        self._chunks = self._expand(shards)
        self._is_expanded = all(row.expanded_to >= row.shard.end_idx for row in shards)
        self._in_flight: set[int] = set()
        #: Annotation files that broke off, one message each; the other shards went on.
        self.problems: list[str] = []

    def run(self, on_progress: Callable[[Tally, int], None], stopping: Event) -> bool:
        """Send and watch until all is done; False when told to stop before that.

        `on_progress` gets how samples have ended so far, and how many batches run now.
        """
        self._in_flight.update(self._views.open_batches(self._run_id))
        tally = self._views.tally(self._run_id)
        while not stopping.is_set():
            self._fill_window()
            self._reconciler.look()
            publish_ready(self._runs, self._broker, self._pace.queue_seconds, self._run_id)
            tally += self._collect()
            on_progress(tally, self._views.running_now(self._run_id))
            if self.is_over():
                return True
            stopping.wait(self._pace.poll_seconds)
        return False

    def is_over(self) -> bool:
        """Whether every sample of the run has come to its end."""
        if self._in_flight or not self._is_expanded:
            return False
        # A batch that was split, or that another producer inserted, is not among ours.
        self._in_flight.update(self._views.open_batches(self._run_id))
        return not self._in_flight

    def _fill_window(self) -> None:
        while not self._is_expanded and len(self._in_flight) < self._pace.window:
            ids = next(self._chunks, None)
            if ids is None:
                self._is_expanded = True
                return
            self._in_flight.update(ids)

    def _expand(self, shards: Sequence[ShardRow]) -> Iterator[list[int]]:
        """Insert the shards a chunk at a time; yields the ids of each chunk's batches."""
        for row in shards:
            try:
                yield from self._expand_shard(row)
            except PlanError as error:
                self.problems.append(str(error))
                log.error("%s", error)

    def _expand_shard(self, row: ShardRow) -> Iterator[list[int]]:
        cursor = row.expanded_to
        if cursor >= row.shard.end_idx:
            return
        batches = self._new_batches(row.shard, cursor)
        for chunk in _chunks(batches, min(_CHUNK, self._pace.window)):
            ids = self._runs.expand(row.id, cursor, chunk)
            if ids is None:
                # Another producer runs the same plan: go on behind what it has inserted.
                yield from self._expand_shard(replace(row, expanded_to=self._runs.cursor(row.id)))
                return
            cursor = chunk[-1].end_idx
            yield ids

    def _collect(self) -> Tally:
        """How the batches ended that have ended since the last look."""
        finished = self._views.finished_among(self._in_flight)
        self._in_flight -= finished.keys()
        return sum(finished.values(), Tally())


def _chunks(batches: Iterator[NewBatch], size: int) -> Iterator[list[NewBatch]]:
    """Lists of up to `size`; an error comes after the batches that came before it."""
    chunk: list[NewBatch] = []
    try:
        for batch in batches:
            chunk.append(batch)
            if len(chunk) == size:
                yield chunk
                chunk = []
    except PlanError:
        if chunk:
            yield chunk
        raise
    if chunk:
        yield chunk
