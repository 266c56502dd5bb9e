"""Captions that someone marked bad are opened again, and nothing else of the run."""

import json
from pathlib import Path

import pytest
from sqlalchemy import Engine

from capflow_tasks.records import Stage
from producer.reading.marks import Marks, mark_key
from producer.refresh import write_marked_again
from tests.stores import Fleet, some_entries

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
