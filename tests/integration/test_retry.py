"""What `capflow retry` opens again, and what it leaves alone: captions marked, media missing still."""

import json
from pathlib import Path

import pytest
from sqlalchemy import Engine

from capflow_tasks.errors import MediaMissing
from capflow_tasks.records import Stage
from capflow_tasks.store.states import Outcome
from producer.reading.marks import Marks, mark_key
from producer.refresh import still_missing, write_marked_again
from tests.datasets import draw_picture
from tests.stores import Fleet, a_failure, some_entries

pytestmark = pytest.mark.integration


def test_what_is_marked_bad_is_asked_again_from_the_start_but_only_while_the_caption_is_the_same(
    engine: Engine, tmp_path: Path
) -> None:
    fleet = Fleet(engine, some_entries(8), batch_size=4, domain="Natural")
    for batch_id in fleet.batch_ids:
        fleet.finish_all(batch_id)
    path = tmp_path / "marks.json"
    marked = [(1, "said", "bad"), (2, "other words", "bad"), (5, "said", "good"), (99, "said", "bad")]
    marks = [
        {"key": mark_key([f"{index}.png"], caption), "sample": f"set[{index}]", "mark": mark}
        for index, caption, mark in marked
    ]
    path.write_text(json.dumps({"capflow_marks": 1, "marks": marks}))

    write_marked_again(fleet.views, fleet.runs, fleet.run_id, Marks(path))

    first, second = fleet.batch_ids
    assert (fleet.batch(first).state, fleet.batch(second).state) == ("ready", "done")
    (sample,) = fleet.batches.pending_samples(first)
    assert (sample.idx, sample.domain, sample.results) == (1, "Natural", ())
    for stage in Stage:
        assert fleet.finish(fleet.claim(stage, batch_id=first))
    assert fleet.views.tally(fleet.run_id).done == 8

    write_marked_again(fleet.views, fleet.runs, fleet.run_id, Marks(tmp_path / "marks.json"))
    assert fleet.batch(first).state == "ready"


def test_media_that_are_missing_still_are_not_tried_again(engine: Engine, tmp_path: Path) -> None:
    fleet = Fleet(engine, some_entries(3), batch_size=4, domain="Natural", root=str(tmp_path))
    claim = fleet.claim(Stage.PERCEIVE)
    failure = a_failure(Stage.PERCEIVE, MediaMissing("gone"))
    ids = fleet.sample_ids()
    assert fleet.finish(claim, [Outcome(sample_id, failure=failure) for sample_id in ids])
    draw_picture(tmp_path / "1.png", 1)

    missing = still_missing(fleet.views, fleet.views.shards(fleet.run_id))

    assert missing == [ids[0], ids[2]]
    assert fleet.runs.retry_failed(fleet.run_id, except_ids=missing) == 1
    assert fleet.sample_ids() == [ids[1]]


def test_samples_of_a_root_that_this_machine_does_not_see_are_left_to_the_workers(engine: Engine) -> None:
    fleet = Fleet(engine, some_entries(1), domain="Natural", root="/no/such/mount")
    claim = fleet.claim(Stage.PERCEIVE)
    failure = a_failure(Stage.PERCEIVE, MediaMissing("gone"))
    assert fleet.finish(claim, [Outcome(sample_id, failure=failure) for sample_id in fleet.sample_ids()])

    assert still_missing(fleet.views, fleet.views.shards(fleet.run_id)) == []


def test_a_message_names_its_run(engine: Engine) -> None:
    fleet = Fleet(engine, some_entries(1))

    assert [batch.run for batch in fleet.publish()] == ["run"]
