"""The fleet's engine with a journal of its requests, their cost, and when the engine had work.

`CAPFLOW_ENGINE=tests.benchmarks.journal:build` starts a worker with it.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Lock, Thread
from time import monotonic
from typing import TYPE_CHECKING, Any

from capflow_tasks.engine.interface import Answer
from capflow_tasks.records import Completion, Request
from capflow_tasks.settings import Settings
from tests.benchmarks.lengths import with_length

if TYPE_CHECKING:
    from capflow_tasks.engine.vllm_engine import VllmEngine

#: Folder of the journals, one file per process.
JOURNALS = "BENCH_JOURNALS"
#: Variable with the median and 95th percentile of an answer's tokens: "180,600".
LENGTHS = "BENCH_ANSWER_TOKENS"
#: Between two checks whether the engine has a request, seconds.
_POLL_SECONDS = 0.01


@dataclass(frozen=True, slots=True)
class Exchange:
    """One call of `generate`; times are on the clock that all processes of a machine share."""

    started: float
    ended: float
    requests: Sequence[Request]
    #: Prompt tokens of all answered requests that were not taken from the cache.
    computed_tokens: int


@dataclass(frozen=True, slots=True)
class Turn:
    """From this moment on the engine has so many unanswered requests."""

    at: float
    requests: int
    worker: int


class JournallingEngine:
    """The real engine with answers of unequal length; they pass through unchanged."""

    def __init__(self, engine: VllmEngine, path: Path) -> None:
        self.model = engine.model
        self._engine = engine
        self._path = path
        self._lock = Lock()
        self._stopping = Event()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def start(self) -> None:
        self._engine.start()
        Thread(target=self._watch, name="bench-watch", daemon=True).start()

    def stop(self) -> None:
        self._stopping.set()
        self._engine.stop()

    def generate(self, requests: Sequence[Request]) -> list[Answer]:
        started = monotonic()
        median, p95 = map(float, os.environ[LENGTHS].split(","))
        requests = [with_length(request, median, p95) for request in requests]
        answers = self._engine.generate(requests)
        self._write(Exchange(started, monotonic(), requests, _computed_tokens(answers)))
        return answers

    def _watch(self) -> None:
        known = None
        while not self._stopping.wait(_POLL_SECONDS):
            if (requests := self._unanswered()) != known:
                self._write(Turn(monotonic(), requests, os.getpid()))
            known = requests

    def _unanswered(self) -> int:
        """Return vLLM's number of unanswered requests, whose pixels are read and whose prompts are ready."""
        llm = self._engine._llm
        return 0 if llm is None else llm.output_processor.get_num_unfinished_requests()

    def _write(self, record: Exchange | Turn) -> None:
        with self._lock, self._path.open("ab") as file:
            pickle.dump(record, file)


def build(settings: Settings, model: str) -> JournallingEngine:
    from capflow_tasks.engine.vllm_engine import build as build_vllm

    return JournallingEngine(
        build_vllm(settings, model), Path(os.environ[JOURNALS]) / f"{os.getpid()}.pickle"
    )


def _computed_tokens(answers: Sequence[Answer]) -> int:
    completions = [answer for answer in answers if isinstance(answer, Completion)]
    return sum(answer.prompt_tokens - answer.cached_tokens for answer in completions)


def read_journals(folder: Path, since: float) -> list[Exchange | Turn]:
    """Return the exchanges and turns since then of all engines that got requests."""
    found = (list(_records(path, since)) for path in sorted(folder.glob("*.pickle")))
    return [record for each in found if any(map(_is_exchange, each)) for record in each]


def _records(path: Path, since: float) -> Iterator[Exchange | Turn]:
    with path.open("rb") as file:
        while file.peek(1):
            record = pickle.load(file)
            if isinstance(record, Turn) or record.started >= since:
                yield record


def _is_exchange(record: Exchange | Turn) -> bool:
    return isinstance(record, Exchange)


def busy_share(records: Sequence[Exchange | Turn], start: float, end: float) -> float:
    """Return the share of the time from start to end with a request in the engine, the mean over workers."""
    turns = [record for record in records if isinstance(record, Turn)]
    workers = {turn.worker for turn in turns}
    return sum(_busy([turn for turn in turns if turn.worker == each], start, end) for each in workers) / len(
        workers
    )


def mean_requests(records: Sequence[Exchange | Turn], start: float, end: float) -> float:
    """Return how many unanswered requests all engines have together, the mean from start to end."""
    turns = [record for record in records if isinstance(record, Turn)]
    spans = [
        (turn.requests, seconds)
        for worker in {turn.worker for turn in turns}
        for turn, seconds in _spans([turn for turn in turns if turn.worker == worker], start, end)
    ]
    return sum(requests * seconds for requests, seconds in spans) / (end - start)


def _busy(turns: Sequence[Turn], start: float, end: float) -> float:
    return sum(seconds for turn, seconds in _spans(turns, start, end) if turn.requests) / (end - start)


def _spans(turns: Sequence[Turn], start: float, end: float) -> Iterator[tuple[Turn, float]]:
    """Yield each turn of one engine and its seconds between start and end."""
    for turn, until in zip(turns, [*(turn.at for turn in turns[1:]), end], strict=True):
        yield turn, max(0.0, min(until, end) - max(turn.at, start))
