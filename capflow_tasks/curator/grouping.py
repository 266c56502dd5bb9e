"""Splits a sequence into chunks. A module of its own because NeMo Curator's tests patch it as one."""

from collections.abc import Iterator, Sequence
from typing import TypeVar

T = TypeVar("T")


def split_by_chunk_size(items: Sequence[T], chunk_size: int) -> Iterator[Sequence[T]]:
    """Yield chunks of `chunk_size` items, in order; the last may be shorter."""
    if chunk_size < 1:
        raise ValueError(f"The chunk size must be at least 1, not {chunk_size}.")
    for start in range(0, len(items), chunk_size):
        yield items[start : start + chunk_size]
