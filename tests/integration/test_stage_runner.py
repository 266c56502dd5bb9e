"""Stages over a real database, with a scripted engine."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Lock

import pytest
from sqlalchemy import Engine, event, text
from sqlalchemy.exc import OperationalError, ProgrammingError

from capflow_tasks.captioning.heartbeat import Heartbeat
from capflow_tasks.captioning.stages import NotFinished, StageRunner, StageSummary
from capflow_tasks.domains.catalogue import Catalogue, load_catalogue, load_workflow
from capflow_tasks.engine.interface import Answer
from capflow_tasks.errors import EngineDead, MediaAway, MediaCorrupt, WorkflowMissing
from capflow_tasks.records import Request, Stage
from capflow_tasks.settings import Settings
from capflow_tasks.store.claims import BatchStore, NotClaimed, WorkerStore
from capflow_tasks.store.database import connect
from capflow_tasks.store.states import SampleState
from capflow_tasks.store.statistics import Statistics
from capflow_tasks.testing import ScriptedEngine, scripted_text
from tests.conftest import Eventually
from tests.datasets import entries_with_pictures
from tests.stores import Fleet, run_to_the_end

pytestmark = pytest.mark.integration


CATALOGUE = load_catalogue()
SETTINGS = Settings(
    lease_seconds=60, queue_seconds=60, database_seconds=5, max_attempts=2, retry_seconds=0, max_tries=2
)


def a_runner(
    fleet: Fleet,
    answer: Callable[[Request], str] = scripted_text,
    owner: str = "worker",
    engine: ScriptedEngine | None = None,
    settings: Settings = SETTINGS,
    workflow_of: Callable[[str], Catalogue] = lambda workflow: CATALOGUE,
) -> StageRunner:
    heartbeat = Heartbeat(WorkerStore(fleet.engine), owner, lease_seconds=60)
    engines = dict.fromkeys(Stage, engine or ScriptedEngine(answer))
    return StageRunner(fleet.batches, workflow_of, engines, heartbeat, settings)


@pytest.fixture
def fleet(engine: Engine, tmp_path: Path) -> Fleet:
    """One batch of four pictures to route."""
    entries = entries_with_pictures(tmp_path, 4)
    return Fleet(engine, entries, batch_size=4, root=str(tmp_path / "media"))


def test_a_chain_captions_and_scores_every_sample(fleet: Fleet) -> None:
    runner = a_runner(fleet)

    summaries = [runner.run(fleet.batch_ids[0], stage) for stage in Stage]

    assert all(isinstance(summary, StageSummary) and summary.done == 4 for summary in summaries)
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
    runner = a_runner(fleet, engine=engine)

    for stage in Stage:
        runner.run(fleet.batch_ids[0], stage)

    first = str((tmp_path / "media" / "0.png").resolve())
    requests = [request for request in engine.requests if request.media[0].path == first]
    route, *others = requests
    assert route.choices
    assert len({request.system for request in requests}) == 1
    said = [scripted_text(request) for request in others]
    assert others[-1].schema is not None
    # The judge sees the caption, and the agent that writes it sees what was perceived.
    assert said[-2] in others[-1].instruction
    assert said[0] in others[-2].instruction


def test_samples_go_on_by_themselves_and_nothing_is_asked_twice(fleet: Fleet, eventually: Eventually) -> None:
    def has_leases() -> None:
        assert heartbeat.is_fresh

    def has_asked_ahead() -> None:
        assert any(request.schema for request in engine.requests)

    engine = ScriptedEngine()
    with _beating(fleet, lease_seconds=60) as heartbeat:
        eventually(has_leases)
        engines = dict.fromkeys(Stage, engine)
        runner = StageRunner(fleet.batches, lambda workflow: CATALOGUE, engines, heartbeat, SETTINGS)
        runner.run(fleet.batch_ids[0], Stage.ROUTE)
        eventually(has_asked_ahead)
        # Only what is claimed is written.
        assert fleet.count("results") == 4
        for stage in Stage:
            runner.run(fleet.batch_ids[0], stage)

    assert fleet.views.tally(fleet.run_id).done == 4
    assert fleet.count("results") == len(engine.requests)


def test_a_finished_stage_is_not_asked_again(fleet: Fleet) -> None:
    engine = ScriptedEngine()
    (batch_id,) = fleet.batch_ids
    runner = a_runner(fleet, engine=engine)
    runner.run(batch_id, Stage.ROUTE)
    asked = len(engine.requests)

    assert runner.run(batch_id, Stage.ROUTE) is NotClaimed.PASSED
    assert runner.run(batch_id, Stage.SCORE) is NotClaimed.NOT_FREE

    assert len(engine.requests) == asked == 4


def test_two_workers_with_the_same_message_ask_once(fleet: Fleet) -> None:
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
        assert isinstance(first.result(20), StageSummary)

    assert second is NotClaimed.NOT_FREE


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
    run_to_the_end(fleet, a_runner(fleet, engine=engine))

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


def test_an_answer_that_postgresql_cannot_hold_fails_its_sample_and_no_other(fleet: Fleet) -> None:
    def spoilt(request: Request) -> str:
        is_bad = not (request.choices or request.schema) and request.media[0].path.endswith("1.png")
        return "a\0b \ud800" if is_bad else scripted_text(request)

    run_to_the_end(fleet, a_runner(fleet, spoilt))

    (failed,) = fleet.views.failures(fleet.run_id)
    assert (failed.idx, failed.failure.kind) == (1, "bad_answer")
    assert fleet.views.tally(fleet.run_id).done == 3


def test_what_only_postgresql_knows_to_refuse_fails_its_sample_and_no_other(pair: Fleet) -> None:
    with pair.engine.begin() as connection:
        connection.execute(text("ALTER TABLE results ADD CHECK (text NOT LIKE '%forbidden%')"))

    def forbidden(request: Request) -> str:
        is_bad = request.media[0].path.endswith("1.png")
        return "A forbidden word." if is_bad else scripted_text(request)

    summary = a_runner(pair, forbidden).run(pair.batch_ids[0], Stage.PERCEIVE)

    assert isinstance(summary, StageSummary)
    assert (summary.done, dict(summary.failures)) == (1, {"bad_answer": 1})
    assert (pair.batch().state, pair.batch().tries) == ("queued", 0)


def test_a_database_without_our_tables_gives_the_batch_back_and_blames_nobody(pair: Fleet) -> None:
    runner = a_runner(pair)
    with pair.engine.begin() as connection:
        connection.execute(text("ALTER TABLE results RENAME COLUMN guard TO other"))

    with pytest.raises(ProgrammingError):
        runner.run(pair.batch_ids[0], Stage.PERCEIVE)

    assert (pair.batch().state, pair.batch().tries) == ("ready", 0)


def test_a_heartbeat_keeps_a_batch_that_takes_longer_than_its_lease(
    fleet: Fleet, eventually: Eventually
) -> None:
    with _beating(fleet, lease_seconds=0.3) as heartbeat, heartbeat.beating_for(fleet.batch_ids[0]):
        claim = fleet.claim(Stage.ROUTE, "worker", seconds=0)

        def is_leased() -> None:
            assert fleet.batch().is_waiting

        eventually(is_leased, 5)
        assert claim.owner == fleet.batch().lease_owner
    assert fleet.batch().lease_owner is None


@contextmanager
def _beating(fleet: Fleet, lease_seconds: float) -> Iterator[Heartbeat]:
    heartbeat = Heartbeat(WorkerStore(fleet.engine), "worker", lease_seconds)
    heartbeat.start()
    try:
        yield heartbeat
    finally:
        heartbeat.stop()


@pytest.fixture
def pair(engine: Engine, tmp_path: Path) -> Fleet:
    """One batch of two pictures whose domain is known."""
    entries = entries_with_pictures(tmp_path, 2)
    return Fleet(engine, entries, domain="Natural", root=str(tmp_path / "media"))


def test_agents_that_need_not_wait_for_each_other_are_asked_in_one_go(pair: Fleet) -> None:
    rounds: list[int] = []

    class Counting(ScriptedEngine):
        def generate(self, requests: Sequence[Request]) -> list[Answer]:
            rounds.append(len(requests))
            return super().generate(requests)

    summary = a_runner(pair, engine=Counting()).run(pair.batch_ids[0], Stage.PERCEIVE)

    assert rounds == [2, 2]
    assert isinstance(summary, StageSummary)
    assert (summary.samples, summary.done, dict(summary.failures)) == (2, 2, {})
    assert pair.count("results") == 4


def test_a_dead_engine_gives_the_batch_back_after_a_wait_that_doubles(pair: Fleet) -> None:
    def die(request: Request) -> str:
        raise EngineDead

    settings = SETTINGS.model_copy(update={"retry_seconds": 5.0, "max_tries": 3})
    waits = []
    for _ in range(3):
        with pytest.raises(EngineDead):
            a_runner(pair, die, settings=settings).run(pair.batch_ids[0], Stage.PERCEIVE)
        waits.append(pair.wait_seconds())

    assert waits == [pytest.approx(wait, abs=1) for wait in (5, 10, 20)]
    assert pair.count("results") == 0


def test_a_batch_tried_too_often_is_split_and_nothing_is_asked(pair: Fleet) -> None:
    for _ in range(SETTINGS.max_tries):
        pair.batches.release(pair.claim(Stage.PERCEIVE))
    engine = ScriptedEngine()

    assert a_runner(pair, engine=engine).run(pair.batch_ids[0], Stage.PERCEIVE) is NotFinished.SPLIT

    assert (engine.requests, pair.count("batches")) == ([], 2)


def test_a_worker_that_lost_its_lease_says_so_and_writes_nothing(pair: Fleet) -> None:
    def lose_lease(request: Request) -> str:
        with one_by_one:
            if pair.batch().lease_owner == "worker":
                pair.let_leases_run_out()
                pair.claim(Stage.PERCEIVE, "other")
        return scripted_text(request)

    one_by_one = Lock()
    assert a_runner(pair, lose_lease).run(pair.batch_ids[0], Stage.PERCEIVE) is NotFinished.LEASE_LOST

    assert pair.count("results") == 0


def test_a_database_that_comes_back_is_waited_for(pair: Fleet) -> None:
    absences = [1, 2]

    def refuse(*_: object) -> None:
        if absences:
            absences.pop()
            raise OperationalError("SELECT 1", {}, ConnectionError("the server is away"))

    event.listen(pair.engine, "before_cursor_execute", refuse)

    assert isinstance(a_runner(pair).run(pair.batch_ids[0], Stage.PERCEIVE), StageSummary)


def test_a_database_that_stays_away_is_given_up_in_time(pair: Fleet) -> None:
    pair.batches = BatchStore(connect("postgresql+psycopg://user@127.0.0.1:1/capflow"))
    settings = SETTINGS.model_copy(update={"database_seconds": 0.1})

    with pytest.raises(OperationalError):
        a_runner(pair, settings=settings).run(pair.batch_ids[0], Stage.PERCEIVE)


def test_a_workflow_that_this_worker_cannot_read_is_left_to_others(engine: Engine, tmp_path: Path) -> None:
    folder = tmp_path / "gone"
    fleet = Fleet(engine, entries_with_pictures(tmp_path, 2), domain="Natural", root=str(tmp_path / "media"))
    runner = a_runner(fleet, workflow_of=lambda workflow: load_workflow(str(folder)))

    with pytest.raises(WorkflowMissing, match=f"{folder}: not a folder"):
        runner.run(fleet.batch_ids[0], Stage.PERCEIVE)
    run_to_the_end(fleet, a_runner(fleet))

    assert fleet.views.tally(fleet.run_id).done == 2


def test_a_node_without_the_media_gives_batches_back_and_pauses_until_they_are_there(
    fleet: Fleet, tmp_path: Path, eventually: Eventually
) -> None:
    def is_said(fault: str | None) -> None:
        workers = Statistics(fleet.engine).workers(lease_seconds=60)
        assert [each.fault for each in workers] == [fault]

    media, away = tmp_path / "media", tmp_path / "away"
    (batch_id,) = fleet.batch_ids
    with _beating(fleet, lease_seconds=60) as heartbeat:
        engines = dict.fromkeys(Stage, ScriptedEngine())
        runner = StageRunner(fleet.batches, lambda workflow: CATALOGUE, engines, heartbeat, SETTINGS)
        media.rename(away)
        for _ in range(3 * SETTINGS.max_tries):
            fleet.publish()
            with pytest.raises(MediaAway):
                runner.run(batch_id, Stage.ROUTE)
        batch = fleet.batch()
        assert (batch.state, batch.tries, batch.is_waiting) == ("ready", 0, False)
        assert runner.batch_limit() < 1
        eventually(lambda: is_said(f"the media root {media} does not exist here; mount it on this node"))

        away.rename(media)
        eventually(lambda: is_said(None))
        assert runner.batch_limit() == 1
        run_to_the_end(fleet, runner)

    assert runner.batch_limit() > 1
    assert fleet.views.tally(fleet.run_id).done == 4
    assert fleet.views.failures(fleet.run_id) == []


def test_a_pause_gives_others_what_waits_for_this_worker(
    engine: Engine, tmp_path: Path, eventually: Eventually
) -> None:
    def is_free() -> None:
        assert fleet.batch(waiting).state == "ready"

    fleet = Fleet(engine, entries_with_pictures(tmp_path, 4), batch_size=2, root=str(tmp_path / "media"))
    waiting, other = fleet.batch_ids
    with _beating(fleet, lease_seconds=60) as heartbeat:
        engines = dict.fromkeys(Stage, ScriptedEngine())
        runner = StageRunner(fleet.batches, lambda workflow: CATALOGUE, engines, heartbeat, SETTINGS)
        runner.run(waiting, Stage.ROUTE)
        assert fleet.batch(waiting).lease_owner == heartbeat.owner
        (tmp_path / "media").rename(tmp_path / "away")
        with pytest.raises(MediaAway):
            runner.run(other, Stage.ROUTE)

        eventually(is_free)
