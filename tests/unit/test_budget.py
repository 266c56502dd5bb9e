"""What a run may spend."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from capflow_tasks.records import Stage
from capflow_tasks.store.figures import Tokens, Usage
from producer.budget import Budget
from producer.cost import Price, Prices

PRICES = Prices("prices.yaml", is_packaged=False, gpus={}, models={"m": Price(prompt=1, completion=10)})


def usage(prompt: int, completion: int, model: str = "m") -> Usage:
    now = datetime.now(UTC)
    tokens = Tokens(prompt, 0, completion)
    return Usage(Stage.SCORE, model, "w", 1, tokens, seconds=1, began_at=now, ended_at=now, worked_seconds=1)


@pytest.mark.parametrize(
    ("max_tokens", "max_usd", "reached"),
    [
        (None, None, None),
        (2_000_001, None, None),
        (2_000_000, None, "it has used 2,000,000 tokens of --max-tokens 2,000,000"),
        (None, 11.01, None),
        (None, 11.0, "it has cost $11.00 of --max-cost 11.00"),
    ],
)
def test_a_limit_is_reached_by_the_sum_over_all_stages(
    max_tokens: int | None, max_usd: float | None, reached: str | None
) -> None:
    spent = [usage(500_000, 500_000), usage(500_000, 500_000)]

    assert Budget(max_tokens, max_usd, PRICES).reached_by(spent) == reached


def test_a_cost_that_nobody_knows_is_not_within_a_budget() -> None:
    budget = Budget(None, 1000.0, PRICES)

    assert budget.reached_by([]) is None
    assert "a price of other" in str(budget.reached_by([usage(1, 1), usage(1, 1, "other")]))
