"""What an engine is to the stages, and how settings choose one. Imports no engine before it is built."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from importlib import import_module
from typing import Protocol

from capflow_tasks.errors import SampleError, SettingsError
from capflow_tasks.records import Completion, Request
from capflow_tasks.settings import Settings

#: What became of one request: its answer, or why there is none.
Answer = Completion | SampleError


class EngineState(StrEnum):
    """Whether an engine can be asked."""

    LOADING = "loading"
    UP = "up"
    #: It died, and is rebuilt when it is next asked.
    DEAD = "dead"


class Engine(Protocol):
    """Holds one model and answers requests."""

    #: The name under which results are stored.
    model: str

    def start(self) -> None:
        """Load the model; returns when requests can be taken. Raises ServiceError."""

    def stop(self) -> None:
        """Free the model; nothing may be in flight."""

    def generate(self, requests: Sequence[Request]) -> list[Answer]:
        """Answer all requests concurrently, in their order. Called from many threads at once.

        A request that fails yields its error in its place and leaves the others alone.
        Raises EngineDead when the engine died under them; the next call finds it rebuilt, or raises
        ServiceError.
        """


def state_of(engine: Engine) -> EngineState:
    """The state of a started engine; one that has no `state` to tell is up."""
    state: EngineState = getattr(engine, "state", EngineState.UP)
    return state


def cache_tokens_of(engine: Engine) -> int | None:
    """Tokens that the engine's KV cache holds; None for one that has no `cache_tokens` to tell."""
    return getattr(engine, "cache_tokens", None)


def build_engine(settings: Settings, model: str) -> Engine:
    """The engine of this model, not started yet. Raises SettingsError."""
    path = "capflow_tasks.engine.vllm_engine:build" if settings.engine == "vllm" else settings.engine
    module, _, factory = path.partition(":")
    try:
        build = getattr(import_module(module), factory)
    except (ImportError, AttributeError, ValueError) as error:
        raise SettingsError(
            f"CAPFLOW_ENGINE={settings.engine!r}: {error}; expected vllm, or module:factory, "
            "and for vllm: pip install 'capflow[gpu]' or 'capflow[cpu]'"
        ) from error
    engine: Engine = build(settings, model)
    return engine
