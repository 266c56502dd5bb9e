"""How many batches a worker may have open."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack

import pytest

from capflow_tasks.captioning.admission import BatchLimit, EngineRoom
from capflow_tasks.records import Result, Stage


def results(*prompts: int, completion: int = 0, seconds: float = 1) -> Sequence[Result]:
    return [
        Result(
            Stage.PERCEIVE,
            str(number),
            "",
            None,
            "model",
            "digest",
            tokens,
            0,
            completion,
            "stop",
            seconds,
            "w",
        )
        for number, tokens in enumerate(prompts)
    ]


def a_limit(room: EngineRoom, most: int = 100, open_batches: int = 0, new_batches: int = 0) -> int:
    return BatchLimit([room], most).limit(open_batches, new_batches, batch_size=2)


@pytest.mark.parametrize("room", [EngineRoom(None, None), EngineRoom(10_000, 256)])
def test_64_samples_are_open_before_anything_is_known(room: EngineRoom) -> None:
    assert a_limit(room) == 32
    assert a_limit(room, most=8) == 8


@pytest.mark.parametrize(("cache_tokens", "batches"), [(100_000, 48), (10_000, 5), (2_500, 2), (100, 1)])
def test_samples_fill_the_cache(cache_tokens: int, batches: int) -> None:
    """A sample holds 1,000 tokens: its prompt, and on average half of its answer."""
    room = EngineRoom(cache_tokens, None)
    room.observe(results(900, completion=200), seconds=1)
    assert a_limit(room) == batches


def test_samples_fill_the_engine_step() -> None:
    """Three calls a sample, of which one takes all the time and two half of it: two on average."""
    room = EngineRoom(10**9, 40)
    calls = [*results(100), *results(100, 100, seconds=0.5)]
    room.observe(calls, seconds=1)
    assert a_limit(room) == 10


def test_what_the_calls_of_a_sample_share_is_counted_once() -> None:
    room = EngineRoom(20_000, None)
    room.observe(results(1_000, 1_000, 1_000), seconds=1)
    assert a_limit(room) == 10


def test_samples_that_wait_for_answers_take_room_whatever_their_batch_is() -> None:
    room = EngineRoom(20_000, None)
    room.observe(results(1_000), seconds=1)
    with ExitStack() as samples:
        for _ in range(9):
            samples.enter_context(room.asking())
        # 19 fit, 9 wait; their nine batches have one unfinished sample each.
        assert a_limit(room, open_batches=9) == 14
        # Batches that were just taken will wait, too.
        assert a_limit(room, open_batches=9, new_batches=4) == 10
    assert a_limit(room) == 10


def test_without_room_the_limit_only_falls() -> None:
    room = EngineRoom(2_000, None)
    limit = BatchLimit([room], 100)
    room.observe(results(1_000), seconds=1)
    assert limit.limit(0, 0, batch_size=1) == 2
    with room.asking(), room.asking():
        assert [limit.limit(open_batches, 0, batch_size=1) for open_batches in (2, 3, 1, 2)] == [2, 2, 1, 1]


def test_the_fullest_engine_decides() -> None:
    full, empty = EngineRoom(2_000, None), EngineRoom(10**9, 256)
    for room in (full, empty):
        room.observe(results(1_000), seconds=1)
    assert BatchLimit([full, empty], 100).limit(0, 0, batch_size=1) == 2


def test_it_follows_samples_that_grow() -> None:
    room = EngineRoom(100_000, None)
    room.observe(results(1_000), seconds=1)
    before = a_limit(room)
    for _ in range(500):
        room.observe(results(10_000), seconds=1)
    assert (before, a_limit(room)) == (48, 5)
