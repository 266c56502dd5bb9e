"""How long `--help` takes."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from time import perf_counter

from tests.benchmarks.claims import Bench, Measured

_ROUNDS = 7


def measure(bench: Bench) -> Mapping[str, Measured]:
    """Return the fastest of a few runs; slower ones show other work on the machine."""
    command = [str(Path(sys.executable).parent / "capflow"), "caption", "--help"]
    bare = [sys.executable, "-c", "import click"]
    ours, theirs = ([_seconds(each) for _ in range(_ROUNDS)] for each in (command, bare))
    baseline = f"python that imports click alone: {min(theirs):.2f} s"
    return {"produce_help_seconds": Measured(min(ours), baseline)}


def _seconds(command: list[str]) -> float:
    began = perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return perf_counter() - began
