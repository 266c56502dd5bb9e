from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from capflow_tasks.domains.catalogue import load_catalogue
from capflow_tasks.errors import PlanError
from capflow_tasks.records import JsonObject, Modality
from producer.reading.plan import Plan, output_name, read_plan

RESOLVE = load_catalogue().resolve

#: The example of the plan format, as published: one object over several lines.
EXAMPLE = """{
"data_name": "dataset",
"json_url": "dataset.json",
"root": "media",
"task": "Natural",
"modality": "image",
"total": 1227,
"processed": 1056,
"remain": 171,
"shard_index": 0,
"num_shards": 1,
"start_idx": 1056,
"end_idx": 1227,
"anno_file_key": "vqa_rad_en_20240402.json",
"assign_rank": 4
}"""


def line(**changes: Any) -> JsonObject:
    required = {"data_name": "d", "json_url": "dataset.json", "root": "media", "modality": "image"}
    return {**required, "start_idx": 0, "end_idx": 5, **changes}


@pytest.fixture
def plan_file(tmp_path: Path) -> Path:
    (tmp_path / "dataset.json").write_text("[]")
    (tmp_path / "media").mkdir()
    return tmp_path / "plan.jsonl"


@pytest.fixture
def read(plan_file: Path) -> Callable[..., Plan]:
    def read(*lines: JsonObject | str) -> Plan:
        plan_file.write_text("\n".join(x if isinstance(x, str) else json.dumps(x) for x in lines))
        return read_plan(plan_file, RESOLVE)

    return read


@pytest.fixture
def problems(read: Callable[..., Plan], plan_file: Path) -> Callable[..., list[str]]:
    """What the lines are refused for, without the path of the plan."""

    def problems(*lines: JsonObject | str) -> list[str]:
        with pytest.raises(PlanError) as refused:
            read(*lines)
        messages = str(refused.value).split("\n")
        assert all(message.startswith(f"{plan_file}:") for message in messages)
        return [message.removeprefix(f"{plan_file}:") for message in messages]

    return problems


def test_the_published_example_is_read_as_it_stands(read: Callable[..., Plan], plan_file: Path) -> None:
    plan = read(EXAMPLE)

    (shard,) = plan.shards
    assert plan.warnings == ()
    assert (shard.dataset, shard.task, shard.modality) == ("dataset", "Natural", Modality.IMAGE)
    assert (shard.start_idx, shard.end_idx, shard.assign_rank, shard.num_shards) == (1056, 1227, 4, 1)
    assert shard.annotation == str(plan_file.parent / "dataset.json")
    assert shard.root == str(plan_file.parent / "media")
    assert shard.line == json.loads(EXAMPLE)
    assert output_name(shard) == "Rank4_node0_dataset.jsonl"


def test_objects_over_several_lines_and_single_lines_may_be_mixed(plan_file: Path) -> None:
    third = EXAMPLE.replace('"dataset"', '"c"').replace(" 1056", " 9").replace(' 1227,\n"anno', ' 99,\n"anno')
    text = f"{EXAMPLE}\n\n\n{json.dumps(line(data_name='b'))}\n\n{third}\n"
    plan_file.write_bytes(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode())

    plan = read_plan(plan_file, RESOLVE)

    assert [(shard.dataset, shard.line_number) for shard in plan.shards] == [
        ("dataset", 1),
        ("b", 19),
        ("c", 21),
    ]


def test_optional_keys_have_defaults_and_unknown_keys_are_kept(read: Callable[..., Plan]) -> None:
    (shard,) = read(line(owner="Ana", total=None)).shards

    assert (shard.task, shard.shard_index, shard.num_shards, shard.assign_rank) == (None, 0, 1, 0)
    assert shard.line["owner"] == "Ana"


def test_an_alias_becomes_the_canonical_task_and_an_empty_task_is_to_be_routed(
    read: Callable[..., Plan],
) -> None:
    assert read(line(task="natural PERCEPTION")).shards[0].task == "Natural"
    assert read(line(task="")).shards[0].task is None


def test_a_root_may_be_remote(read: Callable[..., Plan]) -> None:
    (shard,) = read(line(root="s3://bucket/set/")).shards

    assert shard.root == "s3://bucket/set"


def test_paths_are_taken_from_the_plans_folder_and_else_from_the_working_directory(
    read: Callable[..., Plan], plan_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / "media").mkdir(parents=True)
    (elsewhere / "only_here.json").write_text("[]")
    monkeypatch.chdir(elsewhere)

    (shard,) = read(line(json_url="only_here.json")).shards

    assert shard.annotation == str(elsewhere / "only_here.json")
    assert shard.root == str(plan_file.parent / "media")


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ("oops", "no JSON at column 1: Expecting value; write one JSON object per line"),
        ('{"data_name": }', "no JSON at column 15: Expecting value; write one JSON object per line"),
        ("[1, 2]", "is a list, not an object; write one JSON object per shard"),
        (line(end_idx=5, start_idx=9), '"end_idx" is 5, before "start_idx" 9; make end_idx the index after'),
        ({"data_name": "d"}, 'lacks "json_url", "root", "modality", "start_idx", "end_idx"; add'),
        (line(start_idx="0"), '"start_idx" is "0"; write a whole number, without quotes or a point'),
        (line(start_idx=True), '"start_idx" is true; write a whole number'),
        (line(end_idx=5.0), '"end_idx" is 5.0; write a whole number'),
        (line(end_idx=None), '"end_idx" is null; write a whole number'),
        (line(start_idx=-1), '"start_idx" is -1; write a number from 0 to'),
        (line(end_idx=2**40), '"end_idx" is 1099511627776; write a number from 0 to'),
        (line(assign_rank="4"), '"assign_rank" is "4"; write a whole number'),
        (line(num_shards=0), '"num_shards" is 0; write a number from 1 to'),
        (line(data_name=""), '"data_name" is ""; write a text that is not empty'),
        (line(total=4), '"end_idx" is 5, but "total" is 4; end at 4 or fix "total"'),
        (line(json_url="no.json"), '"json_url" is "no.json": there is no such file here; fix the path'),
        (line(json_url="media"), '"json_url" is "media": is a folder; name the annotation file in it'),
        (line(root="dataset.json"), '"root" is "dataset.json": there is no such folder here'),
        (line(json_url="x" * 999), f'"json_url" is "{"x" * 76}...: cannot be read: File name too long; fix'),
        (line(json_url=["a"]), '"json_url" is ["a"]; write a text that is not empty'),
        (line(modality="audio"), '"modality" is "audio"; write "image" or "video"'),
        (line(task="Sport"), "\"task\": there is no domain 'Sport'; use one of: Code"),
        (line(task=3), '"task" is 3; write a domain\'s name'),
        (line(task="Video & Temporal"), '"task" is for videos, but "modality" is "image"; change one'),
        (line(note="a\0b"), '"note" holds a NUL character (\\u0000); remove it'),
        (line(note="\ud800"), '"note" holds bytes that are not UTF-8, or half of a surrogate pair'),
        ('{"note": NaN}', '"note" holds NaN or an infinite number'),
        ("[" * 5000, "cannot be decoded: maximum recursion depth exceeded"),
        ("9" * 5000, "cannot be decoded: Exceeds the limit"),
    ],
)
def test_a_bad_line_is_named_with_its_number_and_remedy_while_the_others_are_fine(
    problems: Callable[..., list[str]], bad: JsonObject | str, message: str
) -> None:
    (problem,) = problems(line(end_idx=2), "", bad, line(start_idx=3, data_name="other"))

    assert problem.startswith(f"3: {message}")


def test_every_problem_of_every_line_is_reported_at_once_in_order(problems: Callable[..., list[str]]) -> None:
    found = problems(line(modality="audio", end_idx=-1), "oops", line(), '{"cut": 1, ', line(data_name="e"))

    assert [problem.split(":")[0] for problem in found] == ["1", "1", "2", "4", "5"]
    assert "cut short" in found[3]
    assert "samples 0 to 4" in found[4]


def test_a_broken_object_over_several_lines_costs_no_other(problems: Callable[..., list[str]]) -> None:
    (problem,) = problems(EXAMPLE.replace('"remain": 171', '"remain": oops'), line())

    assert problem.startswith("9: no JSON at column 11")


def test_two_lines_that_would_write_one_file_are_named(problems: Callable[..., list[str]]) -> None:
    (problem,) = problems(line(), line(start_idx=5, end_idx=6))

    assert (
        problem == '2: would write Rank0_node0_d.jsonl, as line 1 does; change "shard_index" in one of them'
    )


def test_samples_in_two_lines_are_named_with_both_lines(
    problems: Callable[..., list[str]], plan_file: Path
) -> None:
    (problem,) = problems(line(start_idx=3, end_idx=9), line(data_name="e", end_idx=4))

    place = plan_file.parent / "dataset.json"
    assert problem == f"2: samples 3 to 3 of {place} are in line 1 as well; leave them in one line"


def test_a_shard_inside_a_wider_one_is_found_behind_a_third(problems: Callable[..., list[str]]) -> None:
    found = problems(
        line(end_idx=90), line(data_name="e", end_idx=10), line(data_name="f", start_idx=50, end_idx=60)
    )

    assert [problem.split(":")[0] for problem in found] == ["2", "3"]
    assert all("in line 1 as well" in problem for problem in found)


def test_an_empty_shard_is_allowed_and_noted(read: Callable[..., Plan], plan_file: Path) -> None:
    plan = read(line(end_idx=0))

    assert plan.shards[0].sample_count == 0
    assert plan.warnings == (f'{plan_file}:1: holds no sample: "start_idx" is "end_idx"',)


def test_numbers_that_disagree_are_only_warnings(read: Callable[..., Plan]) -> None:
    plan = read(line(total=9, processed=3, remain=4, shard_index=2))

    assert [warning.split(": ", 1)[1] for warning in plan.warnings] == [
        '"processed" 3 and "remain" 4 do not add up to "total" 9',
        '"remain" is 4, but the line takes 5: some are captioned again',
        '"shard_index" 2 is not below "num_shards" 1',
    ]


def test_a_root_that_only_workers_may_see_is_warned_of(plan_file: Path) -> None:
    plan_file.write_text(json.dumps(line(root="/mnt/elsewhere")))

    (warning,) = read_plan(plan_file, RESOLVE, is_local=False).warnings

    assert '"root" is "/mnt/elsewhere": there is no such folder here; workers may see it' in warning
    with pytest.raises(PlanError, match="there is no such folder here; name the folder of the media"):
        read_plan(plan_file, RESOLVE)
    plan_file.write_text(json.dumps(line(root="nowhere")))
    with pytest.raises(PlanError, match="there is no such folder here"):
        read_plan(plan_file, RESOLVE, is_local=False)


@pytest.mark.parametrize("content", [b"", b"\xef\xbb\xbf", b" \r\n\n"])
def test_a_plan_without_shards_is_refused(plan_file: Path, content: bytes) -> None:
    plan_file.write_bytes(content)

    with pytest.raises(PlanError, match="holds no shard"):
        read_plan(plan_file, RESOLVE)


@pytest.mark.parametrize("ending", ["\n", "\f", "\r", "\x85", "\u2028"])
def test_a_path_that_holds_an_end_of_line_stays_on_its_line(
    problems: Callable[..., list[str]], ending: str
) -> None:
    (message,) = problems(line(json_url=f"a{ending}b"))

    assert len(message.splitlines()) == 1
    assert "there is no such file here" in message


def test_a_plan_that_is_not_there_or_a_folder_or_utf16_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "wide.jsonl").write_bytes("{}".encode("utf-16"))

    for name, reason in [
        ("none.jsonl", "No such file"),
        (".", "Is a directory"),
        ("wide.jsonl", "save it as UTF-8"),
    ]:
        with pytest.raises(PlanError, match=reason) as refused:
            read_plan(tmp_path / name, RESOLVE)
        assert str(refused.value).startswith(f"{tmp_path / name}: ")


def test_a_dataset_name_is_made_safe_for_a_file_name(read: Callable[..., Plan]) -> None:
    def name(dataset: str) -> str:
        return output_name(
            read(line(data_name=dataset, assign_rank=3, shard_index=1, num_shards=2)).shards[0]
        )

    assert name("vqa_rad-1.0") == "Rank3_node1_vqa_rad-1.0.jsonl"
    assert name("../a b:c") == "Rank3_node1_.._a_b_c.jsonl"
    assert name("数据集") == "Rank3_node1_数据集.jsonl"
    assert name("d.failed") == "Rank3_node1_d_failed.jsonl"
    assert len(name("数" * 300).encode()) < 200
    assert name("数" * 300) != name("数" * 301)


def test_a_further_part_of_the_output_has_its_own_name(read: Callable[..., Plan]) -> None:
    assert output_name(read(line()).shards[0], "failed") == "Rank0_node0_d.failed.jsonl"


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
    max_leaves=6,
)
keys = st.sampled_from([*json.loads(EXAMPLE), "other"])
lines = st.dictionaries(keys, json_values, max_size=12).map(lambda changes: json.dumps(line(**changes)))
plans = st.lists(lines | st.text(max_size=30), max_size=4).map(
    lambda rows: "\n".join(rows).encode(errors="replace")
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=plans | st.binary(max_size=200), cut=st.integers(0, 400), junk=st.binary(max_size=3))
def test_whatever_bytes_a_plan_holds_it_is_read_or_refused_by_name(
    plan_file: Path, content: bytes, cut: int, junk: bytes
) -> None:
    plan_file.write_bytes(content[:cut] + junk + content[cut:])
    try:
        plan = read_plan(plan_file, RESOLVE)
    except PlanError as refused:
        message = str(refused)
        assert all(part.startswith(str(plan_file)) for part in message.split("\n"))
        message.encode()
    else:
        assert plan.shards
