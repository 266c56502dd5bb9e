"""What the doctor says of models and workers."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest

from capflow_tasks.media import ocr
from capflow_tasks.settings import Settings
from capflow_tasks.store.figures import WorkerFigures
from producer.doctor import Finding, check_judge, check_models, check_ocr, check_workers

FILES = [
    "config.json",
    "tokenizer.json",
    "preprocessor_config.json",
    "model-00001-of-00002.safetensors",
    "model-00002-of-00002.safetensors",
]


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    for name in FILES:
        (tmp_path / name).write_text("{}")
    shards = {f"layer{number}": name for number, name in enumerate(FILES[3:])}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
    return tmp_path


def only_finding(**settings: object) -> Finding:
    (finding,) = check_models(Settings.model_validate({"engine": "vllm", **settings}))
    return finding


def test_a_complete_model_is_ok(checkpoint: Path) -> None:
    assert only_finding(model=str(checkpoint)).level == "ok"


@pytest.mark.parametrize(
    ("removed", "lacking"),
    [
        (FILES[0], "configuration"),
        (FILES[1], "tokenizer"),
        (FILES[2], "processor"),
        (FILES[4], "some of its weights"),
    ],
)
def test_an_incomplete_model_fails_with_what_it_lacks(checkpoint: Path, removed: str, lacking: str) -> None:
    (checkpoint / removed).unlink()

    finding = only_finding(model=str(checkpoint))

    assert (finding.level, finding.said) == ("fail", f"{checkpoint} lacks {lacking}")


def test_a_model_without_weights_is_complete_where_none_are_loaded(checkpoint: Path) -> None:
    (checkpoint / FILES[4]).unlink()

    finding = only_finding(model=str(checkpoint), engine_args={"load_format": "dummy"})

    assert (finding.level, "needs no weights" in finding.said) == ("ok", True)


def test_a_model_that_judges_itself_is_named_and_a_second_one_is_not() -> None:
    shared = {"model": "writer", "engine": "vllm"}
    second = {"stage_queues": {"score": "judge"}, "queue_models": {"judge": "other"}}

    (finding,) = check_judge(Settings.model_validate(shared))

    assert finding.level == "ok"
    assert "The judge is the captioner's own model (writer)" in finding.said
    assert list(check_judge(Settings.model_validate(shared | second))) == []


def test_the_model_of_every_queue_is_checked(checkpoint: Path) -> None:
    settings = Settings.model_validate(
        {"model": str(checkpoint), "stage_queues": {"score": "judge"}, "queue_models": {"judge": "/no/judge"}}
    )

    assert [finding.level for finding in check_models(settings)] == ["fail", "ok"]


def test_a_folder_that_is_not_there_is_not_taken_for_a_name_of_the_hub() -> None:
    assert only_finding(model="/models/gone").said == "/models/gone is not a folder here"


def test_workers_are_told_apart_by_heartbeats_and_answers() -> None:
    started_at = datetime.now(UTC)
    beating = [
        WorkerFigures(f"{node}/1", node, started_at, 1, is_alive=True, running_batches=count)
        for node, count in (("both@a", 3), ("silent@b", 0))
    ]

    findings = list(check_workers(beating, {"both@a": {"gpu"}, "foreign@c": {"gpu"}}))

    assert [(each.level, each.said.partition(" ")[0]) for each in findings] == [
        ("ok", "1"),
        ("warn", "silent@b:"),
        ("warn", "foreign@c:"),
    ]


def test_the_doctor_says_whether_text_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    assert check_ocr(Settings()) == Finding("ocr", "ok", str(ocr.version()))
    assert check_ocr(Settings(ocr_processes=0)).level == "ok"
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    missing = check_ocr(Settings())
    assert (missing.level, missing.said) == ("warn", "not installed: no text is read from pictures")
    assert "pip install '.[ocr]'" in missing.remedy
