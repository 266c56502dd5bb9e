"""Decoded media of the samples in flight, so that the calls of one sample decode its files once."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from concurrent.futures import Executor, Future
from threading import Lock
from typing import Generic, TypeVar

T = TypeVar("T")


class MediaCache(Generic[T]):
    """Least recently used first out, bounded in bytes. Callers that ask at once share one load."""

    def __init__(self, executor: Executor, max_bytes: int, size_of: Callable[[T], int]) -> None:
        self._executor = executor
        self._max_bytes = max_bytes
        self._size_of = size_of
        self._lock = Lock()
        self._futures: OrderedDict[Hashable, Future[T]] = OrderedDict()
        #: Bytes of what is here, by key.
        self._sizes: dict[Hashable, int] = {}

    def load(self, key: Hashable, loader: Callable[[], T]) -> Future[T]:
        """The value for this key, loaded in the executor unless it is here or on its way."""
        with self._lock:
            if (known := self._futures.get(key)) is not None:
                self._futures.move_to_end(key)
                return known
            future = self._futures[key] = self._executor.submit(loader)
        future.add_done_callback(lambda done: self._settle(key, done))
        return future

    def _settle(self, key: Hashable, future: Future[T]) -> None:
        with self._lock:
            if future.cancelled() or future.exception():
                # A failure is not kept: the file may be readable the next time.
                self._futures.pop(key, None)
                return
            self._sizes[key] = self._size_of(future.result())
            while sum(self._sizes.values()) > self._max_bytes:
                self._drop_oldest()

    def _drop_oldest(self) -> None:
        """What is still being loaded has no size yet, and stays."""
        oldest = next(key for key in self._futures if key in self._sizes)
        del self._futures[oldest], self._sizes[oldest]
