"""An environment with Ray Data beside ours: its packages are not the product's to install or to pin."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
from pathlib import Path

from tests.chaos.fleet import REPOSITORY

RAY = "ray[data]==2.60.*"
_FOLDER = REPOSITORY / "build" / "ray-venv"


def ray_python() -> Path:
    """Its interpreter; the environment is made if there is none. Raises RuntimeError with pip's reason."""
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
    """Show it our packages, and its vLLM what counts tokens."""
    ours = sysconfig.get_path("purelib")
    theirs = next(_FOLDER.glob("lib/python*/site-packages"))
    # addsitedir and not the bare path: what our own .pth files do is needed as well.
    (theirs / "capflow_packages.pth").write_text(f"import site; site.addsitedir({ours!r})\n")
    plugin = theirs / "capflow_bench-0.dist-info"
    plugin.mkdir(exist_ok=True)
    (plugin / "METADATA").write_text("Metadata-Version: 2.1\nName: capflow-bench\nVersion: 0\n")
    (plugin / "entry_points.txt").write_text(
        "[vllm.stat_logger_plugins]\nbench = tests.benchmarks.rivals.ray_tokens:PromptTokens\n"
    )
