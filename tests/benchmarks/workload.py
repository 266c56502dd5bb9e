"""The model calls of a set of samples, as the fleet made them, and how others are given the same."""

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
#: What is asked about one sample, a turn after the other.
Sample = tuple[Turn, ...]

#: Names the file in which a rival's engine keeps count of its prompt tokens, where it doesn't tell otherwise.
COUNT_FILE = "BENCH_COUNT_FILE"

#: Has a rival that starts an engine for every pass over a data set make one for each stage.
ENGINE_PER_STAGE = "BENCH_ENGINE_PER_STAGE"

#: Samples in flight, for everybody.
IN_FLIGHT = int(os.environ.get("BENCH_IN_FLIGHT", "8"))


@dataclass(frozen=True, slots=True)
class Replayed:
    """How long the samples took from the first request to the last answer, and what the prompts cost."""

    seconds: float
    prompt_tokens: int
    #: What the prefix cache did not spare.
    computed_tokens: int


class Rival(Protocol):
    """Another way to answer the same requests."""

    def replay(self, samples: Sequence[Sample]) -> Replayed:
        """Answer them all."""


def samples_of(exchanges: Sequence[Exchange]) -> list[Sample]:
    """The requests by sample, in the order in which they were made."""
    turns: dict[str, list[Turn]] = {}
    for exchange in sorted(exchanges, key=lambda exchange: exchange.started):
        by_sample: dict[str, list[Request]] = {}
        for request in exchange.requests:
            by_sample.setdefault(request.media[0].path, []).append(request)
        for path, requests in by_sample.items():
            turns.setdefault(path, []).append(tuple(requests))
    return [tuple(each) for each in turns.values()]


def stages_of(samples: Sequence[Sample]) -> list[list[Request]]:
    """The first turns of all samples, then their second, and so on."""
    stages = zip_longest(*samples, fillvalue=())
    return [[request for turn in stage for request in turn] for stage in stages]


class RivalProcess:
    """A rival in a process of its own, which stays up between rounds."""

    def __init__(self, name: str, process: subprocess.Popen[str], folder: Path) -> None:
        self._name = name
        self._process = process
        self._path = folder / f"workload-{name}.pickle"
        self._started = monotonic()

    def wait_until_ready(self) -> float:
        """Seconds from its very start until it was ready, however long ago that may be."""
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
            raise RuntimeError(f"{self._name} ended with {self._process.wait(10)}; see {self._name}.log")
        return line


@contextmanager
def rival(
    module: str, folder: Path, environment: Mapping[str, str], python: str = sys.executable
) -> Iterator[RivalProcess]:
    """The rival of `tests.benchmarks.rivals`, which is starting; stopped at the end."""
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
    """A rival's side: say when it was ready, then replay each workload that a line on stdin names."""
    answers = _own_stdout()
    with start() as found:
        print(monotonic(), file=answers, flush=True)
        for line in sys.stdin:
            samples = pickle.loads(Path(line.strip()).read_bytes())
            print(json.dumps(asdict(found.replay(samples))), file=answers, flush=True)


def _own_stdout() -> IO[str]:
    """What was stdout; whoever prints from now on, as vLLM does, prints to stderr."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return answers
