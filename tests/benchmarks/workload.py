"""The model calls of a set of samples as the fleet made them, and how rivals replay them."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass
from itertools import zip_longest
from pathlib import Path
from time import monotonic
from typing import IO, Protocol

from capflow_tasks.lifeline import die_with_parent
from capflow_tasks.records import Request
from tests.benchmarks.journal import Exchange
from tests.chaos.fleet import REPOSITORY

#: Requests that may run together.
Turn = tuple[Request, ...]
#: All requests about one sample, turn by turn.
Sample = tuple[Turn, ...]

#: Variable with the file in which a rival's engine counts its prompt tokens, where it does not report them.
COUNT_FILE = "BENCH_COUNT_FILE"

#: Variable that makes a rival start an engine for each stage.
ENGINE_PER_STAGE = "BENCH_ENGINE_PER_STAGE"

#: Requests in one step of every contender's engine, and samples that rivals have in flight to fill it.
IN_FLIGHT = int(os.environ.get("BENCH_IN_FLIGHT", "8"))


@dataclass(frozen=True, slots=True)
class Replayed:
    """Seconds from the first request to the last answer, and the prompts' tokens."""

    seconds: float
    prompt_tokens: int
    #: Tokens not taken from the prefix cache.
    computed_tokens: int


class Rival(Protocol):
    """Another way to run the same requests."""

    def replay(self, samples: Sequence[Sample]) -> Replayed:
        """Answer all requests."""


def samples_of(exchanges: Sequence[Exchange]) -> list[Sample]:
    """Group the requests by sample, in the order in which they were made."""
    turns: dict[str, list[Turn]] = {}
    for exchange in sorted(exchanges, key=lambda exchange: exchange.started):
        by_sample: dict[str, list[Request]] = {}
        for request in exchange.requests:
            by_sample.setdefault(request.media[0].path, []).append(request)
        for path, requests in by_sample.items():
            turns.setdefault(path, []).append(tuple(requests))
    return [tuple(each) for each in turns.values()]


def stages_of(samples: Sequence[Sample]) -> list[list[Request]]:
    """Return the first turns of all samples, then their second turns, and so on."""
    stages = zip_longest(*samples, fillvalue=())
    return [[request for turn in stage for request in turn] for stage in stages]


class RivalProcess:
    """A rival in its own process, which stays up between rounds."""

    def __init__(self, name: str, process: subprocess.Popen[str], folder: Path) -> None:
        self._name = name
        self._process = process
        self._path = folder / f"workload-{name}.pickle"
        self._started = monotonic()

    def wait_until_ready(self) -> float:
        """Return the seconds from its start until it was ready."""
        return float(self._read_line()) - self._started

    def replay(self, samples: Sequence[Sample]) -> Replayed:
        self._path.write_bytes(pickle.dumps(list(samples)))
        assert self._process.stdin
        self._process.stdin.write(f"{self._path}\n")
        self._process.stdin.flush()
        return Replayed(**json.loads(self._read_line()))

    def _read_line(self) -> str:
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self._name} exited with {self._process.wait(10)}; see {self._name}.log")
        return line


@contextmanager
def rival(
    module: str, folder: Path, environment: Mapping[str, str], python: str = sys.executable
) -> Iterator[RivalProcess]:
    """Start a rival of `tests.benchmarks.rivals` and stop it at the end."""
    with (folder / f"{module}.log").open("w") as log:
        process = subprocess.Popen(
            [python, "-m", f"tests.benchmarks.rivals.{module}"],
            cwd=REPOSITORY,
            env={**os.environ, **environment, "PYTHONPATH": str(REPOSITORY)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            preexec_fn=die_with_parent,
        )
    with process:
        try:
            yield RivalProcess(module, process, folder)
        finally:
            assert process.stdin
            process.stdin.close()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()


def serve(start: Callable[[], AbstractContextManager[Rival]]) -> None:
    """Run a rival: print when it is ready, then replay each workload that a line on stdin names."""
    answers = _own_stdout()
    with start() as found:
        print(monotonic(), file=answers, flush=True)
        for line in sys.stdin:
            samples = pickle.loads(Path(line.strip()).read_bytes())
            print(json.dumps(asdict(found.replay(samples))), file=answers, flush=True)


def _own_stdout() -> IO[str]:
    """Return the original stdout, and send everything printed from now on to stderr, as vLLM prints much."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return answers
