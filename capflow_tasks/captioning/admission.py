"""Decides which batches may run together, and how many."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from threading import Condition, Lock

from capflow_tasks.records import Result

#: Share of the KV cache that open samples may fill; the rest is for answers in progress.
_CACHE_SHARE = 0.9
#: Weight of the newest batch in the mean cost of a batch.
_NEWEST_WEIGHT = 0.2


class SharedOrAlone:
    """A lock that many threads share or one holds alone, so that a dead engine has one suspect.

    A thread that waits to be alone goes before threads that come later.
    """

    def __init__(self) -> None:
        self._changed = Condition()
        self._shared = 0
        self._is_alone = False
        self._waiting_alone = 0

    @contextmanager
    def shared(self) -> Iterator[None]:
        with self._changed:
            self._changed.wait_for(lambda: not self._is_alone and not self._waiting_alone)
            self._shared += 1
        try:
            yield
        finally:
            with self._changed:
                self._shared -= 1
                self._changed.notify_all()

    @contextmanager
    def alone(self) -> Iterator[None]:
        with self._changed:
            self._waiting_alone += 1
            self._changed.wait_for(lambda: not self._is_alone and not self._shared)
            self._waiting_alone -= 1
            self._is_alone = True
        try:
            yield
        finally:
            with self._changed:
                self._is_alone = False
                self._changed.notify_all()


class BatchLimit:
    """Limits open batches to those whose prefixes fit the engine's cache. Thread-safe."""

    def __init__(self, cache_tokens: int | None) -> None:
        #: Tokens that the engine's cache holds; None for an engine without a limit.
        self._cache_tokens = cache_tokens
        self._lock = Lock()
        #: Mean cost of the batches so far; None before the first.
        self._batch_tokens: float | None = None

    def limit(self, most: int) -> int:
        """Return how many batches may be open: at least 1, and `most` until a batch's cost is known."""
        if self._cache_tokens is None or not self._batch_tokens:
            return most
        return max(1, min(most, int(self._cache_tokens * _CACHE_SHARE / self._batch_tokens)))

    def observe(self, samples: Iterable[Sequence[Result]]) -> None:
        """Learn from one batch's results of one stage, by sample."""
        tokens = 0
        for results in filter(None, samples):
            # A sample's shared prefix is in the cache once, with the rest of each call.
            prompts = [result.prompt_tokens for result in results]
            tokens += sum(prompts) - (len(prompts) - 1) * min(prompts)
            tokens += sum(result.completion_tokens for result in results)
        if not tokens:
            return
        with self._lock:
            known = self._batch_tokens or tokens
            self._batch_tokens = known + (tokens - known) * _NEWEST_WEIGHT
