"""The engine as the stages see it, and its choice by settings. Imports no engine until one is built."""

from collections.abc import Sequence
from enum import StrEnum
from importlib import import_module
from typing import Protocol

from capflow_tasks.errors import SampleError, SettingsError
from capflow_tasks.records import Completion, Request
from capflow_tasks.settings import Settings

#: The result of one request: its completion, or why there is none.
Answer = Completion | SampleError


class EngineState(StrEnum):
    """Whether an engine can take requests; one without the attribute `state` is up once it has started."""

    LOADING = "loading"
    UP = "up"
    #: It died; the next request rebuilds it.
    DEAD = "dead"


class Engine(Protocol):
    """Holds one model and answers requests.

    It may have `revision`, the model's as in `revision.py`, and `version`, its own name and version: both are
    stored with each answer.
    """

    #: The name under which results are stored.
    model: str

    def start(self) -> None:
        """Load the model and return when requests can be taken. Raises ServiceError."""

    def stop(self) -> None:
        """Free the model; no request may be running."""

    def generate(self, requests: Sequence[Request]) -> list[Answer]:
        """Answer all requests concurrently and return the answers in order. Called from many threads.

        A failed request yields its error in its place and does not affect the others. Raises EngineDead if
        the engine dies; the next call finds it rebuilt, or raises ServiceError.
        """


#: The engines that have a short name.
_ENGINES = {
    "vllm": "capflow_tasks.engine.vllm_engine:build",
    "openai": "capflow_tasks.engine.openai_engine:build",
}


def build_engine(settings: Settings, model: str, kind: str) -> Engine:
    """Build the engine of this kind, as CAPFLOW_ENGINE names it, not started yet. Raises SettingsError."""
    module, _, factory = _ENGINES.get(kind, kind).partition(":")
    try:
        build = getattr(import_module(module), factory)
    except (ImportError, AttributeError, ValueError) as error:
        raise SettingsError(
            f"CAPFLOW_ENGINE={kind!r}: {error}; expected vllm, openai, or module:factory; "
            "vllm needs pip install '.[gpu]', or '.[cpu]' without a GPU; openai needs '.[openai]'"
        ) from error
    engine: Engine = build(settings, model)
    return engine
