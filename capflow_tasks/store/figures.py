"""What is known of a run: plain values, and what follows from them by arithmetic."""

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from capflow_tasks.records import GuardOutcome, Rule, Stage, Workflow
from capflow_tasks.store.states import BatchState, SampleState, Tally


class RunState(StrEnum):
    """Where a run stands."""

    #: Every sample is finished.
    DONE = "done"
    #: Workers run some of its batches.
    RUNNING = "running"
    #: Its batches wait for a worker.
    WAITING = "waiting"
    #: It is not finished, and nothing is sent: it was stopped, or its producer has more to send.
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
    #: Whether it was stopped, by `capflow stop` or by itself.
    is_stopped: bool
    created_at: datetime
    shards: int
    #: Samples of all shards.
    samples: int
    #: Those of them that have been inserted.
    expanded: int
    #: How they ended; samples that a retry has reopened do not count.
    tally: Tally
    #: Unfinished batches, and those among them that a worker holds.
    open_batches: int
    running_batches: int
    #: A name, or the folder of its domain files.
    workflow: str = Workflow.STANDARD
    #: Why it paused by itself; None for one that has not.
    pause: str | None = None
    #: Most captions of one sample, the overall grade below which it gets another, and the tokens of its
    #: answers from which on it gets none.
    candidates: int = 1
    min_overall: int = 3
    token_budget: int | None = None
    #: As in `states.Terms`.
    strict: bool = False
    skips_text_only: bool = False
    max_tokens: int | None = None
    max_cost: float | None = None
    prices: str | None = None

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
        if self.open_batches and not self.is_stopped:
            return RunState.WAITING
        is_done = self.expanded == self.samples and not self.open_batches
        return RunState.DONE if is_done else RunState.STOPPED


@dataclass(frozen=True, slots=True)
class ShardFigures:
    """One line of the run's plan."""

    dataset: str
    annotation: str
    shard_index: int
    num_shards: int
    assign_rank: int
    samples: int
    #: Samples in unfinished batches.
    in_flight: int
    tally: Tally


@dataclass(frozen=True, slots=True)
class DomainFigures:
    #: None for samples that have no domain yet, or failed before they had one.
    domain: str | None
    by_state: Mapping[SampleState, int]
    #: Samples with a result of each stage; all 0 where nobody asked for them.
    by_stage: Mapping[Stage, int]

    @property
    def samples(self) -> int:
        return sum(self.by_state.values())

    @property
    def tally(self) -> Tally:
        states = self.by_state
        return Tally(states[SampleState.DONE], states[SampleState.FAILED], states[SampleState.HELD])


@dataclass(frozen=True, slots=True)
class StageFigures:
    """Unfinished samples whose next stage is this one, by the state of their batch."""

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
    #: Prompt tokens found in the prefix cache.
    cached: int = 0
    completion: int = 0

    @property
    def computed(self) -> int:
        """Prompt tokens that went through the model."""
        return self.prompt - self.cached

    @property
    def prefix_hit_rate(self) -> float:
        return self.cached / self.prompt if self.prompt else 0.0

    def __add__(self, other: "Tokens") -> "Tokens":
        return Tokens(
            self.prompt + other.prompt, self.cached + other.cached, self.completion + other.completion
        )


@dataclass(frozen=True, slots=True)
class Usage:
    """The work of one worker with one model for one stage."""

    stage: Stage
    model: str
    #: The owner of the lease: `node/part that is new at every start`.
    worker: str
    #: Stored answers of agents.
    answers: int
    tokens: Tokens
    #: Sum of the seconds that each answer took.
    seconds: float
    #: When its first request was sent, and its last answer was stored.
    began_at: datetime
    ended_at: datetime
    #: In which the worker waited for answers of this model, in any stage of the run.
    worked_seconds: float
    #: That the model holds there; None where it is not known, as for workers on a CPU.
    gpus: float | None = None


@dataclass(frozen=True, slots=True)
class DomainRates:
    """What some captioned samples of one domain took."""

    name: str | None
    samples: int
    usages: Sequence[Usage]


@dataclass(frozen=True, slots=True)
class Rates:
    """What the latest captioned samples of a run took."""

    domains: Sequence[DomainRates]
    #: In which some worker waited for an answer.
    fleet_seconds: float

    @property
    def samples(self) -> int:
        return sum(domain.samples for domain in self.domains)


@dataclass(frozen=True, slots=True)
class PromptEconomy:
    """Prompt tokens computed, against the least possible."""

    #: Samples counted, and all tokens of their prompts.
    samples: int
    prompt: int
    #: Those of them that went through the model.
    computed: int
    #: The same if every sample's shared prefix were computed once.
    minimum: int

    @property
    def computed_per_sample(self) -> float:
        return self.computed / self.samples if self.samples else 0.0

    @property
    def minimum_per_sample(self) -> float | None:
        """None where nothing was cached, because the length of the shared prefixes is then unknown."""
        return self.minimum / self.samples if self.minimum < self.prompt else None


@dataclass(frozen=True, slots=True)
class FailureKind:
    """Failed samples of one kind."""

    kind: str
    count: int
    stages: tuple[Stage, ...]
    is_retryable: bool
    #: The message of one of them.
    example: str


@dataclass(frozen=True, slots=True)
class GradeCount:
    """Captions of one domain with the same grades."""

    domain: str | None
    #: 1 to 3 by dimension.
    dimensions: Mapping[str, int]
    overall: int
    count: int


@dataclass(frozen=True, slots=True)
class GuardCount:
    """Answers of one agent that broke the same rule and went the same way."""

    agent: str
    #: The worst rule that each of them broke.
    rule: Rule
    outcome: GuardOutcome
    answers: int
    #: What they cost; 0 for repaired ones, which were used.
    tokens: Tokens


@dataclass(frozen=True, slots=True)
class TextFigures:
    """What was read in pictures, and how far the captions agree with it."""

    #: Samples whose pictures were read, and those where that failed.
    read: int
    unread: int
    #: Sum of the seconds that reading took.
    seconds: float
    #: Passages that captions quote, and those among them that do not stand in the pictures.
    quotes: int
    unsupported: int
    #: Words that were surely read, and those that captions or verbatim reports hold.
    words: int
    covered_words: int

    @property
    def quote_support(self) -> float | None:
        return 1 - self.unsupported / self.quotes if self.quotes else None

    @property
    def text_coverage(self) -> float | None:
        return self.covered_words / self.words if self.words else None


@dataclass(frozen=True, slots=True)
class ClaimFigures:
    """The captions that were verified claim by claim."""

    captions: int
    #: Captions from which something was removed.
    rewritten: int
    #: Claims by what became of them.
    kept: int
    unsure: int
    dropped: int
    #: Of all calls that it took.
    tokens: Tokens

    @property
    def claims(self) -> int:
        return self.kept + self.unsure + self.dropped


@dataclass(frozen=True, slots=True)
class FurtherCaptions:
    """The captions that were written again with the same number, from 2."""

    candidate: int
    samples: int
    #: Of captioners and judges.
    tokens: Tokens


@dataclass(frozen=True, slots=True)
class Throughput:
    """What was finished in the last seconds."""

    #: The time measured: shorter than asked for when work began within it.
    seconds: float
    samples: int
    tokens: Tokens

    @property
    def samples_per_second(self) -> float:
        return self.samples / self.seconds if self.seconds else 0.0

    @property
    def tokens_per_second(self) -> float:
        """Prompt and completion tokens, including cached ones."""
        return (self.tokens.prompt + self.tokens.completion) / self.seconds if self.seconds else 0.0


@dataclass(frozen=True, slots=True)
class WorkerFigures:
    """A worker that has sent a heartbeat."""

    owner: str
    node: str
    started_at: datetime
    #: Since its last heartbeat.
    silent_seconds: float | None
    is_alive: bool
    #: Batches that it holds.
    running_batches: int
    #: Why it takes no work; None while it takes some.
    fault: str | None = None


@dataclass(frozen=True, slots=True)
class Ending:
    """How a worker ended a sample."""

    #: The kind of failure; None for a sample that is captioned or held, or whose failure is accepted.
    kind: str | None
    #: The worker on which it failed.
    worker: str | None
    reason: str | None


@dataclass(frozen=True, slots=True)
class Activity:
    """What the fleet does for a run at this moment; quick to ask."""

    stages: Sequence[StageFigures]
    throughput: Throughput
    #: All workers of the fleet, which may serve other runs too.
    workers: Sequence[WorkerFigures]

    @property
    def workers_alive(self) -> int:
        return sum(worker.is_alive for worker in self.workers)

    def eta_seconds(self, remaining: int) -> float | None:
        """Until so many samples are finished; None where none was finished lately, or no worker is alive."""
        rate = self.throughput.samples_per_second if self.workers_alive else 0
        if not remaining:
            return 0.0
        return remaining / rate if rate else None


@dataclass(frozen=True, slots=True)
class Totals:
    """The sums over a whole run; slow to ask of a large one, as they read all batches, samples or results."""

    shards: Sequence[ShardFigures]
    domains: Sequence[DomainFigures]
    usages: Sequence[Usage]
    economy: PromptEconomy
    grades: Sequence[GradeCount]
    guard: Sequence[GuardCount] = ()
    #: Grades of each sample's first caption, and what was written after it; empty where nothing was.
    first_grades: Sequence[GradeCount] = ()
    further: Sequence[FurtherCaptions] = ()
    #: None where no text was read.
    text: TextFigures | None = None
    #: None where no caption was verified.
    claims: ClaimFigures | None = None

    @property
    def judged(self) -> int:
        return sum(grades.count for grades in self.grades)


def total_tokens(usages: Iterable[Usage]) -> Tokens:
    return sum((usage.tokens for usage in usages), Tokens())


def own_judges(usages: Iterable[Usage]) -> list[str]:
    """Return the models that have graded captions and written some, too."""
    by_stage: defaultdict[Stage, set[str]] = defaultdict(set)
    for usage in usages:
        by_stage[usage.stage].add(usage.model)
    return sorted(by_stage[Stage.SUMMARIZE] & by_stage[Stage.SCORE])


def worker_seconds(usages: Iterable[Usage]) -> float:
    """Return the seconds in which the workers worked, summed over workers and models."""
    return sum(usage.worked_seconds for usage in _by_worker(usages))


def gpu_seconds(usages: Iterable[Usage]) -> float:
    """Return the same, times the GPUs that each held; 1 where they are not known."""
    return sum(
        usage.worked_seconds * (1.0 if usage.gpus is None else usage.gpus) for usage in _by_worker(usages)
    )


def _by_worker(usages: Iterable[Usage]) -> Collection[Usage]:
    """Return one usage of each worker and model: their times are the same in each stage."""
    return {(usage.worker, usage.model): usage for usage in usages}.values()


def span_seconds(usages: Sequence[Usage]) -> float:
    """From the first request to the last answer; 0 without any."""
    if not usages:
        return 0.0
    began_at = min(usage.began_at for usage in usages)
    return (max(usage.ended_at for usage in usages) - began_at).total_seconds()


def grade_histograms(grades: Iterable[GradeCount]) -> dict[str, dict[int, int]]:
    """Captions by grade, for each dimension in alphabetical order, and for `overall` at the end."""
    found: defaultdict[str, dict[int, int]] = defaultdict(lambda: dict.fromkeys((1, 2, 3), 0))
    for each in grades:
        for name, grade in {**each.dimensions, "overall": each.overall}.items():
            found[name][grade] += each.count
    return {name: found[name] for name in sorted(found, key=lambda name: (name == "overall", name))}
