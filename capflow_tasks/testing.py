"""A scripted engine for tests and fault injection, in this project and in yours.

`CAPFLOW_ENGINE=capflow_tasks.testing:build` starts a worker with it. It answers at once: the first choice
for a route, the top grade for scores, a digest of the request for free text.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from capflow_tasks.engine.interface import Answer
from capflow_tasks.errors import SampleError
from capflow_tasks.records import Completion, Request, Token
from capflow_tasks.settings import Settings

#: Prompt tokens of any picture; a word is one token.
_TOKENS_PER_PICTURE = 256


def scripted_text(request: Request) -> str:
    """The default answer: the same for the same request."""
    if request.choices:
        return request.choices[0]
    paths = " ".join(ref.path for ref in request.media)
    text = "said of " + hashlib.sha256(f"{paths} {request.instruction}".encode()).hexdigest()[:12]
    return text if request.schema is None else json.dumps(_scripted_value(request.schema, text))


def _scripted_value(schema: Mapping[str, Any], text: str) -> Any:
    """Return a value by the schema; `text` is what it says."""
    if "enum" in schema:
        return schema["enum"][-1]
    if schema["type"] == "object":
        return {name: _scripted_value(each, text) for name, each in schema["properties"].items()}
    return {"string": text, "array": [], "boolean": True}.get(schema["type"], 1)


class ScriptedEngine:
    """Answers by a function of the request, and records the requests."""

    model = "scripted"

    def __init__(self, answer: Callable[[Request], str] = scripted_text) -> None:
        self._answer = answer
        self.requests: list[Request] = []

    def start(self) -> None:
        """Load nothing."""

    def stop(self) -> None:
        """Free nothing."""

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
            tokens=tuple(map(_token, text)) if request.has_tokens else (),
        )


def _token(character: str) -> Token:
    """Return a character as a token; a grade is less than certain."""
    if character not in "123":
        return Token(character, {character: 1.0})
    return Token(character, {grade: 0.8 if grade == character else 0.1 for grade in "123"})


def build(settings: Settings, model: str) -> ScriptedEngine:
    """Build the engine that `CAPFLOW_ENGINE=capflow_tasks.testing:build` names."""
    return ScriptedEngine()
