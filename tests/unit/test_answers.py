"""Which answers are accepted."""

import json
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from capflow_tasks.captioning.answers import (
    check_text,
    errors_named,
    expected_grades,
    overall_grade,
    parse_scores,
)
from capflow_tasks.domains.catalogue import Agent, load_catalogue
from capflow_tasks.errors import BadAnswer
from capflow_tasks.records import Token

JUDGE: Agent = load_catalogue(None).resolve("Natural").agents[-1]
NAMES = list(JUDGE.dimensions)
GOOD = {"errors": [], **dict.fromkeys(NAMES, 3)}


def test_scores_come_back_in_the_order_of_the_dimensions_with_the_overall_grade_last() -> None:
    answer = {name: number % 3 + 1 for number, name in enumerate(reversed(NAMES))}
    scores = parse_scores(json.dumps({"errors": ["a red van"], **answer}, indent=2), JUDGE)
    assert list(scores) == [*NAMES, "overall"]
    assert {name: scores[name] for name in NAMES} == answer


@pytest.mark.parametrize(
    ("grades", "overall"),
    [
        ((3, 3, 3, 3, 3), 3),
        ((3, 2, 3, 3, 3), 3),
        ((3, 2, 2, 3, 3), 2),
        ((2, 3, 3, 3, 3), 2),
        ((3, 3, 3, 2, 3), 2),
        ((3, 1, 3, 3, 3), 2),
        ((3, 1, 1, 3, 3), 1),
        ((1, 3, 3, 3, 3), 1),
        ((3, 3, 3, 1, 3), 1),
    ],
)
def test_the_overall_grade_follows_from_the_others_whatever_the_judge_says(
    grades: tuple[int, ...], overall: int
) -> None:
    answer = dict(zip(NAMES, grades, strict=True))
    assert parse_scores(json.dumps(answer | {"overall": 3}), JUDGE)["overall"] == overall


def test_without_a_decisive_dimension_the_overall_grade_is_the_lowest() -> None:
    dimensions = {name: replace(each, decisive=False) for name, each in JUDGE.dimensions.items()}
    for lowest in (1, 2, 3):
        assert overall_grade(dict.fromkeys(dimensions, 3) | {NAMES[1]: lowest}, dimensions) == lowest


@pytest.mark.parametrize(
    ("text", "errors"),
    [
        ('{"errors": ["a red van", "no dog"], "factual_accuracy": 1}', ["a red van", "no dog"]),
        ('{"errors": ["a\x0ered van"]}', ["a\x0ered van"]),
        ('{"errors": []}', []),
        ('{"factual_accuracy": 3}', []),
        ('{"errors": "none"}', []),
        ("not JSON", []),
    ],
)
def test_the_errors_that_a_judge_names_can_be_read_from_its_answer(text: str, errors: list[str]) -> None:
    assert errors_named(text) == errors


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
        (json.dumps(dict.fromkeys(NAMES[:-1], 3)), f"no '{NAMES[-1]}'"),
        (json.dumps(GOOD | {"charm": 3}), "unknown 'charm'"),
        (json.dumps(GOOD)[:-1] + ', "errors": []}', "'errors' is given twice"),
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


def answer_of(*parts: str | dict[str, float]) -> list[Token]:
    """Return an answer's tokens: sure ones as text, others with their probabilities, likeliest first."""
    return [
        Token(part, {part: 1.0}) if isinstance(part, str) else Token(next(iter(part)), part) for part in parts
    ]


def test_the_expected_grade_weighs_the_grades_by_their_probabilities() -> None:
    first, second = two = NAMES[:2]
    sure = {"3": 0.9, "2": 0.09, "1": 0.01}
    torn = {" 2": 0.3, "3": 0.2, "x": 0.4}
    tokens = answer_of('{"errors":["grade 3"]', ',"', first, '":', sure, ',"', second, '": ', torn, "}")

    assert expected_grades(tokens, two) == pytest.approx({first: 2.89, second: 2.4, "overall": 2.645})
    assert expected_grades(tokens, [first]) == pytest.approx({first: 2.89, "overall": 2.89})
    assert expected_grades(tokens[:5], two) is None
    assert expected_grades([], two) is None
