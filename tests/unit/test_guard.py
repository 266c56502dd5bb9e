"""The guard against 363 labelled texts, and what happens to the answers that it refuses."""

import json
from collections import Counter
from pathlib import Path

import pytest

from capflow_tasks.captioning.guard import Checked, Guard, changed_sampling
from capflow_tasks.domains.catalogue import Agent, load_catalogue
from capflow_tasks.records import Completion, Rule, Sampling

TEXTS = [json.loads(line) for line in (Path(__file__).parent / "guard_texts.jsonl").read_text().splitlines()]
PRECISION, RECALL = 0.97, 0.95
CATALOGUE = load_catalogue()
AGENTS = {agent.name: agent for name in ("UI", "Natural") for agent in CATALOGUE.resolve(name).agents}


def completion(text: str, finish_reason: str = "stop") -> Completion:
    return Completion(text, 100, 0, len(text.split()), finish_reason, 1.0)


def checked(text: str, finish_reason: str = "stop", agent: Agent = AGENTS["visual_guideline"]) -> Checked:
    return Guard().check(agent, completion(text, finish_reason))


def found_in(entry: dict[str, str]) -> set[str]:
    agent = AGENTS["ocr" if entry.get("verbatim") else "visual_guideline"]
    result = checked(entry["text"], entry.get("finish", "stop"), agent)
    return {fault.rule for fault in result.faults} | {f"repaired {each.rule}" for each in result.repairs}


def wanted_of(entry: dict[str, list[str]]) -> set[str]:
    return {*entry.get("faults", ()), *(f"repaired {rule}" for rule in entry.get("repaired", ()))}


def test_each_rule_finds_what_it_is_for_and_little_else() -> None:
    hits, missed, false_alarms = Counter[str](), Counter[str](), Counter[str]()
    for entry in TEXTS:
        wanted, found = wanted_of(entry), found_in(entry)
        hits.update(wanted & found)
        missed.update(wanted - found)
        # A bad text may break further rules.
        false_alarms.update(() if wanted else found)
    for name in hits | missed | false_alarms:
        assert hits[name] / (hits[name] + false_alarms[name]) >= PRECISION, name
        assert hits[name] / (hits[name] + missed[name]) >= RECALL, name


def test_the_labelled_texts_hold_good_and_bad_of_every_kind() -> None:
    wanted = Counter(name for entry in TEXTS for name in wanted_of(entry))
    assert len(TEXTS) >= 300
    assert sum(not wanted_of(entry) for entry in TEXTS) >= 100
    assert all(wanted[rule] >= 10 for rule in Rule if rule is not Rule.META_OPENING)
    assert wanted[f"repaired {Rule.META_OPENING}"] >= 10


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


def test_letters_and_scores_are_not_checked_as_text() -> None:
    assert checked("A", agent=CATALOGUE.router) == Checked("A")


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
