"""An engine that says what it is told to, for unit tests and fault injection; yours as well.

`CAPFLOW_ENGINE=capflow_tasks.testing:build` starts a worker with it. It answers every request at once:
the first choice for a route, the top grade for scores, and for free text a digest of the request.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence

from capflow_tasks.engine.interface import Answer
from capflow_tasks.errors import SampleError
from capflow_tasks.records import Completion, Request
from capflow_tasks.settings import Settings

#: Tokens that the scripted tokenizer makes of one word, and of any picture.
_TOKENS_PER_PICTURE = 256


def scripted_text(request: Request) -> str:
    """What the engine says unless told otherwise: the same for the same request."""
    if request.choices:
        return request.choices[0]
    if request.schema is not None:
        return json.dumps({name: field["enum"][-1] for name, field in request.schema["properties"].items()})
    paths = " ".join(ref.path for ref in request.media)
    return "said of " + hashlib.sha256(f"{paths} {request.instruction}".encode()).hexdigest()[:12]


class ScriptedEngine:
    """Answers from a function of the request; keeps what it was asked in `requests`."""

    model = "scripted"

    def __init__(self, answer: Callable[[Request], str] = scripted_text) -> None:
        self._answer = answer
        self.requests: list[Request] = []

    def start(self) -> None:
        """Nothing is loaded."""

    def stop(self) -> None:
        """Nothing is freed."""

    def generate(self, requests: Sequence[Request]) -> list[Answer]:
        self.requests.extend(requests)
        return [self._complete(request) for request in requests]

    def _complete(self, request: Request) -> Answer:
        try:
            text = self._answer(request)
        except SampleError as error:
            return error
        prompt_tokens = len(request.instruction.split()) + _TOKENS_PER_PICTURE * len(request.media)
        others = max(len(request.choices) - 1, 1)
        return Completion(
            text=text,
            prompt_tokens=prompt_tokens,
            cached_tokens=0,
            completion_tokens=len(text.split()),
            finish_reason="stop",
            seconds=0.0,
            probabilities={choice: 0.9 if choice == text else 0.1 / others for choice in request.choices},
        )


def build(settings: Settings, model: str) -> ScriptedEngine:
    """The engine that `CAPFLOW_ENGINE=capflow_tasks.testing:build` names."""
    return ScriptedEngine()
