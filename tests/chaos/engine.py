"""The engine of a fleet under test: it answers from a script, slowly, and keeps a journal.

`CAPFLOW_ENGINE=tests.chaos.engine:build` is scripted; `...:build_vllm` is the real engine with the journal.
A poison sample kills its engine or its worker, as a picture that crashes a kernel would.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import Condition
from time import time

from capflow_tasks.engine.interface import Answer, Engine
from capflow_tasks.errors import EngineDead
from capflow_tasks.records import Completion, Request
from capflow_tasks.settings import Settings
from capflow_tasks.testing import ScriptedEngine, scripted_text

#: File that gets one line when a model call begins and one with its answer.
JOURNAL = "CHAOS_JOURNAL"
#: Time that the scripted engine takes for one request, seconds.
LATENCY = "CHAOS_LATENCY_SECONDS"
#: Memory that the scripted engine leaks, MiB per stage of a batch.
LEAK = "CHAOS_LEAK_MIB"
#: Name of the poisonous picture.
POISON = "CHAOS_POISON"
#: What the poison kills: `engine` or `worker`.
VICTIM = "CHAOS_VICTIM"
#: Set where the judge refuses one caption in two.
STRICT = "CHAOS_STRICT"


@dataclass(frozen=True, slots=True)
class Call:
    """One line of the journal."""

    #: The sample's media.
    path: str
    #: `route`, else a digest of the instruction.
    kind: str
    #: When the call began, seconds since the epoch; 0 in the line of an answer.
    started: float
    #: None in the line of a call that begins.
    said: str | None
    pid: int


class Journal:
    """A file that many processes append whole lines to."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def begin(self, requests: Sequence[Request]) -> None:
        self._write([_call(request, time()) for request in requests])

    def end(self, requests: Sequence[Request], answers: Sequence[Answer]) -> None:
        pairs = zip(requests, answers, strict=True)
        self._write(
            [_call(request, 0, answer.text) for request, answer in pairs if isinstance(answer, Completion)]
        )

    def _write(self, calls: Sequence[Call]) -> None:
        text = "".join(json.dumps(asdict(call)) + "\n" for call in calls)
        descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(descriptor, text.encode())
        finally:
            os.close(descriptor)


def read_journal(path: Path) -> list[Call]:
    return [Call(**json.loads(line)) for line in path.read_text().splitlines()] if path.exists() else []


def _call(request: Request, started: float, said: str | None = None) -> Call:
    kind = "route" if request.choices else _digest(request.instruction)
    return Call(" ".join(ref.path for ref in request.media), kind, started, said, os.getpid())


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def strict_text(request: Request) -> str:
    """The scripted answer; one caption in two gets the worst grades, and an error that names it."""
    if not request.schema:
        return scripted_text(request)
    digest = _digest(request.instruction)
    fields = request.schema["properties"].items()
    worst = 0 if int(digest, 16) % 2 else -1
    return json.dumps({name: field["enum"][worst] if "enum" in field else [digest] for name, field in fields})


class ChaosEngine(ScriptedEngine):
    """An engine with scripted, delayed answers. When it dies, everything in flight dies with it."""

    def __init__(self, latency_seconds: float, poison: str, victim: str, leak_mib: int, strict: bool) -> None:
        super().__init__(strict_text if strict else scripted_text)
        self._leak_bytes = leak_mib * 2**20
        self._leaked: list[bytes] = []
        self._latency_seconds = latency_seconds
        self._poison = poison
        self._victim = victim
        self._death = Condition()
        self._deaths = 0

    def generate(self, requests: Sequence[Request]) -> list[Answer]:
        names = {Path(ref.path).name for request in requests for ref in request.media}
        if self._poison in names:
            self._die()
        self._answer_slowly()
        self._leaked.append(b"x" * self._leak_bytes)
        # Unlike its parent it stores no requests, because it runs for hours.
        return [self._complete(request) for request in requests]

    def _answer_slowly(self) -> None:
        with self._death:
            deaths = self._deaths
            if self._death.wait_for(lambda: self._deaths > deaths, self._latency_seconds):
                raise EngineDead

    def _die(self) -> None:
        if self._victim == "worker":
            os.kill(os.getpid(), signal.SIGKILL)
        with self._death:
            self._deaths += 1
            self._death.notify_all()
        raise EngineDead


class Journalled:
    """Any engine, with a journal of its requests and answers."""

    def __init__(self, engine: Engine, journal: Journal) -> None:
        self.model = engine.model
        self._engine = engine
        self._journal = journal

    def start(self) -> None:
        self._engine.start()

    def stop(self) -> None:
        self._engine.stop()

    def generate(self, requests: Sequence[Request]) -> list[Answer]:
        self._journal.begin(requests)
        answers = self._engine.generate(requests)
        self._journal.end(requests, answers)
        return answers


def build(settings: Settings, model: str) -> Engine:
    """Build the scripted engine."""
    engine = ChaosEngine(
        float(os.environ.get(LATENCY, "0")),
        os.environ.get(POISON, ""),
        os.environ.get(VICTIM, "engine"),
        int(os.environ.get(LEAK, "0")),
        STRICT in os.environ,
    )
    return _journalled(engine)


def build_vllm(settings: Settings, model: str) -> Engine:
    """Build the fleet's own engine, with the journal."""
    from capflow_tasks.engine.vllm_engine import build

    return _journalled(build(settings, model))


def _journalled(engine: Engine) -> Engine:
    path = os.environ.get(JOURNAL)
    return Journalled(engine, Journal(Path(path))) if path else engine
