"""Decides which batches may run together, and how many."""

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from math import ceil, inf
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


#: Samples in open batches while an engine's limits or a sample's cost are unknown.
_FIRST_SAMPLES = 64
#: Share of the cache to fill; requests over it wait inside the engine.
_CACHE_SHARE = 0.95
#: Weight of all samples so far when another is added to a mean.
_MEMORY = 0.99


class EngineRoom:
    """Knows how many more samples keep an engine full: its cache, and its requests per step. Thread-safe."""

    def __init__(self, cache_tokens: int | None, max_requests: int | None) -> None:
        #: Tokens that the engine's cache holds; None for an engine without a limit.
        self._cache_tokens = cache_tokens
        #: Requests in one engine step; None for an engine without a limit.
        self._max_requests = max_requests
        self._lock = Lock()
        self._asking = 0
        # Sums over samples, of which older ones count less: their time, and what they held during that time.
        self._seconds = self._token_seconds = self._request_seconds = 0.0

    @contextmanager
    def asking(self) -> Iterator[None]:
        """Count a sample that waits for answers."""
        with self._lock:
            self._asking += 1
        try:
            yield
        finally:
            with self._lock:
                self._asking -= 1

    def samples(self) -> float | None:
        """Return how many more samples fit, negative when there are too many; None while that is unknown."""
        with self._lock:
            if not self._request_seconds or (self._cache_tokens is None and self._max_requests is None):
                return None
            by_cache = (self._cache_tokens or inf) * _CACHE_SHARE * self._seconds / self._token_seconds
            by_requests = (self._max_requests or inf) * self._seconds / self._request_seconds
            return min(by_cache, by_requests) - self._asking

    def observe(self, results: Sequence[Result], seconds: float) -> None:
        """Learn from what one sample asked in a stage, and how long that took it."""
        if not results or seconds <= 0:
            return
        # The calls share a prefix, which is in the cache once; an answer in progress is half written.
        shared = min(result.prompt_tokens for result in results)
        token_seconds, request_seconds = shared * seconds, 0.0
        for result in results:
            # An engine that does not measure its calls says 0.
            waited = result.seconds or seconds
            token_seconds += (result.prompt_tokens - shared + result.completion_tokens / 2) * waited
            request_seconds += waited
        with self._lock:
            self._seconds = self._seconds * _MEMORY + seconds
            self._token_seconds = self._token_seconds * _MEMORY + token_seconds
            self._request_seconds = self._request_seconds * _MEMORY + request_seconds


class BatchLimit:
    """Limits open batches to those that keep the engines full."""

    def __init__(self, rooms: Collection[EngineRoom], most: int) -> None:
        self._rooms = rooms
        self._most = most
        self._limit = 1

    def limit(self, open_batches: int, new_batches: int, batch_size: int) -> int:
        """Return how many batches may be open, at least 1.

        Samples of the `new_batches` among them are not asked about yet. Without room, the limit follows the
        open batches down, never up: a batch that was taken out of turn must not make place for another.
        """
        rooms = [each.samples() for each in self._rooms]
        known = [room for room in rooms if room is not None]
        room = min(known, default=inf) - new_batches * batch_size
        if room <= 0:
            self._limit = min(self._limit, open_batches)
        elif len(known) < len(rooms):
            self._limit = ceil(_FIRST_SAMPLES / batch_size)
        else:
            self._limit = open_batches + ceil(room / batch_size)
        self._limit = max(1, min(self._limit, self._most))
        return self._limit
