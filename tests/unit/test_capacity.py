"""The arithmetic of GPUs and models, and what workflows ask for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from capflow_tasks.engine import capacity, demand
from capflow_tasks.errors import SettingsError
from capflow_tasks.settings import Settings

PAGE = Path(__file__).resolve().parents[2] / "docs" / "how-to" / "size-a-fleet.md"
BILLION = "Qwen/Qwen2.5-VL-{}-Instruct"


def estimated(model: str, gpus: str, **changes: object) -> capacity.MemoryEstimate:
    size = capacity.size_of(model, {})
    assert size is not None
    return capacity.estimate(Settings.model_validate(changes), size, {}, capacity.gpus_of(gpus))


@pytest.mark.parametrize(
    ("model", "gpus"),
    [("7B", "24gb"), ("7B", "h100"), ("72B-FP8", "h200"), ("72B", "4xa800")],
)
def test_the_table_in_the_documentation_is_what_the_code_computes(model: str, gpus: str) -> None:
    size, _, suffix = model.partition("-")
    name = BILLION.format(size) + ("-" + suffix if suffix else "")

    found = estimated(name, gpus)

    parts = (found.weight_bytes, found.work_bytes, found.cache_bytes)
    gib = [f"{part / capacity.GIB:.1f}" for part in parts]
    counts = [f"{count:,}" for count in (found.cache_tokens, *found.samples_in_flight)]
    assert " | ".join([f"| {Path(name).name}", str(found.gpus), *gib, *counts]) + " |" in PAGE.read_text()
    assert found.fits


def test_what_does_not_fit_has_a_remedy_that_fits() -> None:
    settings, gpus = Settings(), capacity.gpus_of("h100")
    size = capacity.size_of(BILLION.format("72B"), {})
    assert size is not None
    assert not capacity.estimate(settings, size, {}, gpus).fits

    remedy = capacity.remedy(settings, size, {}, gpus)

    assert remedy == "CAPFLOW_TENSOR_PARALLEL_SIZE=2 CAPFLOW_QUANTIZATION=fp8"
    assert estimated(BILLION.format("72B"), "2xh100", quantization="fp8").fits


def test_settings_and_engine_arguments_count() -> None:
    usual = estimated(BILLION.format("7B"), "h100")
    changed = estimated(
        BILLION.format("7B"),
        "h100",
        max_num_seqs=64,
        engine_args={"kv_cache_dtype": "fp8", "max_num_batched_tokens": 4096},
    )

    assert (changed.max_requests, changed.step_tokens) == (64, 4096)
    assert changed.cache_tokens > 2 * usual.cache_tokens


def test_a_checkpoint_is_measured_by_its_files_and_linear_attention_keeps_no_cache(tmp_path: Path) -> None:
    text = {
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "num_hidden_layers": 4,
        "hidden_size": 512,
        "head_dim": 64,
        "vocab_size": 1000,
        "max_position_embeddings": 8192,
        "layer_types": ["linear_attention"] * 3 + ["full_attention"],
    }
    (tmp_path / "config.json").write_text(json.dumps({"text_config": text}))
    (tmp_path / "model.safetensors").write_bytes(bytes(10_000))
    config = demand.read_config(str(tmp_path))

    size = capacity.size_of(str(tmp_path), config)

    assert size is not None
    assert (size.weight_bytes, size.layers, size.kv_heads, size.head_size) == (10_000, 1, 2, 64)
    assert demand.context_of(Settings(), config) == 8192


@pytest.mark.parametrize(
    ("changes", "tokens"),
    [
        ({}, 32_768),
        ({"max_images": 1}, 32_768),
        ({"max_images": 1, "video_total_pixels": 20_480 * 784}, 32_768),
        ({"max_model_len": 4_096}, 4_096),
        ({"max_model_len": "auto"}, -1),
    ],
)
def test_the_context_is_what_the_workflows_need(changes: dict[str, object], tokens: int) -> None:
    assert demand.context_of(Settings.model_validate(changes), {}) == tokens


def test_memory_is_set_aside_for_the_largest_picture_and_video_that_are_sent() -> None:
    limits = demand.demand_of(Settings(max_videos=0)).media_limits

    assert limits["video"]["count"] == 0
    assert limits["image"]["count"] == 4
    # four thousand tokens of 32 x 32 pixels for dense text, with room to round
    assert 4_096 * 32**2 <= limits["image"]["width"] * limits["image"]["height"] < 5_000 * 32**2


@pytest.mark.parametrize("text", ["h300", "0xh100", "", "x"])
def test_an_unknown_gpu_is_named_with_those_that_are_known(text: str) -> None:
    with pytest.raises(SettingsError, match=r"known: .*h100"):
        capacity.gpus_of(text)
