"""Turns a shard's annotation entries into batches to insert. Knows nothing of database and broker."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from capflow_tasks.domains.catalogue import Catalogue
from capflow_tasks.entries import media_of, task_of
from capflow_tasks.errors import BadEntry, PlanError
from capflow_tasks.records import Failure, JsonObject, Modality, Shard, Stage
from capflow_tasks.store.rows import NewBatch, NewSample
from producer.reading.annotations import Entry, read_entries


@dataclass(frozen=True, slots=True)
class Expansion:
    """How entries become batches; the same for all shards of a run."""

    catalogue: Catalogue
    #: Samples per batch, at most.
    batch_size: int
    #: Stages of the run, in order.
    stages: tuple[Stage, ...]

    def batches(self, shard: Shard, start_idx: int) -> Iterator[NewBatch]:
        """The shard's batches from this index on. Raises PlanError where the annotation file breaks."""
        entries = read_entries(Path(shard.annotation), start_idx, shard.end_idx)
        samples = (self._sample(shard, entry) for entry in entries)
        return batches_of(samples, self.batch_size, self.stages)

    def _sample(self, shard: Shard, entry: Entry) -> NewSample:
        if entry.value is None:
            return _unusable(entry.index, {}, entry.problem or BadEntry.__doc__ or "")
        try:
            return NewSample(entry.index, entry.value, self._domain(shard, entry.value))
        except BadEntry as error:
            return _unusable(entry.index, entry.value, str(error))

    def _domain(self, shard: Shard, entry: JsonObject) -> str | None:
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
