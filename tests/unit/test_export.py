from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from capflow_tasks.errors import MediaMissing
from capflow_tasks.records import FinishedSample, Stage
from capflow_tasks.store.rows import ShardRow
from capflow_tasks.store.states import SampleState
from capflow_tasks.store.views import PAGE, Views
from producer.writing.captions import export
from tests.stores import a_failure, a_result, a_shard

ROW = ShardRow(id=1, expanded_to=2, shard=a_shard(2, dataset="my set", assign_rank=3, shard_index=4))


class Ended(Views):
    """Samples that ended so, without a database."""

    def __init__(self, *states: SampleState) -> None:
        self._states = states

    def finished_samples(
        self, shard_id: int, state: SampleState, page_size: int = PAGE
    ) -> Iterator[FinishedSample]:
        return (_sample(index, of_state) for index, of_state in enumerate(self._states) if of_state is state)


def _sample(index: int, state: SampleState) -> FinishedSample:
    failure = a_failure(Stage.ROUTE, MediaMissing("gone")) if state is SampleState.FAILED else None
    results = (a_result(Stage.SUMMARIZE, text="A cat."),)
    return FinishedSample(index, {"id": index}, "Natural", 0.5, results, failure, 1)


def test_captions_and_failures_go_to_files_named_by_rank_shard_and_dataset(tmp_path: Path) -> None:
    files = export(Ended(SampleState.DONE, SampleState.FAILED, SampleState.DONE), [ROW], tmp_path / "out")

    assert [(file.path.name, file.samples) for file in files] == [
        ("Rank3_node4_my_set.jsonl", 2),
        ("Rank3_node4_my_set.failed.jsonl", 1),
    ]
    captions, failed = ([json.loads(line) for line in file.path.read_text().splitlines()] for file in files)
    assert [record["id"] for record in captions] == [0, 2]
    assert captions[0]["caption"] == "A cat."
    assert failed[0]["error"]["kind"] == "media_missing"


def test_a_shard_without_captions_has_an_empty_file_and_no_other(tmp_path: Path) -> None:
    (file,) = export(Ended(), [ROW], tmp_path)

    assert (file.path.name, file.samples) == ("Rank3_node4_my_set.jsonl", 0)
    assert [path.name for path in tmp_path.iterdir()] == ["Rank3_node4_my_set.jsonl"]


def test_failures_that_are_mended_leave_no_file_behind(tmp_path: Path) -> None:
    export(Ended(SampleState.FAILED), [ROW], tmp_path)
    export(Ended(SampleState.DONE), [ROW], tmp_path)

    assert [path.name for path in tmp_path.iterdir()] == ["Rank3_node4_my_set.jsonl"]
