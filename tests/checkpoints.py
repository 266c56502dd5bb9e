"""Models of random weights, made once for all who need one: tests, scenarios and benchmarks."""

from __future__ import annotations

import fcntl
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]

#: For CAPFLOW_GUARD_OFF: the rules of the guard that random weights break, as they write noise without end.
NOISE_RULES = '["cut_off", "loop", "wrong_language", "mojibake"]'


def tiny_checkpoint(family: str = "qwen2.5-vl") -> Path:
    """The folder of the demo's model, or of one of another family."""
    return _checkpoint(REPOSITORY / ".capflow" / "tests" / family, "tiny", family)


def small_checkpoint() -> Path:
    """The folder of one of 31 million weights."""
    return _checkpoint(REPOSITORY / "build" / "bench-model", "small")


def _checkpoint(folder: Path, shape: str, family: str = "qwen2.5-vl") -> Path:
    """Made anew when what it is made of is newer; who comes meanwhile waits."""
    script = REPOSITORY / "deploy" / "demo" / "tiny_checkpoint.py"
    domains = (REPOSITORY / "capflow_tasks" / "domains").glob("*.yaml")
    sources = [script, script.with_name("model_families.py"), *domains]
    made = folder / "config.json"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_name(f"{folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not made.exists() or made.stat().st_mtime < max(path.stat().st_mtime for path in sources):
            command = [sys.executable, str(script), str(folder), shape, family]
            subprocess.run(command, check=True, timeout=240, stdout=sys.__stderr__)
    return folder
