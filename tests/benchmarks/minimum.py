"""The least prompt tokens that a set of samples costs with a perfect prefix cache."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from typing import Any

from capflow_tasks.records import Request
from tests.benchmarks.workload import Sample

#: Tokens per block of vLLM's cache on a CPU.
BLOCK_TOKENS = 128


class PromptCost:
    """Count prompt tokens as the engine does: text by its tokenizer, each medium as the same number."""

    def __init__(self, processor: Any, picture_tokens: int, block_tokens: int = BLOCK_TOKENS) -> None:
        self._processor = processor
        self._picture_tokens = picture_tokens
        self._block = block_tokens
        token_of = processor.tokenizer.convert_tokens_to_ids
        self._pads = {token_of("<|image_pad|>"), token_of("<|video_pad|>")}

    def minimum(self, samples: Sequence[Sample]) -> int:
        """Return the tokens to compute when every block is computed once.

        A block is a full run of tokens with everything before it. It is free if an earlier request of the set
        held it, in any sample, even one that runs at the same time. The last token of a prompt is always
        computed, because the first word of the answer comes from it; so a prompt that ends with a block
        computes that block again.
        """
        known: set[int] = set()
        return sum(
            self._computed(request, known) for sample in samples for turn in sample for request in turn
        )

    def _computed(self, request: Request, known: set[int]) -> int:
        tokens = self._tokens(request)
        blocks = list(self._blocks(tokens))
        reusable = blocks[: (len(tokens) - 1) // self._block]
        spared = next((number for number, block in enumerate(reusable) if block not in known), len(reusable))
        known.update(blocks)
        return len(tokens) - spared * self._block

    def _blocks(self, tokens: Sequence[Hashable]) -> Iterator[int]:
        """Yield for each full block a number that identifies it and everything before it."""
        number = 0
        for end in range(self._block, len(tokens) + 1, self._block):
            number = hash((number, *tokens[end - self._block : end]))
            yield number

    def _tokens(self, request: Request) -> list[Hashable]:
        parts = [{"type": ref.kind.value} for ref in request.media]
        messages = [
            {"role": "system", "content": [{"type": "text", "text": request.system}]},
            {"role": "user", "content": [*parts, {"type": "text", "text": request.instruction}]},
        ]
        text = self._processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        pictures = iter(request.media)
        found: list[Hashable] = []
        for token in self._processor.tokenizer(text)["input_ids"]:
            is_picture = token in self._pads
            found += [next(pictures).path] * self._picture_tokens if is_picture else [token]
        return found
