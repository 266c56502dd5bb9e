"""Engines that a worker process is started with to see what becomes of its work."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from threading import Event, Lock

from capflow_tasks.engine import Answer
from capflow_tasks.records import Request
from capflow_tasks.settings import Settings
from capflow_tasks.testing import ScriptedEngine, scripted_text

#: File that gets one line per request: what would be said, which is the same for the same request.
REQUESTS = "TEST_REQUESTS"
#: File without which no judge answers.
JUDGES_MAY_SPEAK = "TEST_JUDGES_MAY_SPEAK"

#: Seconds that every answer takes.
ANSWER_SECONDS = "TEST_ANSWER_SECONDS"

_lock = Lock()


class RecordingEngine(ScriptedEngine):
    """Writes down every request, and keeps judges waiting for as long as it is told to."""

    def generate(self, requests: Sequence[Request]) -> list[Answer]:
        with _lock, Path(os.environ[REQUESTS]).open("a") as file:
            file.writelines(f"{_name(request)}\n" for request in requests)
        if any(request.schema for request in requests):
            self._wait()
        return super().generate(requests)

    def _wait(self) -> None:
        gate = os.environ.get(JUDGES_MAY_SPEAK)
        while gate and not Path(gate).exists():
            Event().wait(0.02)


def _name(request: Request) -> str:
    """A judge's answer says nothing of the sample, so its request is named by the media alone."""
    if request.choices or request.schema:
        kind = "route" if request.choices else "score"
        return f"{kind} {' '.join(ref.path for ref in request.media)}"
    return scripted_text(request)


class SlowEngine(ScriptedEngine):
    """A GPU that is slower than its neighbours."""

    def generate(self, requests: Sequence[Request]) -> list[Answer]:
        Event().wait(float(os.environ[ANSWER_SECONDS]))
        return super().generate(requests)


def build_slow(settings: Settings, model: str) -> SlowEngine:
    return SlowEngine()


def build(settings: Settings, model: str) -> RecordingEngine:
    return RecordingEngine()
