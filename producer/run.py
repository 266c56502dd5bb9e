"""Runs shards through stages: inserts their samples as batches, sends these, waits until all have finished.

The database holds what has been done, so a run may be killed at any instant and opened again.
"""

import hashlib
import logging
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from threading import Event
from typing import TypeVar

from capflow_tasks.errors import PlanError, SettingsError, UserError
from capflow_tasks.records import PlanShard, Stage
from capflow_tasks.settings import Settings
from capflow_tasks.store.runs import RunStore
from capflow_tasks.store.states import NewBatch, NewSample, ShardRow, Tally
from capflow_tasks.store.statistics import Statistics
from capflow_tasks.store.views import Views
from producer.broker import CHECK_SECONDS, Reconciler, publish_ready
from producer.budget import Budget, Spending
from producer.progress import progress
from producer.services import EmbeddedWorker, Fleet, embedded_worker, reach_fleet, through_outages

log = logging.getLogger(__name__)

T = TypeVar("T")

#: Reads a shard's samples from an index on; raises PlanError where the file behind the shard breaks off.
ReadSamples = Callable[[PlanShard, int], Iterator[NewSample]]

#: Batches inserted in one transaction, at most.
_CHUNK = 64
#: Between two rounds of inserting, sending and collecting.
_POLL_SECONDS = 0.2


@dataclass(frozen=True, slots=True)
class Order:
    """What a run is asked to do."""

    #: What the run is made from: a plan, or a folder of captions.
    source: Path
    #: Folder of the files that it writes.
    output: Path
    #: Name of the run; None for one that follows from the source's path.
    run: str | None
    #: Samples per batch.
    batch_size: int
    #: In-flight batches, over all workers.
    window: int
    #: Stages to run, in order.
    stages: tuple[Stage, ...] = tuple(Stage)
    #: Samples routed with a lower confidence are held.
    min_confidence: float = 0.0
    #: Whether only the workers of a shard's rank may take it.
    pin_ranks: bool = False
    #: What it may spend; None for no limit.
    budget: Budget | None = None

    @property
    def run_name(self) -> str:
        return self.run or name_of_run(self.source)


def name_of_run(source: Path) -> str:
    """Name a run after its source: the same name for the same path, wherever the command is typed."""
    digest = hashlib.sha256(str(source.resolve()).encode()).hexdigest()
    return f"{source.stem}-{digest[:8]}"


class OpenRun:
    """One run, opened in the database; it goes on with what an earlier run of that name has left."""

    def __init__(
        self, fleet: Fleet, order: Order, shards: Sequence[PlanShard], *, forget_other_shards: bool = False
    ) -> None:
        """Open the run and add its shards. Raises UserError when its unfinished batches need other stages."""
        self.views = Views(fleet.engine)
        self.runs = RunStore(fleet.engine)
        self._fleet = fleet
        self.order = order
        self.id = self.runs.open_run(
            order.run_name,
            str(order.source.resolve()),
            str(order.output),
            order.stages,
            order.min_confidence,
            pin_ranks=order.pin_ranks,
        )
        #: In the order given.
        self.shards = self.runs.add_shards(self.id, shards)
        #: One message for each file that broke off; the other shards went on.
        self.problems: list[str] = []
        #: The limit that paused the run; None when none did.
        self.pause: str | None = None
        if forget_other_shards:
            self.runs.forget_other_shards(self.id, [row.id for row in self.shards])
        if other_stages := self.views.open_stages(self.id) - set(order.stages):
            raise UserError(
                f"run {order.run_name} has batches that wait for {', '.join(sorted(other_stages))}: "
                "finish it with its earlier --stages first, or give this one a --run of its own"
            )
        self.runs.continue_run(self.id, order.stages, order.min_confidence)

    def retry_failed(self, kinds: Sequence[str] = (), domains: Sequence[str] = ()) -> None:
        """Try failed samples again: all, or those of some kinds and domains, by canonical names."""
        if count := self.runs.retry_failed(self.id, kinds, domains):
            log.info("trying %s again", "1 failed sample" if count == 1 else f"{count} failed samples")

    def finish(self, read_samples: ReadSamples, stopping: Event) -> bool:
        """Send what is not done and wait for it; return False when stopped before the end.

        Waits while the database or the broker is away. Raises ServiceError when no worker can start.
        """
        fleet = self._fleet
        ranks = {row.shard.assign_rank for row in self.shards} if self.order.pin_ranks else set()
        ask = partial(Statistics(fleet.engine).activity, self.id, fleet.settings.lease_seconds)
        with embedded_worker(fleet, ranks) as worker, progress(self._sample_count, ask) as display:
            work = partial(self._work, read_samples, worker, display.show, stopping)
            return through_outages(work, stopping)

    def _work(
        self,
        read_samples: ReadSamples,
        worker: EmbeddedWorker | None,
        show: Callable[[Tally, int], None],
        stopping: Event,
    ) -> bool:
        """Insert, send and collect until all is done; call it again after an outage."""
        fleet = self._fleet
        reconciler = Reconciler(fleet.engine, fleet.broker, fleet.settings.lease_seconds, self.id)
        in_flight = InFlightBatches(self, read_samples)
        budget = self.order.budget
        spending = budget and Spending(budget, Statistics(fleet.engine), self.id)
        self.problems = in_flight.problems
        tally = self.views.tally(self.id)
        while not (stopping.is_set() or self.runs.is_stopped(self.id)):
            in_flight.fill()
            if spending and (reached := spending.limit_reached()) and not in_flight.is_finished():
                self.pause = reached
                self.runs.stop(self.id)
                return False
            reconciler.reconcile()
            publish_ready(self.runs, fleet.broker, fleet.settings.queue_seconds, self.id)
            tally += in_flight.collect()
            if worker is not None and tally.total < self._sample_count:
                worker.check()
            show(tally, self.views.running_now(self.id))
            if in_flight.is_finished():
                return True
            stopping.wait(_POLL_SECONDS)
        return False

    @property
    def _sample_count(self) -> int:
        return sum(row.shard.sample_count for row in self.shards)


class InFlightBatches:
    """The batches of a run that are inserted and have not finished; made anew after an outage."""

    def __init__(self, run: OpenRun, read_samples: ReadSamples) -> None:
        self._run = run
        self._read_samples = read_samples
        # How far each shard is inserted may have changed since it was added.
        shards = {row.id: row for row in run.views.shards(run.id)}
        self._chunks = self._insert([shards[row.id] for row in run.shards if row.id in shards])
        self._is_inserted = False
        self._ids = set(run.views.open_batches(run.id))
        #: One message for each file that broke off; the other shards went on.
        self.problems: list[str] = []

    def fill(self) -> None:
        """Insert batches until enough are in flight or no sample is left."""
        while not self._is_inserted and len(self._ids) < self._run.order.window:
            ids = next(self._chunks, None)
            if ids is None:
                self._is_inserted = True
                return
            self._ids.update(ids)

    def collect(self) -> Tally:
        """Count the samples of the batches that have finished since the last call."""
        finished = self._run.views.finished_among(self._ids)
        self._ids -= finished.keys()
        return sum(finished.values(), Tally())

    def is_finished(self) -> bool:
        """Whether every sample of the run has finished."""
        if self._ids or not self._is_inserted:
            return False
        # Batches that were split, or that another producer inserted, are not among these.
        self._ids.update(self._run.views.open_batches(self._run.id))
        return not self._ids

    def _insert(self, rows: Sequence[ShardRow]) -> Iterator[list[int]]:
        """Insert the shards a chunk at a time; yield the ids of each chunk's batches."""
        for row in rows:
            rest: ShardRow | None = row
            try:
                while rest is not None:
                    rest = yield from self._insert_shard(rest)
            except PlanError as error:
                self.problems.append(str(error))
                log.error("%s", error)

    def _insert_shard(self, row: ShardRow) -> Generator[list[int], None, ShardRow | None]:
        """Return the shard as it stands when another producer inserts its samples too, else None."""
        cursor, order = row.expanded_to, self._run.order
        if cursor >= row.shard.end_idx:
            return None
        batches = batches_of(self._read_samples(row.shard, cursor), order.batch_size, order.stages)
        for chunk in _groups(batches, min(_CHUNK, order.window)):
            ids = self._run.runs.expand(row.id, cursor, chunk)
            if ids is None:
                rows = self._run.views.shards(self._run.id)
                return next((moved for moved in rows if moved.id == row.id), None)
            cursor = chunk[-1].end_idx
            yield ids
        return None


def batches_of(samples: Iterator[NewSample], batch_size: int, stages: Sequence[Stage]) -> Iterator[NewBatch]:
    """Group samples into batches; a PlanError from reading them comes after those read before it."""
    return (NewBatch(_first_stage(group, stages), group) for group in _groups(samples, batch_size))


def _first_stage(samples: Sequence[NewSample], stages: Sequence[Stage]) -> Stage | None:
    """Find where the chain begins: routing is skipped when every domain is known already."""
    alive = [sample for sample in samples if sample.failure is None]
    if not alive:
        return None
    is_routed = all(sample.domain for sample in alive)
    wanted = [stage for stage in stages if not (is_routed and stage is Stage.ROUTE)]
    return wanted[0] if wanted else stages[0]


def _groups(items: Iterator[T], size: int) -> Iterator[list[T]]:
    """Lists of up to `size` items; a PlanError comes after the items that came before it."""
    group: list[T] = []
    try:
        for item in items:
            group.append(item)
            if len(group) == size:
                yield group
                group = []
    except PlanError:
        if group:
            yield group
        raise
    if group:
        yield group


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

        while not stopping.wait(CHECK_SECONDS):
            through_outages(send, stopping)
