"""All that can be told of one run at one moment, and how it is asked for again and again without a burden."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from time import monotonic

from capflow_tasks.store.figures import (
    DomainFigures,
    FailureKind,
    GradeCount,
    PromptEconomy,
    RunFigures,
    ShardFigures,
    StageFigures,
    Throughput,
    Tokens,
    Usage,
    WorkerFigures,
)
from capflow_tasks.store.statistics import Statistics
from producer.reading.scores import NO_DOMAIN, Minimums, Scores
from producer.status.cost import Cost, Prices, cost_of

#: Of the time that passes, what may go to the questions that take long.
_SHARE_OF_TIME = 0.05


@dataclass(frozen=True, slots=True)
class Details:
    """What takes long to ask of a large run: all that reads every batch, sample or result."""

    shards: Sequence[ShardFigures]
    domains: Sequence[DomainFigures]
    usages: Sequence[Usage]
    economy: PromptEconomy
    grades: Sequence[GradeCount]

    @property
    def tokens(self) -> Tokens:
        return sum((usage.tokens for usage in self.usages), Tokens())

    @property
    def judged(self) -> int:
        return sum(grades.count for grades in self.grades)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One run at one moment."""

    run: RunFigures
    stages: Sequence[StageFigures]
    failures: Sequence[FailureKind]
    pace: Throughput
    #: All workers of the fleet, which may serve other runs too.
    workers: Sequence[WorkerFigures]
    details: Details
    #: Captions with the grades that are asked for.
    accepted: int
    cost: Cost

    @property
    def workers_alive(self) -> int:
        return sum(worker.is_alive for worker in self.workers)

    @property
    def eta_seconds(self) -> float | None:
        """None where nothing is finished lately."""
        rate = self.pace.samples_per_second
        if not self.run.remaining:
            return 0.0
        return self.run.remaining / rate if rate else None

    @property
    def usd_per_100_samples(self) -> float | None:
        each = self.cost.per(self.run.tally.done)
        return None if each is None else 100 * each


class Observer:
    """Looks at one run. What takes long to ask is asked the less often, the longer it takes."""

    def __init__(
        self, statistics: Statistics, run_id: int, prices: Prices, minimums: Minimums, lease_seconds: float
    ) -> None:
        self._statistics = statistics
        self._run_id = run_id
        self._prices = prices
        self._minimums = minimums
        self._lease_seconds = lease_seconds
        self._details: Details | None = None
        self._next_details_at = 0.0

    def look(self) -> Snapshot:
        ask, run_id = self._statistics, self._run_id
        (run,) = ask.runs(run_id=run_id)
        details = self._latest_details()
        return Snapshot(
            run=run,
            stages=ask.stages(run_id),
            failures=ask.failures(run_id),
            pace=ask.pace(run_id),
            workers=ask.workers(self._lease_seconds),
            details=details,
            accepted=accepted_of(details.grades, self._minimums),
            cost=cost_of(details.usages, self._prices),
        )

    def _latest_details(self) -> Details:
        began = monotonic()
        if self._details is None or began >= self._next_details_at:
            ask, run_id = self._statistics, self._run_id
            self._details = Details(
                shards=ask.shards(run_id),
                domains=ask.domains(run_id),
                usages=ask.usage(run_id),
                economy=ask.prompt_economy(run_id),
                grades=ask.grades(run_id),
            )
            took = monotonic() - began
            self._next_details_at = monotonic() + took / _SHARE_OF_TIME
        return self._details


def accepted_of(grades: Sequence[GradeCount], minimums: Minimums) -> int:
    """How many captions are good enough."""
    return sum(
        each.count
        for each in grades
        if not minimums.missed(Scores(each.domain or NO_DOMAIN, each.dimensions, each.overall))
    )
