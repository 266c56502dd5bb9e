"""The GPUs that nvidia-smi lists; here it is a script on the PATH."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from capflow_tasks.engine.capacity import gpus_of
from capflow_tasks.engine.devices import visible_devices
from capflow_tasks.settings import Settings
from producer.doctor import check_capacity

CARDS = """0, GPU-aa11, NVIDIA A800-SXM4-80GB, 81920, 4, 580.1
1, GPU-bb22, NVIDIA A800-SXM4-80GB, 81920, 70000, 580.1
2, GPU-cc33, NVIDIA GB10, [N/A], [N/A], 580.1"""


@pytest.fixture
def cards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "nvidia-smi"
    script.write_text(f"#!/bin/sh\ncat <<END\n{CARDS}\nEND\n")
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


@pytest.mark.usefixtures("cards")
@pytest.mark.parametrize(
    ("visible", "ids"),
    [
        (None, ["0", "1", "2"]),
        ("1", ["1"]),
        ("2, 0", ["2", "0"]),
        ("GPU-bb", ["GPU-bb"]),
        ("", []),
        ("7", []),
    ],
)
def test_gpus_are_those_that_the_environment_allows(
    monkeypatch: pytest.MonkeyPatch, visible: str | None, ids: list[str]
) -> None:
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)

    assert [device.id for device in visible_devices()] == ids


@pytest.mark.usefixtures("cards")
def test_a_gpu_is_described_as_nvidia_smi_does() -> None:
    first, _, last = visible_devices()

    assert str(first) == "NVIDIA A800-SXM4-80GB, 81920 MiB, 4 MiB used, driver 580.1"
    assert (last.memory_mib, last.used_mib) == (0, 0)


def test_without_nvidia_smi_there_is_no_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))

    assert visible_devices() == []


def test_the_doctor_says_for_each_model_what_fits_and_what_helps() -> None:
    settings = Settings.model_validate(
        {
            "model": "Qwen/Qwen2.5-VL-7B-Instruct",
            "stage_queues": {"score": "judge"},
            "queue_models": {"judge": "Qwen/Qwen2.5-VL-72B-Instruct"},
        }
    )

    found = {(each.check, each.level): each.remedy for each in check_capacity(settings, gpus_of("h100"))}

    assert found == {
        ("engine", "ok"): "",
        ("capacity", "ok"): "",
        ("capacity", "fail"): "CAPFLOW_TENSOR_PARALLEL_SIZE=2 CAPFLOW_QUANTIZATION=fp8",
    }


@pytest.mark.parametrize(
    ("shares", "models", "share"),
    [({}, 1, None), ({}, 2, 0.45), ({"judge": 0.3}, 2, 0.3), ({"judge": 0.3}, 1, 0.3)],
)
def test_models_in_one_worker_share_its_gpu(
    shares: dict[str, float], models: int, share: float | None
) -> None:
    settings = Settings.model_validate({"queue_gpu_memory": shares})

    assert settings.sharing_gpu("judge", models).gpu_memory_utilization == share
