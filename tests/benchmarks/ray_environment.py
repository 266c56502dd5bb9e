"""A separate environment for Ray Data, whose packages the project neither installs nor pins."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
from pathlib import Path

from tests.chaos.fleet import REPOSITORY

RAY = "ray[data]==2.60.*"
_FOLDER = REPOSITORY / "build" / "ray-venv"


def ray_python() -> Path:
    """Return its interpreter; make the environment if needed. Raises RuntimeError with pip's reason."""
    python = _FOLDER / "bin" / "python"
    if not (_FOLDER / "complete").exists():
        _make(python)
    _connect()
    return python


def _make(python: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(_FOLDER)], check=True)
    constraints = REPOSITORY / "deploy" / "constraints.txt"
    command = [str(python), "-m", "pip", "install", "-q", "-c", str(constraints), RAY]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    if answer.returncode:
        raise RuntimeError(f"{RAY} cannot be installed: {answer.stderr.strip().splitlines()[-1]}")
    (_FOLDER / "complete").touch()


def _connect() -> None:
    """Make our packages importable there, and add the vLLM plugin that counts tokens."""
    ours = sysconfig.get_path("purelib")
    theirs = next(_FOLDER.glob("lib/python*/site-packages"))
    # addsitedir instead of the bare path, so that our own .pth files run.
    (theirs / "capflow_packages.pth").write_text(f"import site; site.addsitedir({ours!r})\n")
    plugin = theirs / "capflow_bench-0.dist-info"
    plugin.mkdir(exist_ok=True)
    (plugin / "METADATA").write_text("Metadata-Version: 2.1\nName: capflow-bench\nVersion: 0\n")
    (plugin / "entry_points.txt").write_text(
        "[vllm.stat_logger_plugins]\nbench = tests.benchmarks.rivals.ray_tokens:PromptTokens\n"
    )
