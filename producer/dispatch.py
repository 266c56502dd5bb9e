"""The producer's loop: keep a window of batches in flight until every sample has come to its end.

What was done before is skipped, what was lost is sent again; all of that is read from the database,
so the loop may be killed at any instant and started again.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Event

from capflow_tasks.domains.catalogue import Catalogue
from capflow_tasks.entries import media_of, task_of
from capflow_tasks.errors import BadEntry, PlanError
from capflow_tasks.records import Failure, JsonObject, Modality, PlanShard, Stage
from capflow_tasks.store.rows import NewBatch, NewSample, ShardRow, Tally
from capflow_tasks.store.runs import RunStore
from capflow_tasks.store.views import Views
from producer.broker import Broker, publish_ready
from producer.reading.annotations import Entry, read_entries
from producer.reconcile import Reconciler


@dataclass(frozen=True, slots=True)
class Expansion:
    """How entries become batches; the same for all shards of a run."""

    catalogue: Catalogue
    #: Samples per batch, at most.
    batch_size: int
    #: Stages of the run, in order.
    stages: tuple[Stage, ...]

    def batches(self, shard: PlanShard, start_idx: int) -> Iterator[NewBatch]:
        """The shard's batches from this index on. Raises PlanError where the annotation file breaks."""
        entries = read_entries(Path(shard.annotation), start_idx, shard.end_idx)
        samples = (self._sample(shard, entry) for entry in entries)
        return batches_of(samples, self.batch_size, self.stages)

    def _sample(self, shard: PlanShard, entry: Entry) -> NewSample:
        if entry.value is None:
            return _unusable(entry.index, {}, entry.problem or BadEntry.__doc__ or "")
        try:
            return NewSample(entry.index, entry.value, self._domain(shard, entry.value))
        except BadEntry as error:
            return _unusable(entry.index, entry.value, str(error))

    def _domain(self, shard: PlanShard, entry: JsonObject) -> str | None:
        """The entry's own task, else the shard's, else the one for videos; None is left to the router."""
        kinds = {kind for kind, _ in media_of(entry, shard.modality)}
        given = task_of(entry, lambda task: self.catalogue.resolve(task).name) or shard.task
        if given is None and Modality.VIDEO in kinds:
            return self.catalogue.for_video().name
        return given


def batches_of(samples: Iterator[NewSample], batch_size: int, stages: Sequence[Stage]) -> Iterator[NewBatch]:
    """The samples in batches; where reading them breaks, the PlanError comes after those read before."""
    broken: PlanError | None = None
    group: list[NewSample] = []
    try:
        for sample in samples:
            group.append(sample)
            if len(group) == batch_size:
                yield NewBatch(_first_stage(group, stages), group)
                group = []
    except PlanError as error:
        broken = error
    if group:
        yield NewBatch(_first_stage(group, stages), group)
    if broken:
        raise broken


def _first_stage(samples: Sequence[NewSample], stages: Sequence[Stage]) -> Stage | None:
    """Where the chain begins: routing is skipped when every domain is known already."""
    alive = [sample for sample in samples if sample.failure is None]
    if not alive:
        return None
    is_routed = all(sample.domain for sample in alive)
    wanted = [stage for stage in stages if not (is_routed and stage is Stage.ROUTE)]
    return wanted[0] if wanted else stages[0]


def _unusable(index: int, entry: JsonObject, reason: str) -> NewSample:
    failure = Failure(Stage.ROUTE, BadEntry.kind, reason, is_retryable=False)
    return NewSample(index, entry, None, failure)


log = logging.getLogger(__name__)

#: Gives the batches of a shard from an index on; raises PlanError where the file behind it breaks off.
Expand = Callable[[PlanShard, int], Iterator[NewBatch]]

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
