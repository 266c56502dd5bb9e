"""Engines that a worker process is started with to see what becomes of its work."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from threading import Event, Lock

from capflow_tasks.engine.interface import Answer
from capflow_tasks.errors import RequestRefused
from capflow_tasks.records import Request
from capflow_tasks.settings import Settings
from capflow_tasks.testing import ScriptedEngine, scripted_text

#: File that gets one line per request: what would be said, which is the same for the same request.
REQUESTS = "TEST_REQUESTS"
#: File that gets one line per request: the paths of its media, as a JSON list.
MEDIA = "TEST_MEDIA"
#: File without which no judge answers.
JUDGES_MAY_SPEAK = "TEST_JUDGES_MAY_SPEAK"

#: The picture that waits, and the file whose appearance ends that.
HELD = "held.png"
HELD_MAY_SPEAK = "TEST_HELD_MAY_SPEAK"
#: Seconds that every answer takes.
ANSWER_SECONDS = "TEST_ANSWER_SECONDS"

_lock = Lock()


class RecordingEngine(ScriptedEngine):
    """Writes down every request, and keeps judges waiting for as long as it is told to."""

    def generate(self, requests: Sequence[Request]) -> list[Answer]:
        _write(REQUESTS, map(_name, requests))
        _write(MEDIA, (json.dumps([ref.path for ref in request.media]) for request in requests))
        if any(request.schema for request in requests):
            self._wait()
        return super().generate(requests)

    def _wait(self) -> None:
        gate = os.environ.get(JUDGES_MAY_SPEAK)
        while gate and not Path(gate).exists():
            Event().wait(0.02)


def _write(variable: str, lines: Iterable[str]) -> None:
    if path := os.environ.get(variable):
        with _lock, Path(path).open("a") as file:
            file.writelines(f"{line}\n" for line in lines)


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


class HoldingEngine(RecordingEngine):
    """Keeps one picture, and nothing else, waiting for as long as it is told to."""

    def generate(self, requests: Sequence[Request]) -> list[Answer]:
        if any(Path(ref.path).name == HELD for request in requests for ref in request.media):
            while not Path(os.environ[HELD_MAY_SPEAK]).exists():
                Event().wait(0.02)
        return super().generate(requests)


class RefusingEngine(ScriptedEngine):
    """Refuses every request."""

    def generate(self, requests: Sequence[Request]) -> list[Answer]:
        return [RequestRefused("the kernel is broken") for _ in requests]


def build_refusing(settings: Settings, model: str) -> RefusingEngine:
    return RefusingEngine()


def build_held(settings: Settings, model: str) -> HoldingEngine:
    return HoldingEngine()


def build_slow(settings: Settings, model: str) -> SlowEngine:
    return SlowEngine()


class SmallCacheEngine(ScriptedEngine):
    """Its KV cache holds some six samples; writes down how many it is asked about at a time."""

    cache_tokens = 3_000
    _asked = 0

    def generate(self, requests: Sequence[Request]) -> list[Answer]:
        with _lock:
            self._asked += 1
            with Path(os.environ[REQUESTS]).open("a") as file:
                file.write(f"{self._asked}\n")
        Event().wait(0.1)
        with _lock:
            self._asked -= 1
        return super().generate(requests)


class LargeCacheEngine(SmallCacheEngine):
    """The same with room for all."""

    cache_tokens = 3_000_000


def build_small_cache(settings: Settings, model: str) -> SmallCacheEngine:
    return SmallCacheEngine()


def build_large_cache(settings: Settings, model: str) -> LargeCacheEngine:
    return LargeCacheEngine()


def build(settings: Settings, model: str) -> RecordingEngine:
    return RecordingEngine()


#: What an engine of `build_flawed` says about a picture of this name, in its first answer or in each.
FLAWS = {
    "loop-once.png": "keep at " * 40,
    "loops.png": "keep at " * 40,
    "refuses.png": "I'm sorry, but I can't help with that.",
    "opens.png": "Here is a detailed description:\nA lamp on a desk.",
    **{
        f"{rule}-once.png": text
        for rule, text in {
            "thinking": "<think>hmm",
            "empty": "...",
            "cut_off": "A lamp stands on a wooden desk beside the",
            "echo": 'A lamp stands on a desk. <report from="natural">A lamp.</report>',
            "mojibake": "A lamp stands on a desk in the cafÃ© of the opÃ©ra, beside a crÃ¨me brÃ»lÃ©e.",
            "wrong_language": "Eine Lampe steht auf einem Tisch aus Holz neben dem Fenster und leuchtet.",
            "markup": '{"scene": {"lamp": "on a desk"}}',
        }.items()
    },
}


class FlawedEngine(ScriptedEngine):
    """Says what FLAWS has about a picture; for a name with `once`, only the first time."""

    def __init__(self) -> None:
        super().__init__(self._flawed)
        self._asked: set[tuple[str, str]] = set()

    def _flawed(self, request: Request) -> str:
        name = Path(request.media[0].path).name
        is_first = (name, request.instruction) not in self._asked
        self._asked.add((name, request.instruction))
        if request.choices or request.schema or name not in FLAWS or ("once" in name and not is_first):
            return scripted_text(request)
        return FLAWS[name]


def build_flawed(settings: Settings, model: str) -> FlawedEngine:
    return FlawedEngine()


#: The overall grades of a picture's captions, one after the other; the last is that of all further ones.
GRADES = {
    "good.png": (3,),
    "mended.png": (1, 3),
    "hopeless.png": (1, 2, 1),
    "refused.png": (2,),
}
_CAPTION = "A lamp stands on a wooden desk beside the window, as version {} of this text says."


class StrictEngine(ScriptedEngine):
    """A captioner that numbers its captions, and a judge that grades them as GRADES has it.

    A further caption of `refused.png` is refused each time.
    """

    def __init__(self) -> None:
        super().__init__(self._strict)

    def _strict(self, request: Request) -> str:
        name = Path(request.media[0].path).name
        versions = [int(number) for number in re.findall(r"as version (\d)", request.instruction)]
        if request.schema:
            grade = GRADES[name][min(versions[0], len(GRADES[name])) - 1]
            fields = request.schema["properties"].items()
            return json.dumps({key: grade if "enum" in field else ["no lamp"] for key, field in fields})
        if "Write the one caption" not in request.instruction:
            return scripted_text(request)
        if versions and name == "refused.png":
            return FLAWS["refuses.png"]
        return _CAPTION.format(max(versions, default=0) + 1)


def build_strict(settings: Settings, model: str) -> StrictEngine:
    return StrictEngine()


class QuotingEngine(ScriptedEngine):
    """Quotes placeholders in everything it writes, and gives pictures named `poor` the lowest grades."""

    def __init__(self) -> None:
        super().__init__(self._quoting)

    def _quoting(self, request: Request) -> str:
        text = scripted_text(request)
        if request.schema and Path(request.media[0].path).stem.startswith("poor"):
            fields = request.schema["properties"].items()
            return json.dumps({name: field["enum"][0] if "enum" in field else [] for name, field in fields})
        is_free = not request.choices and not request.schema
        return f"{text} It has the tags <image> and <video>." if is_free else text


def build_quoting(settings: Settings, model: str) -> QuotingEngine:
    return QuotingEngine()


def _examined(request: Request) -> str:
    """Write two questions, of which one can be guessed, and answer the other only from a caption."""
    if request.schema and "questions" in request.schema["properties"]:
        asked = ("Which ball can be guessed?", "Which ball is told of?")
        wrong = ["blue", "green", "pink"]
        return json.dumps({"questions": [{"question": q, "right": "red", "wrong": wrong} for q in asked]})
    if "cannot tell" not in request.instruction:
        return scripted_text(request)
    (right,) = re.findall(r"^([A-Z])\. red$", request.instruction, re.MULTILINE)
    is_known = "said of" in request.instruction or "guessed" in request.instruction
    return right if is_known else request.choices[-1]


def build_examiner(settings: Settings, model: str) -> ScriptedEngine:
    """Build an engine that writes an exam and takes it."""
    return ScriptedEngine(_examined)
