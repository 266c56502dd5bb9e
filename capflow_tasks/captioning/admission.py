"""Decides which batches may run together, and how many."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from threading import Condition, Lock

from capflow_tasks.records import Result


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
    def hold(self, *, alone: bool) -> Iterator[None]:
        with self._changed:
            self._waiting_alone += alone
            self._changed.wait_for(
                lambda: not self._is_alone and not (self._shared if alone else self._waiting_alone)
            )
            self._waiting_alone -= alone
            self._is_alone = alone
            self._shared += not alone
        try:
            yield
        finally:
            with self._changed:
                self._is_alone = False
                self._shared -= not alone
                self._changed.notify_all()


class BatchLimit:
    """Limits open batches to those whose prefixes fit the engine's cache. Thread-safe."""

    def __init__(self, cache_tokens: int | None) -> None:
        #: Tokens that the engine's cache holds; None for an engine without a limit.
        self._cache_tokens = cache_tokens
        self._lock = Lock()
        #: Mean cost of the batches so far, in which the newest has a weight of 0.2; None before the first.
        self._batch_tokens: float | None = None

    def limit(self, most: int) -> int:
        """Return how many batches may be open: at least 1, and `most` until a batch's cost is known."""
        if self._cache_tokens is None or not self._batch_tokens:
            return most
        # A tenth of the cache is for answers in progress.
        return max(1, min(most, int(self._cache_tokens * 0.9 / self._batch_tokens)))

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
            self._batch_tokens = known + (tokens - known) * 0.2
