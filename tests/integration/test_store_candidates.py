"""What becomes of a sample whose caption is below the bar, in a real database."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import Engine

from capflow_tasks.errors import AnswerLoop, RequestTimeout, SampleError
from capflow_tasks.records import FinishedSample, GuardOutcome, RefusedAnswer, Result, Rule, Stage
from capflow_tasks.store.refresh import AnswerStore
from capflow_tasks.store.states import BatchState, CandidatePolicy, Outcome, SampleState
from tests.stores import Fleet, a_failure, a_result, some_entries

pytestmark = pytest.mark.integration

POLICY = CandidatePolicy(most=3, min_overall=3)
STAGES = (Stage.SUMMARIZE, Stage.SCORE)


class Strict(Fleet):
    """A batch whose captions are graded as they come."""

    def open_run(self, stages: Sequence[Stage], min_confidence: float = 0) -> int:
        return self.runs.open_run("run", "/plan.jsonl", "/out", stages, candidates=POLICY)

    def write(self, *overalls: int) -> None:
        """Write and grade a caption of each pending sample."""
        for stage in STAGES:
            claim = self.claim(stage)
            pending = self.batches.pending_samples(claim.batch_id)
            outcomes = [
                Outcome(sample.id, (graded(stage, sample.candidate, overall),))
                for sample, overall in zip(pending, overalls, strict=True)
            ]
            assert self.finish(claim, outcomes)

    def judge(self, *overalls: int) -> None:
        """Grade the captions of the pending samples, which have them."""
        claim = self.claim(Stage.SCORE)
        pending = self.batches.pending_samples(claim.batch_id)
        outcomes = [
            Outcome(sample.id, (graded(Stage.SCORE, sample.candidate, overall),))
            for sample, overall in zip(pending, overalls, strict=True)
        ]
        assert self.finish(claim, outcomes)

    def fail(self, stage: Stage, error: SampleError, *refused: RefusedAnswer) -> None:
        """Let the only pending sample fail, after answers that were refused."""
        claim = self.claim(stage)
        (sample,) = self.batches.pending_samples(claim.batch_id)
        outcome = Outcome(sample.id, failure=a_failure(stage, error), refused=refused)
        assert self.finish(claim, [outcome])

    def forget(self, stage: Stage) -> int:
        """Forget what the agents of the stage answered, which nobody reads."""
        store = AnswerStore(self.engine)
        stale = [each for each in store.answers(self.run_id) if each.stage is stage]
        return store.forget(self.run_id, stale, {}, {"Natural": stage})

    def allow(self, **changes: Any) -> int:
        return self.runs.allow_candidates(self.run_id, replace(POLICY, **changes))

    def done(self) -> list[FinishedSample]:
        return list(self.views.finished_samples(self.shard_id, SampleState.DONE))


def graded(stage: Stage, candidate: int, overall: int) -> Result:
    data = {"overall": overall} if stage is Stage.SCORE else None
    return replace(a_result(stage, stage, f"{stage} {candidate}"), candidate=candidate, data=data)


def texts(sample: FinishedSample) -> list[str]:
    return [result.text for result in sample.results]


@pytest.fixture
def fleet(engine: Engine) -> Strict:
    return Strict(engine, some_entries(2), domain="Natural", stages=(Stage.ROUTE, *STAGES))


def test_only_the_sample_below_the_bar_goes_back_to_summarize(fleet: Strict) -> None:
    fleet.write(3, 1)

    batch = fleet.batch()
    assert (batch.state, batch.next_stage, batch.lease_owner) == (BatchState.READY, Stage.SUMMARIZE, None)
    (pending,) = fleet.batches.pending_samples(fleet.batch_ids[0])
    assert (pending.idx, pending.candidate, pending.results) == (1, 2, ())
    assert [result.text for result in pending.earlier] == ["summarize 1", "score 1"]
    assert fleet.publish()[0].next_stage == Stage.SUMMARIZE


def test_the_best_of_them_is_the_caption_and_all_are_kept(fleet: Strict) -> None:
    fleet.write(3, 1)
    fleet.write(2)
    fleet.write(1)

    assert fleet.batch().state == BatchState.DONE
    good, mended = fleet.done()
    assert (texts(good), good.others) == (["summarize 1", "score 1"], ())
    assert texts(mended) == ["summarize 2", "score 2"]
    assert [result.candidate for result in mended.others] == [1, 1, 3, 3]


def test_a_further_caption_that_fails_for_good_leaves_the_sample_with_the_best_so_far(fleet: Strict) -> None:
    fleet.write(3, 2)
    fleet.fail(Stage.SUMMARIZE, AnswerLoop("and on and on"))

    assert fleet.batch().state == BatchState.DONE
    assert [texts(sample) for sample in fleet.done()] == [["summarize 1", "score 1"]] * 2
    assert fleet.views.failures(fleet.run_id) == []


def test_a_further_caption_whose_failure_may_pass_is_tried_again(fleet: Strict) -> None:
    fleet.write(3, 2)
    fleet.fail(Stage.SUMMARIZE, RequestTimeout("too slow"))
    assert fleet.wait_seconds() == pytest.approx(60, abs=1)
    fleet.write(3)

    assert texts(fleet.done()[1]) == ["summarize 2", "score 2"]


def test_a_run_that_allows_fewer_captions_now_keeps_the_best_of_those_it_has(fleet: Strict) -> None:
    fleet.write(3, 2)
    assert fleet.allow(most=1) == 0
    fleet.write(1)

    assert fleet.batch().state == BatchState.DONE
    assert [texts(sample) for sample in fleet.done()] == [["summarize 1", "score 1"]] * 2


def test_a_sample_whose_captions_are_forgotten_starts_with_the_first_again(fleet: Strict) -> None:
    fleet.write(3, 1)
    fleet.write(3)
    store = AnswerStore(fleet.engine)
    stale = [each for each in store.answers(fleet.run_id) if each.stage is Stage.SUMMARIZE]

    readers = {"Natural": {"summarize": ["score"]}}
    assert store.forget(fleet.run_id, stale, readers, {"Natural": Stage.SUMMARIZE}) == 2

    assert fleet.count("results") == 0
    pending = fleet.batches.pending_samples(fleet.batch_ids[0])
    assert [(sample.candidate, sample.earlier) for sample in pending] == [(1, ()), (1, ())]


def test_a_judge_that_is_asked_again_grades_each_of_the_captions_that_are_kept(fleet: Strict) -> None:
    fleet.write(3, 1)
    fleet.write(2)
    fleet.write(1)

    assert fleet.forget(Stage.SCORE) == 2
    assert fleet.batch().next_stage == Stage.SCORE
    fleet.judge(3, 2)
    assert fleet.batch().next_stage == Stage.SCORE
    fleet.judge(1)
    assert fleet.publish()[0].next_stage == Stage.SCORE
    fleet.judge(3)

    assert fleet.batch().state == BatchState.DONE
    first, other = fleet.done()
    assert texts(first) == ["summarize 1", "score 1"]
    assert texts(other) == ["summarize 3", "score 3"]
    assert [(each.candidate, each.data) for each in other.others if each.stage is Stage.SCORE] == [
        (1, {"overall": 2}),
        (2, {"overall": 1}),
    ]


def test_a_run_of_one_caption_grades_all_that_it_has_again(fleet: Strict) -> None:
    fleet.write(3, 1)
    fleet.write(3)
    fleet.allow(most=1)

    fleet.forget(Stage.SCORE)
    fleet.judge(3, 2)
    fleet.judge(1)

    assert fleet.batch().state == BatchState.DONE
    assert texts(fleet.done()[1]) == ["summarize 1", "score 1"]


def test_a_caption_that_cannot_be_graded_again_leaves_the_grades_of_the_others(fleet: Strict) -> None:
    fleet.write(3, 1)
    fleet.write(2)
    fleet.write(1)

    fleet.forget(Stage.SCORE)
    fleet.judge(3, 1)
    fleet.fail(Stage.SCORE, AnswerLoop("and on and on"))
    fleet.judge(2)

    assert fleet.batch().state == BatchState.DONE
    assert texts(fleet.done()[1]) == ["summarize 3", "score 3"]


def test_a_finished_run_that_allows_more_captions_goes_on_with_those_below_the_bar(fleet: Strict) -> None:
    fleet.allow(most=1)
    fleet.write(3, 2)
    assert fleet.batch().state == BatchState.DONE

    assert fleet.allow(most=2) == 1
    assert fleet.allow(most=2) == 0
    (pending,) = fleet.batches.pending_samples(fleet.batch_ids[0])
    assert (pending.idx, pending.candidate) == (1, 2)
    assert [result.text for result in pending.earlier] == ["summarize 1", "score 1"]
    assert fleet.publish()[0].next_stage == Stage.SUMMARIZE
    fleet.write(3)

    assert fleet.batch().state == BatchState.DONE
    assert [texts(sample)[0] for sample in fleet.done()] == ["summarize 1", "summarize 2"]
    assert fleet.allow(most=3) == 0


def test_a_higher_bar_or_budget_opens_what_is_below_it_now(fleet: Strict) -> None:
    fleet.allow(min_overall=1)
    fleet.write(2, 1)

    assert fleet.allow(min_overall=2, token_budget=26) == 0
    assert fleet.allow(min_overall=2, token_budget=27) == 1
    fleet.write(2)
    assert fleet.allow(min_overall=3) == 2


def test_the_captions_of_a_batch_that_a_worker_has_are_left(fleet: Strict) -> None:
    fleet.write(3, 1)
    claim = fleet.claim(Stage.SUMMARIZE)

    assert fleet.allow(most=5) == 0
    assert fleet.finish(claim)


def test_answers_that_were_refused_before_a_retry_count_for_the_token_budget(fleet: Strict) -> None:
    fleet.allow(token_budget=60)
    refused = RefusedAnswer(
        Stage.SUMMARIZE, "agent", {Rule.LOOP: "on"}, GuardOutcome.FAILED, "model", 30, 0, 10, "stop", 0.1, "w"
    )
    fleet.write(3, 2)
    fleet.fail(Stage.SUMMARIZE, RequestTimeout("too slow"), refused)
    fleet.wait_seconds()
    fleet.write(2)

    assert fleet.batch().state == BatchState.DONE
    assert [len(sample.others) for sample in fleet.done()] == [0, 2]


def test_answers_that_were_forgotten_do_not_count_for_the_token_budget(fleet: Strict) -> None:
    fleet.allow(most=1)
    fleet.write(2, 2)
    store = AnswerStore(fleet.engine)
    stale = [each for each in store.answers(fleet.run_id) if each.stage is Stage.SUMMARIZE]
    store.forget(fleet.run_id, stale, {"Natural": {"summarize": ["score"]}}, {"Natural": Stage.SUMMARIZE})
    fleet.write(3, 1)

    assert fleet.allow(token_budget=27) == 1


def test_a_batch_that_a_worker_has_is_settled_by_the_policy_of_its_end(fleet: Strict) -> None:
    fleet.allow(most=1)
    fleet.finish(fleet.claim(Stage.SUMMARIZE))
    claim = fleet.claim(Stage.SCORE)
    assert fleet.allow(most=3) == 0

    grades = zip(fleet.sample_ids(), (3, 1), strict=True)
    fleet.finish(claim, [Outcome(each, (graded(Stage.SCORE, 1, overall),)) for each, overall in grades])

    (pending,) = fleet.batches.pending_samples(fleet.batch_ids[0])
    assert (pending.idx, pending.candidate) == (1, 2)
