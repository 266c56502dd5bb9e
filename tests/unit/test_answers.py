"""Which answers are accepted."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from capflow_tasks.captioning.answers import check_text, parse_scores
from capflow_tasks.domains.catalogue import Agent, load_catalogue
from capflow_tasks.errors import BadAnswer

JUDGE: Agent = load_catalogue(None).resolve("Natural").agents[-1]
NAMES = [*JUDGE.dimensions, "overall"]
GOOD = dict.fromkeys(NAMES, 3)


def test_scores_come_back_in_the_order_of_the_dimensions() -> None:
    answer = {name: number % 3 + 1 for number, name in enumerate(reversed(NAMES))}
    scores = parse_scores(json.dumps(answer, indent=2), JUDGE)
    assert list(scores) == NAMES
    assert scores == answer


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "not JSON"),
        ("3", "not a JSON object"),
        ("[]", "not a JSON object"),
        ("null", "not a JSON object"),
        (json.dumps(GOOD)[:-1], "not JSON"),
        (json.dumps(GOOD) + " Well done!", "not JSON"),
        (f"```json\n{json.dumps(GOOD)}\n```", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ('{"overall": ' + "1" * 10_000 + "}", "not JSON"),
        ("{}", "no 'factual_accuracy'"),
        (json.dumps(dict.fromkeys(NAMES[:-1], 3)), "no 'overall'"),
        (json.dumps(GOOD | {"charm": 3}), "unknown 'charm'"),
        (json.dumps(GOOD)[:-1] + ', "overall": 1}', "'overall' is given twice"),
    ],
)
def test_what_is_not_the_json_asked_for_is_refused_with_the_reason(text: str, reason: str) -> None:
    with pytest.raises(BadAnswer) as raised:
        parse_scores(text, JUDGE)
    assert reason in str(raised.value)
    assert len(str(raised.value)) < 400


@pytest.mark.parametrize(
    "value", [0, 4, -1, 3.0, 2.5, True, None, "3", [3], {"grade": 3}, float("nan"), float("inf")]
)
def test_only_whole_grades_from_1_to_3_are_scores(value: object) -> None:
    with pytest.raises(BadAnswer, match=r"'reasoning_rigor' is .*, not 1, 2 or 3"):
        parse_scores(json.dumps(GOOD | {"reasoning_rigor": value}), JUDGE)


@given(st.text())
@settings(max_examples=50)
def test_free_text_is_never_a_score(text: str) -> None:
    with pytest.raises(BadAnswer):
        parse_scores(text, JUDGE)


def test_a_bad_answer_may_be_tried_again() -> None:
    with pytest.raises(BadAnswer) as raised:
        check_text("")
    assert raised.value.is_retryable


@pytest.mark.parametrize(
    "text", ["", " \n\t", "\0\x07", "\ufffd\ufffd", "\u200b\ufeff\u00a0", " \ufffd\n\0 "]
)
def test_an_answer_without_a_visible_character_is_refused(text: str) -> None:
    with pytest.raises(BadAnswer, match="holds no text"):
        check_text(text)


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("  A red door.\n", "A red door."),
        ("\n| a |\n|---|\n\n  x\n", "| a |\n|---|\n\n  x"),
        ('"Quoted"', '"Quoted"'),
        ("\ufffdoor", "\ufffdoor"),
        ("赤いドア", "赤いドア"),
        ("🚪", "🚪"),
    ],
)
def test_a_text_loses_only_the_blanks_around_it(text: str, kept: str) -> None:
    assert check_text(text) == kept
