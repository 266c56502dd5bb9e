"""Lets suspects run alone, so that a dead engine has one cause."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from threading import Condition, Lock

from capflow_tasks.records import Result


class Gate:
    """Many may be inside together, or one alone; whoever wants to be alone goes before newcomers."""

    def __init__(self) -> None:
        self._changed = Condition()
        self._together = 0
        self._is_alone = False
        self._waiting_alone = 0

    @contextmanager
    def together(self) -> Iterator[None]:
        with self._changed:
            self._changed.wait_for(lambda: not self._is_alone and not self._waiting_alone)
            self._together += 1
        try:
            yield
        finally:
            with self._changed:
                self._together -= 1
                self._changed.notify_all()

    @contextmanager
    def alone(self) -> Iterator[None]:
        with self._changed:
            self._waiting_alone += 1
            self._changed.wait_for(lambda: not self._is_alone and not self._together)
            self._waiting_alone -= 1
            self._is_alone = True
        try:
            yield
        finally:
            with self._changed:
                self._is_alone = False
                self._changed.notify_all()


#: Share of the cache that open samples may fill; the rest is for answers under way.
_SHARE = 0.9
#: Weight of the newest batch in the mean.
_WEIGHT = 0.2


class Capacity:
    """Learns what a batch costs from the batches that pass. Thread-safe."""

    def __init__(self, cache_tokens: int | None) -> None:
        #: Tokens that the engine's cache holds; None where nobody needs to care.
        self._cache_tokens = cache_tokens
        self._lock = Lock()
        #: Mean over the batches seen, tokens.
        self._batch_tokens: float | None = None

    def batches(self, most: int) -> int:
        """Batches that may be open now, one at least and `most` until one has been seen."""
        if self._cache_tokens is None or not self._batch_tokens:
            return most
        return max(1, min(most, int(self._cache_tokens * _SHARE / self._batch_tokens)))

    def observe(self, samples: Iterable[Sequence[Result]]) -> None:
        """Take in what one batch cost in one stage, by sample."""
        tokens = sum(map(_tokens, samples))
        if not tokens:
            return
        with self._lock:
            known = self._batch_tokens or tokens
            self._batch_tokens = known + (tokens - known) * _WEIGHT


def _tokens(results: Sequence[Result]) -> int:
    """What the calls of one sample fill: what they share once, and what each has to itself."""
    if not results:
        return 0
    prompts = [result.prompt_tokens for result in results]
    answers = sum(result.completion_tokens for result in results)
    return sum(prompts) - (len(prompts) - 1) * min(prompts) + answers
