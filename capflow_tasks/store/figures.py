"""What the statistics of a run are made of: plain values, and what follows from them by arithmetic."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from capflow_tasks.records import Stage
from capflow_tasks.store.rows import Tally
from capflow_tasks.store.states import BatchState, SampleState


class RunState(StrEnum):
    """Where a run stands."""

    #: Every sample has come to its end.
    DONE = "done"
    #: Workers are at it.
    RUNNING = "running"
    #: What has been sent waits for a worker.
    WAITING = "waiting"
    #: Nothing is under way; its producer has more to send.
    STOPPED = "stopped"


@dataclass(frozen=True, slots=True)
class RunFigures:
    """One run as a whole."""

    id: int
    name: str
    plan: str
    output: str
    stages: tuple[Stage, ...]
    min_confidence: float
    #: Whether only the workers of a shard's rank may take it.
    pin_ranks: bool
    created_at: datetime
    shards: int
    #: Samples of all shards.
    samples: int
    #: Those of them that have been inserted.
    expanded: int
    #: How they ended; what a retry has opened again does not count.
    tally: Tally
    #: Batches that have not come to their end, and those among them that a worker has.
    open_batches: int
    running_batches: int

    @property
    def remaining(self) -> int:
        return self.samples - self.tally.total

    @property
    def is_open(self) -> bool:
        return self.state is not RunState.DONE

    @property
    def state(self) -> RunState:
        if self.running_batches:
            return RunState.RUNNING
        if self.open_batches:
            return RunState.WAITING
        return RunState.DONE if self.expanded == self.samples else RunState.STOPPED


@dataclass(frozen=True, slots=True)
class ShardFigures:
    """One line of the run's plan."""

    dataset: str
    annotation: str
    shard_index: int
    num_shards: int
    assign_rank: int
    samples: int
    #: Samples that are with the workers, or wait for them.
    in_flight: int
    tally: Tally


@dataclass(frozen=True, slots=True)
class DomainFigures:
    #: None for samples that have no domain yet, or failed before they had one.
    domain: str | None
    by_state: Mapping[SampleState, int]


@dataclass(frozen=True, slots=True)
class StageFigures:
    """Samples whose batches have this stage before them, by what becomes of the batch."""

    stage: Stage
    by_state: Mapping[BatchState, int]

    @property
    def running(self) -> int:
        return self.by_state[BatchState.RUNNING]

    @property
    def waiting(self) -> int:
        return self.by_state[BatchState.READY] + self.by_state[BatchState.QUEUED]


@dataclass(frozen=True, slots=True)
class Tokens:
    prompt: int = 0
    #: Prompt tokens that the prefix cache spared.
    cached: int = 0
    completion: int = 0

    @property
    def computed(self) -> int:
        """Prompt tokens that went through the model."""
        return self.prompt - self.cached

    @property
    def prefix_hit_rate(self) -> float:
        return self.cached / self.prompt if self.prompt else 0.0

    def __add__(self, other: Tokens) -> Tokens:
        return Tokens(
            self.prompt + other.prompt, self.cached + other.cached, self.completion + other.completion
        )


@dataclass(frozen=True, slots=True)
class Usage:
    """What one worker did with one model for one stage."""

    stage: Stage
    model: str
    #: The owner of the lease: `node/part that is new at every start`.
    worker: str
    #: Answers of agents that are stored.
    answers: int
    tokens: Tokens
    #: All answers' seconds, one after the other.
    seconds: float
    #: When the first of its requests began, and the last of its answers was stored.
    began_at: datetime
    ended_at: datetime


@dataclass(frozen=True, slots=True)
class WorkerSpan:
    """From a worker's first request to a model to its last answer, whatever it did in between."""

    worker: str
    model: str
    answers: int
    began_at: datetime
    ended_at: datetime

    @property
    def seconds(self) -> float:
        return (self.ended_at - self.began_at).total_seconds()


@dataclass(frozen=True, slots=True)
class PromptEconomy:
    """Prompt tokens computed, against the least that would have done."""

    #: Samples that were looked at, and all tokens of their prompts.
    samples: int
    prompt: int
    #: What of them went through the model.
    computed: int
    #: The same with every sample's shared prefix computed once.
    minimum: int

    @property
    def computed_per_sample(self) -> float:
        return self.computed / self.samples if self.samples else 0.0

    @property
    def minimum_per_sample(self) -> float | None:
        """None where nothing was cached, so that nothing tells how long the shared prefixes are."""
        return self.minimum / self.samples if self.minimum < self.prompt else None


@dataclass(frozen=True, slots=True)
class FailureKind:
    """Failed samples of one kind."""

    kind: str
    count: int
    stages: tuple[Stage, ...]
    is_retryable: bool
    #: What one of them says.
    example: str


@dataclass(frozen=True, slots=True)
class GradeCount:
    """Captions of one domain that the judge gave the very same grades."""

    domain: str | None
    #: 1 to 3 by dimension.
    dimensions: Mapping[str, int]
    overall: int
    count: int


@dataclass(frozen=True, slots=True)
class Bucket:
    """Samples that came to their end within one stretch of time."""

    begins_at: datetime
    samples: int


@dataclass(frozen=True, slots=True)
class Throughput:
    """What was finished lately."""

    #: The time looked at: shorter than asked for when work began within it.
    seconds: float
    samples: int
    tokens: Tokens

    @property
    def samples_per_second(self) -> float:
        return self.samples / self.seconds if self.seconds else 0.0

    @property
    def tokens_per_second(self) -> float:
        """Prompt and completion tokens, the cached ones included."""
        return (self.tokens.prompt + self.tokens.completion) / self.seconds if self.seconds else 0.0


@dataclass(frozen=True, slots=True)
class WorkerFigures:
    """A worker that has been seen."""

    owner: str
    node: str
    started_at: datetime
    #: Since its last heartbeat.
    silent_seconds: float
    is_alive: bool
    #: Batches that it has.
    running_batches: int


def worker_spans(usages: Iterable[Usage]) -> list[WorkerSpan]:
    """How long each worker was at the run, by model, in order of their names."""
    found: defaultdict[tuple[str, str], list[Usage]] = defaultdict(list)
    for usage in usages:
        found[usage.worker, usage.model].append(usage)
    return [
        WorkerSpan(
            worker=worker,
            model=model,
            answers=sum(usage.answers for usage in theirs),
            began_at=min(usage.began_at for usage in theirs),
            ended_at=max(usage.ended_at for usage in theirs),
        )
        for (worker, model), theirs in sorted(found.items())
    ]


def grade_histograms(grades: Iterable[GradeCount]) -> dict[str, dict[int, int]]:
    """Captions by grade, for each dimension in alphabetical order, and for `overall` at the end."""
    found: defaultdict[str, dict[int, int]] = defaultdict(lambda: dict.fromkeys((1, 2, 3), 0))
    for each in grades:
        for name, grade in {**each.dimensions, "overall": each.overall}.items():
            found[name][grade] += each.count
    return {name: found[name] for name in sorted(found, key=lambda name: (name == "overall", name))}
