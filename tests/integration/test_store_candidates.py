"""What becomes of a sample whose caption is below the bar, in a real database."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
from sqlalchemy import Engine

from capflow_tasks.errors import AnswerLoop, RequestTimeout, SampleError
from capflow_tasks.records import FinishedSample, Result, Stage
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

    def fail(self, stage: Stage, error: SampleError) -> None:
        """Let the only pending sample fail."""
        claim = self.claim(stage)
        (sample,) = self.batches.pending_samples(claim.batch_id)
        assert self.finish(claim, [Outcome(sample.id, failure=a_failure(stage, error))])

    def done(self) -> list[FinishedSample]:
        return list(self.views.finished_samples(self.shard_id, SampleState.DONE))


def graded(stage: Stage, candidate: int, overall: int) -> Result:
    data = {"overall": overall} if stage is Stage.SCORE else None
    return replace(a_result(stage, text=f"{stage} {candidate}"), candidate=candidate, data=data)


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
    fleet.runs.open_run("run", "/plan.jsonl", "/out", (Stage.ROUTE, *STAGES))
    fleet.write(1)

    assert fleet.batch().state == BatchState.DONE
    assert [texts(sample) for sample in fleet.done()] == [["summarize 1", "score 1"]] * 2


def test_a_sample_whose_captions_are_forgotten_starts_with_the_first_again(fleet: Strict) -> None:
    fleet.write(3, 1)
    fleet.write(3)
    store = AnswerStore(fleet.engine)
    stale = [each for each in store.answers(fleet.run_id) if each.stage is Stage.SUMMARIZE]

    readers = {"Natural": {"agent": ["agent"]}}
    assert store.forget(fleet.run_id, stale, readers, {"Natural": Stage.SUMMARIZE}) == 2

    assert fleet.count("results") == 0
    pending = fleet.batches.pending_samples(fleet.batch_ids[0])
    assert [(sample.candidate, sample.earlier) for sample in pending] == [(1, ()), (1, ())]
