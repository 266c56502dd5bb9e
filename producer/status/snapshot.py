"""What is known of one run at one moment, and how often a watcher asks for it."""

from collections.abc import Sequence
from dataclasses import dataclass
from time import monotonic

from capflow_tasks.store.figures import Activity, FailureKind, GradeCount, RunFigures, Totals
from capflow_tasks.store.statistics import Statistics
from producer.cost import Cost, Prices, cost_of
from producer.reading.scores import NO_DOMAIN, Minimums, Scores

#: The share of time that may be spent on the slow questions.
_SHARE_OF_TIME = 0.05


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One run at one moment."""

    run: RunFigures
    activity: Activity
    failures: Sequence[FailureKind]
    totals: Totals
    #: Captions with at least the grades that are asked for.
    accepted: int
    cost: Cost

    @property
    def eta_seconds(self) -> float | None:
        """None where no sample was finished lately."""
        return self.activity.eta_seconds(self.run.remaining)

    @property
    def usd_per_100_samples(self) -> float | None:
        each = self.cost.per(self.run.tally.done)
        return None if each is None else 100 * each


class Observer:
    """Takes snapshots of one run. The longer the slow questions take, the less often it asks them."""

    def __init__(
        self, statistics: Statistics, run_id: int, prices: Prices, minimums: Minimums, lease_seconds: float
    ) -> None:
        self._statistics = statistics
        self._run_id = run_id
        self._prices = prices
        self._minimums = minimums
        self._lease_seconds = lease_seconds
        self._totals: Totals | None = None
        self._next_totals_at = 0.0

    def snapshot(self) -> Snapshot:
        ask, run_id = self._statistics, self._run_id
        (run,) = ask.runs(run_id=run_id)
        totals = self._latest_totals()
        return Snapshot(
            run=run,
            activity=ask.activity(run_id, self._lease_seconds),
            failures=ask.failures(run_id),
            totals=totals,
            accepted=accepted_of(totals.grades, self._minimums),
            cost=cost_of(totals.usages, self._prices),
        )

    def _latest_totals(self) -> Totals:
        began = monotonic()
        if self._totals is None or began >= self._next_totals_at:
            self._totals = self._statistics.totals(self._run_id)
            took = monotonic() - began
            self._next_totals_at = monotonic() + took / _SHARE_OF_TIME
        return self._totals


def accepted_of(grades: Sequence[GradeCount], minimums: Minimums) -> int:
    """How many captions are good enough."""
    return sum(
        each.count
        for each in grades
        if not minimums.missed(Scores(each.domain or NO_DOMAIN, each.dimensions, each.overall))
    )
