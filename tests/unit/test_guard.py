"""The guard against 363 labelled texts, and what happens to the answers that it refuses."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from capflow_tasks.captioning.guard import Checked, Guard, changed_sampling
from capflow_tasks.domains.catalogue import Agent, load_catalogue
from capflow_tasks.domains.schemas import closed
from capflow_tasks.records import Completion, Rule, Sampling
from tests.guard_quality import labelled_texts, measure, table, wanted_of

PRECISION, RECALL = 0.97, 0.95
CATALOGUE = load_catalogue()
AGENTS = {agent.name: agent for name in ("UI", "Natural") for agent in CATALOGUE.resolve(name).agents}


def completion(text: str, finish_reason: str = "stop") -> Completion:
    return Completion(text, 100, 0, len(text.split()), finish_reason, 1.0)


def checked(text: str, finish_reason: str = "stop", agent: Agent = AGENTS["visual_guideline"]) -> Checked:
    return Guard().check(agent, completion(text, finish_reason))


def test_each_rule_finds_what_it_is_for_and_little_else() -> None:
    for each in measure():
        assert each.precision >= PRECISION, each
        assert each.recall >= RECALL, each


def test_the_documentation_says_how_good_the_rules_are() -> None:
    page = Path(__file__).parents[2] / "docs" / "explanation" / "why-trust-a-caption.md"
    assert table() in page.read_text("utf-8")


def test_the_labelled_texts_hold_good_and_bad_of_every_kind() -> None:
    texts = labelled_texts()
    wanted = Counter(name for entry in texts for name in wanted_of(entry))
    assert len(texts) >= 300
    assert sum(not wanted_of(entry) for entry in texts) >= 100
    others = {Rule.META_OPENING, Rule.INVALID_JSON}
    assert all(wanted[rule] >= 10 for rule in Rule if rule not in others)
    assert wanted[f"{Rule.META_OPENING} (repaired)"] >= 10


@pytest.mark.parametrize(
    ("text", "repaired"),
    [
        ("Here is a detailed description:\n\nA dog on a lawn.", "A dog on a lawn."),
        ("The image shows a dog on a lawn.", "A dog on a lawn."),
        ("A dog on a lawn. Let me know if you need more details!", "A dog on a lawn."),
        ("```text\nA dog on a lawn.\n```", "A dog on a lawn."),
        ('{"caption": "A dog, \\"Rex\\", on a lawn."}', 'A dog, "Rex", on a lawn.'),
    ],
)
def test_an_opening_a_closing_remark_and_a_fence_are_removed(text: str, repaired: str) -> None:
    assert checked(text).text == repaired
    assert checked(text).repairs


@pytest.mark.parametrize(
    "text",
    ["```python\nprint(1)\n```", "Eingang\nBitte nicht rauchen", "I'm sorry, we are closed", '{"a": 1}'],
)
def test_what_is_copied_from_the_picture_is_left_as_it_is(text: str) -> None:
    assert checked(text, agent=AGENTS["ocr"]) == Checked(text)


@pytest.mark.parametrize(
    "text", ["A sign: “{}”", "看板：『{}』", "A terminal shows:\n```\n{}\n```\nand a prompt."]
)
def test_a_refusal_that_a_caption_quotes_is_none(text: str) -> None:
    assert not checked(text.format("I'm sorry, I can't help with that.")).faults


def test_letters_and_scores_are_not_checked_as_text() -> None:
    assert checked("A", agent=CATALOGUE.router) == Checked("A")


FORM = {
    "type": "object",
    "properties": {
        "title": {"type": "string"},
        "colours": {"type": "array", "items": {"enum": ["red", "blue"]}},
    },
}
LISTER = replace(AGENTS["visual_guideline"], answer="json", schema=closed(FORM))


@pytest.mark.parametrize(
    ("text", "finish", "rule"),
    [
        ('{"title": "A dog", "colours": ["red"', "length", Rule.CUT_OFF),
        ('{"title": "A dog"', "stop", Rule.INVALID_JSON),
        ('{"title": "A dog"}', "stop", Rule.INVALID_JSON),
        ('{"title": "A dog", "colours": ["green"]}', "stop", Rule.INVALID_JSON),
        ('{"title": "A dog", "colours": [], "size": 1}', "stop", Rule.INVALID_JSON),
        ('["A dog"]', "stop", Rule.INVALID_JSON),
        ("[" * 100_000, "stop", Rule.INVALID_JSON),
        (r'{"title": "A \u0000 dog", "colours": []}', "stop", Rule.INVALID_JSON),
        ('{"title": "I\'m sorry, but I can\'t help with that.", "colours": []}', "stop", Rule.REFUSAL),
        (json.dumps({"title": "keep at " * 40, "colours": []}), "stop", Rule.LOOP),
        (json.dumps({"title": "dog", "colours": ["red"] * 200}), "stop", Rule.LOOP),
    ],
)
def test_json_must_be_whole_follow_its_schema_and_say_something(text: str, finish: str, rule: Rule) -> None:
    assert [fault.rule for fault in checked(text, finish, LISTER).faults] == [rule]


def test_json_is_read_and_a_fence_around_it_removed() -> None:
    text = '{"title": "The", "colours": ["red", "blue"]}'
    assert checked(text, agent=LISTER) == Checked(text, data=json.loads(text))
    fenced = checked(f"```json\n{text}\n```", agent=LISTER)
    assert (fenced.text, fenced.data) == (text, json.loads(text))
    assert [repair.rule for repair in fenced.repairs] == [Rule.MARKUP]


def test_a_rule_can_be_left_out() -> None:
    lenient = Guard(off=frozenset({Rule.CUT_OFF, Rule.META_OPENING}))
    text = "Here is the caption: A dog on a lawn, with"
    assert lenient.check(AGENTS["visual_guideline"], completion(text, "length")) == Checked(text)


def test_nul_is_replaced_where_broken_text_may_pass() -> None:
    assert Guard().with_broken_signs(completion("a\0b")).text == "a\0b"
    lenient = Guard(off=frozenset({Rule.MOJIBAKE}))
    assert lenient.with_broken_signs(completion("a\0b")).text == "a\N{REPLACEMENT CHARACTER}b"


def test_asking_again_changes_the_sampling_by_what_was_wrong() -> None:
    greedy = Sampling(max_tokens=100, temperature=0.0)
    loop, cut = checked("keep at " * 40).faults, checked("A dog on", "length").faults
    assert changed_sampling(greedy, loop).named["temperature"] >= 0.7
    assert changed_sampling(greedy, loop).named["presence_penalty"] >= 1.0
    assert changed_sampling(greedy, cut) == Sampling(max_tokens=200, temperature=0.0)
    assert changed_sampling(greedy, checked("I'm sorry, I can't help.").faults).named["temperature"] > 0


def test_the_evidence_is_short_and_on_one_line() -> None:
    (fault,) = checked("keep\nat " * 400).faults
    assert fault.rule is Rule.LOOP
    assert len(fault.evidence) <= 120
    assert "\n" not in fault.evidence
