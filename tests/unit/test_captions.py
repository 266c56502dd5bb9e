from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from capflow_tasks.errors import ServiceError
from capflow_tasks.records import Failure, FinishedSample, JsonObject, Result, Stage
from producer.writing.captions import caption_record, failed_record
from producer.writing.conversations import ConversationStyle
from producer.writing.whole import write_lines

ENTRY: JsonObject = {
    "id": 0,
    "image": "a.jpg",
    "conversations": [
        {"from": "system", "value": "S"},
        {"from": "human", "value": "<image>\n Q"},
        {"from": "gpt", "value": "old", "weight": 1},
    ],
    "width": 1024,
}
GRADES = {"factual_accuracy": 3, "professionalism": 2, "overall": 3}
EXPECTED = {"factual_accuracy": 2.9, "professionalism": 2.2, "overall": 2.55}


def result(stage: Stage, agent: str, text: str, data: JsonObject | None = None) -> Result:
    return Result(stage, agent, text, data, "m", f"digest of {agent}", 1, 0, 1, "stop", 0.5, "w")


RESULTS = (
    result(Stage.ROUTE, "router", "A", {"Natural": 0.9}),
    result(Stage.PERCEIVE, "natural", "A cat."),
    result(Stage.REASON, "general_reasoning", "It sleeps."),
    replace(
        result(Stage.SUMMARIZE, "general_summary", "A cat sleeps."),
        revision="files:1",
        engine="vllm 1",
        sampling={"max_tokens": 512, "temperature": 0.2},
    ),
    replace(result(Stage.SCORE, "judge", "{...}", GRADES), expected=EXPECTED),
)


def sample(
    entry: JsonObject = ENTRY, results: tuple[Result, ...] = RESULTS, **changes: Any
) -> FinishedSample:
    fields: dict[str, Any] = {
        "domain": "Natural",
        "confidence": 0.9,
        "failure": None,
        "attempts": 1,
        **changes,
    }
    return FinishedSample(index=7, entry=entry, results=results, **fields)


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_record_holds_the_entry_and_all_that_was_found_out() -> None:
    record = caption_record(sample(), ConversationStyle(keeps_question=True))

    assert record == {
        **ENTRY,
        "task": "Natural",
        "confidence": 0.9,
        "caption": "A cat sleeps.",
        "reports": {"natural": "A cat.", "general_reasoning": "It sleeps."},
        "scores": {"factual_accuracy": 3, "professionalism": 2},
        "overall": 3,
        "errors": [],
        "expected_scores": EXPECTED,
        "model": "m",
        "revision": "files:1",
        "engine": "vllm 1",
        "sampling": {"max_tokens": 512, "temperature": 0.2},
        "workflow": "digest of general_summary",
        "finish_reason": "stop",
        "guard": [],
        "source_conversations": ENTRY["conversations"],
        "conversations": [
            {"from": "system", "value": "S"},
            {"from": "human", "value": "<image>\n Q"},
            {"from": "gpt", "value": "A cat sleeps."},
        ],
    }
    assert list(record)[:5] == ["id", "image", "conversations", "width", "task"]


def test_an_answer_by_a_schema_is_an_object_and_its_turn_the_json() -> None:
    found = replace(RESULTS[3], text='{"kind": "cat"}', data={"kind": "cat"})

    record = caption_record(sample({"image": "a.png"}, results=(found,)))

    assert record["caption"] == {"kind": "cat"}
    assert record["conversations"][-1] == {"from": "gpt", "value": '{"kind": "cat"}'}


@pytest.mark.parametrize("text", ["Bakery", '{"sign": "open"}', "[" * 5000, ""])
def test_a_report_of_what_a_tool_has_found_is_its_text(text: str) -> None:
    read = result(Stage.PERCEIVE, "recognized_text", text, {"pictures": [{"rows": []}]})
    tagged = result(Stage.PERCEIVE, "tagger", '{"kind": "cat"}', {"kind": "cat"})

    reports = caption_record(sample(results=(read, tagged)))["reports"]

    assert reports == ({"recognized_text": text} if text else {}) | {"tagger": {"kind": "cat"}}


def test_the_model_is_the_one_that_wrote_the_caption_else_the_last_one_that_answered() -> None:
    judged = (RESULTS[3], replace(RESULTS[4], model="judge"))

    assert caption_record(sample(results=judged))["model"] == "m"
    assert caption_record(sample(results=judged[1:]))["model"] == "judge"
    assert "model" not in caption_record(sample(results=()))


def test_the_entry_itself_is_left_as_it_was() -> None:
    before = json.dumps(ENTRY)

    caption_record(sample())

    assert json.dumps(ENTRY) == before


def test_the_domain_takes_the_place_of_the_entrys_task() -> None:
    record = caption_record(sample({"task": "natural", "image": "a.jpg"}, confidence=None))

    assert list(record)[:2] == ["task", "image"]
    assert (record["task"], record["confidence"]) == ("Natural", None)


def test_stages_that_have_not_run_leave_their_keys_out() -> None:
    assert caption_record(sample(results=RESULTS[:1])) == {
        **ENTRY,
        "task": "Natural",
        "confidence": 0.9,
        "model": "m",
        "revision": None,
        "engine": None,
        "sampling": None,
    }
    assert caption_record(sample(results=(), domain=None)) == ENTRY


def test_scores_can_be_added_to_a_caption_that_was_there_before() -> None:
    record = caption_record(sample({**ENTRY, "caption": "old"}, results=RESULTS[-1:]))

    assert (record["caption"], record["overall"]) == ("old", 3)
    assert record["conversations"] == ENTRY["conversations"]


def test_two_agents_of_one_name_both_keep_their_report() -> None:
    results = (result(Stage.PERCEIVE, "video", "Seen."), result(Stage.REASON, "video", "Meant."))

    assert caption_record(sample(results=results))["reports"] == {
        "video": "Seen.",
        "reason_video": "Meant.",
    }


def test_a_failed_record_holds_the_entry_and_the_reason() -> None:
    failure = Failure(Stage.PERCEIVE, "media_missing", "a.jpg does not exist.", False)

    assert failed_record(sample(failure=failure, attempts=2)) == {
        **ENTRY,
        "error": {
            "stage": "perceive",
            "kind": "media_missing",
            "message": "a.jpg does not exist.",
            "attempts": 2,
            "retryable": False,
        },
    }


def test_lines_are_written_whole_in_order_and_readable_by_people(tmp_path: Path) -> None:
    path = tmp_path / "new" / "captions.jsonl"

    assert write_lines(path, iter([{"b": 1, "a": "日本\n"}, {}])) == 2

    assert path.read_bytes() == '{"b": 1, "a": "日本\\n"}\n{}\n'.encode()
    assert names_in(path.parent) == ["captions.jsonl"]


def test_writing_again_replaces_the_file_with_the_permissions_of_any_new_file(tmp_path: Path) -> None:
    path, plain = tmp_path / "captions.jsonl", tmp_path / "plain"
    plain.touch()
    write_lines(path, [{"a": 1}])

    write_lines(path, [{"a": 2}])

    assert path.read_text() == '{"a": 2}\n'
    assert path.stat().st_mode == plain.stat().st_mode


def test_a_failure_while_writing_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "captions.jsonl"
    write_lines(path, [{"a": 1}])

    def records() -> Iterator[JsonObject]:
        yield {"a": 2}
        raise RuntimeError("lost")

    with pytest.raises(RuntimeError, match="lost"):
        write_lines(path, records())

    assert path.read_text() == '{"a": 1}\n'
    assert names_in(tmp_path) == ["captions.jsonl"]


def test_without_records_the_file_is_removed_or_left_empty(tmp_path: Path) -> None:
    path = tmp_path / "captions.jsonl"
    write_lines(path, [{"a": 1}])

    assert write_lines(path, []) == 0
    assert names_in(tmp_path) == []

    assert write_lines(path, [], keep_empty=True) == 0
    assert path.read_bytes() == b""


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    with pytest.raises(ServiceError) as refused:
        write_lines(tmp_path / "file" / "captions.jsonl", [{"a": 1}])

    assert str(refused.value).startswith(f"{tmp_path / 'file' / 'captions.jsonl'}: cannot be written: ")


def test_a_full_disk_is_named_and_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)

    with pytest.raises(
        ServiceError, match=r"captions\.jsonl: cannot be written: No space left on device; free"
    ):
        write_lines(tmp_path / "captions.jsonl", [{"a": 1}])

    assert names_in(tmp_path) == []


def test_a_record_lists_what_the_guard_found_and_leaves_out_an_agent_that_said_nothing() -> None:
    refused = {"attempts": [{"faults": {"refusal": "I'm sorry"}}, {"faults": {"loop": "the (x9)"}}]}
    silent = replace(result(Stage.PERCEIVE, "natural", ""), guard=refused)
    caption = replace(
        result(Stage.SUMMARIZE, "s", "A cat."), guard={"repairs": {"meta_opening": "Here is: A cat."}}
    )
    sample = FinishedSample(0, ENTRY, "Natural", 1.0, (silent, caption), None, 0)

    record = caption_record(sample)

    assert "reports" not in record
    assert [(each["agent"], each["rule"], each["outcome"]) for each in record["guard"]] == [
        ("natural", "refusal", "left_out"),
        ("natural", "loop", "left_out"),
        ("s", "meta_opening", "repaired"),
    ]


def test_a_record_lists_all_captions_of_a_sample_with_their_grades_and_costs() -> None:
    said = json.dumps({"errors": ["no dog"]})
    first = (
        replace(RESULTS[3], text="A dog sleeps."),
        replace(RESULTS[4], text=said, data={"factual_accuracy": 1, "overall": 1}, expected=None),
    )
    chosen = tuple(replace(each, candidate=2) for each in RESULTS[3:])

    record = caption_record(sample(results=(*RESULTS[:3], *chosen), others=first))

    assert (record["caption"], record["overall"]) == ("A cat sleeps.", 3)
    assert record["candidates"] == [
        {
            "caption": "A dog sleeps.",
            "is_chosen": False,
            "overall": 1,
            "scores": {"factual_accuracy": 1},
            "errors": ["no dog"],
            "expected_scores": None,
            "tokens": 4,
        },
        {
            "caption": "A cat sleeps.",
            "is_chosen": True,
            "overall": 3,
            "scores": {"factual_accuracy": 3, "professionalism": 2},
            "errors": [],
            "expected_scores": EXPECTED,
            "tokens": 4,
        },
    ]
    assert "candidates" not in caption_record(sample())
