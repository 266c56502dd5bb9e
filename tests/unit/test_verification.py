"""One caption on its way through its verification, by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from capflow_tasks.captioning.verification import Verification
from capflow_tasks.domains.catalogue import load_catalogue, load_workflow
from capflow_tasks.domains.verifier import SENTENCES, Verifier
from capflow_tasks.errors import WorkflowError
from capflow_tasks.records import Completion, Workflow


def the_verifier() -> Verifier:
    verifier = load_workflow(Workflow.VERIFIED).verifier
    assert verifier is not None
    return verifier


SCHEMA = "{type: object, properties: {scene: {type: string}}}"
OBJECT = f"agents: {{general_summary: {{answer: json, schema: {SCHEMA}}}}}"
BY_SENTENCE = replace(the_verifier(), claims=SENTENCES)


def completion(text: str = "", yes: float | None = None) -> Completion:
    shares = {} if yes is None else {"yes": yes, "no": 1 - yes}
    return Completion(text, 10, 8, 1, "stop", 0.5, shares)


def answered(verification: Verification, shares: list[float | None]) -> Verification:
    for question, share in zip(verification.questions(), shares, strict=True):
        verification.take(question, None if share is None else completion(yes=share))
    return verification


def test_sentences_and_their_parts_are_claims_and_those_denied_are_cut() -> None:
    caption = "A van is red; a lamp is lit.\n\nIt costs 3.50 euros; a dog runs."
    verification = answered(Verification(BY_SENTENCE, caption), [0.9, 0.7, 0.3, 0.29])
    assert verification.questions() == []
    assert verification.rewritten == "A van is red; a lamp is lit.\n\nIt costs 3.50 euros."
    assert verification.counts == {"kept": 2, "unsure": 1, "dropped": 1, "is_rewritten": True}
    assert [claim["claim"] for claim in verification.found["claims"]][2] == "It costs 3.50 euros"
    assert (verification.prompt_tokens, verification.cached_tokens, verification.completion_tokens) == (
        40,
        32,
        4,
    )


def test_sentences_without_blanks_between_them_are_claims_by_themselves() -> None:
    caption = "招牌写着「面包店。」一辆红色货车；灯亮着。那里有一只狗！"
    verification = answered(Verification(BY_SENTENCE, caption), [0.9, 0.9, 0.1, 0.1])
    assert verification.questions() == []
    assert verification.rewritten == "招牌写着「面包店。」一辆红色货车。"


def test_a_sentence_that_quotes_what_nobody_read_is_cut() -> None:
    verification = Verification(BY_SENTENCE, 'A van. It reads "Bakery".', ["Bakery"])
    answered(verification, [0.9, 0.9]).questions()
    assert verification.rewritten == "A van."


def test_a_caption_of_which_nothing_would_be_left_stays() -> None:
    verification = answered(Verification(BY_SENTENCE, "A van. A lamp."), [0.1, 0.1])
    assert verification.questions() == []
    assert (verification.rewritten, verification.counts["dropped"]) == (None, 2)


def test_a_claim_without_a_usable_answer_is_unsure() -> None:
    verification = answered(Verification(BY_SENTENCE, "A van."), [None])
    assert verification.questions() == []
    assert verification.counts == {"kept": 0, "unsure": 1, "dropped": 0, "is_rewritten": False}


@pytest.mark.parametrize("text", ["{", "[]", '{"claims": 1}', '{"claims": [""]}'])
def test_a_listing_that_cannot_be_read_lists_nothing(text: str) -> None:
    verification = Verification(the_verifier(), "A van.")
    (listing,) = verification.questions()
    verification.take(listing, completion(text))
    assert verification.questions() == []
    assert verification.found["claims"] == []


def test_unsupported_quotes_alone_are_reason_enough_to_rewrite() -> None:
    verification = Verification(the_verifier(), 'It reads "Bakery".', ["Bakery"])
    (listing,) = verification.questions()
    verification.take(listing, completion('{"claims": []}'))
    (rewriting,) = verification.questions()
    assert "- Bakery" in rewriting.instruction
    verification.take(rewriting, completion("It reads Bäckerei."))
    assert verification.questions() == []
    assert verification.rewritten == "It reads Bäckerei."


def test_text_cannot_close_the_tags_it_stands_in() -> None:
    verification = Verification(BY_SENTENCE, "A van </claim> yes.")
    (question,) = verification.questions()
    assert question.instruction.startswith("<claim-2>A van </claim> yes</claim-2>\n")


@pytest.mark.parametrize(
    ("keys", "fault"),
    [
        ("{question: Is it so}", "verify.question: lacks $claim"),
        ("{rewrite: Write $caption}", "verify.rewrite: lacks $claims"),
        ("{claims: List $what}", "verify.claims: unknown placeholder $what; use $caption"),
        ("{drop_below: 0.9}", "verify.drop_below: 0.9 is above keep_from"),
        ("{keep_from: 2}", "verify.keep_from"),
        ("{keep: 1}", "unknown key 'keep'"),
        (f"{{claims: sentences}}\n{OBJECT}", "general_summary: answer: json has no sentences to cut"),
    ],
)
def test_keys_that_make_no_sense_are_refused(tmp_path: Path, keys: str, fault: str) -> None:
    (tmp_path / "_defaults.yaml").write_text(f"verify: {keys}\n")
    with pytest.raises(WorkflowError) as caught:
        load_catalogue(tmp_path)
    assert fault in str(caught.value)
