"""The report of a run in a real database."""

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from sqlalchemy import Engine

from capflow_tasks.errors import MediaMissing, UserError
from capflow_tasks.records import Stage
from capflow_tasks.settings import Settings
from capflow_tasks.store.states import Outcome
from producer.cost import read_prices
from producer.report.gallery import Size
from producer.report.report import make_report
from producer.report.shown import samples_of
from tests.stores import Fleet, a_failure, a_result, some_entries
from tests.unit.test_report_data import read

pytestmark = pytest.mark.integration


def test_a_report_shows_every_sample_of_the_run_whatever_became_of_it(engine: Engine, tmp_path: Path) -> None:
    fleet = Fleet(engine, some_entries(10), batch_size=4, domain="Natural", root=str(tmp_path))
    fleet.finish_all(fleet.batch_ids[0])
    claim = fleet.claim(Stage.PERCEIVE, batch_id=fleet.batch_ids[1])
    failed, *others = fleet.sample_ids(fleet.batch_ids[1])
    fleet.finish(
        claim,
        [
            Outcome(failed, failure=a_failure(Stage.PERCEIVE, MediaMissing("gone"))),
            *(Outcome(sample_id, (a_result(Stage.PERCEIVE),)) for sample_id in others),
        ],
    )

    size = Size(100, 0, 320, 1)
    made = make_report(engine, "run", tmp_path / "report", size, read_prices(), lambda done: None, Settings())

    assert (made.shown, made.samples, made.pictures) == (10, 10, 0)
    index = read(tmp_path / "report", "index")
    names = [index["state_names"][state] for state in index["states"]]
    assert names == ["done"] * 4 + ["failed"] + ["pending"] * 5
    assert [row[0] for row in read(tmp_path / "report", "text-0")] == [
        f"set[{number}]" for number in range(10)
    ]
    page = made.page.read_text("utf-8")
    assert "media missing" in page
    assert "of 10 samples" in page


def graded(sample_id: int, overall: int) -> Outcome:
    judge = replace(a_result(Stage.SCORE, "judge"), data={"overall": overall})
    return Outcome(sample_id, (a_result(Stage.SUMMARIZE), judge))


def test_what_fails_and_the_worst_are_shown_first_and_the_rest_spread_evenly(engine: Engine) -> None:
    fleet = Fleet(engine, some_entries(40), batch_size=40, stages=(Stage.SCORE,), domain="Natural")
    claim = fleet.claim(Stage.SCORE)
    outcomes = [graded(each, 1 if place in (8, 9) else 3) for place, each in enumerate(fleet.sample_ids())]
    for place in (5, 30):
        failed = outcomes[place].sample_id
        outcomes[place] = Outcome(failed, failure=a_failure(Stage.SCORE, MediaMissing("gone")))
    assert fleet.finish(claim, outcomes)

    def shown(most: int, with_pictures: int = 0) -> list[int]:
        rows = fleet.views.shards(fleet.run_id)
        found = samples_of(fleet.views, fleet.run_id, rows, most, with_pictures or most)
        return [each.sample.index for each in found if each.has_pictures]

    assert shown(40) == list(range(40))
    assert shown(3) == [5, 9, 30]
    some = shown(13)
    assert len(some) == 13
    assert set(some) >= {5, 8, 9, 30}
    good = [each for each in some if each not in (5, 8, 9, 30)]
    assert all(3 <= later - earlier <= 7 for earlier, later in pairwise(good))
    assert shown(40, with_pictures=3) == [5, 9, 30]


def test_a_run_that_is_not_there_is_named_and_nothing_is_written(engine: Engine, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="gone"):
        make_report(
            engine,
            "gone",
            tmp_path / "report",
            Size(1, 1, 320, 1),
            read_prices(),
            lambda done: None,
            Settings(),
        )

    assert list(tmp_path.iterdir()) == []
