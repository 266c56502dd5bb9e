"""The report of a run in a real database."""

from pathlib import Path

import pytest
from sqlalchemy import Engine

from capflow_tasks.errors import MediaMissing, UserError
from capflow_tasks.records import Stage
from capflow_tasks.store.states import NewBatch, NewSample, Outcome
from producer.cost import read_prices
from producer.report.gallery import Size, samples_of
from producer.report.report import make_report
from tests.stores import Fleet, a_failure, a_result, a_shard, some_entries
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

    made = make_report(
        engine, "run", tmp_path / "report", Size(100, 0, 320, 1), read_prices(), lambda done: None
    )

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


def test_every_shard_has_a_fair_share_of_what_is_shown(engine: Engine) -> None:
    fleet = Fleet(engine, some_entries(8))
    for number, count in ((1, 2), (2, 8)):
        shard = a_shard(count, shard_index=number, dataset=f"set{number}")
        rows = fleet.runs.add_shards(fleet.run_id, [shard])
        samples = [NewSample(idx, entry, None) for idx, entry in enumerate(some_entries(count))]
        fleet.runs.expand(rows[0].id, 0, [NewBatch(Stage.ROUTE, samples)])

    shown = [sample.name for sample in samples_of(fleet.views, fleet.views.shards(fleet.run_id), 9)]

    assert shown == [
        *(f"set[{number}]" for number in range(3)),
        *(f"set1[{number}]" for number in range(2)),
        *(f"set2[{number}]" for number in range(4)),
    ]


def test_a_run_that_is_not_there_is_named_and_nothing_is_written(engine: Engine, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="gone"):
        make_report(engine, "gone", tmp_path / "report", Size(1, 1, 320, 1), read_prices(), lambda done: None)

    assert list(tmp_path.iterdir()) == []
