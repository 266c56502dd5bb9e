"""A small tokenizer filled up to the size of Qwen's: every id that random weights choose has a text."""

from __future__ import annotations

from collections.abc import Iterator

from capflow_tasks.records import JsonObject

#: Rows of the public models' embeddings; Qwen's own tokenizer has fewer tokens.
VOCABULARY = 152064
#: Qwen's id of <|endoftext|>; the other special tokens follow.
_FIRST_SPECIAL = 151643
_QWEN_ORDER = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>",
    "<|box_start|>", "<|box_end|>", "<|quad_start|>", "<|quad_end|>", "<|vision_start|>", "<|vision_end|>",
    "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>",
)  # fmt: skip


def filled_up(tokenizer: JsonObject) -> JsonObject:
    """The demo's tokenizer.json with Qwen's ids for special tokens, and a word for every other id."""
    vocabulary, specials = dict(tokenizer["model"]["vocab"]), _in_qwen_order(tokenizer["added_tokens"])
    ids = {token["content"]: _FIRST_SPECIAL + place for place, token in enumerate(specials)}
    taken = {*vocabulary.values(), *ids.values()}
    words = _words_not_in(vocabulary)
    vocabulary |= {next(words): number for number in range(VOCABULARY) if number not in taken}
    vocabulary |= ids
    # What random weights write is read again in the next prompt, and has to cost as many tokens there: no
    # merges lead to the words, so they are looked up whole.
    model = tokenizer["model"] | {
        "vocab": dict(sorted(vocabulary.items(), key=lambda item: item[1])),
        "ignore_merges": True,
    }
    added = [token | {"id": ids[token["content"]]} for token in specials]
    return tokenizer | {"model": model, "added_tokens": added}


def _in_qwen_order(tokens: list[JsonObject]) -> list[JsonObject]:
    """Qwen counts <|endoftext|> first; the demo's tokenizer put the end token before it."""
    return sorted(tokens, key=lambda token: _QWEN_ORDER.index(token["content"]))


def _words_not_in(vocabulary: dict[str, int]) -> Iterator[str]:
    """Words with their leading space, as byte-level vocabularies write it."""
    number = 0
    while True:
        word = f"Ġ{_letters(number)}"
        number += 1
        if word not in vocabulary:
            yield word


def _letters(number: int) -> str:
    """Four syllables that differ for each number."""
    consonants, vowels = "bdfgklmnprstvz", "aeiou"
    found = ""
    for _ in range(4):
        number, place = divmod(number, len(consonants) * len(vowels))
        found += consonants[place // len(vowels)] + vowels[place % len(vowels)]
    return found
