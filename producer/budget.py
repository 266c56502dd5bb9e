"""What a run may spend, and what it has spent so far."""

from collections.abc import Sequence
from dataclasses import dataclass
from time import monotonic

from capflow_tasks.store.figures import Usage, total_tokens
from capflow_tasks.store.statistics import Statistics
from producer.cost import Prices, cost_of

#: Between two looks at what was spent, seconds; longer where the last one took long.
_LOOK_SECONDS = 2.0
_RESTS = 20


@dataclass(frozen=True, slots=True)
class Budget:
    """The most that a run may spend, over all its starts; None for no limit."""

    #: Tokens of prompts, cached or not, and of answers.
    max_tokens: int | None
    max_usd: float | None
    prices: Prices

    @property
    def is_limited(self) -> bool:
        return self.max_tokens is not None or self.max_usd is not None

    def reached_by(self, usages: Sequence[Usage]) -> str | None:
        """Return which limit these reach, for a message; None while there is room."""
        tokens = total_tokens(usages)
        used = tokens.prompt + tokens.completion
        if self.max_tokens is not None and used >= self.max_tokens:
            return f"it has used {used:,} tokens of --max-tokens {self.max_tokens:,}"
        cost = cost_of(usages, self.prices)
        if self.max_usd is None or not cost.models:
            return None
        if cost.usd is None:
            return f"--max-cost needs a price of {', '.join(cost.unpriced)} in the table of --prices"
        is_spent = cost.usd >= self.max_usd
        return f"it has cost ${cost.usd:,.2f} of --max-cost {self.max_usd:,.2f}" if is_spent else None


class Spending:
    """Watches what one run spends; rests between looks, since each reads all results of the run."""

    def __init__(self, budget: Budget, statistics: Statistics, run_id: int) -> None:
        self._budget = budget
        self._statistics = statistics
        self._run_id = run_id
        self._next_at = 0.0

    def limit_reached(self) -> str | None:
        """Return which limit the run has reached; None while there is room, and between two looks."""
        began = monotonic()
        if began < self._next_at:
            return None
        usages = self._statistics.usage(self._run_id)
        self._next_at = monotonic() + max(_LOOK_SECONDS, _RESTS * (monotonic() - began))
        return self._budget.reached_by(usages)
