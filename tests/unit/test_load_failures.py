"""Why a model cannot be loaded, in one sentence with the setting that helps."""

from __future__ import annotations

import json
import logging
import logging.config
import os
from pathlib import Path

import pytest

from capflow_tasks.engine.load_failures import core_errors, explain

FAILED_CORE = RuntimeError("Engine core initialization failed. See root cause above.")


@pytest.mark.parametrize(
    ("error", "core", "named", "remedy"),
    [
        (
            FAILED_CORE,
            "ValueError: To serve at least one request with the models's max seq len (128000), (6.84 GiB KV "
            "cache is needed, which is larger than the available KV cache memory (2.1 GiB).",
            "max seq len (128000)",
            "CAPFLOW_MAX_MODEL_LEN",
        ),
        (
            FAILED_CORE,
            "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.",
            "Tried to allocate",
            "CAPFLOW_TENSOR_PARALLEL_SIZE",
        ),
        (
            FAILED_CORE,
            "ValueError: Free memory on device cuda:0 (3.1/24.0 GiB) on startup is less than desired",
            "3.1/24.0 GiB",
            "CUDA_VISIBLE_DEVICES",
        ),
        (
            FAILED_CORE,
            "ValueError: Available memory on node 0 (13.02/23.54 GiB) is less than desired CPU memory",
            "13.02/23.54 GiB",
            "VLLM_CPU_KVCACHE_SPACE",
        ),
        (
            RuntimeError("Device string must not be empty"),
            "",
            "Device string",
            "this vLLM is built for GPUs and finds none: see nvidia-smi",
        ),
        (
            ValueError("Please pass the argument `trust_remote_code=True` to allow custom code to be run."),
            "",
            "custom code",
            "CAPFLOW_ENGINE_ARGS",
        ),
        (
            ValueError("User-specified max_model_len (65536) is greater than the derived max_model_len"),
            "",
            "65536",
            "auto",
        ),
        (
            OSError("/m does not appear to have a file named config.json."),
            "",
            "config.json",
            "capflow doctor",
        ),
        (OSError("no/model is not a valid model identifier"), "", "no/model", "CAPFLOW_MODEL"),
    ],
)
def test_a_failed_load_names_its_cause_and_the_setting_that_helps(
    error: Exception, core: str, named: str, remedy: str
) -> None:
    said = explain("a/model", error, f"Traceback (most recent call last):\n{core}\n")

    assert said.startswith("the model 'a/model' cannot be loaded: ")
    assert "\n" not in said
    assert named in said.partition("; ")[0]
    assert remedy in said.partition("; ")[2]


def test_the_cause_is_the_first_error_of_a_chain() -> None:
    core = "torch.OutOfMemoryError: CUDA out of memory.\nException: WorkerProc initialization failed\n"

    assert "CUDA out of memory" in explain("m", FAILED_CORE, core)


def test_errors_of_a_process_that_vllm_starts_are_recorded_and_the_environment_is_restored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = {"version": 1, "handlers": {}, "loggers": {"vllm": {"handlers": [], "level": "INFO"}}}
    configured = tmp_path / "own.json"
    configured.write_text(json.dumps(own))
    monkeypatch.setenv("VLLM_LOGGING_CONFIG_PATH", str(configured))

    with core_errors({}) as recorded:
        config = json.loads(Path(os.environ["VLLM_LOGGING_CONFIG_PATH"]).read_text())
        logging.config.dictConfig(config | {"disable_existing_loggers": False})
        logger = logging.getLogger("vllm")
        try:
            raise MemoryError("all gone")
        except MemoryError:
            logger.exception("EngineCore failed to start.")
        assert "MemoryError: all gone" in recorded.read_text()
        for handler in list(logger.handlers):
            logger.removeHandler(handler)
            handler.close()

    assert os.environ["VLLM_LOGGING_CONFIG_PATH"] == str(configured)
