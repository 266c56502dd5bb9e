"""Quotes of captions looked up in what was read, by hand."""

from __future__ import annotations

import pytest

from capflow_tasks.captioning.quotes import (
    claim_support,
    quote_support,
    quoted_in,
    text_checks,
    text_coverage,
)
from capflow_tasks.records import JsonObject

SURE = 0.9
PAGE = [
    ["ACME Ltd."],
    ["Invoice No. 2024-0317"],
    ["Widget, large", "3", "12.50"],
    ["Payment within 30 days"],
    ["if x == 1:"],
]


def read(rows: list[list[str]], confidence: float = 1.0) -> list[JsonObject]:
    return [{"rows": [[{"text": text, "confidence": confidence} for text in row] for row in rows]}]


@pytest.mark.parametrize(
    "quote",
    [
        '"Invoice no. 2024–0317"',
        "“ACME Ltd”",
        "«payment  within 30 days.»",
        '"Widget, large 3 12.50"',
        '"Widgel, large"',
        '"Payment … days"',
        '"Payment within [illegible] days"',
        "`if x == 1:`",
        "```python\nif x == 1:\n```",
        '"3"',
    ],
)
def test_quotes_that_were_read_are_supported(quote: str) -> None:
    checks = text_checks(f"It says {quote} there.", [], read(PAGE), SURE)
    assert (checks["quotes"], checks["unsupported"]) == (1, 0)


@pytest.mark.parametrize(
    "quote",
    [
        "Invoice No. 2024-0817",
        "12.5",
        "ACME Holding Ltd.",
        "Payment within thirty days",
        "Payment within 30 working days",
        "lid",
        "Total",
    ],
)
def test_quotes_with_another_digit_or_word_are_not(quote: str) -> None:
    checks = text_checks(f'It says "{quote}" there, and "ACME Ltd.".', [], read(PAGE), SURE)
    assert (checks["quotes"], checks["unsupported_quotes"]) == (2, [quote])
    assert quote_support(checks) == 0.5


def test_what_is_quoted_twice_counts_once_and_signs_alone_do_not_count() -> None:
    assert quoted_in('"A b" and "A b" and "->" and `c`\n```\nd = 1\n\n```') == ["d = 1", "A b", "c"]


def test_a_passage_between_two_quotes_is_none_though_one_is_empty() -> None:
    assert quoted_in('An empty "" and a full "A b".') == ["A b"]


def test_words_count_as_covered_as_often_as_a_text_has_them() -> None:
    rows = [["red fish blue fish"], ["one Hamburg 1234"]]
    # red, fish once, blue and Hamburg, which is misread; neither the other fish, one nor 1234
    checks = text_checks("A red fish, blue, in Hamburq, 1235.", [], read(rows), SURE)
    assert (checks["words"], checks["covered_words"]) == (7, 4)
    assert text_coverage(checks) == 4 / 7
    # A verbatim answer has the rest.
    assert text_checks("", ["Red fish\nblue fish\none Hamburg1234"], read(rows), SURE)["covered_words"] == 7


def test_words_read_with_doubt_support_quotes_but_need_not_be_covered() -> None:
    checks = text_checks('It says "ACME Ltd."', [], read(PAGE, confidence=0.5), SURE)
    assert (checks["unsupported"], checks["words"]) == (0, 0)
    assert (quote_support(checks), text_coverage(checks)) == (1.0, None)


def test_without_quotes_and_without_checks_there_is_no_share() -> None:
    assert quote_support(text_checks("A page.", [], read(PAGE), SURE)) is None
    assert (quote_support(None), text_coverage(None)) == (None, None)


def test_claims_that_a_rewrite_has_removed_are_none_of_the_caption() -> None:
    counts = {"kept": 3, "unsure": 1, "dropped": 4}
    assert claim_support({**counts, "is_rewritten": True}) == 3 / 4
    assert claim_support({**counts, "is_rewritten": False}) == 3 / 8
    assert claim_support({"kept": 0, "unsure": 0, "dropped": 2, "is_rewritten": True}) is None


def test_scripts_without_blanks_are_covered_character_by_character() -> None:
    checks = text_checks("写着「出口」。", [], read([["出口左转"]]), SURE)
    assert (checks["unsupported"], checks["words"], checks["covered_words"]) == (0, 4, 2)
