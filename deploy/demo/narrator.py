"""An engine that answers with hand-written captions of the demo's pictures, for the screenshots.

CAPFLOW_ENGINE=narrator:build PYTHONPATH=deploy/demo capflow caption .capflow/pictures/plan.jsonl
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from threading import Event

import yaml

from capflow_tasks.engine.interface import Answer
from capflow_tasks.records import Request
from capflow_tasks.settings import Settings
from capflow_tasks.testing import ScriptedEngine

#: Long enough that a screenshot can show a run at work.
_SECONDS_PER_CALL = 0.25

#: Domains of the pictures that the demo's plan has routed.
_DOMAINS = {
    "astronaut.jpg": "Natural",
    "budget.png": "Structure & Math",
    "road_sign.png": "Synthetic & Aesthetic",
    "weather.png": "UI & Interaction",
}


class Narrator(ScriptedEngine):
    model = "narrator"

    def __init__(self) -> None:
        super().__init__(_answer)

    def generate(self, requests: Sequence[Request]) -> list[Answer]:
        Event().wait(_SECONDS_PER_CALL)
        return super().generate(requests)


def build(settings: Settings, model: str) -> Narrator:
    return Narrator()


def _answer(request: Request) -> str:
    path = Path(request.media[0].path)
    if request.choices:
        return _letter(request, path)
    if request.schema is not None:
        names = request.schema["properties"]
        grades = {name: _grade(f"{path.name} {name}") for name in names if name != "errors"}
        return json.dumps({"errors": [], **grades})
    return _narration(request, f"{path.parent.name}/{path.name}")


def _letter(request: Request, path: Path) -> str:
    domain = _DOMAINS.get(path.name, "Natural")
    matched = re.search(rf"^(\w)\. {re.escape(domain)}", request.instruction, re.MULTILINE)
    return matched[1] if matched else request.choices[0]


def _grade(text: str) -> int:
    return (1, 2, 2, 3, 3, 3, 3, 3)[hashlib.sha256(text.encode()).digest()[0] % 8]


def _narration(request: Request, name: str) -> str:
    """Return the whole caption to agents that see another's answer, and one sentence to the others."""
    caption: str = yaml.safe_load(Path(__file__).with_name("captions.yaml").read_text("utf-8"))[name]
    sentences = re.split(r"(?<=[.:]) ", caption)
    if any(sentence in request.instruction for sentence in sentences):
        return caption
    return sentences[len(request.instruction) % len(sentences)]
