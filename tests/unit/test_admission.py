"""How many batches a worker may have open."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from capflow_tasks.captioning.admission import BatchLimit
from capflow_tasks.records import Result, Stage


def results(*prompts: int, completion: int = 0) -> Sequence[Result]:
    return [
        Result(
            Stage.PERCEIVE, str(number), "", None, "model", "digest", tokens, 0, completion, "stop", 0, "w"
        )
        for number, tokens in enumerate(prompts)
    ]


def test_an_engine_that_does_not_care_gets_all_slots() -> None:
    limit = BatchLimit(None)
    limit.observe([results(1_000_000)])
    assert limit.limit(most=8) == 8


def test_nothing_is_held_back_before_a_batch_has_been_seen() -> None:
    limit = BatchLimit(10_000)
    assert limit.limit(most=8) == 8
    limit.observe([[], []])
    assert limit.limit(most=8) == 8


@pytest.mark.parametrize(("cache_tokens", "batches"), [(100_000, 8), (10_000, 4), (2_500, 1), (100, 1)])
def test_open_batches_fill_the_cache_and_no_more(cache_tokens: int, batches: int) -> None:
    """Two samples of 1,000 tokens a batch; a tenth of the cache is kept for answers under way."""
    limit = BatchLimit(cache_tokens)
    limit.observe([results(900, completion=100)] * 2)
    assert limit.limit(most=8) == batches


def test_what_the_calls_of_a_sample_share_is_counted_once() -> None:
    limit = BatchLimit(10_000)
    limit.observe([results(1_000, 1_000, 1_000)])
    assert limit.limit(most=100) == 9


def test_it_follows_batches_that_grow() -> None:
    limit = BatchLimit(100_000)
    limit.observe([results(2_000)])
    before = limit.limit(most=50)
    for _ in range(50):
        limit.observe([results(20_000)])
    assert (before, limit.limit(most=50)) == (45, 4)
