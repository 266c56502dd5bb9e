"""Which of a sample's captions is the best."""

from __future__ import annotations

from dataclasses import replace

import pytest

from capflow_tasks.records import JsonObject, Result, Stage
from capflow_tasks.store.candidates import best_of, by_candidate, split_results
from tests.stores import a_result


def captions(*judged: JsonObject) -> dict[int, list[Result]]:
    """A caption for each: the last judge's grades, `expected`, and the number of `repairs`."""
    return {
        number: [
            replace(a_result(Stage.SUMMARIZE), candidate=number, guard={"repairs": each.pop("repairs", {})}),
            replace(
                a_result(Stage.SCORE),
                candidate=number,
                expected=each.pop("expected", None),
                data=each or None,
            ),
        ]
        for number, each in enumerate(map(dict, judged), start=1)
    }


@pytest.mark.parametrize(
    ("judged", "best"),
    [
        ([{"overall": 1, "true": 3}, {"overall": 2, "true": 2}], 2),
        ([{"overall": 2, "true": 3, "whole": 2}, {"overall": 2, "true": 2, "whole": 2}], 1),
        ([{"overall": 2, "expected": {"overall": 2.1}}, {"overall": 2, "expected": {"overall": 2.4}}], 2),
        ([{"overall": 2, "repairs": {"markup": "*"}}, {"overall": 2, "repairs": {}}], 2),
        ([{"overall": 2}, {"overall": 2}, {"overall": 2}], 1),
        ([{"overall": 1}, {}], 1),
    ],
)
def test_the_best_has_the_best_grades_then_expected_grades_then_the_fewest_repairs(
    judged: list[JsonObject], best: int
) -> None:
    assert best_of(captions(*judged)) == best


def test_what_the_first_stages_said_belongs_to_every_caption() -> None:
    shared = a_result(Stage.PERCEIVE)
    first, second = captions({"overall": 1}, {"overall": 2}).values()

    assert split_results([shared, *first, *second], 2) == ((shared, *second), tuple(first))
    assert by_candidate([shared, *first, *second]) == {1: first, 2: second}
