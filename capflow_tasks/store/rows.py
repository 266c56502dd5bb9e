"""What the store takes and gives: plain values, so that nothing outside it touches SQL."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from capflow_tasks.records import Failure, JsonObject, Modality, PlanShard, Result, Stage


@dataclass(frozen=True, slots=True)
class ShardRow:
    id: int
    #: Samples before this index have been inserted by this or an earlier producer.
    expanded_to: int
    shard: PlanShard


@dataclass(frozen=True, slots=True)
class NewSample:
    """One entry on its way in; `failure` is set when it cannot even start."""

    idx: int
    entry: Any
    #: None when the sample is to be routed.
    domain: str | None
    failure: Failure | None = None
    #: What was said about it elsewhere, as if agents of ours had.
    results: tuple[Result, ...] = ()


@dataclass(frozen=True, slots=True)
class NewBatch:
    """A contiguous run of entries; it has at least one."""

    #: Where its chain begins; None when every sample has failed already.
    first_stage: Stage | None
    samples: Sequence[NewSample]

    @property
    def start_idx(self) -> int:
        return self.samples[0].idx

    @property
    def end_idx(self) -> int:
        return self.samples[-1].idx + 1

    @property
    def failed_count(self) -> int:
        return sum(sample.failure is not None for sample in self.samples)


@dataclass(frozen=True, slots=True)
class ReadyBatch:
    """A batch whose chain is to be published, from `next_stage` on."""

    id: int
    next_stage: Stage
    #: All stages that its run asks for.
    stages: tuple[Stage, ...]
    #: Rank whose workers alone may take it; None for any.
    pinned_to: int | None = None
    #: Its samples as people name them: `set[0-7]`.
    samples: str = ""


@dataclass(frozen=True, slots=True)
class Claim:
    """The right to run one stage of one batch while the lease lasts."""

    batch_id: int
    stage: Stage
    #: Fencing token: only the newest claim of a batch can finish it.
    attempt: int
    #: Claims of this stage, this one included, since the last stage was finished.
    tries: int
    owner: str
    start_idx: int
    end_idx: int
    dataset: str
    root: str
    modality: Modality
    run_id: int
    #: All stages that the run asks for.
    stages: tuple[Stage, ...]
    #: Samples routed with less are held.
    min_confidence: float
    #: Name of the run, and the shard's row.
    run: str = ""
    shard_id: int = 0


@dataclass(frozen=True, slots=True)
class PendingSample:
    """A sample that a stage may work on, with what was said about it so far."""

    id: int
    idx: int
    entry: JsonObject
    domain: str | None
    results: tuple[Result, ...]


@dataclass(frozen=True, slots=True)
class Route:
    """A domain for a sample, and the probability that the router gave it."""

    domain: str
    confidence: float


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one stage made of one sample."""

    sample_id: int
    results: tuple[Result, ...] = ()
    route: Route | None = None
    failure: Failure | None = None


@dataclass(frozen=True, slots=True)
class Tally:
    """How many samples ended how."""

    done: int = 0
    failed: int = 0
    held: int = 0

    @property
    def total(self) -> int:
        return self.done + self.failed + self.held

    def __add__(self, other: Tally) -> Tally:
        return Tally(self.done + other.done, self.failed + other.failed, self.held + other.held)


@dataclass(frozen=True, slots=True)
class StoppedRun:
    """What stopping a run did to its batches."""

    #: Batches that were queued and are not sent to anybody now.
    taken_back: int
    #: Batches whose stage a worker still runs; it finishes that stage and goes no further.
    running: int


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """When a sample whose failure may pass is tried again."""

    max_attempts: int
    #: Before the second attempt; doubled for each further one.
    first_wait_seconds: float
