"""When failures are so many, so alike and so sudden that something else than the samples must be wrong."""

from __future__ import annotations

from capflow_tasks.captioning.surge import Surge

BAD = "media_corrupt"


def test_a_kind_that_most_of_the_latest_fail_with_and_few_before_is_a_surge() -> None:
    surge = Surge(8)

    assert surge.add([None] * 40) is None
    assert surge.add([BAD] * 4) is None
    assert surge.add([BAD]) == BAD


def test_too_few_samples_say_nothing() -> None:
    assert Surge(8).add([BAD] * 7) is None
    assert Surge(8).add([BAD] * 8) == BAD


def test_failures_of_several_kinds_are_no_surge() -> None:
    assert Surge(8).add([BAD, "bad_answer", None] * 8) is None


def test_what_was_common_all_along_is_no_surge() -> None:
    surge = Surge(8)

    assert surge.add([BAD, None, None] * 40) is None
    assert surge.add([BAD] * 8) is None


def test_a_surge_goes_on_for_as_long_as_most_fail() -> None:
    surge = Surge(8)

    assert [surge.add([BAD] * 8) for _ in range(20)] == [BAD] * 20


def test_a_surge_is_over_when_samples_pass_again() -> None:
    surge = Surge(8)
    surge.add([None] * 100)

    assert surge.add([BAD] * 6) == BAD
    assert surge.add([None] * 4) is None


def test_none_is_looked_for_with_0() -> None:
    assert Surge(0).add([BAD] * 1000) is None
