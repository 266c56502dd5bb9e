"""Samples that go through their stages at their own pace."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from queue import SimpleQueue
from threading import Event

import pytest

from capflow_tasks.captioning.chains import SampleChains
from capflow_tasks.errors import EngineDead
from capflow_tasks.records import Failure, Modality, Result, Stage
from capflow_tasks.store.states import Claim, Outcome, PendingSample, Route

CLAIM = Claim(1, Stage.ROUTE, 1, 1, "worker", 0, 2, "set", "/data", Modality.IMAGE, 1, tuple(Stage), 0.5)
SAMPLES = [PendingSample(number, number, {"image": "a.png"}, None, ()) for number in range(2)]
STAGES = tuple(Stage)


class Desk:
    """Answers each question, and notes it; a test may hold one back, or have it fail."""

    def __init__(self, **slow: Event) -> None:
        self.asked: SimpleQueue[str] = SimpleQueue()
        #: By question, such as `reason0`.
        self.slow = slow
        self.failures: dict[str, Failure] = {}
        self.deaths: set[str] = set()
        self.confidence = 1.0

    def ask(self, claim: Claim, sample: PendingSample) -> Outcome:
        question = f"{claim.stage}{sample.id}"
        self.asked.put(question)
        if question in self.slow:
            assert self.slow[question].wait(20)
        if question in self.deaths:
            raise EngineDead
        route = Route("Natural", self.confidence) if claim.stage is Stage.ROUTE else None
        data = {"seen as": sample.domain}
        said = Result(claim.stage, f"{claim.stage}r", question, data, "m", "d", 1, 0, 1, "stop", 1, "w")
        return Outcome(sample.id, (said,), route, self.failures.get(question))

    def next_questions(self, count: int) -> set[str]:
        return {self.asked.get(timeout=20) for _ in range(count)}


def after(samples: Sequence[PendingSample], outcomes: Sequence[Outcome]) -> list[PendingSample]:
    """Return the samples as the database has them once the outcomes are written."""
    return [
        replace(sample, domain="Natural", results=(*sample.results, *outcome.results))
        for sample, outcome in zip(samples, outcomes, strict=True)
    ]


def the_chains(desk: Desk, *, may_go_on: bool = True) -> SampleChains:
    return SampleChains(desk.ask, lambda: may_go_on)


def test_a_slow_answer_holds_up_its_own_sample_only() -> None:
    slow = Event()
    desk = Desk(route0=slow)
    chains = the_chains(desk)
    with ThreadPoolExecutor(1) as thread:
        routed = thread.submit(chains.outcomes, CLAIM, SAMPLES, STAGES)
        others = {f"{stage}1" for stage in Stage}
        assert desk.next_questions(6) == {"route0", *others}
        assert not routed.done()
        slow.set()
        assert [outcome.sample_id for outcome in routed.result(20)] == [0, 1]


def test_what_was_asked_ahead_is_asked_once_and_comes_with_its_stage() -> None:
    desk, samples = Desk(), SAMPLES
    chains = the_chains(desk)
    for number, stage in enumerate(Stage):
        outcomes = chains.outcomes(replace(CLAIM, stage=stage), samples, STAGES[number:])
        assert [outcome.results[0].text for outcome in outcomes] == [f"{stage}0", f"{stage}1"]
        samples = after(samples, outcomes)
    assert desk.next_questions(10) == {f"{stage}{number}" for stage in Stage for number in range(2)}
    assert desk.asked.empty()


def test_another_answer_in_the_database_is_believed() -> None:
    desk = Desk()
    chains = the_chains(desk)
    chains.outcomes(CLAIM, SAMPLES, STAGES)
    other = [replace(sample, domain="Chart") for sample in SAMPLES]
    outcomes = chains.outcomes(replace(CLAIM, stage=Stage.PERCEIVE), other, [Stage.PERCEIVE])
    assert {outcome.results[0].data["seen as"] for outcome in outcomes if outcome.results[0].data} == {
        "Chart"
    }


@pytest.mark.parametrize("why", ["failed", "held", "lease"])
def test_a_sample_that_must_not_go_on_is_not_asked(why: str) -> None:
    desk = Desk()
    chains = the_chains(desk, may_go_on=why != "lease")
    if why == "failed":
        desk.failures = dict.fromkeys(["route0", "route1"], Failure(Stage.ROUTE, "timeout", "slow", True))
    desk.confidence = 0.1 if why == "held" else 1.0
    outcomes = chains.outcomes(CLAIM, SAMPLES, STAGES)
    assert [outcome.results[0].text for outcome in outcomes] == ["route0", "route1"]
    desk.next_questions(2)
    assert desk.asked.empty()


def test_an_engine_that_died_ahead_is_asked_again_with_the_claim() -> None:
    desk = Desk()
    desk.deaths = {"perceive0"}
    chains = the_chains(desk)
    samples = after(SAMPLES, chains.outcomes(CLAIM, SAMPLES, STAGES))
    while desk.asked.get(timeout=20) != "perceive0":
        pass
    claim = replace(CLAIM, stage=Stage.PERCEIVE)
    with pytest.raises(EngineDead):
        chains.outcomes(claim, samples, [Stage.PERCEIVE])
    desk.deaths = set()
    assert len(chains.outcomes(claim, samples, [Stage.PERCEIVE])) == 2


def test_a_batch_that_is_forgotten_goes_no_further() -> None:
    slow = Event()
    desk = Desk(perceive0=slow, perceive1=slow)
    chains = the_chains(desk)
    chains.outcomes(CLAIM, SAMPLES, STAGES)
    desk.next_questions(4)
    assert (chains.open_batches, chains.new_batches) == (1, 0)

    chains.forget(CLAIM.batch_id)
    slow.set()

    assert (chains.open_batches, desk.asked.empty()) == (0, True)


def test_a_batch_counts_from_its_claim_on() -> None:
    chains = the_chains(Desk())
    chains.open(7)
    assert (chains.open_batches, chains.new_batches) == (1, 1)
