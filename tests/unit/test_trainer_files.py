"""Files for trainers and text files, sample by sample."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from capflow_tasks.errors import UserError
from capflow_tasks.records import FinishedSample, JsonObject, Stage
from producer.writing.captions import Captioned, caption_record
from producer.writing.selection import split_of
from producer.writing.sidecars import write_sidecars
from producer.writing.trainers import TRAINERS, register, write_list, write_typed_lines
from tests.datasets import read_lines
from tests.stores import a_result, a_shard


def captioned(entry: JsonObject, index: int = 0) -> Captioned:
    results = (a_result(Stage.SUMMARIZE, text=f"Caption {index}."),)
    sample = FinishedSample(index, entry, "Natural", 0.5, results, None, 0)
    return Captioned(a_shard(9), sample, caption_record(sample))


def texts_in(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*.txt")}


def test_typed_parts_hold_each_medium_where_the_question_does() -> None:
    turns = [{"from": "system", "value": "S"}]

    record = TRAINERS["messages"].record(captioned({"images": ["a", "b"], "conversations": turns}))

    system, question, answer = record["messages"]
    assert system == {"role": "system", "content": [{"type": "text", "text": "S"}]}
    assert [part["type"] for part in question["content"]] == ["image", "image", "text"]
    assert answer == {"role": "assistant", "content": [{"type": "text", "text": "Caption 0."}]}
    assert (record["images"], "videos" in record) == (["a", "b"], False)


def test_a_line_with_a_new_key_is_at_the_front_whenever_it_comes(tmp_path: Path) -> None:
    pictures = [{"images": ["a"], "number": number} for number in range(3)]

    count, keys = write_typed_lines(tmp_path / "a.jsonl", [*pictures, {"videos": ["v"]}])

    assert (count, keys) == (4, {"images", "number", "videos"})
    assert read_lines(tmp_path / "a.jsonl") == [pictures[0], {"videos": ["v"]}, *pictures[1:]]


@pytest.mark.parametrize("records", [[], [{"a": 1}], [{"a": 1}, {"b": "ü\n"}]])
def test_a_list_is_json_of_any_length(tmp_path: Path, records: list[JsonObject]) -> None:
    assert write_list(tmp_path / "a.json", records)[0] == len(records)
    assert json.loads((tmp_path / "a.json").read_text()) == records


def test_a_registry_that_cannot_be_read_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "dataset_info.json").write_text("{")

    with pytest.raises(UserError, match=r"dataset_info\.json: is not JSON: .*; fix or remove it"):
        register(tmp_path, "run", "run.jsonl", ["images"])

    assert (tmp_path / "dataset_info.json").read_text() == "{"


def test_texts_mirror_the_tree_and_never_leave_the_folder(tmp_path: Path) -> None:
    names = ["a.jpg", "sub/a.jpg", "a.png", "a.jpg", "../../b.jpg", "/data/c.jpg", "d"]
    samples = [captioned({"image": name}, index) for index, name in enumerate(names)]

    count = write_sidecars(samples, tmp_path, has_roots=False, overwrites=False)

    assert count == len(names)
    assert texts_in(tmp_path) == {
        "a.txt": "Caption 0.\n",
        "sub/a.txt": "Caption 1.\n",
        "a.png.txt": "Caption 2.\n",
        "a.jpg.txt": "Caption 3.\n",
        "b.txt": "Caption 4.\n",
        "c.txt": "Caption 5.\n",
        "d.txt": "Caption 6.\n",
    }
    again = captioned({"image": "a.jpg"}, 9)
    write_sidecars([*samples, again], tmp_path, has_roots=False, overwrites=False)
    assert texts_in(tmp_path)[f"a.jpg.{again.key}.txt"] == "Caption 9.\n"


def test_datasets_of_several_roots_have_folders_of_their_own(tmp_path: Path) -> None:
    write_sidecars([captioned({"image": "a.jpg"})], tmp_path, has_roots=True, overwrites=False)

    assert list(texts_in(tmp_path)) == ["set/a.txt"]


def test_splits_have_their_shares_and_a_medium_has_one_split() -> None:
    splits = {"train": 0.8, "validation": 0.1, "test": 0.1}
    entries = [{"image": f"{number}.jpg", "id": number} for number in range(5000)]

    found = [split_of(entry, splits) for entry in entries]

    shares = {name: count / len(entries) for name, count in Counter(found).items()}
    assert shares == pytest.approx(splits, abs=0.02)
    assert found == [split_of({"images": [entry["image"], "x.jpg"]}, splits) for entry in entries]
