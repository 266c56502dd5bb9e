"""Qwen2.5-VL's shapes without its weights: a folder that vLLM loads with `load_format=dummy`.

Sizes and token ids are those of the public config.json. The tokenizer is the demo's, filled up to Qwen's
size, so that every id that random weights choose has a text.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from capflow_tasks.records import JsonObject
from tests.checkpoints import tiny_checkpoint

#: Rows of the public models' embeddings; Qwen's own tokenizer has fewer tokens.
VOCABULARY = 152064
#: Qwen's id of <|endoftext|>; the other special tokens follow.
_FIRST_SPECIAL = 151643
_QWEN_ORDER = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>",
    "<|box_start|>", "<|box_end|>", "<|quad_start|>", "<|quad_end|>", "<|vision_start|>", "<|vision_end|>",
    "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Architecture:
    """The sizes in a model's config.json; the defaults are those of every public size's vision tower."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    key_value_heads: int
    vision_intermediate: int
    vision_hidden: int = 1280
    vision_heads: int = 16
    #: Vision layers whose attention sees the whole picture.
    full_attention: tuple[int, ...] = (7, 15, 23, 31)
    #: Largest picture that the processor accepts, pixels.
    max_pixels: int = 12_845_056
    #: Weights and activations of the language model in 8 bits, as in the published FP8 checkpoints.
    is_fp8: bool = False

    @property
    def engine_args(self) -> JsonObject:
        worker = {"worker_cls": "tests.benchmarks.gpu.worker.RandomWeightsWorker"} if self.is_fp8 else {}
        return {"load_format": "dummy", **worker}

    @property
    def rope_sections(self) -> list[int]:
        """Time, height and width, in pairs of a head's dimensions."""
        half = self.hidden // self.heads // 2
        return [half // 4, half * 3 // 8, half * 3 // 8]


ARCHITECTURES = {
    # Qwen/Qwen2.5-VL-7B-Instruct: 8.29 billion weights, 16.6 GB.
    "7b": Architecture(3584, 18944, 28, 28, 4, vision_intermediate=3420),
    # Qwen/Qwen2.5-VL-72B-Instruct: 73.41 billion weights, 77 GB with 8 bits per weight of the language model.
    "72b": Architecture(8192, 29568, 80, 64, 8, vision_intermediate=3456, is_fp8=True),
    "tiny": Architecture(
        128, 256, 2, 4, 2,
        vision_intermediate=128, vision_hidden=64, vision_heads=2, full_attention=(1,), max_pixels=1_003_520,
    ),
}  # fmt: skip


def write_model(folder: Path, architecture: Architecture) -> None:
    """Write all files of the model except its weights."""
    folder.mkdir(parents=True, exist_ok=True)
    demo = tiny_checkpoint()
    read = {path.name: json.loads(path.read_text()) for path in demo.glob("*.json")}
    tokenizer = _filled_up(read["tokenizer.json"])
    ids = {token["content"]: token["id"] for token in tokenizer["added_tokens"]}
    processor = read["processor_config.json"]
    processor["image_processor"]["size"]["longest_edge"] = architecture.max_pixels
    end, padding = ids["<|im_end|>"], ids["<|endoftext|>"]
    files = {
        "config.json": _config(read["config.json"], architecture, ids),
        "generation_config.json": read["generation_config.json"]
        | {"bos_token_id": padding, "eos_token_id": [end, padding], "pad_token_id": padding},
        "processor_config.json": processor,
        "tokenizer.json": tokenizer,
        # Qwen2Tokenizer would rebuild the tokenizer and lose `ignore_merges`.
        "tokenizer_config.json": read["tokenizer_config.json"]
        | {"tokenizer_class": "PreTrainedTokenizerFast"},
    }
    for file, content in files.items():
        (folder / file).write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    (folder / "chat_template.jinja").write_text((demo / "chat_template.jinja").read_text())


def _config(demo: JsonObject, architecture: Architecture, ids: dict[str, int]) -> JsonObject:
    text = demo["text_config"] | {
        "hidden_size": architecture.hidden,
        "intermediate_size": architecture.intermediate,
        "num_hidden_layers": architecture.layers,
        "num_attention_heads": architecture.heads,
        "num_key_value_heads": architecture.key_value_heads,
        "max_window_layers": architecture.layers,
        "layer_types": ["full_attention"] * architecture.layers,
        "max_position_embeddings": 128_000,
        "rms_norm_eps": 1e-6,
        "vocab_size": VOCABULARY,
        "tie_word_embeddings": False,
        "rope_parameters": demo["text_config"]["rope_parameters"]
        | {"mrope_section": architecture.rope_sections},
        "bos_token_id": ids["<|endoftext|>"],
        "eos_token_id": ids["<|im_end|>"],
        "pad_token_id": ids["<|endoftext|>"],
    }
    vision = demo["vision_config"] | {
        "depth": architecture.full_attention[-1] + 1,
        "hidden_size": architecture.vision_hidden,
        "intermediate_size": architecture.vision_intermediate,
        "num_heads": architecture.vision_heads,
        "out_hidden_size": architecture.hidden,
        "fullatt_block_indexes": list(architecture.full_attention),
        "tokens_per_second": 2,
    }
    whole = demo | {
        "image_token_id": ids["<|image_pad|>"],
        "video_token_id": ids["<|video_pad|>"],
        "vision_start_token_id": ids["<|vision_start|>"],
        "vision_end_token_id": ids["<|vision_end|>"],
        "text_config": text,
        "vision_config": vision,
        "tie_word_embeddings": False,
    }
    return whole | ({"quantization_config": _fp8_by_channel()} if architecture.is_fp8 else {})


def _fp8_by_channel() -> JsonObject:
    """Return LLM Compressor's FP8_DYNAMIC: a scale per row of weights and one per token."""
    eight_bits = {"num_bits": 8, "type": "float", "symmetric": True}
    return {
        "quant_method": "compressed-tensors",
        "format": "float-quantized",
        "quantization_status": "compressed",
        "ignore": ["re:.*lm_head", "re:.*visual.*"],
        "config_groups": {
            "group_0": {
                "targets": ["Linear"],
                "weights": {**eight_bits, "strategy": "channel", "dynamic": False},
                "input_activations": {**eight_bits, "strategy": "token", "dynamic": True},
            }
        },
    }


def _filled_up(tokenizer: JsonObject) -> JsonObject:
    """Return the demo's tokenizer.json with Qwen's ids for special tokens and a word for every other id."""
    vocabulary = dict(tokenizer["model"]["vocab"])
    specials = sorted(tokenizer["added_tokens"], key=lambda token: _QWEN_ORDER.index(token["content"]))
    ids = {token["content"]: _FIRST_SPECIAL + place for place, token in enumerate(specials)}
    taken = {*vocabulary.values(), *ids.values()}
    words = _words_not_in(vocabulary)
    vocabulary |= {next(words): number for number in range(VOCABULARY) if number not in taken}
    vocabulary |= ids
    # An answer is read again in the next prompt and must cost as many tokens there. No merges lead to the
    # new words, so whole words are looked up.
    model = tokenizer["model"] | {
        "vocab": dict(sorted(vocabulary.items(), key=lambda item: item[1])),
        "ignore_merges": True,
    }
    added = [token | {"id": ids[token["content"]]} for token in specials]
    return tokenizer | {"model": model, "added_tokens": added}


def _words_not_in(vocabulary: dict[str, int]) -> Iterator[str]:
    """Yield words of four syllables with their leading space, as byte-level vocabularies write it."""
    syllables = [consonant + vowel for consonant in "bdfgklmnprstvz" for vowel in "aeiou"]
    number = 0
    while True:
        rest, word = number, "Ġ"
        for _ in range(4):
            rest, place = divmod(rest, len(syllables))
            word += syllables[place]
        number += 1
        if word not in vocabulary:
            yield word
