"""Captions verified claim by claim, over a real database, with a scripted engine that knows what is true."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import Engine, text

from capflow_tasks.captioning.heartbeat import Heartbeat
from capflow_tasks.captioning.stages import StageRunner
from capflow_tasks.domains.catalogue import Catalogue, load_workflow
from capflow_tasks.domains.verifier import VERIFIER
from capflow_tasks.engine.interface import Answer
from capflow_tasks.errors import EngineDead, RequestTimeout, SampleError
from capflow_tasks.records import FinishedSample, Request, Stage, Workflow
from capflow_tasks.settings import Settings
from capflow_tasks.store.claims import WorkerStore
from capflow_tasks.store.figures import Tokens
from capflow_tasks.store.states import SampleState
from capflow_tasks.store.statistics import Statistics
from capflow_tasks.testing import ScriptedEngine, scripted_text
from producer.refresh import Refresh
from producer.writing.captions import caption_record
from tests.datasets import entries_with_pictures
from tests.stores import Fleet, run_to_the_end

pytestmark = pytest.mark.integration

CAPTION = "A red van stands left of a lamp. It reads Bakery."
CLAIMS = {"The van is red.": 0.9, "The lamp is lit.": 0.1, "It reads Bakery.": 0.5}
REWRITTEN = "A red van stands by a lamp, which reads Bakery in white."
VERIFIED = load_workflow(Workflow.VERIFIED)
#: A domain whose caption is JSON.
TAGGER = """
name: Natural
description: Anything
agents:
  tagger:
    stage: summarize
    prompt: Tag it.
    answer: json
    schema: {type: object, properties: {scene: {type: string}, lamp: {type: string}}}
"""


class Witness(ScriptedEngine):
    """Claims what CLAIMS says, and answers yes with the probability that stands there."""

    def __init__(self) -> None:
        super().__init__(self._say)

    def _say(self, request: Request) -> str:
        if "claims" in (request.schema or {}).get("properties", {}):
            return json.dumps({"claims": list(CLAIMS)})
        if "did not find these" in request.instruction:
            return REWRITTEN
        return CAPTION if "Write the one caption" in request.instruction else scripted_text(request)

    def _complete(self, request: Request) -> Answer:
        answer = super()._complete(request)
        if request.choices != ("yes", "no") or isinstance(answer, SampleError):
            return answer
        share = next(share for claim, share in CLAIMS.items() if claim in request.instruction)
        return replace(answer, probabilities={"yes": share, "no": 1 - share})


@pytest.fixture
def fleet(engine: Engine, tmp_path: Path) -> Fleet:
    entries = entries_with_pictures(tmp_path, 1)
    return Fleet(engine, entries, domain="Natural", root=str(tmp_path / "media"))


def run(fleet: Fleet, engine: ScriptedEngine, workflow: Catalogue = VERIFIED) -> None:
    heartbeat = Heartbeat(WorkerStore(fleet.engine), "worker", lease_seconds=60)
    settings = Settings(retry_seconds=0, lease_seconds=60, queue_seconds=60)
    runner = StageRunner(fleet.batches, lambda _: workflow, dict.fromkeys(Stage, engine), heartbeat, settings)
    run_to_the_end(fleet, runner)


def finished(fleet: Fleet) -> FinishedSample:
    (sample,) = fleet.views.finished_samples(fleet.shard_id, SampleState.DONE)
    return sample


def test_each_claim_is_asked_of_the_media_alone_and_what_is_denied_is_removed(fleet: Fleet) -> None:
    engine = Witness()

    run(fleet, engine)

    record = caption_record(finished(fleet))
    assert record["caption"] == REWRITTEN
    assert record["claims"] == {"kept": 1, "unsure": 1, "dropped": 1}
    # The one that was denied is in the caption no more.
    assert record["claim_support"] == 0.5
    (listed,) = [result for result in finished(fleet).results if result.agent == VERIFIER]
    assert listed.data == {
        "draft": CAPTION,
        "claims": [
            {"claim": claim, "yes": share, "verdict": verdict}
            for (claim, share), verdict in zip(CLAIMS.items(), ("kept", "dropped", "unsure"), strict=True)
        ],
    }
    (listing,) = [each for each in engine.requests if "claims" in (each.schema or {}).get("properties", {})]
    questions = [each for each in engine.requests if each.choices == ("yes", "no")]
    (rewriting,) = [each for each in engine.requests if "did not find these" in each.instruction]
    assert CAPTION in listing.instruction
    assert not listing.media
    assert len(questions) == 3
    for claim, question in zip(CLAIMS, questions, strict=True):
        assert (claim in question.instruction, len(question.media), question.system) == (
            True,
            1,
            listing.system,
        )
        assert not any(other in question.instruction for other in (CAPTION, *CLAIMS.keys() - {claim}))
    assert "The lamp is lit." in rewriting.instruction
    assert "The van is red." not in rewriting.instruction
    # The judge grades what is kept, and the whole cost is known.
    assert REWRITTEN in engine.requests[-1].instruction
    found = Statistics(fleet.engine).claims(fleet.run_id)
    assert found is not None
    assert (found.captions, found.rewritten, found.claims) == (1, 1, 3)
    assert found.tokens == Tokens(listed.prompt_tokens, 0, listed.completion_tokens)
    assert listed.prompt_tokens > 3 * 256


def test_a_caption_without_a_denied_claim_is_not_written_again(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(CLAIMS, "The lamp is lit.", 0.95)
    engine = Witness()
    run(fleet, engine)
    assert caption_record(finished(fleet))["caption"] == CAPTION
    assert not any("did not find these" in each.instruction for each in engine.requests)


def test_other_workflows_verify_nothing_unless_the_domain_files_say_so(fleet: Fleet, tmp_path: Path) -> None:
    engine = Witness()
    run(fleet, engine, load_workflow(Workflow.STANDARD))
    assert not any(each.choices == ("yes", "no") for each in engine.requests)
    assert "claims" not in caption_record(finished(fleet))
    (tmp_path / "_defaults.yaml").write_text("verify: {enabled: true, claims: sentences}\n")
    assert load_workflow(str(tmp_path)).verifier is not None


def test_sentences_that_are_denied_are_cut_without_a_further_call(fleet: Fleet, tmp_path: Path) -> None:
    (tmp_path / "_defaults.yaml").write_text("verify: {enabled: true, claims: sentences}\n")
    engine = _asking(lambda request: 0.1 if "Bakery" in request.instruction else 0.9)

    run(fleet, engine, load_workflow(str(tmp_path)))

    record = caption_record(finished(fleet))
    assert record["caption"] == "A red van stands left of a lamp."
    assert record["claims"] == {"kept": 1, "unsure": 0, "dropped": 1}


def test_a_caption_of_json_is_rewritten_as_json(fleet: Fleet, tmp_path: Path) -> None:
    (tmp_path / "natural.yaml").write_text(TAGGER)
    draft, rewritten = {"scene": 'A van, "Bakery"', "lamp": "lit"}, {"scene": "A van", "lamp": "none"}

    class Tagger(Witness):
        def _say(self, request: Request) -> str:
            if "lamp" not in (request.schema or {}).get("properties", {}):
                return super()._say(request)
            is_rewrite = "did not find these" in request.instruction
            return json.dumps(rewritten if is_rewrite else draft)

    run(fleet, Tagger(), load_workflow(Workflow.VERIFIED, tmp_path))

    record = caption_record(finished(fleet))
    assert record["caption"] == rewritten
    assert record["claims"] == {"kept": 1, "unsure": 1, "dropped": 1}
    assert json.loads(record["conversations"][-1]["value"]) == rewritten


def test_the_caption_of_the_fast_workflow_is_not_taken_for_its_claims(fleet: Fleet, tmp_path: Path) -> None:
    (tmp_path / "_defaults.yaml").write_text("verify: {enabled: true, claims: sentences}\n")
    run(fleet, _asking(lambda _: 0.9), load_workflow(Workflow.FAST, tmp_path))

    names = [result.agent for result in finished(fleet).results if result.stage is Stage.SUMMARIZE]
    assert names == [VERIFIER, "fast_caption"]
    assert caption_record(finished(fleet))["claims"]["dropped"] == 0


def test_an_engine_that_dies_while_claims_are_asked_leaves_nothing_half_verified(fleet: Fleet) -> None:
    class Dying(Witness):
        deaths = 1

        def _say(self, request: Request) -> str:
            if request.choices == ("yes", "no") and self.deaths:
                self.deaths -= 1
                raise EngineDead
            return super()._say(request)

    run(fleet, Dying())

    results = [result for result in finished(fleet).results if result.stage is Stage.SUMMARIZE]
    assert [(each.agent, each.text == REWRITTEN) for each in results] == [
        (VERIFIER, False),
        ("general_summary", True),
    ]


def test_a_caption_whose_verification_failed_is_written_again_and_its_tokens_count(fleet: Fleet) -> None:
    class Late(Witness):
        failures = 1

        def _say(self, request: Request) -> str:
            if request.choices == ("yes", "no") and self.failures:
                self.failures -= 1
                raise RequestTimeout("too slow")
            return super()._say(request)

    engine = Late()
    run(fleet, engine)

    assert caption_record(finished(fleet))["caption"] == REWRITTEN
    assert sum("Write the one caption" in each.instruction for each in engine.requests) == 2
    with fleet.engine.connect() as connection:
        thrown = connection.execute(text("SELECT agent, outcome, prompt_tokens FROM refused_answers")).one()
    assert (thrown.agent, thrown.outcome) == ("general_summary", "failed")
    # The draft and the two questions that were answered have the picture.
    assert thrown.prompt_tokens > 3 * 256
    summarize = [
        usage for usage in Statistics(fleet.engine).usage(fleet.run_id) if usage.stage is Stage.SUMMARIZE
    ]
    answered = [
        each for each in engine.requests if each.schema is None or "claims" in each.schema["properties"]
    ]
    assert sum(usage.tokens.prompt for usage in summarize) > 2 * 256 * 5
    assert answered


def _asking(share_of: Callable[[Request], float]) -> ScriptedEngine:
    class Asked(Witness):
        def _complete(self, request: Request) -> Answer:
            answer = ScriptedEngine._complete(self, request)
            if request.choices != ("yes", "no") or isinstance(answer, SampleError):
                return answer
            return replace(answer, probabilities={"yes": (share := share_of(request)), "no": 1 - share})

    return Asked()


def test_another_question_makes_captions_and_their_claims_stale(fleet: Fleet) -> None:
    run(fleet, Witness())
    verifier, settings = VERIFIED.verifier, Settings(engine="some:engine")
    assert verifier is not None
    assert not Refresh(fleet.engine, fleet.run_id, VERIFIED, settings).is_needed()

    asks_otherwise = replace(VERIFIED, verifier=replace(verifier, question="$claim\nIs it so?"))
    refresh = Refresh(fleet.engine, fleet.run_id, asks_otherwise, settings)

    assert {each.answers.agent: each.changed for each in refresh.stale()} == {VERIFIER: "prompt"}
    assert refresh.forget() == 1
    with fleet.engine.connect() as connection:
        left = connection.execute(text("SELECT DISTINCT stage FROM results")).scalars()
        assert set(left) == {"perceive", "reason"}


def test_captions_are_stale_once_they_are_to_be_verified(fleet: Fleet) -> None:
    run(fleet, Witness(), load_workflow(Workflow.STANDARD))

    stale = Refresh(fleet.engine, fleet.run_id, VERIFIED, Settings(engine="scripted:build")).stale()

    assert {each.answers.stage for each in stale} == {Stage.SUMMARIZE, Stage.SCORE}
