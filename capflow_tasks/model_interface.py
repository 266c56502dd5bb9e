"""What every model offers that is used without the fleet: its names, and a way to load it."""

from __future__ import annotations

from abc import ABC, abstractmethod


class ModelInterface(ABC):
    """A model whose weights lie in a folder, loaded on demand; how it is asked is its own affair."""

    @property
    @abstractmethod
    def model_id_names(self) -> list[str]:
        """The hub names of the checkpoints that it needs."""

    @abstractmethod
    def setup(self) -> None:
        """Load the weights."""
