"""All five stages over a real database, by an engine that says what it is told to."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Event

import pytest
from sqlalchemy import Engine, text

from capflow_tasks.captioning.heartbeat import Heartbeat
from capflow_tasks.captioning.stages import Patience, StageRunner
from capflow_tasks.domains.catalogue import load_catalogue
from capflow_tasks.errors import EngineDead, MediaCorrupt
from capflow_tasks.records import Request, Stage
from capflow_tasks.store.claims import NotClaimed, WorkerStore
from capflow_tasks.store.rows import RetryPolicy
from capflow_tasks.store.states import SampleState
from capflow_tasks.testing import ScriptedEngine, scripted_text
from tests.conftest import Eventually
from tests.datasets import entries_with_pictures
from tests.stores import Fleet

pytestmark = pytest.mark.integration

Answer = Callable[[Request], str]


def a_runner(fleet: Fleet, answer: Answer = scripted_text, owner: str = "worker") -> StageRunner:
    return _runner(fleet, ScriptedEngine(answer), owner)


def _runner(fleet: Fleet, engine: ScriptedEngine, owner: str = "worker") -> StageRunner:
    heartbeat = Heartbeat(WorkerStore(fleet.engine), owner, lease_seconds=60)
    patience = Patience(
        lease_seconds=60,
        queue_seconds=60,
        database_seconds=5,
        retry=RetryPolicy(max_attempts=2, first_wait_seconds=0),
        max_tries=2,
    )
    engines = dict.fromkeys(Stage, engine)
    return StageRunner(fleet.batches, load_catalogue(), engines, heartbeat, owner, patience)


def run_to_the_end(fleet: Fleet, runner: StageRunner) -> None:
    """What chains and the reconciler do, without Celery: run what is next until nothing is."""
    for _ in range(100):
        fleet.let_leases_run_out()
        fleet.runs.requeue_stale(fleet.run_id)
        if not (ready := fleet.publish()):
            return
        for batch in ready:
            _ring(runner, batch.id, batch.next_stage)
    pytest.fail("the run does not end")


def _ring(runner: StageRunner, batch_id: int, stage: Stage) -> None:
    """As Celery: a task that raises is over, and its chain with it."""
    with suppress(EngineDead):
        runner.run(batch_id, stage)


@pytest.fixture
def fleet(engine: Engine, tmp_path: Path) -> Fleet:
    """Four pictures that are there, to be routed, in one batch."""
    entries = entries_with_pictures(tmp_path, 4)
    return Fleet(engine, entries, batch_size=4, root=str(tmp_path / "media"))


def test_a_chain_captions_and_scores_every_sample(fleet: Fleet) -> None:
    runner = a_runner(fleet)

    summaries = [runner.run(fleet.batch_ids[0], stage) for stage in Stage]

    assert all(isinstance(summary, dict) and summary["done"] == 4 for summary in summaries)
    samples = list(fleet.views.finished_samples(fleet.shard_id, SampleState.DONE))
    assert [sample.index for sample in samples] == [0, 1, 2, 3]
    for sample in samples:
        assert (sample.domain, sample.confidence) == ("Code & Programming", 0.9)
        assert {result.stage for result in sample.results} == set(Stage)
        (judgement,) = [result for result in sample.results if result.stage is Stage.SCORE]
        assert judgement.data is not None
        assert set(judgement.data.values()) == {3}
        assert all(result.prompt_tokens > 0 and result.workflow for result in sample.results)


def test_every_agent_gets_the_picture_and_those_after_it_its_words(fleet: Fleet, tmp_path: Path) -> None:
    engine = ScriptedEngine()
    runner = _runner(fleet, engine)

    for stage in Stage:
        runner.run(fleet.batch_ids[0], stage)

    first = str((tmp_path / "media" / "0.png").resolve())
    requests = [request for request in engine.requests if request.media[0].path == first]
    route, *others = requests
    assert route.choices
    assert len({request.system for request in requests}) == 1
    said = [scripted_text(request) for request in others]
    assert others[-1].schema is not None
    # The judge sees the caption, and whoever writes it sees what was perceived.
    assert said[-2] in others[-1].instruction
    assert said[0] in others[-2].instruction


def test_a_finished_stage_is_not_asked_again(fleet: Fleet) -> None:
    engine = ScriptedEngine()
    (batch_id,) = fleet.batch_ids
    runner = _runner(fleet, engine)
    runner.run(batch_id, Stage.ROUTE)
    asked = len(engine.requests)

    assert runner.run(batch_id, Stage.ROUTE) is NotClaimed.PASSED
    assert runner.run(batch_id, Stage.SCORE) is NotClaimed.TAKEN

    assert len(engine.requests) == asked == 4


def test_two_workers_that_hear_the_same_bell_ask_once(fleet: Fleet) -> None:
    def wait_then_say(request: Request) -> str:
        started.set()
        assert go_on.wait(20)
        return scripted_text(request)

    started, go_on = Event(), Event()
    (batch_id,) = fleet.batch_ids
    with ThreadPoolExecutor(1) as thread:
        first = thread.submit(a_runner(fleet, wait_then_say, "one").run, batch_id, Stage.ROUTE)
        assert started.wait(20)
        second = a_runner(fleet, owner="other").run(batch_id, Stage.ROUTE)
        go_on.set()
        assert isinstance(first.result(20), dict)

    assert second is NotClaimed.TAKEN


def test_bad_media_fails_alone_with_its_reason(fleet: Fleet, tmp_path: Path) -> None:
    (tmp_path / "media" / "1.png").unlink()

    def damaged(request: Request) -> str:
        if request.media[0].path.endswith("2.png"):
            raise MediaCorrupt("2.png is cut short")
        return scripted_text(request)

    run_to_the_end(fleet, a_runner(fleet, damaged))

    failed = fleet.views.failures(fleet.run_id)
    assert [(row.idx, row.failure.kind) for row in failed] == [(1, "media_missing"), (2, "media_corrupt")]
    done = fleet.views.finished_samples(fleet.shard_id, SampleState.DONE)
    assert [sample.index for sample in done] == [0, 3]


@pytest.mark.parametrize(
    "answer",
    ["", "3", '{"overall": 3}', '{"overall": "high"}', "null", "I would give it a 3.", '{"overall": 3'],
)
def test_what_cannot_be_read_as_scores_is_never_a_score(fleet: Fleet, answer: str) -> None:
    def judged(request: Request) -> str:
        is_bad = request.schema is not None and request.media[0].path.endswith("0.png")
        return answer if is_bad else scripted_text(request)

    run_to_the_end(fleet, a_runner(fleet, judged))

    (failed,) = fleet.views.failures(fleet.run_id)
    assert (failed.idx, failed.failure.kind, failed.failure.stage) == (0, "bad_answer", "score")
    assert failed.attempts == 2
    with fleet.engine.connect() as connection:
        statement = text("SELECT count(*) FROM results WHERE stage = 'score'")
        assert connection.execute(statement).scalar_one() == 3


def test_an_answer_that_was_bad_once_is_asked_for_again_and_nothing_else_is(fleet: Fleet) -> None:
    bad = ["not JSON"]

    def judged(request: Request) -> str:
        return bad.pop() if request.schema is not None and bad else scripted_text(request)

    engine = ScriptedEngine(judged)
    run_to_the_end(fleet, _runner(fleet, engine))

    assert fleet.views.tally(fleet.run_id).done == 4
    assert sum(request.schema is not None for request in engine.requests) == 5
    assert sum(bool(request.choices) for request in engine.requests) == 4


def test_a_dead_engine_gives_the_batch_back_and_nothing_is_written(fleet: Fleet) -> None:
    def die(request: Request) -> str:
        raise EngineDead

    with pytest.raises(EngineDead):
        a_runner(fleet, die).run(fleet.batch_ids[0], Stage.ROUTE)

    assert (fleet.batch().state, fleet.batch().tries, fleet.count("results")) == ("ready", 1, 0)
    run_to_the_end(fleet, a_runner(fleet))
    assert fleet.views.tally(fleet.run_id).done == 4


def test_a_sample_that_kills_the_engine_every_time_is_found_and_put_aside(fleet: Fleet) -> None:
    def die_of_one(request: Request) -> str:
        if request.media[0].path.endswith("2.png"):
            raise EngineDead
        return scripted_text(request)

    run_to_the_end(fleet, a_runner(fleet, die_of_one))

    (failed,) = fleet.views.failures(fleet.run_id)
    assert (failed.idx, failed.failure.kind, failed.failure.is_retryable) == (2, "quarantined", False)
    assert fleet.views.tally(fleet.run_id).done == 3


def test_text_that_postgresql_cannot_hold_is_made_to_fit(fleet: Fleet) -> None:
    run_to_the_end(
        fleet,
        a_runner(
            fleet,
            lambda request: scripted_text(request) if request.choices or request.schema else "a\0b \ud800",
        ),
    )

    assert fleet.views.tally(fleet.run_id).total == 4


def test_a_heartbeat_keeps_a_batch_that_takes_longer_than_its_lease(
    fleet: Fleet, eventually: Eventually
) -> None:
    with _beating(fleet, lease_seconds=0.3) as heartbeat, heartbeat.beating_for(fleet.batch_ids[0]):
        claim = fleet.claim(Stage.ROUTE, "worker", seconds=0)

        def is_leased() -> None:
            assert fleet.batch().is_waiting

        eventually(is_leased, 5)
    assert claim.owner == fleet.batch().lease_owner


@contextmanager
def _beating(fleet: Fleet, lease_seconds: float) -> Iterator[Heartbeat]:
    heartbeat = Heartbeat(WorkerStore(fleet.engine), "worker", lease_seconds)
    heartbeat.start()
    try:
        yield heartbeat
    finally:
        heartbeat.stop()
