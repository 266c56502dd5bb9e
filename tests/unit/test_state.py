"""Which stage follows which."""

from __future__ import annotations

import pytest

from capflow_tasks.records import Stage
from capflow_tasks.store.states import stage_after, stages_from

ALL = tuple(Stage)


@pytest.mark.parametrize(
    ("stage", "stages", "following"),
    [
        (Stage.ROUTE, ALL, Stage.PERCEIVE),
        (Stage.SUMMARIZE, ALL, Stage.SCORE),
        (Stage.SCORE, ALL, None),
        (Stage.ROUTE, (Stage.ROUTE,), None),
        (Stage.PERCEIVE, (Stage.SCORE, Stage.ROUTE), Stage.SCORE),
        (Stage.ROUTE, (Stage.SCORE, Stage.SUMMARIZE), Stage.SUMMARIZE),
    ],
)
def test_the_next_stage_is_the_nearest_that_the_run_asks_for(
    stage: Stage, stages: tuple[Stage, ...], following: Stage | None
) -> None:
    assert stage_after(stage, stages) is following


def test_a_chain_goes_on_from_any_stage_in_order_however_the_run_names_them() -> None:
    assert stages_from(Stage.ROUTE, tuple(reversed(ALL))) == list(ALL)
    assert stages_from(Stage.SUMMARIZE, ALL) == [Stage.SUMMARIZE, Stage.SCORE]
    assert stages_from(Stage.PERCEIVE, (Stage.ROUTE, Stage.SCORE)) == [Stage.SCORE]
