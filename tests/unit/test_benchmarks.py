"""That what `make bench` computes from its measurements is right."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from capflow_tasks.records import MediaRef, Modality, Request, Sampling
from tests.benchmarks.claims import Bench, Goal, Measured, Study, rows_of
from tests.benchmarks.fleet import Steady
from tests.benchmarks.journal import Exchange, Turn, busy_share
from tests.benchmarks.minimum import BLOCK_TOKENS, PromptCost
from tests.benchmarks.report import write_json
from tests.benchmarks.workload import Sample, samples_of, stages_of


class Words:
    """A processor of which each word is a token, and that writes nothing around them."""

    def __init__(self) -> None:
        self.tokenizer = self

    def __call__(self, text: str) -> dict[str, list[str]]:
        return {"input_ids": text.split()}

    def convert_tokens_to_ids(self, word: str) -> str:
        return word

    def apply_chat_template(self, messages: list[Any], **_: Any) -> str:
        parts = [part for message in messages for part in message["content"]]
        return " ".join("<|image_pad|>" if part["type"] == "image" else part["text"] for part in parts)


def a_request(picture: str, instruction: str) -> Request:
    return Request("", (MediaRef(Modality.IMAGE, picture),), instruction, Sampling(8))


def test_the_least_of_two_calls_is_one_picture_and_two_instructions() -> None:
    cost = PromptCost(Words(), picture_tokens=2 * BLOCK_TOKENS)
    sample = ((a_request("a", "describe it"),), (a_request("a", "judge it well"),))

    assert cost.minimum([sample]) == 2 * BLOCK_TOKENS + 2 + 3
    assert cost.minimum([sample, ((a_request("b", "describe it"),),)]) == 4 * BLOCK_TOKENS + 2 + 3 + 2


def test_a_prompt_that_ends_with_a_block_computes_that_block_again() -> None:
    cost = PromptCost(Words(), picture_tokens=2 * BLOCK_TOKENS)
    again = ((a_request("a", ""),), (a_request("a", ""),))

    assert cost.minimum([again]) == 2 * BLOCK_TOKENS + BLOCK_TOKENS


def test_requests_go_back_to_their_sample_in_the_order_in_which_they_were_made() -> None:
    late = Exchange(5, 6, [a_request("a", "3"), a_request("b", "2")], 0)
    early = Exchange(1, 2, [a_request("a", "1"), a_request("a", "2"), a_request("b", "1")], 0)

    samples = samples_of([late, early])

    assert [[[each.instruction for each in turn] for turn in sample] for sample in samples] == [
        [["1", "2"], ["3"]],
        [["1"], ["2"]],
    ]


def test_the_busy_share_counts_only_what_lies_between_start_and_end() -> None:
    turns = [Turn(0, True, 1), Turn(12, False, 1), Turn(15, True, 1)]

    assert busy_share(turns, 10, 20) == pytest.approx(0.7)


def test_the_first_batch_of_every_slot_is_not_counted_as_free() -> None:
    two_at_a_time = [(4.0, 8), (4.0, 8), (8.0, 8), (8.0, 8), (12.0, 8), (12.0, 8)]

    assert Steady.of(two_at_a_time, slots=2).samples_per_second == 16 / 4


def test_stages_are_made_of_the_turns_that_samples_take_together() -> None:
    first, second = a_request("a", "describe it"), a_request("a", "judge it")
    samples: list[Sample] = [((first,), (second, second)), ((first,),)]

    assert stages_of(samples) == [[first, first], [second, second]]


@pytest.mark.parametrize(
    ("goal", "measured", "is_met"),
    [
        (Goal(0.98), 0.97, False),
        (Goal(0.98), 0.98, True),
        (Goal(1.1, is_ceiling=True), 1.2, False),
        (Goal(0, is_ceiling=True), 0, True),
        (Goal(0, is_ceiling=True), 1, False),
        (Goal(), 7, None),
    ],
)
def test_a_goal_is_met_or_not(goal: Goal, measured: float, is_met: bool | None, tmp_path: Path) -> None:
    study = Study({"claim": goal}, lambda bench: {"claim": Measured(measured, "none")})

    (row,) = rows_of(study, Bench(tmp_path))

    assert row.is_met is is_met


def test_a_study_that_fails_says_why_and_what_was_known_stays(tmp_path: Path) -> None:
    def fail(bench: Bench) -> dict[str, Measured]:
        raise RuntimeError("no wheel for it")

    path = tmp_path / "bench.json"
    path.write_text(json.dumps([{"claim": "old", "measured": 1.0, "goal": "", "baseline": ""}]))

    write_json(rows_of(Study({"new": Goal(1)}, fail), Bench(tmp_path)), path)

    known, new = json.loads(path.read_text())
    assert known["claim"] == "old"
    assert (new["claim"], new["measured"]) == ("new", "not measured")
    assert "no wheel for it" in new["baseline"]
