"""vLLM and transformers under the names that NeMo Curator's modules hold, imported on first use.

Importing them takes seconds and hundreds of megabytes. A module can hold these names, and a test can patch
them there, without that cost.
"""

from __future__ import annotations

import os
import sys
from abc import ABC, abstractmethod
from importlib import import_module
from importlib.util import find_spec
from typing import Any


def is_installed(library: str) -> bool:
    """Check without an import; a test may also put a stand-in, or None, into `sys.modules`."""
    if library in sys.modules:
        return sys.modules[library] is not None
    return find_spec(library) is not None


VLLM_AVAILABLE = is_installed("vllm")


class OnDemand:
    """A class of a heavy library, which is imported when an instance is made."""

    def __init__(self, library: str, name: str) -> None:
        self._library, self._name = library, name

    def _load(self) -> Any:
        # vLLM reads its environment when it is imported
        os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
        return getattr(import_module(self._library), self._name)

    def __call__(self, **arguments: Any) -> Any:
        return self._load()(**arguments)

    def from_pretrained(self, source: str, **arguments: Any) -> Any:
        return self._load().from_pretrained(source, **arguments)


LLM = OnDemand("vllm", "LLM")
SamplingParams = OnDemand("vllm", "SamplingParams")
AutoProcessor = OnDemand("transformers", "AutoProcessor")
AutoTokenizer = OnDemand("transformers", "AutoTokenizer")


class ModelInterface(ABC):
    """A model whose weights are in a folder and are loaded on demand."""

    @property
    @abstractmethod
    def model_id_names(self) -> list[str]:
        """The hub names of the checkpoints that it needs."""

    @abstractmethod
    def setup(self) -> None:
        """Load the weights."""
