"""The states of batches and samples, how they follow one another, and the values that the store exchanges.

A batch:

    ready ──publish──> queued ──claim──> running ──finish──> done
      ^                  │  ^              │ │                 │
      │                  │  └──advance─────┘ │                 │
      └──lease ran out───┴──lease ran out / release            │
      └──retry or further stages───────────────────────────────┘

Batches of a stopped run stay ready: `stop` takes back those that are queued, and one that is running becomes
ready after its stage.

`lease_until` is when the reconciler may act on a batch that is not done. For a batch that is
    ready:    it may be published from then on (back-off)
    queued:   it is sent again from then on, even if its message waits; a lost message is found long before
    running:  its worker counts as dead from then on; a heartbeat extends it
All times are by PostgreSQL's clock, so a host's clock may jump.

A sample: pending ──> done | failed | held; a failed or held sample becomes pending again by retry.

A sample whose caption is below the run's bar stays pending at the end of the last stage, and its batch is
ready again, for `summarize`: the sample gets another candidate. In the end the best is its caption. One whose
candidates lost their grades goes back to `score` for one after the other. A run that allows more candidates,
or asks for more, opens the samples again that are done with too little.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

from capflow_tasks.records import (
    Failure,
    JsonObject,
    Modality,
    PlanShard,
    RefusedAnswer,
    Result,
    Stage,
    Workflow,
)


class BatchState(StrEnum):
    READY = "ready"
    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"


class SampleState(StrEnum):
    PENDING = "pending"
    DONE = "done"
    FAILED = "failed"
    #: Routed with less confidence than the run asks for; waits until the run asks for less.
    HELD = "held"


STAGE_ORDER = {stage: position for position, stage in enumerate(Stage)}


def stage_after(stage: Stage, stages: Sequence[Stage]) -> Stage | None:
    """Return the next of a run's `stages` after `stage`, None at the end."""
    return next((each for each in stages_from(stage, stages) if each is not stage), None)


def stages_from(stage: Stage, stages: Sequence[Stage]) -> list[Stage]:
    """Return the run's stages from `stage` on, in order."""
    return [each for each in list(Stage)[STAGE_ORDER[stage] :] if each in stages]


@dataclass(frozen=True, slots=True)
class ShardRow:
    id: int
    #: Samples before this index have been inserted.
    expanded_to: int
    shard: PlanShard


@dataclass(frozen=True, slots=True)
class NewSample:
    """An entry to insert; with a `failure` when it cannot be captioned."""

    idx: int
    entry: Any
    #: None for a sample that the router gives a domain.
    domain: str | None
    failure: Failure | None = None
    #: Results that the sample brings along, such as a caption to score.
    results: tuple[Result, ...] = ()


def first_stage(samples: Sequence[NewSample], stages: Sequence[Stage]) -> Stage | None:
    """Return where they begin: behind routing when every domain is known; None when all have failed."""
    alive = [sample for sample in samples if sample.failure is None]
    if not alive:
        return None
    is_routed = all(sample.domain for sample in alive)
    wanted = [stage for stage in stages if not (is_routed and stage is Stage.ROUTE)]
    return wanted[0] if wanted else stages[0]


@dataclass(frozen=True, slots=True)
class NewBatch:
    """Contiguous samples to insert; at least one."""

    #: None when every sample has failed already.
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
    """A batch whose chain can be published, from `next_stage` on."""

    id: int
    next_stage: Stage
    #: All stages of its run.
    stages: tuple[Stage, ...]
    #: Its `lease_until` once it is queued; messages of one queue have it in the order in which they are sent.
    queued_until: datetime
    #: Rank of the workers that may take it; None for any.
    pinned_to: int | None = None
    #: Its samples for display: `set[0-7]`.
    samples: str = ""
    #: Name of the run.
    run: str = ""


@dataclass(frozen=True, slots=True)
class WaitingMessages:
    """Which messages wait in the broker, as the first of each queue shows."""

    #: `queued_until` of the message that is taken next from each shared queue, by its stage and rank.
    next_until: Mapping[tuple[Stage, int | None], datetime]
    #: Nodes whose own queue holds messages.
    nodes: Collection[str]


@dataclass(frozen=True, slots=True)
class Route:
    """A sample's domain, and the router's probability for it."""

    domain: str
    confidence: float


@dataclass(frozen=True, slots=True)
class CandidatePolicy:
    """When a sample gets another caption."""

    #: Most captions of one sample.
    most: int = 1
    #: A caption with a lower overall grade is below the bar.
    min_overall: int = 3
    #: A sample whose answers have taken so many tokens gets no other; None for no limit.
    token_budget: int | None = None


@dataclass(frozen=True, slots=True)
class Terms:
    """What else a run was started with; `capflow retry` and `capflow resume` keep it."""

    #: Whether an entry whose task is no domain fails.
    strict: bool = False
    #: Whether entries without media are passed over.
    skips_text_only: bool = False
    #: The most that it may spend, in tokens and in USD; None for no limit.
    max_tokens: int | None = None
    max_cost: float | None = None
    #: Path of the price table; None for the built-in one.
    prices: str | None = None


#: Without limits.
USUAL_TERMS = Terms()
#: The first caption is kept, whatever its grades.
ONE_CANDIDATE = CandidatePolicy()


@dataclass(frozen=True, slots=True)
class Claim:
    """The right to run one stage of one batch while the lease lasts."""

    batch_id: int
    stage: Stage
    #: Fencing token: only the newest claim of a batch can finish its stage.
    attempt: int
    #: Claims of this stage so far, this one included.
    tries: int
    owner: str
    start_idx: int
    end_idx: int
    dataset: str
    root: str
    modality: Modality
    run_id: int
    #: All stages of the run.
    stages: tuple[Stage, ...]
    #: Samples routed with less confidence are held.
    min_confidence: float
    #: Name of the run.
    run: str = ""
    shard_id: int = 0
    #: The run's workflow: a name, or the folder of its domain files.
    workflow: str = Workflow.STANDARD
    #: Kinds of failures that are right in this run, however many there are.
    accepted_failures: frozenset[str] = frozenset()

    def holds(self, route: Route | None) -> bool:
        """Return whether a sample with this route is held."""
        return route is not None and route.confidence < self.min_confidence


@dataclass(frozen=True, slots=True)
class PendingSample:
    """A sample that a stage works on, with its results so far."""

    id: int
    idx: int
    entry: JsonObject
    domain: str | None
    results: tuple[Result, ...]
    #: Which of its captions is to be written, from 1, and the earlier ones with their grades.
    candidate: int = 1
    earlier: tuple[Result, ...] = ()
    #: As in `Sample.media_stamp`.
    media_stamp: str | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one stage writes about one sample."""

    sample_id: int
    results: tuple[Result, ...] = ()
    route: Route | None = None
    failure: Failure | None = None
    #: Answers that were thrown away, of agents without a result; those of the others count in their results.
    refused: tuple[RefusedAnswer, ...] = ()
    #: Of the media that were answered about, as in `Sample.media_stamp`; None once that is noted.
    media_stamp: str | None = None


@dataclass(frozen=True, slots=True)
class Tally:
    """Numbers of finished samples by state."""

    done: int = 0
    failed: int = 0
    held: int = 0

    @property
    def total(self) -> int:
        return self.done + self.failed + self.held

    def __add__(self, other: "Tally") -> "Tally":
        return Tally(self.done + other.done, self.failed + other.failed, self.held + other.held)


@dataclass(frozen=True, slots=True)
class StoppedRun:
    """Numbers of a run's batches when it was stopped."""

    #: Batches that were queued, or whose worker is dead, and are ready now.
    taken_back: int
    #: Batches whose current stage a worker still finishes.
    running: int


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often a sample whose failure may pass is tried, and how long it waits in between."""

    max_attempts: int
    first_wait_seconds: float

    def wait_seconds(self, attempts: int) -> float:
        """Return the wait after this many attempts; it doubles with each."""
        return self.first_wait_seconds * 2.0 ** (attempts - 1)
