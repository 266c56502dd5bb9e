from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from threading import Event

import pytest

from capflow_tasks.media.loader import Media, MediaCache
from capflow_tasks.records import Modality

BYTES = 10


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(4) as threads:
        yield threads


def pixels_of(key: str) -> Media:
    return Media(Modality.IMAGE, 1, f"pixels of {key}", nbytes=BYTES, key=key)


class Loads:
    """Counts how often each key was loaded."""

    def __init__(self, cache: MediaCache) -> None:
        self.cache = cache
        self.keys: list[str] = []

    def __call__(self, key: str) -> str:
        def load() -> Media:
            self.keys.append(key)
            return pixels_of(key)

        value: str = self.cache.load(key, load).result(5).value
        return value


def a_cache(threads: ThreadPoolExecutor, room_for: int) -> Loads:
    return Loads(MediaCache(threads, room_for * BYTES))


def settle(threads: ThreadPoolExecutor) -> None:
    """Callbacks run behind the value; one more round through every thread is behind them."""
    wait([threads.submit(int) for _ in range(8)])


def test_what_was_loaded_is_not_loaded_again(threads: ThreadPoolExecutor) -> None:
    load = a_cache(threads, room_for=2)

    assert [load("a"), load("a"), load("b")] == ["pixels of a", "pixels of a", "pixels of b"]
    assert load.keys == ["a", "b"]


def test_the_least_recently_used_goes_first_when_room_is_short(threads: ThreadPoolExecutor) -> None:
    load = a_cache(threads, room_for=2)
    for key in ("a", "b", "a", "c"):
        load(key)
        settle(threads)

    assert (load("a"), load.keys) == ("pixels of a", ["a", "b", "c"])
    assert (load("b"), load.keys) == ("pixels of b", ["a", "b", "c", "b"])


def test_without_room_nothing_is_kept_and_all_is_given(threads: ThreadPoolExecutor) -> None:
    load = a_cache(threads, room_for=0)

    for _ in range(3):
        assert load("a") == "pixels of a"
        settle(threads)
    assert load.keys == ["a", "a", "a"]


def test_those_who_ask_at_once_share_one_load(threads: ThreadPoolExecutor) -> None:
    cache = MediaCache(threads, BYTES)
    may_load = Event()
    loads = []

    def load() -> Media:
        assert may_load.wait(5)
        loads.append(1)
        return pixels_of("a")

    futures = [cache.load("a", load) for _ in range(10)]
    may_load.set()

    assert {future.result(5).value for future in futures} == {"pixels of a"}
    assert len(loads) == 1


def test_a_failure_is_told_to_those_who_wait_and_then_forgotten(threads: ThreadPoolExecutor) -> None:
    load = a_cache(threads, room_for=2)

    def fail() -> Media:
        raise OSError("the disk is away")

    with pytest.raises(OSError, match="away"):
        load.cache.load("a", fail).result(5)
    settle(threads)

    assert load("a") == "pixels of a"
