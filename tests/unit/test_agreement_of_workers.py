"""What the workers of a queue must have in common, and how they are told what differs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from capflow_tasks.fleet.agreement import broker_identity, refusal, traits_of
from capflow_tasks.media.ocr import version
from capflow_tasks.records import Stage
from capflow_tasks.settings import Settings
from capflow_tasks.store.claims import Rival

PLAIN = Settings()


def differences(settings: Settings) -> set[str]:
    """Names of what differs from a worker with the defaults."""
    (own,), (other,) = (traits_of(each, ["gpu"]).values() for each in (settings, PLAIN))
    return {name for name in own if own[name] != other[name]}


def test_what_shapes_answers_must_be_alike_and_what_shapes_a_machine_need_not(tmp_path: Path) -> None:
    (tmp_path / "_defaults.yaml").write_text("system: You see.\n")

    assert differences(Settings(domains=tmp_path)) == {"domains"}
    assert differences(Settings(language="de")) == {"domains", "CAPFLOW_LANGUAGE"}
    assert differences(Settings(model="other", max_pixels=501_760)) == {"model", "CAPFLOW_MAX_PIXELS"}
    assert differences(Settings(concurrency=3, tensor_parallel_size=4, max_num_seqs=8)) == set()


@pytest.mark.parametrize(
    "changed",
    ["verify: {drop_below: 0.11}", "agents: {question_writer: {sampling: {max_tokens: 999}}}"],
    ids=["verified", "exam"],
)
def test_the_prompts_of_every_workflow_must_be_alike(tmp_path: Path, changed: str) -> None:
    (tmp_path / "_defaults.yaml").write_text(f"{changed}\n")

    assert differences(Settings(domains=tmp_path)) == {"domains"}


def test_each_queue_has_a_model_of_its_own() -> None:
    settings = Settings(queue_models={"judge": "large"})

    models = {queue: traits["model"] for queue, traits in traits_of(settings, ["gpu", "judge"]).items()}
    assert models == {"gpu": PLAIN.model, "judge": "large"}


def test_workers_that_read_pictures_and_others_need_not_agree_elsewhere() -> None:
    queues = ["gpu", "judge"]
    shared: dict[str, Any] = {"stage_queues": {Stage.SCORE: "judge"}}
    reads, blind = (traits_of(Settings(ocr_processes=processes, **shared), queues) for processes in (1, 0))
    assert reads["judge"] == blind["judge"]
    assert reads["gpu"]["ocr"] == version()
    assert blind["gpu"]["ocr"] is None


def test_a_refusal_names_the_worker_each_difference_and_the_way_out() -> None:
    rival = Rival("w1@node1", "gpu", {"code": "aaa", "model": "small"})

    said = str(refusal({"gpu": {"code": "aaa", "model": "large"}}, rival))

    assert said.startswith(
        "this worker differs from w1@node1, which was first on queue gpu: model is large, not"
    )
    assert "code" not in said
    assert "CAPFLOW_MIXED_WORKERS=1" in said


def test_a_broker_is_told_by_place_and_not_by_its_password(tmp_path: Path) -> None:
    assert broker_identity("redis://:one@broker:6379/0") == broker_identity("redis://u:two@broker")
    assert broker_identity("redis://broker/0") != broker_identity("redis://broker/1")
    assert "secret" not in broker_identity("redis://:secret@broker/0")
    assert broker_identity(f"redis+socket://{tmp_path}/none.sock") == broker_identity(
        f"redis+socket://{tmp_path}/none.sock"
    )
