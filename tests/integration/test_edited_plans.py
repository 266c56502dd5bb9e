"""What a run takes over from lines of a plan that were edited, whatever state its batches are in."""

from __future__ import annotations

import json
import logging
from functools import partial
from pathlib import Path
from threading import Event

import pytest
from sqlalchemy import Engine, text

from capflow_tasks.domains.catalogue import load_catalogue
from capflow_tasks.errors import UserError
from capflow_tasks.fleet.application import make_app
from capflow_tasks.fleet.embedded import Services
from capflow_tasks.records import PlanShard, Stage
from capflow_tasks.settings import Settings
from capflow_tasks.store.edits import EditStore
from capflow_tasks.store.runs import RunStore
from capflow_tasks.store.states import NewBatch, NewSample, Tally
from capflow_tasks.store.statistics import coverage_of
from producer import services
from producer.reading.samples import batches_of, read_samples
from producer.run import OpenRun, Order
from tests.stores import Fleet, a_shard, some_entries

pytestmark = pytest.mark.integration

ROUTE = (Stage.ROUTE,)


@pytest.fixture
def reached(engine: Engine, database_url: str, broker_url: str) -> services.Fleet:
    urls = Services(database_url, broker_url)
    settings = Settings(database_url=database_url, broker_url=broker_url)
    return services.Fleet(settings, urls, engine, services.Broker(make_app(settings, broker_url)))


def open_run(reached: services.Fleet, *shards: PlanShard) -> OpenRun:
    order = Order(Path("/plan.jsonl"), Path("/out"), "run", batch_size=4, stages=ROUTE)
    return OpenRun(reached, order, shards)


def write_annotation(folder: Path, count: int, **keys: str) -> str:
    """Write entries with these further keys; return the file's path."""
    path = folder / "set.jsonl"
    entries = [{"id": idx, "image": f"{idx}.png", **keys} for idx in range(count)]
    path.write_text("".join(f"{json.dumps(entry)}\n" for entry in entries))
    return str(path)


def idx_by_sample(engine: Engine) -> dict[int, int]:
    """The id of the sample at each index of the run."""
    asked = text(
        "SELECT idx, samples.id FROM samples JOIN shards ON shards.id = shard_id WHERE run_id IS NOT NULL"
    )
    with engine.connect() as connection:
        return {row.idx: row.id for row in connection.execute(asked)}


def samples_by_batch(engine: Engine) -> list[tuple[int, int, str, list[int]]]:
    asked = text(
        "SELECT start_idx, end_idx, batches.state, array_agg(idx ORDER BY idx) AS held FROM batches"
        " JOIN samples ON samples.batch_id = batches.id AND samples.shard_id = batches.shard_id"
        " GROUP BY batches.id ORDER BY start_idx"
    )
    with engine.connect() as connection:
        return [(row.start_idx, row.end_idx, row.state, row.held) for row in connection.execute(asked)]


def test_a_plan_that_is_split_over_other_ranks_takes_over_every_sample(reached: services.Fleet) -> None:
    fleet = Fleet(reached.engine, some_entries(8), stages=ROUTE)
    fleet.finish(fleet.claim(Stage.ROUTE))
    running = fleet.claim(Stage.ROUTE, batch_id=fleet.batch_ids[1])

    cuts = [(0, 3), (3, 6), (6, 8)]
    shards = [
        a_shard(end, start_idx=start, shard_index=number, num_shards=3)
        for number, (start, end) in enumerate(cuts)
    ]
    run = open_run(reached, *shards)

    assert [row.expanded_to for row in run.shards] == [3, 6, 8]
    assert samples_by_batch(reached.engine) == [
        (0, 3, "done", [0, 1, 2]),
        (3, 4, "done", [3]),
        (4, 6, "ready", [4, 5]),
        (6, 8, "ready", [6, 7]),
    ]
    assert run.views.tally(run.id) == Tally(done=4)
    assert not fleet.finish(running)


@pytest.mark.parametrize(
    ("old", "new", "taken"),
    [("/gone", "/data", 8), ("s3://one/set", "s3://other/set", 0), ("s3://one/set", "s3://one/set", 8)],
)
def test_a_root_that_moved_keeps_its_samples_and_one_that_may_hold_other_media_does_not(
    reached: services.Fleet, old: str, new: str, taken: int
) -> None:
    Fleet(reached.engine, some_entries(8), stages=ROUTE, root=old)

    run = open_run(reached, a_shard(9, root=new))

    assert [row.expanded_to for row in run.shards] == [taken]


def test_lines_that_become_one_are_taken_over_together(reached: services.Fleet) -> None:
    Fleet(reached.engine, some_entries(8), stages=ROUTE)
    halves = [a_shard(4), a_shard(8, start_idx=4, shard_index=1)]
    assert [row.expanded_to for row in open_run(reached, *halves).shards] == [4, 8]

    run = open_run(reached, a_shard(9))

    assert [row.expanded_to for row in run.shards] == [8]
    assert run.views.set_aside(run.id) == []


@pytest.mark.parametrize(("start", "end", "taken"), [(0, 8, [(2, 6)]), (0, 4, [(2, 4)]), (4, 8, [(4, 6)])])
def test_a_line_that_begins_earlier_takes_over_what_lies_behind_the_new_samples(
    reached: services.Fleet,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    start: int,
    end: int,
    taken: list[tuple[int, int]],
) -> None:
    caplog.set_level(logging.INFO)
    annotation = write_annotation(tmp_path, 8)
    first = open_run(reached, a_shard(6, start_idx=2, annotation=annotation))
    read = partial(read_samples, load_catalogue())
    first.runs.expand(first.shards[0].id, 2, list(batches_of(read(first.shards[0].shard, 2), 4, ROUTE)))
    before = dict(idx_by_sample(reached.engine))

    run = open_run(reached, a_shard(end, start_idx=start, annotation=annotation))
    run.read_again(read, refused_too=False)

    (row,) = run.shards
    kept = idx_by_sample(reached.engine)
    assert [idx for idx in sorted(kept) if kept[idx] == before.get(idx)] == list(range(*taken[0]))
    assert row.expanded_to == taken[0][1]
    count, total = taken[0][1] - taken[0][0], end - start
    assert "replaces set[2-5] of an earlier plan" in caplog.text
    assert f"{count} of its {total} samples are taken over, 0 are captioned again, {total - count} are" in (
        caplog.text
    )


def test_what_is_said_to_be_taken_over_has_not_changed(
    reached: services.Fleet, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    annotation = write_annotation(tmp_path, 4)
    read = partial(read_samples, load_catalogue())
    first = open_run(reached, a_shard(4, annotation=annotation))
    first.read_again(read, refused_too=False)
    first.runs.expand(first.shards[0].id, 0, list(batches_of(read(first.shards[0].shard, 0), 4, ROUTE)))
    write_annotation(tmp_path, 6, note="corrected")

    run = open_run(reached, a_shard(6, annotation=annotation))
    run.read_again(read, refused_too=False)

    assert "0 of its 6 samples are taken over, 4 are captioned again, 2 are new" in caplog.text


def test_a_line_that_is_gone_counts_no_more_and_is_captioned_still(
    reached: services.Fleet, caplog: pytest.LogCaptureFixture
) -> None:
    fleet = Fleet(reached.engine, some_entries(4), domain="Natural", stages=(Stage.SUMMARIZE,))
    fleet.finish(fleet.claim(Stage.SUMMARIZE))
    caplog.set_level(logging.INFO)

    run = open_run(reached, a_shard(4, dataset="other", annotation="/data/other.json"))

    assert run.views.tally(run.id) == Tally()
    assert "set[0-3] is no longer in /plan.jsonl" in caplog.text
    assert coverage_of(reached.engine, lambda name: name)["/data/set.json"].captioned == [range(4)]


def test_results_of_media_that_cannot_be_read_now_are_kept(reached: services.Fleet, tmp_path: Path) -> None:
    """The media are away; of the annotation's entries only the third has changed."""
    rows = [
        {"image": "clip"},
        {"image": "picture.mp4"},
        {"image": "clip", "n": 2},
        {"images": ["clip", "a.png"]},
    ]
    stored = [
        {"video": "clip"},
        {"image": "picture.mp4"},
        {"video": "clip", "n": 1},
        {"images": ["a.png"], "video": "clip"},
    ]
    annotation = tmp_path / "set.jsonl"
    annotation.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    shard = a_shard(4, str(tmp_path), annotation=str(annotation))
    run = open_run(reached, shard)
    samples = [NewSample(idx, entry, "Natural") for idx, entry in enumerate(stored)]
    RunStore(reached.engine).expand(run.shards[0].id, 0, [NewBatch(Stage.ROUTE, samples)])
    run = open_run(reached, shard)

    run.read_again(partial(read_samples, load_catalogue()), refused_too=False)

    held = [each.entry for each in EditStore(reached.engine).entries(run.shards[0].id)]
    assert held[:2] + held[3:] == stored[:2] + stored[3:]
    assert held[2]["n"] == 2


def test_a_command_whose_run_got_another_plan_ends_with_one_sentence(reached: services.Fleet) -> None:
    run = open_run(reached, a_shard(4))
    open_run(reached, a_shard(4, task="Natural"))

    with pytest.raises(UserError, match="run run goes on with an edited plan"):
        run.finish(lambda shard, start: iter(()), Event())
