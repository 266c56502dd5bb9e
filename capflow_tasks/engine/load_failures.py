"""Says in one sentence why vLLM cannot load a model, with the setting that helps. Imports no vLLM.

vLLM's engine core is another process. Its parent learns only that it failed, so the core's log is read.
"""

import json
import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_LOGGING = "VLLM_LOGGING_CONFIG_PATH"
#: The line of a traceback that names the error.
_ERROR_LINE = re.compile(r"^(?:[\w.]+\.)?(\w*(?:Error|Exception|Exit)): (.+)", re.MULTILINE)
#: What the reason says, and the remedy for it; the first that is found counts.
_REMEDIES = [
    (
        # vLLM 0.25 to 0.33, torch, the driver's library
        r"Device string must not be empty|Failed to infer device type|No CUDA GPUs|libcuda\.so",
        "this vLLM is built for GPUs and finds none: see nvidia-smi, and whether CUDA_VISIBLE_DEVICES hides "
        "them; on a machine without a GPU, pip install '.[cpu]' or set CAPFLOW_ENGINE=openai",
    ),
    (
        r"KV cache is needed|larger than the (?:available|maximum) .*KV cache",
        "the context does not fit beside the weights: set CAPFLOW_MAX_MODEL_LEN lower or to auto, or use "
        "more GPUs with CAPFLOW_TENSOR_PARALLEL_SIZE",
    ),
    (
        r"desired CPU memory",
        "set VLLM_CPU_KVCACHE_SPACE to the GiB of the cache, such as 4, or free memory",
    ),
    (
        r"Free memory on device",
        "something else uses the GPU: free it, choose another with CUDA_VISIBLE_DEVICES, or set "
        "CAPFLOW_GPU_MEMORY_UTILIZATION (for two models in one worker CAPFLOW_QUEUE_GPU_MEMORY) lower",
    ),
    (
        r"out of memory|OutOfMemory|No available memory for the cache|not enough memory|MemoryError",
        "the model does not fit: use more GPUs with CAPFLOW_TENSOR_PARALLEL_SIZE, CAPFLOW_QUANTIZATION=fp8, "
        "or a smaller model; `capflow doctor` shows what needs how much",
    ),
    (
        r"derived max_model_len",
        "set CAPFLOW_MAX_MODEL_LEN to what the model was trained for, or to auto",
    ),
    (
        r"trust_remote_code",
        "its code comes with the model; if you trust it: CAPFLOW_ENGINE_ARGS='{\"trust_remote_code\": true}'",
    ),
    (
        r"does not recognize this architecture|are not supported|Transformers does not",
        "this vLLM or transformers does not know the model: upgrade them, or choose another model",
    ),
    (
        r"not find .*(?:weights|safetensors)|No such file|does not appear to have",
        "a file is missing: download the model again; `capflow doctor` names what it lacks",
    ),
    (
        r"divisible by|tensor_parallel_size|tensor parallel size|World size",
        "set CAPFLOW_TENSOR_PARALLEL_SIZE to a number of GPUs that is there and divides the attention heads",
    ),
]
_OTHERWISE = "set CAPFLOW_MODEL to a model folder, or to a hub name that this machine can reach"


def explain(model: str, error: BaseException, core_log: str = "") -> str:
    """Return what failed and what helps; `core_log` is what `core_errors` has recorded."""
    reason = [*str(error).strip().splitlines(), type(error).__name__][0]
    if found := _ERROR_LINE.search(core_log):
        reason = found[2].strip()
    text = f"{type(error).__name__}: {error}\n{core_log}"
    remedy = next((remedy for sign, remedy in _REMEDIES if re.search(sign, text, re.IGNORECASE)), _OTHERWISE)
    return f"the model {model!r} cannot be loaded: {reason.rstrip('.')}; {remedy}"


@contextmanager
def core_errors(default_logging: Mapping[str, Any]) -> Iterator[Path]:
    """Have the processes that vLLM starts write their errors into the file that is yielded, too.

    `default_logging` is vLLM's own configuration, used where the environment names no other.
    """
    configured = os.environ.get(_LOGGING)
    with tempfile.TemporaryDirectory(prefix="capflow-") as folder:
        errors, path = Path(folder, "errors.log"), Path(folder, "logging.json")
        errors.touch()
        logging = json.loads(Path(configured).read_text()) if configured else dict(default_logging)
        path.write_text(json.dumps(_with_file(logging, errors)))
        os.environ[_LOGGING] = str(path)
        try:
            yield errors
        finally:
            os.environ.pop(_LOGGING)
            if configured:
                os.environ[_LOGGING] = configured


def _with_file(logging: Mapping[str, Any], errors: Path) -> dict[str, Any]:
    handler = {"class": "logging.FileHandler", "filename": str(errors), "level": "ERROR", "delay": True}
    vllm = logging["loggers"]["vllm"]
    return {
        **logging,
        "handlers": {**logging["handlers"], "capflow_errors": handler},
        "loggers": {
            **logging["loggers"],
            "vllm": {**vllm, "handlers": [*vllm["handlers"], "capflow_errors"]},
        },
    }
