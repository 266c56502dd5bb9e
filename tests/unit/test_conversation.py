"""What is asked about a sample in one stage, and what becomes of the answers."""

from __future__ import annotations

import errno
import json
import os
import shutil
from dataclasses import replace
from math import inf, nan
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import REGISTRY

from capflow_tasks.captioning.conversation import Conversation
from capflow_tasks.domains.catalogue import Catalogue, load_catalogue
from capflow_tasks.errors import (
    MediaAway,
    MediaCorrupt,
    MediaMissing,
    MediaUnreadable,
    NodeExhausted,
    NodeFault,
    WorkflowMissing,
)
from capflow_tasks.media.paths import file_errors
from capflow_tasks.records import Completion, GuardOutcome, JsonObject, Modality, Result, Stage
from capflow_tasks.store.states import Claim, PendingSample
from capflow_tasks.testing import ScriptedEngine
from tests.datasets import draw_picture
from tests.stores import a_result

CATALOGUE = load_catalogue()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    draw_picture(tmp_path / "a.png", 1)
    return tmp_path


def talk(
    root: Path,
    stage: Stage,
    domain: str | None = "Natural",
    entry: JsonObject | None = None,
    results: tuple[Result, ...] = (),
    catalogue: Catalogue = CATALOGUE,
    **sample_fields: Any,
) -> Conversation:
    claim = Claim(
        batch_id=1,
        stage=stage,
        attempt=1,
        tries=1,
        owner="worker",
        start_idx=0,
        end_idx=1,
        dataset="set",
        root=str(root),
        modality=Modality.IMAGE,
        run_id=1,
        stages=tuple(Stage),
        min_confidence=0,
    )
    entry = {"image": "a.png"} if entry is None else entry
    sample = PendingSample(1, 0, entry, domain, results, **sample_fields)
    return Conversation(claim, sample, catalogue, "model")


def completion(text: str, **changes: Any) -> Completion:
    return Completion(text, 10, 5, 2, "stop", 0.5, **changes)


def finish(conversation: Conversation) -> Conversation:
    """Ask and answer until no call is left."""
    while calls := conversation.calls():
        for call, answer in zip(
            calls, ScriptedEngine().generate([call.request for call in calls]), strict=True
        ):
            conversation.take(call.agent, answer)
    return conversation


def test_an_unrouted_sample_is_asked_for_one_letter_per_domain(root: Path) -> None:
    conversation = talk(root, Stage.ROUTE, domain=None)
    ((agent, request),) = [(call.agent, call.request) for call in conversation.calls()]

    assert (agent.name, request.choices, request.sampling.max_tokens) == ("router", tuple("ABCDEFGH"), 1)
    shares = {letter: 0.5 if letter == "F" else 0.5 / 7 for letter in request.choices}
    conversation.take(agent, completion("F", probabilities=shares))

    outcome = conversation.outcome()
    assert outcome.route is not None
    assert (outcome.route.domain, outcome.route.confidence) == (CATALOGUE.letters["F"].name, 0.5)
    assert outcome.results[0].data == {CATALOGUE.letters[each].name: share for each, share in shares.items()}


def test_a_router_answer_that_is_no_letter_fails_its_sample(root: Path) -> None:
    conversation = talk(root, Stage.ROUTE, domain=None)
    (call,) = conversation.calls()

    conversation.take(call.agent, completion("<think>"))

    failure = conversation.outcome().failure
    assert failure is not None
    assert (failure.kind, failure.is_retryable) == ("bad_answer", True)


def test_a_sample_with_a_domain_is_not_routed(root: Path) -> None:
    assert talk(root, Stage.ROUTE).calls() == []


def test_every_request_begins_with_the_same_line_and_the_picture(root: Path) -> None:
    requests = [call.request for call in talk(root, Stage.PERCEIVE).calls()]

    assert len(requests) == 2
    for request in requests:
        assert request.system == CATALOGUE.system
        assert [media.path for media in request.media] == [str((root / "a.png").resolve())]
        assert request.choices == ()


def test_who_sees_others_speaks_after_them_and_gets_their_words(root: Path) -> None:
    heard = (
        a_result(Stage.PERCEIVE, "visual_guideline", "A WIDE VIEW"),
        a_result(Stage.PERCEIVE, "natural", "TREES"),
    )

    (call,) = talk(root, Stage.REASON, results=heard).calls()

    assert "A WIDE VIEW" in call.request.instruction
    assert "TREES" in call.request.instruction


def test_who_has_spoken_is_not_asked_again(root: Path) -> None:
    heard = (a_result(Stage.PERCEIVE, "natural"),)

    conversation = talk(root, Stage.PERCEIVE, results=heard)

    assert [call.agent.name for call in conversation.calls()] == ["visual_guideline"]
    assert [result.agent for result in finish(conversation).outcome().results] == ["visual_guideline"]


def test_what_was_said_before_a_failure_is_kept_and_nothing_more_is_asked(root: Path) -> None:
    conversation = talk(root, Stage.PERCEIVE)
    first, second = conversation.calls()
    conversation.take(first.agent, completion("A tree."))
    conversation.take(second.agent, MediaCorrupt("cut short"))

    assert conversation.calls() == []
    outcome = conversation.outcome()
    assert [result.text for result in outcome.results] == ["A tree."]
    assert outcome.failure is not None
    assert (outcome.failure.stage, outcome.failure.kind) == (Stage.PERCEIVE, "media_corrupt")


@pytest.mark.parametrize(
    ("answer", "named"),
    [
        (completion("a\0b"), '"text" holds a NUL character'),
        (completion("half a pair \ud83d"), "half of a surrogate pair"),
        (completion("word " * 300_000), "1,500,000 characters, more than 1,000,000"),
        (replace(completion("A tree."), seconds=nan), '"seconds" holds NaN or an infinite number'),
        (replace(completion("A tree."), finish_reason="\0"), '"finish_reason" holds a NUL character'),
        (replace(completion("A tree."), prompt_tokens=2**31), "token counts are 2147483648, 5, 2"),
        (replace(completion("A tree."), completion_tokens=-1), "token counts are 10, 5, -1"),
    ],
)
def test_an_answer_that_cannot_be_stored_is_bad_at_once(root: Path, answer: Completion, named: str) -> None:
    conversation = talk(root, Stage.PERCEIVE)
    conversation.take(conversation.calls()[0].agent, answer)

    failure = conversation.outcome().failure
    assert failure is not None
    assert (failure.kind, failure.is_retryable) == ("bad_answer", True)
    assert named in failure.message


@pytest.mark.parametrize("share", [nan, inf, -inf])
def test_a_route_of_numbers_that_are_none_is_a_bad_answer(root: Path, share: float) -> None:
    conversation = talk(root, Stage.ROUTE, domain=None)
    (call,) = conversation.calls()
    conversation.take(call.agent, completion("A", probabilities=dict.fromkeys(call.request.choices, share)))

    outcome = conversation.outcome()
    assert (outcome.route, outcome.results) == (None, ())
    assert outcome.failure is not None
    assert outcome.failure.kind == "bad_answer"
    assert "NaN or an infinite number" in outcome.failure.message


LOOP = "keep at " * 40


@pytest.mark.parametrize("text", ["", "  \n", "\ufffd"])
def test_an_answer_without_words_is_asked_for_again_and_then_a_failure(root: Path, text: str) -> None:
    conversation = talk(root, Stage.PERCEIVE)
    for _ in range(3):
        conversation.take(conversation.calls()[0].agent, completion(text))

    failure = conversation.outcome().failure
    assert failure is not None
    assert (failure.kind, failure.is_retryable) == ("answer_empty", False)


def test_a_loop_is_asked_for_again_with_other_sampling_and_no_agent_ever_sees_it(root: Path) -> None:
    conversation = talk(root, Stage.PERCEIVE)
    first = conversation.calls()[0]
    conversation.take(first.agent, completion(LOOP))
    again = conversation.calls()[0]
    conversation.take(again.agent, completion("A tree."))

    assert again.agent == first.agent
    assert first.request.sampling.temperature is None
    assert again.request.sampling.temperature == 0.7
    assert again.request.instruction == first.request.instruction
    (result,) = conversation.outcome().results
    assert result.text == "A tree."
    assert result.completion_tokens == 4, "those of both attempts"
    assert result.guard is not None
    (attempt,) = result.guard["attempts"]
    assert attempt["faults"].keys() == {"loop"}
    assert attempt["completion_tokens"] == 2
    assert not any(LOOP in call.request.instruction for call in conversation.calls())


def test_what_still_fails_after_the_last_attempt_fails_under_its_own_kind(root: Path) -> None:
    conversation = talk(root, Stage.PERCEIVE)
    for _ in range(3):
        conversation.take(conversation.calls()[0].agent, completion(LOOP))

    assert conversation.calls() == []
    failure = conversation.outcome().failure
    assert failure is not None
    assert failure.kind == "answer_loop"
    assert "keep at" in failure.message
    refused = conversation.outcome().refused
    assert [(each.outcome, each.completion_tokens) for each in refused] == [
        (GuardOutcome.ASKED_AGAIN, 2),
        (GuardOutcome.ASKED_AGAIN, 2),
        (GuardOutcome.FAILED, 2),
    ]


def test_what_was_thrown_away_before_an_answer_was_kept_counts_in_that_answer_alone(root: Path) -> None:
    conversation = talk(root, Stage.PERCEIVE)
    first, second = conversation.calls()
    for text in (LOOP, "A tree."):
        conversation.take(first.agent, completion(text))
    conversation.take(second.agent, completion(LOOP))
    conversation.take(second.agent, MediaCorrupt("the picture is gone"))

    outcome = conversation.outcome()
    assert [result.completion_tokens for result in outcome.results] == [4]
    assert [each.agent for each in outcome.refused] == [second.agent.name]


def test_an_answer_that_cannot_be_parsed_is_known_by_its_tokens(root: Path) -> None:
    caption = a_result(Stage.SUMMARIZE, "general_summary", "A tree.")
    conversation = talk(root, Stage.SCORE, results=(caption,))
    conversation.take(conversation.calls()[0].agent, completion("no JSON"))

    (refused,) = conversation.outcome().refused
    assert (refused.faults, refused.prompt_tokens, refused.completion_tokens) == ({}, 10, 2)


def test_an_optional_agent_may_fail_and_the_record_says_so(root: Path, tmp_path: Path) -> None:
    domains = tmp_path / "domains"
    domains.mkdir()
    (domains / "_defaults.yaml").write_text("agents:\n  natural:\n    optional: true\n")
    conversation = talk(root, Stage.PERCEIVE, catalogue=load_catalogue(domains))
    while calls := conversation.calls():
        for call in calls:
            text = "I'm sorry, I can't help." if call.agent.name == "natural" else "A tree."
            conversation.take(call.agent, completion(text))

    outcome = conversation.outcome()
    assert outcome.failure is None
    (left_out,) = [result for result in outcome.results if result.agent == "natural"]
    assert left_out.text == ""
    assert left_out.guard is not None
    assert [each["faults"].keys() for each in left_out.guard["attempts"]] == [{"refusal"}] * 3
    summary = talk(root, Stage.SUMMARIZE, results=outcome.results, catalogue=load_catalogue(domains))
    assert "sorry" not in summary.calls()[0].request.instruction
    assert 'from="natural"' not in summary.calls()[0].request.instruction


def test_a_repaired_answer_is_kept_with_what_was_repaired(root: Path) -> None:
    conversation = talk(root, Stage.PERCEIVE)
    conversation.take(conversation.calls()[0].agent, completion("Here is the description:\nA tree."))

    (result,) = conversation.outcome().results
    assert result.text == "A tree."
    assert result.guard is not None
    assert result.guard["repairs"].keys() == {"meta_opening"}


def test_metrics_count_what_the_guard_repairs_and_refuses_by_rule_and_outcome(root: Path) -> None:
    def counted() -> list[float]:
        pairs = [("meta_opening", "repaired"), ("loop", "asked_again"), ("loop", "failed")]
        series = [{"rule": rule, "outcome": outcome} for rule, outcome in pairs]
        values = [REGISTRY.get_sample_value("capflow_guard_answers_total", labels) for labels in series]
        values.append(REGISTRY.get_sample_value("capflow_guard_refused_tokens_total", {"rule": "loop"}))
        return [value or 0 for value in values]

    before = counted()
    conversation = talk(root, Stage.PERCEIVE)
    conversation.take(conversation.calls()[0].agent, completion("Here is the description:\nA tree."))
    for _ in range(3):
        conversation.take(conversation.calls()[0].agent, completion(LOOP))

    assert [after - earlier for after, earlier in zip(counted(), before, strict=True)] == [1, 2, 1, 3 * 12]


@pytest.mark.parametrize(
    ("entry", "kind"),
    [({}, "text_only"), ({"image": "gone.png"}, "media_missing"), ({"image": "../a"}, "media_outside_root")],
)
def test_a_sample_without_usable_media_asks_nothing(root: Path, entry: JsonObject, kind: str) -> None:
    conversation = talk(root, Stage.PERCEIVE, entry=entry)

    assert conversation.calls() == []
    failure = conversation.outcome().failure
    assert failure is not None
    assert failure.kind == kind


def test_a_domain_that_only_the_producer_knows_is_the_fault_of_the_node(root: Path) -> None:
    with pytest.raises(WorkflowMissing, match="no domain file here has 'Cooking'"):
        talk(root, Stage.PERCEIVE, domain="Cooking")


@pytest.mark.parametrize("leaves", ["nothing", "an empty folder", "a file"])
def test_media_whose_root_is_away_are_missing_on_this_node_only(root: Path, leaves: str) -> None:
    shutil.rmtree(root)
    if leaves == "an empty folder":
        root.mkdir()
    elif leaves == "a file":
        root.touch()

    with pytest.raises(MediaAway, match=f"{root} .*; mount it on this node") as caught:
        talk(root, Stage.PERCEIVE)

    assert not caught.value.is_over()
    if root.is_file():
        root.unlink()
    draw_picture(root / "a.png", 1)
    assert caught.value.is_over()


def test_a_file_that_is_there_again_was_away_with_its_mount(root: Path) -> None:
    conversation = talk(root, Stage.PERCEIVE)
    call, *_ = conversation.calls()

    with pytest.raises(MediaMissing) as missing, file_errors("a.png"):
        raise FileNotFoundError(errno.ENOENT, "No such file")

    with pytest.raises(MediaAway, match="was away for a moment"):
        conversation.take(call.agent, missing.value)


def test_what_a_file_lacks_inside_is_its_samples_failure(root: Path) -> None:
    conversation = talk(root, Stage.PERCEIVE)
    call, *_ = conversation.calls()

    conversation.take(call.agent, MediaMissing("a.png has no such part."))

    failure = conversation.outcome().failure
    assert failure is not None
    assert failure.kind == "media_missing"


@pytest.mark.parametrize(
    ("number", "fault", "said"),
    [
        (errno.ENOSPC, NodeExhausted, "No space left on device: free space on its disk"),
        (errno.EMFILE, NodeExhausted, "Too many open files: raise its limit of open files"),
        (errno.ESTALE, MediaAway, "does not answer .*Stale file handle"),
        (errno.ENOTCONN, MediaAway, "does not answer"),
    ],
)
def test_what_the_system_says_of_disk_and_mount_is_the_fault_of_the_node(
    root: Path, number: int, fault: type[NodeFault], said: str
) -> None:
    conversation = talk(root, Stage.PERCEIVE)
    call, *_ = conversation.calls()
    with pytest.raises(MediaUnreadable) as unreadable, file_errors("a.png"):
        raise OSError(number, os.strerror(number))

    with pytest.raises(fault, match=said):
        conversation.take(call.agent, unreadable.value)


def test_a_single_file_that_cannot_be_read_is_its_samples_failure(root: Path) -> None:
    conversation = talk(root, Stage.PERCEIVE)
    call, *_ = conversation.calls()
    with pytest.raises(MediaUnreadable) as unreadable, file_errors("a.png"):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    conversation.take(call.agent, unreadable.value)

    failure = conversation.outcome().failure
    assert failure is not None
    assert failure.kind == "media_unreadable"


def test_a_further_caption_is_asked_for_with_the_best_so_far_its_errors_and_another_draw(root: Path) -> None:
    first, second = (
        (
            replace(a_result(Stage.SUMMARIZE, "general_summary", f"A {thing}."), candidate=number),
            replace(
                a_result(Stage.SCORE, "judge", json.dumps({"errors": [f"no {thing}"]})),
                data={"overall": overall},
                candidate=number,
            ),
        )
        for number, thing, overall in ((1, "dog", 2), (2, "horse", 1))
    )
    conversation = talk(root, Stage.SUMMARIZE, candidate=3, earlier=(*first, *second))

    (call,) = conversation.calls()
    conversation.take(call.agent, completion("A cat sleeps on a sofa in the sun."))

    assert "<caption>\nA dog.\n</caption>" in call.request.instruction
    assert "- no dog" in call.request.instruction
    assert "horse" not in call.request.instruction
    assert call.request.sampling.temperature == 0.5
    (result,) = conversation.outcome().results
    assert (result.candidate, result.workflow) == (3, call.agent.digest)


def test_a_first_caption_is_asked_for_as_its_domain_says(root: Path) -> None:
    (call,) = talk(root, Stage.SUMMARIZE).calls()

    assert "An earlier caption" not in call.request.instruction
    assert call.request.sampling == call.agent.sampling


def test_a_seed_gives_each_sample_its_own_order_of_domains_the_same_each_time(
    root: Path, tmp_path: Path
) -> None:
    domains = tmp_path / "domains"
    domains.mkdir()
    (domains / "_defaults.yaml").write_text("router: {order_seed: 1}")
    catalogue = load_catalogue(domains)

    def routed(idx: int) -> tuple[str, JsonObject]:
        """Answer B; return the domain, and the probabilities in the order of the letters."""
        conversation = talk(root, Stage.ROUTE, domain=None, catalogue=catalogue)
        conversation.sample = replace(conversation.sample, idx=idx)
        (call,) = conversation.calls()
        shares = {letter: 0.3 if letter == "B" else 0.1 for letter in call.request.choices}
        conversation.take(call.agent, completion("B", probabilities=shares))
        outcome = conversation.outcome()
        assert outcome.route is not None
        assert outcome.results[0].data is not None
        assert f"\nB. {outcome.route.domain} " in call.request.instruction
        return outcome.route.domain, outcome.results[0].data

    orders = {tuple(routed(idx)[1]) for idx in range(20)}
    assert len(orders) > 15
    assert {frozenset(order) for order in orders} == {frozenset(d.name for d in CATALOGUE.routable)}
    assert routed(3) == routed(3)
    assert list(routed(3)[1])[1] == routed(3)[0]
    assert catalogue.router.digest != CATALOGUE.router.digest


def test_an_answer_knows_the_sampling_that_it_was_asked_for_with(root: Path) -> None:
    conversation = talk(root, Stage.PERCEIVE)
    first, second = conversation.calls()
    conversation.take(first.agent, completion(LOOP))
    (again,) = [call for call in conversation.calls() if call.agent == first.agent]
    conversation.take(again.agent, completion("A tree."))
    conversation.take(second.agent, completion("Leaves.", sampling={"temperature": 0.6}))

    warmer, told = [result.sampling or {} for result in conversation.outcome().results]
    assert warmer == {
        "max_tokens": 384,
        "temperature": 0.7,
        "repetition_penalty": 1.05,
        "presence_penalty": 1.0,
    }
    assert told == {"temperature": 0.6}


def test_the_media_are_noted_with_the_first_answer_about_them(root: Path) -> None:
    picture = (root / "a.png").stat()
    stamp = f"{picture.st_size}:{picture.st_mtime_ns}"

    assert talk(root, Stage.PERCEIVE).outcome().media_stamp is None
    assert finish(talk(root, Stage.PERCEIVE)).outcome().media_stamp == stamp
    assert finish(talk(root, Stage.PERCEIVE, media_stamp="as before")).outcome().media_stamp is None


def test_an_answer_by_a_schema_is_asked_for_as_json_and_kept_as_an_object(root: Path, tmp_path: Path) -> None:
    (tmp_path / "domains").mkdir()
    (tmp_path / "domains" / "pots.yaml").write_text(
        "name: Pots\ndescription: pots\nagents:\n"
        "  potter: {stage: summarize, prompt: Describe the pot., answer: json, schema: "
        "{type: object, properties: {kind: {type: string}, handles: {type: integer}}}}\n"
    )
    catalogue = load_catalogue(tmp_path / "domains")
    conversation = talk(root, Stage.SUMMARIZE, "Pots", catalogue=catalogue)
    (call,) = conversation.calls()

    assert call.request.schema == catalogue.resolve("Pots").captioner.schema
    assert not call.request.has_tokens
    assert json.dumps(call.request.schema) in call.request.instruction
    assert "Write in English" in call.request.instruction
    conversation.take(call.agent, completion('{"kind": "jug"'))
    (again,) = conversation.calls()
    conversation.take(again.agent, completion('{"kind": "jug", "handles": 1}'))

    (result,) = conversation.outcome().results
    assert (result.text, result.data) == ('{"kind": "jug", "handles": 1}', {"kind": "jug", "handles": 1})
    assert result.guard is not None
    assert list(result.guard["attempts"][0]["faults"]) == ["invalid_json"]


def test_what_a_caption_of_json_says_is_compared_with_the_text_and_not_its_signs(root: Path) -> None:
    (root / "document.yaml").write_text(
        "{name: Page, description: pages, agents: {recognized_text: , tagger: {stage: summarize, "
        "prompt: Tag it., answer: json, schema: {type: object, properties: {sign: {type: string}}}}}}"
    )
    line = {"text": "Bakery", "confidence": 1.0}
    read = replace(
        a_result(Stage.PERCEIVE, "recognized_text", "Bakery"), data={"pictures": [{"rows": [[line]]}]}
    )
    conversation = talk(root, Stage.SUMMARIZE, "Page", results=(read,), catalogue=load_catalogue(root))
    (call,) = conversation.calls()

    conversation.take(call.agent, completion(json.dumps({"sign": "It reads “Bakery”"})))

    checks = conversation.outcome().results[0].checks or {}
    assert (checks["quotes"], checks["unsupported"], checks["covered_words"]) == (1, 0, 1)
