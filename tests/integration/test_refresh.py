"""Which answers of a run are stale."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import Engine

from capflow_tasks.domains.catalogue import load_catalogue
from capflow_tasks.engine.revision import revision_of
from capflow_tasks.media.paths import stamp_of
from capflow_tasks.records import JsonObject, Stage
from capflow_tasks.settings import Settings
from capflow_tasks.store.states import BatchState, Outcome, Route
from producer.refresh import Refresh
from tests.stores import Fleet, a_result, some_entries

pytestmark = pytest.mark.integration


def test_answers_of_other_weights_under_the_same_name_are_stale(engine: Engine, tmp_path: Path) -> None:
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(b"first")
    catalogue, settings = load_catalogue(), Settings(engine="vllm", model=str(tmp_path), broker_url=None)
    (judge,) = catalogue.resolve("Natural").agents_of(Stage.SCORE)
    answer = replace(
        a_result(Stage.SCORE, judge.name),
        model=str(tmp_path),
        revision=revision_of(str(tmp_path)),
        workflow=judge.digest,
    )
    fleet = Fleet(engine, some_entries(2), domain="Natural")
    (batch_id,) = fleet.batch_ids
    for stage in (Stage.PERCEIVE, Stage.REASON, Stage.SUMMARIZE):
        fleet.finish(fleet.claim(stage, batch_id=batch_id))
    claim = fleet.claim(Stage.SCORE, batch_id=batch_id)
    fleet.finish(claim, [Outcome(sample_id, (answer,)) for sample_id in fleet.sample_ids(batch_id)])

    def changed() -> dict[str, str]:
        refresh = Refresh(engine, fleet.run_id, catalogue, settings)
        return {each.answers.agent: each.changed for each in refresh.stale()}

    assert judge.name not in changed()
    weights.write_bytes(b"other")
    assert changed()[judge.name] == "weights"
    assert Refresh(engine, fleet.run_id, catalogue, settings).forget() == 2
    assert judge.name not in changed()


@pytest.fixture
def fleet(engine: Engine, tmp_path: Path) -> Fleet:
    """A finished run of two batches; its samples were routed, and name a picture each, the last one both."""
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(b"first")
    entries: list[JsonObject] = [{"image": "a.png"}, {"image": "b.png"}, {"images": ["a.png", "b.png"]}]
    fleet = Fleet(engine, entries, batch_size=2, root=str(tmp_path))
    for batch_id in fleet.batch_ids:
        claim = fleet.claim(Stage.ROUTE, batch_id=batch_id)
        outcomes = []
        for sample in fleet.batches.pending_samples(batch_id):
            names = sample.entry.get("images") or [sample.entry["image"]]
            stamp = stamp_of(str(tmp_path / name) for name in names)
            result = replace(a_result(Stage.ROUTE, "router"), workflow=load_catalogue().router.digest)
            outcomes.append(Outcome(sample.id, (result,), Route("Natural", 0.9), media_stamp=stamp))
        fleet.finish(claim, outcomes)
        for stage in (Stage.PERCEIVE, Stage.REASON, Stage.SUMMARIZE, Stage.SCORE):
            claim = fleet.claim(stage, batch_id=batch_id)
            said = (a_result(stage, stage),)
            found = [Outcome(each, said, media_stamp="later") for each in fleet.sample_ids(batch_id)]
            fleet.finish(claim, found)
    return fleet


def test_answers_about_media_that_have_changed_are_stale_and_all_asked_for_again(
    fleet: Fleet, tmp_path: Path
) -> None:
    refresh = Refresh(fleet.engine, fleet.run_id, load_catalogue(), Settings(engine="scripted:build"))

    def stale() -> dict[str, int]:
        about = [each.answers for each in refresh.stale() if each.changed == "media"]
        return {each.agent: each.answers for each in about}

    assert stale() == {}
    (tmp_path / "b.png").write_bytes(b"other")
    os.utime(tmp_path / "b.png", (1, 1))
    assert stale() == dict.fromkeys(["router", "perceive", "reason", "summarize", "score"], 2)
    refresh.forget()

    pending = [each for batch_id in fleet.batch_ids for each in fleet.batches.pending_samples(batch_id)]
    # The first is open for its prompts alone.
    assert {each.idx: len(each.results) for each in pending} == {0: 1, 1: 0, 2: 0}
    assert {each.idx: each.domain for each in pending} == {0: "Natural", 1: None, 2: None}
    assert {each.idx for each in pending if each.media_stamp} == {0}
    batches = [fleet.batch(batch_id) for batch_id in fleet.batch_ids]
    assert [(each.state, each.next_stage) for each in batches] == [(BatchState.READY, Stage.ROUTE)] * 2


def test_media_that_cannot_be_found_from_here_count_as_unchanged(fleet: Fleet, tmp_path: Path) -> None:
    refresh = Refresh(fleet.engine, fleet.run_id, load_catalogue(), Settings(engine="scripted:build"))
    (tmp_path / "a.png").unlink()

    assert [each for each in refresh.stale() if each.changed == "media"] == []
    assert refresh.unseen == 2
