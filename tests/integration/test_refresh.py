"""Which answers of a run are stale."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import Engine

from capflow_tasks.domains.catalogue import load_catalogue
from capflow_tasks.engine.revision import revision_of
from capflow_tasks.records import Stage
from capflow_tasks.settings import Settings
from capflow_tasks.store.states import Outcome
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
