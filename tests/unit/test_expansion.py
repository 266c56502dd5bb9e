from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from capflow_tasks.domains.catalogue import Catalogue, load_catalogue
from capflow_tasks.errors import PlanError
from capflow_tasks.records import Stage
from capflow_tasks.store.states import NewBatch, NewSample
from producer.reading.samples import batches_of, read_samples
from tests.stores import a_shard

CATALOGUE: Catalogue = load_catalogue()
PICTURE = {"image": "a.png"}


def expand(
    tmp_path: Path, entries: list[Any], batch_size: int = 8, start_idx: int = 0, **shard: Any
) -> list[NewBatch]:
    file = tmp_path / "set.json"
    file.write_text(json.dumps(entries))
    given = a_shard(len(entries), annotation=str(file), **shard)
    return list(batches_of(read_samples(CATALOGUE, given, start_idx), batch_size, tuple(Stage)))


def one(tmp_path: Path, entry: Any, **shard: Any) -> NewSample:
    ((sample,),) = [batch.samples for batch in expand(tmp_path, [entry], **shard)]
    return sample


def test_batches_are_contiguous_and_as_large_as_asked_for(tmp_path: Path) -> None:
    batches = expand(tmp_path, [PICTURE] * 7, batch_size=3)

    assert [(batch.start_idx, batch.end_idx) for batch in batches] == [(0, 3), (3, 6), (6, 7)]
    assert [sample.idx for batch in batches for sample in batch.samples] == list(range(7))


def test_expansion_goes_on_from_where_it_stopped(tmp_path: Path) -> None:
    batches = expand(tmp_path, [PICTURE] * 7, batch_size=3, start_idx=3)

    assert [(batch.start_idx, batch.end_idx) for batch in batches] == [(3, 6), (6, 7)]


def test_the_task_of_a_sample_wins_over_the_shards(tmp_path: Path) -> None:
    own = one(tmp_path, PICTURE | {"task": "chart & math"}, task="Natural")

    assert own.domain == "Structure & Math"
    assert one(tmp_path, PICTURE, task="Natural").domain == "Natural"
    assert one(tmp_path, PICTURE).domain is None


def test_videos_go_to_the_domain_of_videos_unless_a_task_is_named(tmp_path: Path) -> None:
    assert one(tmp_path, {"video": "a.mp4"}).domain == "Video & Temporal"
    assert one(tmp_path, {"video": "a.mp4", "task": "Natural"}).domain == "Natural"


def test_routing_is_skipped_when_every_domain_is_known(tmp_path: Path) -> None:
    known, mixed = expand(
        tmp_path,
        [PICTURE | {"task": "Natural"}, {"video": "a.mp4"}, PICTURE, PICTURE | {"task": "Natural"}],
        batch_size=2,
    )

    assert (known.first_stage, mixed.first_stage) == (Stage.PERCEIVE, Stage.ROUTE)


@pytest.mark.parametrize(
    ("entry", "kind"),
    [
        ({}, "text_only"),
        ({"image": None}, "text_only"),
        ({"image": 5}, "bad_entry"),
        (PICTURE | {"task": "Cooking"}, "bad_entry"),
        (PICTURE | {"task": 3}, "bad_entry"),
        ("text", "bad_entry"),
    ],
)
def test_an_entry_that_cannot_be_used_is_a_failed_sample(tmp_path: Path, entry: Any, kind: str) -> None:
    (batch,) = expand(tmp_path, [entry, PICTURE])

    bad, good = batch.samples
    assert bad.failure is not None
    assert (bad.failure.kind, bad.failure.is_retryable) == (kind, False)
    assert bad.failure.message
    assert good.failure is None
    assert (batch.first_stage, batch.failed_count) == (Stage.ROUTE, 1)


def test_a_batch_of_nothing_but_bad_entries_has_nothing_to_run(tmp_path: Path) -> None:
    (batch,) = expand(tmp_path, [{}, {}])

    assert (batch.first_stage, batch.failed_count) == (None, 2)


def test_a_file_that_breaks_off_keeps_the_entries_before_that(tmp_path: Path) -> None:
    file = tmp_path / "set.json"
    file.write_text(json.dumps([PICTURE] * 5)[:-12])
    batches: list[NewBatch] = []

    samples = read_samples(CATALOGUE, a_shard(5, annotation=str(file)), 0)
    with pytest.raises(PlanError):
        # What was yielded before the error stays in the list.
        batches.extend(batches_of(samples, 2, tuple(Stage)))

    assert [sample.idx for batch in batches for sample in batch.samples] == [0, 1, 2, 3]
