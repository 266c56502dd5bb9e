from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from capflow_tasks.domains.catalogue import load_catalogue
from capflow_tasks.errors import UserError
from capflow_tasks.records import JsonObject
from producer.filtering import CaptionFilter
from producer.reading import caption_files as reader
from producer.reading.caption_files import (
    NO_DOMAIN,
    Criteria,
    Minimums,
    Rubrics,
    Scores,
    read_captions,
    scores_of,
)

RUBRICS = Rubrics(load_catalogue())
NO_SCORES = Scores(NO_DOMAIN, {})
IMAGE = (
    "factual_accuracy",
    "information_completeness",
    "reasoning_rigor",
    "core_intent_capture",
    "professionalism",
)
VIDEO = (
    "temporal_factual_accuracy",
    "event_detail_coverage",
    "temporal_causal_logic",
    "core_intent_capture",
    "professionalism",
)
NAME = "Rank0_node0_set.jsonl"

quietly = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def a_record(overall: Any = 3, task: Any = "Natural", **grades: Any) -> JsonObject:
    return {
        "id": 1,
        "task": task,
        "caption": "ein Käfer",
        "scores": dict.fromkeys(IMAGE, 3) | grades,
        "overall": overall,
    }


@pytest.fixture
def split(tmp_path: Path) -> Callable[..., CaptionFilter]:
    """Filter one file of these records or lines."""

    def split(*lines: JsonObject | bytes, minimums: Minimums = Minimums(3, 3)) -> CaptionFilter:  # noqa: B008
        encoded = [line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines]
        (tmp_path / NAME).write_bytes(b"\n".join(encoded))
        report = CaptionFilter(Criteria(RUBRICS, minimums), tmp_path)
        assert list(report.run(tmp_path)) == [tmp_path / NAME]
        assert len(report.invalid_examples) == min(report.all["invalid"], 10)
        return report

    return split


def lines_of(folder: Path, part: str) -> list[JsonObject]:
    return [json.loads(line) for line in (folder / part / NAME).read_bytes().splitlines()]


def test_only_straight_top_grades_pass_the_highest_minimums(
    split: Callable[..., CaptionFilter], tmp_path: Path
) -> None:
    good, low, lacking = a_record(), a_record(2), a_record(2, reasoning_rigor=1, professionalism=2)

    report = split(good, low, lacking)

    assert report.by_domain == {"Natural": {"kept": 1, "rejected": 2}}
    assert report.rejected_by.most_common() == [
        ("overall", 2),
        ("reasoning_rigor", 1),
        ("professionalism", 1),
    ]
    assert lines_of(tmp_path, "kept") == [good]
    assert lines_of(tmp_path, "rejected") == [
        low | {"rejected_because": ["overall is 2, below 3"]},
        lacking
        | {
            "rejected_because": [
                "reasoning_rigor is 1, below 3",
                "professionalism is 2, below 3",
                "overall is 2, below 3",
            ]
        },
    ]


def test_a_minimum_of_a_dimension_or_domain_takes_the_place_of_the_general_one(
    split: Callable[..., CaptionFilter],
) -> None:
    minimums = Minimums(3, 1, dimensions={"factual_accuracy": 2}, domains={"Medical & Bio-Imaging": 1})

    report = split(
        a_record(reasoning_rigor=1),
        a_record(factual_accuracy=1),
        a_record(1, task="medical"),
        a_record(1),
        minimums=minimums,
    )

    assert report.by_domain == {
        "Natural": {"kept": 1, "rejected": 2},
        "Medical & Bio-Imaging": {"kept": 1},
    }


def test_kept_lines_come_out_byte_for_byte(split: Callable[..., CaptionFilter], tmp_path: Path) -> None:
    odd = (
        b'{"overall":3, "x": 1e0,  "scores": '
        + json.dumps(dict.fromkeys(IMAGE, 3)).encode()
        + b' ,"task":"natural"}'
    )

    split(b"\xef\xbb\xbf" + odd, b"", odd + b"\r", odd)

    assert (tmp_path / "kept" / NAME).read_bytes() == odd + b"\n" + odd + b"\r\n" + odd + b"\n"
    assert (tmp_path / "rejected" / NAME).read_bytes() == b""


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({"id": 1}, 'has no "scores"'),
        (a_record() | {"scores": None}, 'has no "scores"'),
        (a_record() | {"scores": {}}, '"scores" is an object without grades'),
        (a_record() | {"scores": [3, 3]}, '"scores" is a list without grades'),
        (a_record() | {"scores": 3}, '"scores" is a number without grades'),
        (a_record(None), '"overall" is null, not 1, 2 or 3'),
        (a_record(True), '"overall" is true, not 1, 2 or 3'),
        (a_record(3.0), '"overall" is 3.0, not 1, 2 or 3'),
        (a_record("3"), '"overall" is "3", not 1, 2 or 3'),
        (a_record(professionalism=4), '"professionalism" is 4, not 1, 2 or 3'),
        (a_record(professionalism=True), '"professionalism" is true, not 1, 2 or 3'),
        (a_record(professionalism=[3]), '"professionalism" is [3], not 1, 2 or 3'),
        (
            a_record(overall=3) | {"scores": {"overall": 3}},
            '"scores" lack core_intent_capture, factual_accuracy',
        ),
        (a_record(task="Video"), '"scores" lack event_detail_coverage, temporal_causal_logic, temporal_'),
        (a_record(task=None) | {"scores": {"beauty": 3}}, '"scores" lack '),
        (
            {**a_record(2), "scores": {**a_record()["scores"], "overall": 3}},
            '"overall" is 2, but 3 in "scores"',
        ),
    ],
)
def test_a_record_without_valid_scores_is_never_kept(
    split: Callable[..., CaptionFilter], tmp_path: Path, record: JsonObject, reason: str
) -> None:
    report = split(record, minimums=Minimums(1, 1))

    assert report.all == {"invalid": 1}
    (line,) = lines_of(tmp_path, "rejected")
    assert line["rejected_because"][0].startswith(reason)
    assert {key: line[key] for key in record} == record


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"{", "is not JSON at column 2"),
        (b"[1]", "is a list, not an object"),
        (b"3", "is a number, not an object"),
        (b'{"overall": NaN}', "is not JSON: NaN is no number"),
        (b'{"overall": "\xff"}', "is not UTF-8 at byte 14"),
        (b"[" * 100_000, "is not JSON: maximum recursion depth"),
        (b'{"overall": ' + b"1" * 5000 + b"}", "is not JSON: Exceeds the limit"),
    ],
)
def test_a_line_that_is_no_record_is_invalid_and_shown_with_its_number(
    split: Callable[..., CaptionFilter], tmp_path: Path, line: bytes, reason: str
) -> None:
    report = split(a_record(), line)

    assert report.by_domain == {"Natural": {"kept": 1}, NO_DOMAIN: {"invalid": 1}}
    (shown,) = lines_of(tmp_path, "rejected")
    assert shown["line_number"] == 2
    assert shown["line"].startswith(line[:10].decode("utf-8", "replace"))
    assert shown["rejected_because"][0].startswith(reason)


def test_a_line_without_end_does_not_fill_the_memory(
    split: Callable[..., CaptionFilter], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader, "LINE_BYTES", 1000)

    report = split(b"x" * 3500, a_record())

    assert report.all == {"kept": 1, "invalid": 1}
    assert lines_of(tmp_path, "rejected")[0]["rejected_because"] == ["is longer than 1000 bytes"]


def test_scores_may_hold_the_overall_grade_and_further_dimensions() -> None:
    grades = dict.fromkeys(VIDEO, 2)

    scores = scores_of({"task": "video", "scores": {**grades, "overall": 1, "rhythm": 3}}, RUBRICS)

    assert scores == Scores("Video & Temporal", {**grades, "rhythm": 3, "overall": 1})


def test_captions_of_an_unknown_domain_are_judged_by_any_rubric(split: Callable[..., CaptionFilter]) -> None:
    report = split(a_record(task="Pottery"), a_record(task=["Natural"]), a_record(task=None))

    assert report.by_domain == {NO_DOMAIN: {"kept": 3}}


def test_half_a_surrogate_pair_survives_rejection(
    split: Callable[..., CaptionFilter], tmp_path: Path
) -> None:
    split(a_record(1) | {"caption": "\ud800"})

    assert lines_of(tmp_path, "rejected")[0]["caption"] == "\ud800"


def test_only_caption_files_are_taken(tmp_path: Path) -> None:
    for name in ("Rank1_node0_b.jsonl", "Rank0_node10_a.b.jsonl", "Rank0_node0_a.failed.jsonl"):
        (tmp_path / name).touch()
    for name in ("Rank0_node0_a.held.jsonl", "Rank_node0_a.jsonl", "plan.jsonl", "Rank0_node0_a.jsonl.tmp"):
        (tmp_path / name).touch()
    (tmp_path / "Rank0_node0_folder.jsonl").mkdir()

    assert [path.name for path in reader.find(tmp_path)] == [
        "Rank0_node10_a.b.jsonl",
        "Rank1_node0_b.jsonl",
    ]


def test_a_folder_without_caption_files_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds no Rank\*_node\*_\*.jsonl; name the folder"):
        reader.find(tmp_path)
    with pytest.raises(UserError, match="cannot be read: No such file"):
        reader.find(tmp_path / "gone")


def test_a_folder_that_would_be_overwritten_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "kept"
    folder.mkdir()
    (folder / NAME).write_text(json.dumps(a_record()))

    with pytest.raises(UserError, match="would be overwritten"):
        list(CaptionFilter(Criteria(RUBRICS, Minimums(3, 3)), tmp_path).run(folder))


def test_filtering_what_was_kept_again_needs_no_other_folder(
    split: Callable[..., CaptionFilter], tmp_path: Path
) -> None:
    split(a_record(), a_record(2), minimums=Minimums(2, 2))

    list(CaptionFilter(Criteria(RUBRICS, Minimums(3, 3)), tmp_path / "kept").run(tmp_path / "kept"))

    assert lines_of(tmp_path / "kept", "kept") == [a_record()]


ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-1, 4) | st.floats() | st.text(max_size=5),
    lambda children: (
        st.lists(children, max_size=3)
        | st.dictionaries(
            st.sampled_from([*IMAGE, *VIDEO, "overall", "scores", "task"]), children, max_size=8
        )
    ),
    max_leaves=12,
)
GRADES = st.dictionaries(st.sampled_from([*IMAGE, *VIDEO, "overall"]), st.integers(1, 3), max_size=8)
RECORDS = st.fixed_dictionaries(
    {}, optional={"scores": GRADES | ANY_JSON, "overall": st.integers(1, 3) | ANY_JSON, "task": ANY_JSON}
)


@quietly
@given(content=st.binary(max_size=300))
def test_any_bytes_are_read_as_records_or_lines_with_a_reason(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / NAME
    path.write_bytes(content)

    lines = list(read_captions(path))

    assert all((line.record is None) != (line.problem is None) for line in lines)
    numbers = [line.number for line in lines]
    assert numbers == sorted(set(numbers))
    assert all(1 <= number <= content.count(b"\n") + 1 for number in numbers)


@quietly
@given(record=RECORDS)
def test_whatever_is_kept_has_whole_grades_from_1_to_3(record: JsonObject) -> None:
    scores = scores_of(record, RUBRICS)

    if scores.problem is None:
        assert all(type(grade) is int and 1 <= grade <= 3 for grade in scores.grades.values())
        assert {*IMAGE, "overall"} <= scores.grades.keys() or {*VIDEO, "overall"} <= scores.grades.keys()


@quietly
@given(
    contents=st.lists(
        st.binary(max_size=80) | RECORDS.map(lambda record: json.dumps(record).encode()), max_size=5
    )
)
def test_every_line_is_kept_or_rejected(tmp_path: Path, contents: list[bytes]) -> None:
    (tmp_path / NAME).write_bytes(b"\n".join(contents))
    expected = len(list(read_captions(tmp_path / NAME)))

    report = CaptionFilter(Criteria(RUBRICS, Minimums(1, 1)), tmp_path)
    list(report.run(tmp_path))

    assert report.all.total() == expected
    written = [line for part in ("kept", "rejected") for line in lines_of(tmp_path, part)]
    assert len(written) == expected


def test_captions_in_whose_making_the_guard_found_a_given_rule_can_be_dropped(tmp_path: Path) -> None:
    found = {"agent": "natural", "rule": "loop", "outcome": "asked_again", "evidence": "the (x9)"}
    records = [
        a_record(),
        a_record() | {"guard": []},
        a_record() | {"guard": [found]},
        a_record() | {"guard": 7},
    ]
    (tmp_path / NAME).write_text("\n".join(map(json.dumps, records)))

    result = CaptionFilter(Criteria(RUBRICS, Minimums(3, 3), frozenset({"loop", "refusal"})), tmp_path)
    assert list(result.run(tmp_path)) == [tmp_path / NAME]

    assert result.rejected_by == {"guard: loop": 1}
    assert len(lines_of(tmp_path, "kept")) == 3
    (rejected,) = lines_of(tmp_path, "rejected")
    assert rejected["rejected_because"] == ["the guard found loop"]


def test_a_second_folder_and_files_of_others_are_never_replaced(tmp_path: Path) -> None:
    first, second, output = (tmp_path / name for name in ("first", "second", "output"))
    for folder in (first, second):
        folder.mkdir()
        (folder / NAME).write_text(json.dumps(a_record()) + "\n")
    theirs = output / "rejected" / NAME
    theirs.parent.mkdir(parents=True)
    theirs.write_text("by a script")

    def filter_to_output(folder: Path, *, overwrites: bool = False) -> None:
        criteria = Criteria(RUBRICS, Minimums(3, 3))
        list(CaptionFilter(criteria, output, overwrites=overwrites).run(folder))

    with pytest.raises(UserError, match=f"rejected/{NAME}: was not written by this run"):
        filter_to_output(first)
    assert theirs.read_text() == "by a script"
    assert not (output / "kept").exists()
    filter_to_output(first, overwrites=True)
    filter_to_output(first)
    with pytest.raises(UserError, match=f"kept/{NAME}: is a file of `capflow filter ../first`; choose"):
        filter_to_output(second)


def test_a_folder_that_moves_with_its_results_is_filtered_again(
    split: Callable[..., CaptionFilter], tmp_path: Path
) -> None:
    split(a_record())
    moved = tmp_path.rename(tmp_path.with_name("moved"))

    list(CaptionFilter(Criteria(RUBRICS, Minimums(3, 3)), moved).run(moved))

    assert lines_of(moved, "kept") == [a_record()]


def test_captions_whose_quotes_or_words_do_not_agree_with_the_picture_are_not_kept() -> None:
    criteria = Criteria(RUBRICS, None, shares={"quote_support": 0.9, "text_coverage": 0.5})
    agrees = {"quote_support": 0.9, "text_coverage": 0.5}
    missed = criteria.missed(a_record() | {"quote_support": 0.75, "text_coverage": 0.4}, NO_SCORES)
    assert list(missed.values()) == ["quote_support is 0.75, below 0.9", "text_coverage is 0.4, below 0.5"]
    assert criteria.keeps(a_record() | agrees)
    # Nothing is quoted, or nothing was read.
    assert criteria.keeps(a_record() | {"quote_support": None})
    assert criteria.keeps(a_record())
