"""The tiny model of random weights that the demo makes, for scenarios with nothing scripted."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.chaos.fleet import REPOSITORY


def tiny_checkpoint() -> Path:
    """Its folder; made anew when what it is made of is newer."""
    folder = REPOSITORY / ".capflow" / "tests" / "model"
    script = REPOSITORY / "deploy" / "demo" / "tiny_checkpoint.py"
    sources = [script, *(REPOSITORY / "capflow_tasks" / "domains").glob("*.yaml")]
    made = folder / "config.json"
    if not made.exists() or made.stat().st_mtime < max(path.stat().st_mtime for path in sources):
        folder.parent.mkdir(parents=True, exist_ok=True)
        subprocess.run([sys.executable, str(script), str(folder)], check=True, timeout=240)
    return folder
