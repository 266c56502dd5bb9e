"""vLLM's engine when it does not come up."""

from __future__ import annotations

import time
from pathlib import Path

import psutil
import pytest

from capflow_tasks.errors import ServiceError
from capflow_tasks.settings import Settings
from tests.conftest import Eventually

pytestmark = pytest.mark.e2e


@pytest.fixture(autouse=True)
def little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def failure_of(model: Path, **changes: object) -> str:
    from capflow_tasks.engine.vllm_engine import build

    engine = build(Settings.model_validate({"model": str(model), **changes}), str(model))
    with pytest.raises(ServiceError) as raised:
        engine.start()
    return str(raised.value)


def cores() -> set[int]:
    """The processes of vLLM's engines below this one; other tests' servers may have some."""
    children = psutil.Process().children(recursive=True)
    return {child.pid for child in children if child.name().startswith("VLLM")}


def test_a_context_that_does_not_fit_is_named_with_the_setting_that_helps(
    tiny_model: Path, eventually: Eventually
) -> None:
    others = cores()

    said = failure_of(tiny_model, max_model_len=16_384, engine_args={"num_gpu_blocks_override": 4})

    assert "16384" in said.partition("; ")[0]
    assert "CAPFLOW_MAX_MODEL_LEN" in said
    eventually(lambda: _assert_ended(others))


def test_a_load_that_takes_too_long_ends_with_its_reason(tiny_model: Path, eventually: Eventually) -> None:
    began, others = time.monotonic(), cores()

    said = failure_of(tiny_model, engine_start_seconds=2)

    assert time.monotonic() - began < 60
    assert "was not loaded within 2 s; set CAPFLOW_ENGINE_START_SECONDS" in said
    eventually(lambda: _assert_ended(others))


def _assert_ended(others: set[int]) -> None:
    assert cores() <= others
