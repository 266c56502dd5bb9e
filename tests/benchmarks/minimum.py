"""The least that the prompts of a set of samples can cost with a perfect prefix cache."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

from capflow_tasks.records import Request
from tests.benchmarks.workload import Sample

#: Tokens that vLLM's cache keeps or forgets together on a CPU.
BLOCK_TOKENS = 128


class PromptCost:
    """Counts prompt tokens as the engine does: text by its tokenizer, all pictures at the same number."""

    def __init__(self, processor: Any, picture_tokens: int) -> None:
        self._processor = processor
        self._picture_tokens = picture_tokens
        self._picture = processor.tokenizer.convert_tokens_to_ids("<|image_pad|>")

    def minimum(self, samples: Sequence[Sample]) -> int:
        """Tokens to compute when every block is computed once.

        A block is a full run of 128 tokens with all that stands before it. It is free if any earlier request
        of the set held it, in any sample, also one that runs at the same time. The last token of a prompt is
        computed always, since the first word of the answer comes from it; so a prompt that ends with a block
        computes that block again.
        """
        known: set[Hashable] = set()
        return sum(
            self._computed(request, known) for sample in samples for turn in sample for request in turn
        )

    def _computed(self, request: Request, known: set[Hashable]) -> int:
        tokens = self._tokens(request)
        blocks = [tuple(tokens[:end]) for end in range(BLOCK_TOKENS, len(tokens) + 1, BLOCK_TOKENS)]
        reusable = blocks[: (len(tokens) - 1) // BLOCK_TOKENS]
        spared = next((number for number, block in enumerate(reusable) if block not in known), len(reusable))
        known.update(blocks)
        return len(tokens) - spared * BLOCK_TOKENS

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
            is_picture = token == self._picture
            found += [next(pictures).path] * self._picture_tokens if is_picture else [token]
        return found
