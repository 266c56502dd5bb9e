"""What a stage runner does between the store and the engine, without either of them real."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.exc import OperationalError

from capflow_tasks.captioning.heartbeat import Heartbeat
from capflow_tasks.captioning.stages import Patience, StageRunner
from capflow_tasks.domains.catalogue import load_catalogue
from capflow_tasks.errors import EngineDead
from capflow_tasks.records import Modality, Request, Stage
from capflow_tasks.store.claims import BatchStore, NotClaimed
from capflow_tasks.store.rows import Claim, Outcome, PendingSample, RetryPolicy
from capflow_tasks.testing import ScriptedEngine
from tests.datasets import draw_picture


class OneBatch(BatchStore):
    """A store that holds one batch in memory, and may be away for a while."""

    def __init__(self, root: Path, tries: int = 1, samples: int = 2, absences: int = 0) -> None:
        self._root = root
        self._tries = tries
        self._samples = samples
        self._absences = absences
        self.outcomes: list[Outcome] | None = None
        self.waits: list[float] = []
        self.is_split = False

    def claim(self, batch_id: int, stage: Stage, owner: str, lease_seconds: float) -> Claim | NotClaimed:
        if self._absences:
            self._absences -= 1
            raise OperationalError("SELECT 1", {}, ConnectionError("the server is away"))
        return Claim(
            batch_id=batch_id,
            stage=stage,
            attempt=self._tries,
            tries=self._tries,
            owner=owner,
            start_idx=0,
            end_idx=self._samples,
            dataset="set",
            root=str(self._root),
            modality=Modality.IMAGE,
            run_id=1,
            stages=tuple(Stage),
            min_confidence=0,
        )

    def pending_samples(self, batch_id: int) -> list[PendingSample]:
        return [PendingSample(idx, idx, {"image": "a.png"}, "Natural", ()) for idx in range(self._samples)]

    def begin_try(self, claim: Claim) -> None:
        """Counted by `claim` here."""

    def release(self, claim: Claim, wait_seconds: float = 0, *, is_blameless: bool = False) -> None:
        self.waits.append(wait_seconds)

    def split(self, claim: Claim) -> None:
        self.is_split = True

    def finish_stage(self, claim: Claim, outcomes: Any, *_: Any, **__: Any) -> bool:
        self.outcomes = list(outcomes)
        return True


def a_runner(store: BatchStore, engine: ScriptedEngine, database_seconds: float = 10) -> StageRunner:
    patience = Patience(
        lease_seconds=60,
        queue_seconds=60,
        database_seconds=database_seconds,
        retry=RetryPolicy(max_attempts=3, first_wait_seconds=5),
        max_tries=3,
    )
    # Never started: nothing here lasts as long as a lease.
    heartbeat = Heartbeat(None, "worker", 60)  # type: ignore[arg-type]
    return StageRunner(store, load_catalogue(), dict.fromkeys(Stage, engine), heartbeat, "worker", patience)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    draw_picture(tmp_path / "a.png", 1)
    return tmp_path


def test_agents_that_need_not_wait_for_each_other_are_asked_in_one_go(root: Path) -> None:
    rounds: list[int] = []

    class Counting(ScriptedEngine):
        def generate(self, requests: Any) -> Any:
            rounds.append(len(requests))
            return super().generate(requests)

    store, engine = OneBatch(root), Counting()

    summary = a_runner(store, engine).run(1, Stage.PERCEIVE)

    assert rounds == [4]
    assert isinstance(summary, dict)
    assert (summary["samples"], summary["done"], summary["failed"]) == ("0-1", 2, {})
    assert store.outcomes is not None
    assert [len(outcome.results) for outcome in store.outcomes] == [2, 2]


def test_a_dead_engine_gives_the_batch_back_after_a_wait_that_doubles(root: Path) -> None:
    def die(request: Request) -> str:
        raise EngineDead

    for tries, wait in ((1, 5), (2, 10), (3, 20)):
        store = OneBatch(root, tries)
        with pytest.raises(EngineDead):
            a_runner(store, ScriptedEngine(die)).run(1, Stage.PERCEIVE)
        assert store.waits == [wait]
        assert store.outcomes is None


def test_a_batch_tried_too_often_is_split_and_a_sample_tried_too_often_put_aside(root: Path) -> None:
    engine = ScriptedEngine()
    many, one = OneBatch(root, tries=4), OneBatch(root, tries=4, samples=1)

    assert a_runner(many, engine).run(1, Stage.PERCEIVE) is NotClaimed.TAKEN
    a_runner(one, engine).run(1, Stage.PERCEIVE)

    assert many.is_split
    assert engine.requests == []
    assert one.outcomes is not None
    assert [outcome.failure and outcome.failure.kind for outcome in one.outcomes] == ["quarantined"]


def test_a_database_that_comes_back_is_waited_for(root: Path) -> None:
    store = OneBatch(root, absences=2)

    assert isinstance(a_runner(store, ScriptedEngine()).run(1, Stage.PERCEIVE), dict)


def test_a_database_that_stays_away_is_given_up_in_time(root: Path) -> None:
    store = OneBatch(root, absences=1000)

    with pytest.raises(OperationalError):
        a_runner(store, ScriptedEngine(), database_seconds=0).run(1, Stage.PERCEIVE)
