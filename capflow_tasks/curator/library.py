"""vLLM and transformers under the names that code for NeMo Curator uses, imported when first called.

They cost seconds and hundreds of megabytes; a module may hold these names, and a test may patch them there,
without paying that.
"""

from __future__ import annotations

import os
import sys
from abc import ABC, abstractmethod
from importlib.util import find_spec
from typing import Any


def is_installed(library: str) -> bool:
    """Tell without importing it; what a test has put into `sys.modules` counts."""
    if library in sys.modules:
        return sys.modules[library] is not None
    return find_spec(library) is not None


VLLM_AVAILABLE = is_installed("vllm")


def missing_vllm(model: str) -> ImportError:
    """Return what to raise where vLLM is needed and is not there."""
    return ImportError(
        f"vllm is required for {model} model but is not installed. Please install vllm: pip install vllm, "
        "or with this package: pip install 'capflow[gpu]', without a GPU pip install 'capflow[cpu]'."
    )


class LLM:
    """vLLM's `LLM`."""

    def __new__(cls, **arguments: Any) -> Any:
        # vLLM reads its environment when it is imported.
        os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
        import vllm

        return vllm.LLM(**arguments)


class SamplingParams:
    """vLLM's `SamplingParams`."""

    def __new__(cls, **arguments: Any) -> Any:
        import vllm

        return vllm.SamplingParams(**arguments)


class AutoProcessor:
    """transformers' `AutoProcessor`."""

    @staticmethod
    def from_pretrained(source: str, **arguments: Any) -> Any:
        import transformers

        return transformers.AutoProcessor.from_pretrained(source, **arguments)


class AutoTokenizer:
    """transformers' `AutoTokenizer`."""

    @staticmethod
    def from_pretrained(source: str, **arguments: Any) -> Any:
        import transformers

        return transformers.AutoTokenizer.from_pretrained(source, **arguments)


class ModelInterface(ABC):
    """A model whose weights lie in a folder, loaded on demand; how it is asked is its own affair."""

    @property
    @abstractmethod
    def model_id_names(self) -> list[str]:
        """The hub names of the checkpoints that it needs."""

    @abstractmethod
    def setup(self) -> None:
        """Load the weights."""
