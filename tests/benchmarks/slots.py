"""An engine that only waits: so many requests at once, and a fixed time for each token.

`CAPFLOW_ENGINE=tests.benchmarks.slots:build` starts a worker with it.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from threading import Lock, Thread
from time import monotonic

from capflow_tasks.engine.interface import Answer
from capflow_tasks.records import Completion, Request
from capflow_tasks.settings import Settings
from capflow_tasks.testing import ScriptedEngine
from tests.benchmarks.lengths import REALISTIC, with_length

#: File that gets a line for each call of `generate`.
JOURNAL = "BENCH_SLOTS_JOURNAL"
SLOTS = 32
_TOKEN_SECONDS = 0.005
_SCORE_TOKENS = 40


@dataclass(frozen=True, slots=True)
class SlotCall:
    """One call of `generate`; times are on the clock that all processes of a machine share."""

    sample: str
    started: float
    #: Seconds of each request, and when it got its slot and left it.
    seconds: list[float]
    held: list[tuple[float, float]]


class SlotEngine(ScriptedEngine):
    max_requests = SLOTS

    def __init__(self) -> None:
        super().__init__()
        self._loop = asyncio.new_event_loop()
        self._free = asyncio.Semaphore(SLOTS)
        self._lock = Lock()
        Thread(target=self._loop.run_forever, name="slots", daemon=True).start()

    def generate(self, requests: Sequence[Request]) -> list[Answer]:
        started, seconds = monotonic(), [_TOKEN_SECONDS * _tokens(request) for request in requests]
        held = self.wait(seconds)
        self._write(SlotCall(requests[0].media[0].path, started, seconds, held))
        return [
            replace(answer, seconds=until - started) if isinstance(answer, Completion) else answer
            for answer, (_, until) in zip(map(self._complete, requests), held, strict=True)
        ]

    def wait(self, seconds: Sequence[float]) -> list[tuple[float, float]]:
        """Hold a slot for each of these times; return from when until when."""
        return asyncio.run_coroutine_threadsafe(self._hold_all(seconds), self._loop).result()

    async def _hold_all(self, seconds: Sequence[float]) -> list[tuple[float, float]]:
        return await asyncio.gather(*map(self._hold, seconds))

    async def _hold(self, seconds: float) -> tuple[float, float]:
        async with self._free:
            since = monotonic()
            await asyncio.sleep(seconds)
            return since, monotonic()

    def _write(self, call: SlotCall) -> None:
        with self._lock, Path(os.environ[JOURNAL]).open("a") as file:
            file.write(json.dumps(asdict(call)) + "\n")


def _tokens(request: Request) -> int:
    if request.choices:
        return 1
    return (
        _SCORE_TOKENS if request.schema is not None else with_length(request, *REALISTIC).sampling.max_tokens
    )


def build(settings: Settings, model: str) -> SlotEngine:
    return SlotEngine()


def read_calls(path: Path) -> list[SlotCall]:
    return [SlotCall(**json.loads(line)) for line in path.read_text().splitlines()]
