"""Random interleavings of what producers, workers, commands and accidents do to the state machine."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy import Engine, text

from capflow_tasks.errors import MediaMissing, RequestTimeout, SampleError
from capflow_tasks.records import Stage
from capflow_tasks.store import candidates
from capflow_tasks.store.claims import BatchStore, NotClaimed, WorkerStore
from capflow_tasks.store.refresh import AnswerStore
from capflow_tasks.store.runs import RunStore
from capflow_tasks.store.states import (
    CandidatePolicy,
    Claim,
    NewBatch,
    NewSample,
    Outcome,
    PendingSample,
    RetryPolicy,
    WaitingMessages,
    stage_after,
)
from tests.stores import a_failure, a_result, a_shard

pytestmark = pytest.mark.integration

SAMPLES = 12
STAGES = tuple(Stage)
OWNERS = ("w1@host/1", "w1@host/2", "w2@host/1")
RETRY = RetryPolicy(max_attempts=2, first_wait_seconds=0)
#: Tries after which a batch is split.
MAX_TRIES = 2
CANDIDATES = CandidatePolicy(most=3, min_overall=2)
#: More captions than these no sample gets, however often the run is told to allow more.
MOST_CANDIDATES = 5

_names = (f"machine {number}" for number in itertools.count())

owners = st.sampled_from(OWNERS)
#: Taken modulo the length of what there is to choose from.
picks = st.integers(0, 99)
#: What becomes of each sample of a batch; None is an answer.
endings = st.lists(st.sampled_from([None, None, None, RequestTimeout, MediaMissing]), min_size=4, max_size=4)
#: The overall grade of each caption of a batch.
grades = st.lists(st.integers(1, 3), min_size=4, max_size=4)


@dataclass(frozen=True, slots=True)
class Message:
    """A message in the broker: the rest of a chain, from this stage on."""

    batch_id: int
    stage: Stage


@dataclass(frozen=True, slots=True)
class Running:
    """A claim that a worker holds, or believes that it holds."""

    claim: Claim
    samples: Sequence[PendingSample]


class FleetMachine(RuleBasedStateMachine):
    """Any process may stop between any two statements, which are all the store's."""

    def __init__(self, engine: Engine) -> None:
        super().__init__()
        self.engine = engine
        self.runs, self.batches, self.workers = RunStore(engine), BatchStore(engine), WorkerStore(engine)
        self.name = next(_names)
        self.policy = CANDIDATES
        self.start_run()
        (row,) = self.runs.add_shards(self.run_id, [a_shard(SAMPLES)])
        self.shard_id = row.id
        self.messages: list[Message] = []
        self.running: list[Running] = []
        #: The newest claim of each batch.
        self.newest: dict[int, int] = {}
        #: (sample, candidate, stage) whose answer was written.
        self.written: set[tuple[int, int, Stage]] = set()
        self.done: set[int] = set()
        #: Samples whose further caption failed at some time, which keep an earlier one in the end.
        self.failed_again: set[int] = set()
        #: Samples whose captions were graded again.
        self.graded_again: set[int] = set()

    @rule(size=st.integers(1, 4), is_late=st.booleans())
    def expand(self, size: int, is_late: bool) -> None:
        with self.engine.connect() as connection:
            expanded = text("SELECT expanded_to FROM shards WHERE id = :shard")
            cursor = connection.execute(expanded, {"shard": self.shard_id}).scalar_one()
        end = min(cursor + size, SAMPLES)
        if cursor == SAMPLES:
            return
        samples = [NewSample(idx, {"image": f"{idx}.png"}, None) for idx in range(cursor, end)]
        batch = NewBatch(Stage.ROUTE, samples)
        assert self.runs.expand(self.shard_id, cursor, [batch])
        if is_late:
            assert self.runs.expand(self.shard_id, cursor, [batch]) is None

    @rule(limit=st.integers(1, 3))
    def publish(self, limit: int) -> None:
        with self.runs.publishing(limit, 3600, self.run_id) as ready:
            self.messages += [Message(batch.id, batch.next_stage) for batch in ready]

    @precondition(lambda self: self.messages)
    @rule(pick=picks, owner=owners)
    def deliver(self, pick: int, owner: str) -> None:
        self.take(self.messages.pop(pick % len(self.messages)), owner)

    @precondition(lambda self: self.messages)
    @rule(pick=picks)
    def deliver_twice(self, pick: int) -> None:
        self.messages.append(self.messages[pick % len(self.messages)])

    @precondition(lambda self: self.messages)
    @rule(pick=picks)
    def lose_message(self, pick: int) -> None:
        self.messages.pop(pick % len(self.messages))

    @precondition(lambda self: self.running)
    @rule(pick=picks, ends=endings, overalls=grades, stays=st.booleans())
    def finish(
        self, pick: int, ends: list[type[SampleError] | None], overalls: list[int], stays: bool
    ) -> None:
        self.end(self.running.pop(pick % len(self.running)), ends, overalls, stays=stays)

    @precondition(lambda self: self.running)
    @rule(pick=picks)
    def release(self, pick: int) -> None:
        self.batches.release(self.running.pop(pick % len(self.running)).claim)

    @precondition(lambda self: self.running)
    @rule(pick=picks)
    def crash(self, pick: int) -> None:
        self.running.pop(pick % len(self.running))

    @precondition(lambda self: any(may_be_split(each) for each in self.running))
    @rule()
    def split(self) -> None:
        suspect = next(each for each in self.running if may_be_split(each))
        self.running.remove(suspect)
        self.batches.split(suspect.claim)

    @rule(owner=owners)
    def beat(self, owner: str) -> None:
        held = [each.claim.batch_id for each in self.running if each.claim.owner == owner]
        self.workers.beat(owner, held, 60)

    @rule(owner=owners)
    def resign(self, owner: str) -> None:
        self.workers.resign(owner)

    @rule()
    def let_leases_run_out(self) -> None:
        expires = "UPDATE batches SET lease_until = now() - interval '1 second' WHERE shard_id = :shard"
        with self.engine.begin() as connection:
            connection.execute(text(expires), {"shard": self.shard_id})

    @rule()
    def stop_run(self) -> None:
        self.runs.stop(self.run_id)
        queued = "AND b.state = 'queued'"
        assert not self.ask("SELECT s.id FROM samples s JOIN batches b ON b.id = s.batch_id", queued)

    @rule()
    def start_run(self) -> None:
        self.run_id = self.runs.open_run(self.name, "/plan.jsonl", "/out", STAGES, candidates=CANDIDATES)

    @precondition(lambda self: self.policy.most < MOST_CANDIDATES)
    @rule()
    def allow_another_candidate(self) -> None:
        self.policy = replace(self.policy, most=self.policy.most + 1)
        self.runs.allow_candidates(self.run_id, self.policy)
        self.note_reopened()

    @rule()
    def ask_the_judge_again(self) -> None:
        store = AnswerStore(self.engine)
        stale = [each for each in store.answers(self.run_id) if each.stage is Stage.SCORE]
        domains = {each.domain: Stage.SCORE for each in stale}
        store.forget(self.run_id, stale, {}, domains)
        self.graded_again |= self.note_reopened()
        rows = self.ask(
            "SELECT sample_id, r.candidate, stage FROM results r JOIN samples s ON s.id = sample_id"
        )
        self.written = {(row.sample_id, row.candidate, Stage(row.stage)) for row in rows}

    def note_reopened(self) -> set[int]:
        """Return the samples that were done and are open again."""
        now = {row.id for row in self.ask("SELECT s.id FROM samples s", "AND s.state = 'done'")}
        reopened, self.done = self.done - now, now
        return reopened

    @rule()
    def requeue_stale(self) -> None:
        self.runs.requeue_stale(self.run_id)

    @rule()
    def requeue_lost(self) -> None:
        queued = self.runs.outside_queues(WaitingMessages({}, ()), 0, self.run_id)
        self.runs.requeue_lost(queued - {each.batch_id for each in self.messages})

    @invariant()
    def each_answer_is_written_once(self) -> None:
        rows = self.ask(
            "SELECT sample_id, r.candidate, stage FROM results r JOIN samples s ON s.id = sample_id"
        )
        assert len(rows) == len(self.written)
        assert {(row.sample_id, row.candidate, Stage(row.stage)) for row in rows} == self.written

    @invariant()
    def a_sample_that_is_done_has_the_best_of_enough_captions(self) -> None:
        query = (
            "SELECT s.id, s.candidate, array_agg((data ->> 'overall')::int ORDER BY r.candidate) AS overalls,"
            " array_agg(r.candidate ORDER BY r.candidate) AS graded"
            " FROM results r JOIN samples s ON s.id = sample_id"
        )
        for row in self.ask(query, "AND s.state = 'done' AND stage = 'score' GROUP BY s.id"):
            overalls = dict(zip(row.graded, row.overalls, strict=True))
            assert overalls[row.candidate] == max(row.overalls)
            if row.id in self.graded_again | self.failed_again:
                continue
            *earlier, last = row.overalls
            assert all(grade < CANDIDATES.min_overall for grade in earlier)
            # A batch that a worker has when more are allowed is left to finish.
            assert last >= CANDIDATES.min_overall or len(row.overalls) >= CANDIDATES.most

    @invariant()
    def what_is_done_stays_done(self) -> None:
        done = {row.id for row in self.ask("SELECT s.id FROM samples s") if row.id in self.done}
        now = {row.id for row in self.ask("SELECT s.id FROM samples s", "AND s.state = 'done'")}
        assert done <= now
        self.done = now

    @invariant()
    def a_batch_that_is_done_has_nothing_pending(self) -> None:
        left = "AND s.state = 'pending' AND b.state = 'done'"
        assert not self.ask("SELECT s.id FROM samples s JOIN batches b ON b.id = s.batch_id", left)

    @invariant()
    def every_sample_lies_in_its_batch(self) -> None:
        strays = "AND NOT (s.idx >= b.start_idx AND s.idx < b.end_idx)"
        assert not self.ask("SELECT s.id FROM samples s JOIN batches b ON b.id = s.batch_id", strays)

    def teardown(self) -> None:
        """Whatever happened, a fleet without accidents finishes everything."""
        self.start_run()
        for _ in range(SAMPLES):
            self.expand(size=4, is_late=False)
        # Earlier messages and claims may be lost.
        self.messages.clear()
        # Twice, once for each further caption, and once for each that is graded again.
        for _ in range(1 + 2 * MOST_CANDIDATES):
            self.let_leases_run_out()
            self.requeue_stale()
            self.publish(limit=100)
            while self.messages:
                self.take(self.messages.pop(), OWNERS[0])
                while self.running:
                    self.end(self.running.pop(), [None] * 4, [1, 2, 3, 3], stays=True)
        states = [row.state for row in self.ask("SELECT s.state FROM samples s")]
        assert len(states) == SAMPLES
        assert set(states) <= {"done", "failed"}
        assert self.done == {sample for sample in self.done if self.has_all(sample)}

    def take(self, message: Message, owner: str) -> None:
        """Do what a worker does with a message: start the stage, end the chain or let it go on."""
        claim = self.batches.claim(message.batch_id, message.stage, owner, 60)
        if isinstance(claim, Claim):
            assert claim.attempt > self.newest.get(claim.batch_id, 0)
            self.newest[claim.batch_id] = claim.attempt
            self.running.append(Running(claim, self.batches.pending_samples(claim.batch_id)))
        elif claim is NotClaimed.PASSED:
            self.send_next(message)

    def end(
        self,
        running: Running,
        ends: Sequence[type[SampleError] | None],
        overalls: Sequence[int],
        *,
        stays: bool,
    ) -> None:
        """Do what a worker does at the end of a stage; an old claim must write nothing."""
        claim = running.claim
        outcomes = [
            self.outcome(sample, claim.stage, error, overall)
            for sample, error, overall in zip(
                running.samples, itertools.cycle(ends), itertools.cycle(overalls), strict=False
            )
        ]
        answered = {
            (each.sample_id, result.candidate, claim.stage) for each in outcomes for result in each.results
        }
        if self.batches.finish_stage(claim, outcomes, 60, RETRY, stays=stays):
            assert claim.attempt == self.newest[claim.batch_id]
            # An answer that was there already would have been asked for again.
            assert not answered & self.written
            self.written |= answered
            again = {sample.id for sample in running.samples if sample.candidate > 1}
            self.failed_again |= again & {each.sample_id for each in outcomes if each.failure}
            self.send_next(Message(claim.batch_id, claim.stage))

    def send_next(self, message: Message) -> None:
        if following := stage_after(message.stage, STAGES):
            self.messages.append(Message(message.batch_id, following))

    def outcome(
        self, sample: PendingSample, stage: Stage, error: type[SampleError] | None, overall: int
    ) -> Outcome:
        if any(result.stage == stage for result in sample.results):
            return Outcome(sample.id)
        if error is not None:
            return Outcome(sample.id, failure=a_failure(stage, error()))
        candidate = sample.candidate if stage in candidates.STAGES else 1
        data = {"overall": overall} if stage is Stage.SCORE else None
        return Outcome(sample.id, (replace(a_result(stage, stage), candidate=candidate, data=data),))

    def has_all(self, sample_id: int) -> bool:
        return all((sample_id, 1, stage) in self.written for stage in STAGES)

    def ask(self, query: str, condition: str = "") -> Sequence[Any]:
        """Rows of this example's own shard; the query names samples `s`."""
        with self.engine.connect() as connection:
            statement = text(f"{query} WHERE s.shard_id = :shard {condition}")
            return connection.execute(statement, {"shard": self.shard_id}).all()


def may_be_split(running: Running) -> bool:
    return running.claim.tries > MAX_TRIES and len(running.samples) > 1


def test_whatever_happens_in_whatever_order_every_sample_ends_once(engine: Engine) -> None:
    class Machine(FleetMachine):
        def __init__(self) -> None:
            super().__init__(engine)

    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=25,
            stateful_step_count=40,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
