"""Whether every model that a worker would load is here, and whole. Imports no torch, reads no weights."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from capflow_tasks.model_weights import has_all_weights
from capflow_tasks.settings import Settings
from producer.doctor.finding import Finding, fail, ok, warn

#: What a folder must hold one of, by what it is.
_PARTS = {
    "configuration": ("config.json",),
    "tokenizer": ("tokenizer.json", "vocab.json", "tokenizer.model"),
    "processor": ("preprocessor_config.json", "processor_config.json"),
}


def check_models(settings: Settings) -> Iterator[Finding]:
    if settings.engine != "vllm":
        yield ok("model", f"engine {settings.engine} brings its own")
        return
    for model in sorted({settings.model_of(queue) for queue in settings.queues}):
        yield _folder(Path(model), model) if Path(model).is_dir() else _named(model)


def _folder(folder: Path, model: str) -> Finding:
    lacking = [what for what, names in _PARTS.items() if not any((folder / name).is_file() for name in names)]
    if not has_all_weights(folder):
        lacking.append("all of its weights")
    if not lacking:
        size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
        return ok("model", f"{model} is whole, {size / 2**30:.1f} GiB")
    return fail("model", f"{model} lacks {', '.join(lacking)}", "download it again, whole")


def _named(model: str) -> Finding:
    """A name of the hub, or a folder that is not there."""
    if model.startswith(("/", ".", "~")) or model.count("/") != 1:
        return fail("model", f"{model} is no folder here", "correct CAPFLOW_MODEL, or mount the folder")
    if folder := _cached(model):
        return _folder(folder, model)
    download = f"HF_HUB_OFFLINE=0 hf download {model}"
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        return fail("model", f"{model} is not in the cache, and HF_HUB_OFFLINE forbids to fetch it", download)
    return warn("model", f"{model} is not in the cache: a worker downloads it at its first start", download)


def _cached(model: str) -> Path | None:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(model, local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError):
        return None
