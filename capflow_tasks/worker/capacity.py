"""How many batches a worker may have open at a time, so that their prefixes stay in the engine's cache.

A sample's calls come back to the worker that has its prefix. With more samples open than the KV cache holds,
the prefix of each is gone by the time its next call comes, and is computed again.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from threading import Lock

from capflow_tasks.records import Result

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
