"""Marks that a report's page has exported, and what becomes of marked captions."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from capflow_tasks.domains.catalogue import load_catalogue
from capflow_tasks.errors import UserError
from capflow_tasks.records import FinishedSample, Stage
from producer.filtering import CaptionFilter
from producer.reading.caption_files import Criteria, Minimums, Rubrics
from producer.reading.marks import Mark, Marks, key_of_sample, mark_key
from producer.writing.captions import caption_record
from tests.stores import a_result


def write_marks(path: Path, **marks: str) -> Path:
    """A file with a mark for the caption `name` of the picture `name.png`."""
    listed: list[dict[str, Any]] = [
        {"key": mark_key([f"{name}.png"], name), "sample": f"set[{number}]", "mark": mark, "note": ""}
        for number, (name, mark) in enumerate(marks.items())
    ]
    path.write_text(json.dumps({"capflow_marks": 1, "run": "run", "marks": listed}))
    return path


def test_a_mark_is_about_one_caption_of_some_media(tmp_path: Path) -> None:
    marks = Marks(write_marks(tmp_path / "marks.json", lamp="good", table="bad"))

    assert marks.of(["lamp.png"], "lamp") is Mark.GOOD
    assert marks.of(["lamp.png", "lamp.png"], "lamp") is Mark.GOOD
    assert marks.of(["lamp.png"], "a lamp, written again") is None
    assert marks.of(["table.png"], "lamp") is None
    assert [each.place for each in marks.marked(Mark.BAD).values()] == [("set", 1)]


def test_a_mark_of_a_caption_of_json_is_found_in_its_caption_file(tmp_path: Path) -> None:
    said = {"kind": "lamp", "colours": ["red"]}
    caption = replace(
        a_result(Stage.SUMMARIZE, "tagger", '{ "colours": ["red"], "kind": "lamp" }'), data=said
    )
    sample = FinishedSample(0, {"image": "lamp.png"}, "Natural", 1.0, (caption,), None, 0)

    marked = {"key": key_of_sample(sample), "sample": "set[0]", "mark": "good"}
    (tmp_path / "marks.json").write_text(json.dumps({"capflow_marks": 1, "marks": [marked]}))

    criteria = Criteria(Rubrics(load_catalogue()), None, marks=Marks(tmp_path / "marks.json"))
    assert criteria.is_marked_good(json.loads(json.dumps(caption_record(sample))))


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", "is not JSON"),
        ("[]", "capflow_marks"),
        ('{"capflow_marks": 1, "marks": {}}', "not a list"),
        ('{"capflow_marks": 1, "marks": [{"key": "a", "sample": "set[1]", "mark": "great"}]}', "great"),
        ('{"capflow_marks": 1, "marks": [{"key": "a", "sample": "set", "mark": "bad"}]}', "mark 0"),
    ],
)
def test_a_file_that_no_report_has_exported_is_refused_with_a_remedy(
    tmp_path: Path, text: str, fault: str
) -> None:
    path = tmp_path / "marks.json"
    path.write_text(text)

    with pytest.raises(UserError, match=f"{fault}.*Export marks"):
        Marks(path)


def test_what_is_marked_good_is_kept_and_what_is_bad_is_not_whatever_the_grades(tmp_path: Path) -> None:
    rubrics = Rubrics(load_catalogue())
    grades = dict.fromkeys(rubrics.missing("Natural", ()), 3)

    def record(name: str, grade: int) -> str:
        scores = grades | {"factual_accuracy": grade}
        entry = {"image": f"{name}.png", "caption": name, "task": "Natural"}
        return json.dumps(entry | {"scores": scores, "overall": grade})

    captions = tmp_path / "captions"
    captions.mkdir()
    lines = [record("fine", 3), record("poor", 1), record("praised", 1), record("wrong", 3), record("odd", 3)]
    (captions / "Rank0_node0_set.jsonl").write_text("\n".join(lines))
    marks = Marks(write_marks(tmp_path / "marks.json", praised="good", wrong="bad", odd="unsure"))

    result = CaptionFilter(Criteria(rubrics, Minimums(2, 1), marks=marks), tmp_path)
    for _ in result.run(captions):
        pass

    kept = (tmp_path / "kept" / "Rank0_node0_set.jsonl").read_text().splitlines()
    assert [json.loads(line)["caption"] for line in kept] == ["fine", "praised", "odd"]
    assert result.rejected_by["mark"] == 1
