"""How long `--help` takes, over the start of an interpreter."""

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
    ours, bare = min(_seconds(command) for _ in range(_ROUNDS)), interpreter_seconds()
    return {"help_over_interpreter": Measured(ours / bare, f"{interpreter(bare)}; ours: {ours:.2f} s")}


def interpreter_seconds() -> float:
    """Return how long a Python that imports click alone takes to start and end."""
    return min(_seconds([sys.executable, "-c", "import click"]) for _ in range(_ROUNDS))


def interpreter(seconds: float) -> str:
    return f"a Python that imports click alone: {seconds:.3f} s"


def _seconds(command: list[str]) -> float:
    began = perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return perf_counter() - began
