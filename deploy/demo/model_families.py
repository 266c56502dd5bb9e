"""How tiny checkpoints of five model families differ: tokenizer, chat template, configuration, processor.

All but the weights is as in the real models, so that vLLM and transformers take the same path as for those.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import (
    Gemma3Config,
    Gemma3ImageProcessor,
    Gemma3Processor,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLProcessor,
    Qwen2Tokenizer,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
    Qwen3_5Config,
    Qwen3Config,
    Qwen3VLConfig,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
)

JsonObject = dict[str, Any]

REPOSITORY = Path(__file__).resolve().parents[2]
VOCABULARY_SIZE = 2000
CONTEXT_TOKENS = 32768


@dataclass(frozen=True, slots=True)
class Shape:
    """The sizes of a model."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    key_value_heads: int
    vision_hidden: int
    vision_depth: int

    @property
    def head_size(self) -> int:
        return self.hidden // self.heads


SHAPES = {
    "tiny": Shape(128, 256, 2, 4, 2, vision_hidden=64, vision_depth=2),
    "small": Shape(1024, 3072, 2, 16, 4, vision_hidden=192, vision_depth=4),
}

SPECIAL_TOKENS = [
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|box_end|>",
    "<|quad_start|>",
    "<|quad_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
]

#: How Qwen splits text before it merges bytes: words with their leading space, digits one by one.
WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

#: From Qwen3 on.
THINKING_TOKENS = ["<think>", "</think>"]

_QWEN_CHAT = (
    "{% for message in messages %}"
    "FIRST"
    "<|im_start|>{{ message.role }}\n"
    "{% if message.content is string %}{{ message.content }}PARTS{% endif %}"
    "<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\nTHINKING{% endif %}"
)
_DEFAULT_SYSTEM = (
    "{% if loop.first and message.role != 'system' %}"
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    "{% endif %}"
)
_MEDIA_PARTS = (
    "{% else %}"
    "{% for part in message.content %}"
    "{% if part.type == 'image' or 'image' in part or 'image_url' in part %}"
    "<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif part.type == 'video' or 'video' in part or 'video_url' in part %}"
    "<|vision_start|><|video_pad|><|vision_end|>"
    "{% elif 'text' in part %}{{ part.text }}"
    "{% endif %}"
    "{% endfor %}"
)
_NO_THINKING = (
    "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\nELSE{% endif %}"
)


def _qwen_chat(first: str = "", parts: str = "", thinking: str = "") -> str:
    return _QWEN_CHAT.replace("FIRST", first).replace("PARTS", parts).replace("THINKING", thinking)


QWEN25_CHAT = _qwen_chat(_DEFAULT_SYSTEM, _MEDIA_PARTS)
QWEN3_VL_CHAT = _qwen_chat("", _MEDIA_PARTS)
#: Opens the answer with thinking unless told not to.
QWEN35_CHAT = _qwen_chat("", _MEDIA_PARTS, _NO_THINKING.replace("ELSE", "{% else %}<think>\n"))
#: Content that is no string is left out, without a word.
QWEN3_CHAT = _qwen_chat("", "", _NO_THINKING.replace("ELSE", ""))

GEMMA_TOKENS = [
    "<pad>",
    "<eos>",
    "<bos>",
    "<start_of_turn>",
    "<end_of_turn>",
    "<start_of_image>",
    "<end_of_image>",
    "<image_soft_token>",
]
#: Gemma has no system turn: its text opens the first turn of the user.
GEMMA_CHAT = (
    "<bos>"
    "{% set told = namespace(system='') %}"
    "{% for message in messages %}"
    "{% if message.role == 'system' %}"
    "{% set told.system = message.content if message.content is string else message.content[0].text %}"
    "{% else %}"
    "<start_of_turn>{{ 'model' if message.role == 'assistant' else message.role }}\n"
    "{% if told.system %}{{ told.system }}\n\n{% set told.system = '' %}{% endif %}"
    "{% if message.content is string %}{{ message.content }}{% else %}"
    "{% for part in message.content %}"
    "{% if part.type == 'image' %}<start_of_image>{% elif 'text' in part %}{{ part.text }}{% endif %}"
    "{% endfor %}"
    "{% endif %}"
    "<end_of_turn>\n"
    "{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)


def read_corpus() -> Iterator[str]:
    """Return the text that the vocabulary is learned from: the project's prompts."""
    for path in sorted(REPOSITORY.glob("capflow_tasks/domains/*.yaml")):
        yield path.read_text("utf-8")


def train_vocabulary(
    special_tokens: list[str], corpus: Iterable[str], size: int
) -> tuple[Tokenizer, JsonObject]:
    """Train a byte-level BPE of at most `size` tokens, which covers any text; single digits stay tokens."""
    learner = Tokenizer(models.BPE())
    learner.normalizer = normalizers.NFC()
    learner.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    learner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size - len(special_tokens),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    learner.train_from_iterator(corpus, trainer)
    return learner, json.loads(learner.to_str())["model"]


def qwen_tokenizer(
    more_tokens: list[str], corpus: Iterable[str] | None = None, size: int = VOCABULARY_SIZE
) -> Qwen2Tokenizer:
    """Train Qwen's tokenizer on the corpus, by default the project's prompts."""
    special_tokens = [*SPECIAL_TOKENS, *more_tokens]
    _, learned = train_vocabulary(special_tokens, read_corpus() if corpus is None else corpus, size)
    return Qwen2Tokenizer(
        vocab=learned["vocab"],
        merges=[tuple(merge) for merge in learned["merges"]],
        eos_token="<|im_end|>",
        additional_special_tokens=special_tokens,
        model_max_length=CONTEXT_TOKENS,
    )


def gemma_tokenizer() -> PreTrainedTokenizerFast:
    learner, _ = train_vocabulary(GEMMA_TOKENS, read_corpus(), VOCABULARY_SIZE)
    learner.add_special_tokens(GEMMA_TOKENS)
    # line breaks in a row are one token of their own, which vLLM looks up
    learner.add_tokens([AddedToken("\n" * count, normalized=False) for count in range(1, 5)])
    return PreTrainedTokenizerFast(
        tokenizer_object=learner,
        bos_token="<bos>",
        eos_token="<eos>",
        pad_token="<pad>",
        extra_special_tokens={
            "boi_token": "<start_of_image>",
            "eoi_token": "<end_of_image>",
            "image_token": "<image_soft_token>",
        },
        model_max_length=CONTEXT_TOKENS,
    )


def text_config(tokenizer: PreTrainedTokenizerFast, shape: Shape, **more: Any) -> JsonObject:
    """Return what the language models of all families have in common."""
    ids = {name: tokenizer.convert_tokens_to_ids(token) for name, token in _text_tokens(tokenizer).items()}
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": shape.hidden,
        "intermediate_size": shape.intermediate,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.key_value_heads,
        "max_position_embeddings": CONTEXT_TOKENS,
        **ids,
        # tied embeddings would make random weights repeat themselves
        "tie_word_embeddings": False,
        "dtype": "bfloat16",
        **more,
    }


def _text_tokens(tokenizer: PreTrainedTokenizerFast) -> dict[str, str]:
    if isinstance(tokenizer, Qwen2Tokenizer):
        end = "<|endoftext|>"
        return {"bos_token_id": end, "eos_token_id": "<|im_end|>", "pad_token_id": end}
    return {"bos_token_id": "<bos>", "eos_token_id": "<end_of_turn>", "pad_token_id": "<pad>"}


def rope(sections: tuple[int, int, int], **more: Any) -> JsonObject:
    """`sections` are those of time, height and width: together half of what is rotated of a head."""
    return {"rope_type": "default", "rope_theta": 1e6, "mrope_section": list(sections), **more}


def media_tokens(tokenizer: PreTrainedTokenizerFast) -> JsonObject:
    """Return the token ids of Qwen's media."""
    names = {
        "image_token_id": "<|image_pad|>",
        "video_token_id": "<|video_pad|>",
        "vision_start_token_id": "<|vision_start|>",
        "vision_end_token_id": "<|vision_end|>",
    }
    return {name: tokenizer.convert_tokens_to_ids(token) for name, token in names.items()}


def qwen25_vl_config(tokenizer: PreTrainedTokenizerFast, shape: Shape) -> PreTrainedConfig:
    half = shape.head_size // 2
    vision = {
        "depth": shape.vision_depth,
        "hidden_size": shape.vision_hidden,
        "intermediate_size": 2 * shape.vision_hidden,
        "num_heads": shape.vision_hidden // 32,
        "window_size": 112,
        "fullatt_block_indexes": [shape.vision_depth - 1],
        "out_hidden_size": shape.hidden,
        "dtype": "bfloat16",
    }
    sections = (half // 4, half * 3 // 8, half * 3 // 8)
    return Qwen2_5_VLConfig(
        text_config=text_config(tokenizer, shape, rope_parameters=rope(sections)),
        vision_config=vision,
        **media_tokens(tokenizer),
        tie_word_embeddings=False,
        dtype="bfloat16",
    )


def qwen3_vision(shape: Shape, **more: Any) -> JsonObject:
    return {
        "depth": shape.vision_depth,
        "hidden_size": shape.vision_hidden,
        "intermediate_size": 2 * shape.vision_hidden,
        "num_heads": shape.vision_hidden // 32,
        "patch_size": 16,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        "out_hidden_size": shape.hidden,
        "num_position_embeddings": 2304,
        "dtype": "bfloat16",
        **more,
    }


def qwen3_vl_config(tokenizer: PreTrainedTokenizerFast, shape: Shape) -> PreTrainedConfig:
    half = shape.head_size // 2
    side = half * 5 // 16
    sections = rope((half - 2 * side, side, side), mrope_interleaved=True)
    return Qwen3VLConfig(
        text_config=text_config(tokenizer, shape, head_dim=shape.head_size, rope_parameters=sections),
        vision_config=qwen3_vision(shape, deepstack_visual_indexes=list(range(shape.layers))),
        **media_tokens(tokenizer),
        tie_word_embeddings=False,
        dtype="bfloat16",
    )


def qwen35_config(tokenizer: PreTrainedTokenizerFast, shape: Shape) -> PreTrainedConfig:
    """Three layers of linear attention, then one of full attention."""
    rotated = shape.head_size // 4 // 2
    side = rotated // 4
    sections = (rotated - 2 * side, side, side)
    text = text_config(
        tokenizer,
        shape,
        num_hidden_layers=4,
        layer_types=[*["linear_attention"] * 3, "full_attention"],
        head_dim=shape.head_size,
        linear_num_key_heads=2,
        linear_num_value_heads=4,
        linear_key_head_dim=128,
        linear_value_head_dim=128,
        linear_conv_kernel_dim=4,
        rope_parameters=rope(sections, mrope_interleaved=True, partial_rotary_factor=0.25),
    )
    return Qwen3_5Config(
        text_config=text,
        vision_config=qwen3_vision(shape),
        **media_tokens(tokenizer),
        tie_word_embeddings=False,
        dtype="bfloat16",
    )


def qwen3_config(tokenizer: PreTrainedTokenizerFast, shape: Shape) -> PreTrainedConfig:
    return Qwen3Config(**text_config(tokenizer, shape, head_dim=shape.head_size))


#: Pixels per side of Gemma's pictures, and of a patch; 4 x 4 patches make a token.
GEMMA_PICTURE, GEMMA_PATCH, GEMMA_TOKENS_PER_PICTURE = 448, 14, 64


def gemma3_config(tokenizer: PreTrainedTokenizerFast, shape: Shape) -> PreTrainedConfig:
    vision = {
        "hidden_size": shape.vision_hidden,
        "intermediate_size": 2 * shape.vision_hidden,
        "num_hidden_layers": shape.vision_depth,
        "num_attention_heads": shape.vision_hidden // 32,
        "image_size": GEMMA_PICTURE,
        "patch_size": GEMMA_PATCH,
        "vision_use_head": False,
        "dtype": "bfloat16",
    }
    text = text_config(
        tokenizer,
        shape,
        head_dim=shape.head_size,
        query_pre_attn_scalar=shape.head_size,
        sliding_window=1024,
        layer_types=["sliding_attention"] * (shape.layers - 1) + ["full_attention"],
    )
    return Gemma3Config(
        text_config=text,
        vision_config=vision,
        mm_tokens_per_image=GEMMA_TOKENS_PER_PICTURE,
        boi_token_index=tokenizer.convert_tokens_to_ids("<start_of_image>"),
        eoi_token_index=tokenizer.convert_tokens_to_ids("<end_of_image>"),
        image_token_index=tokenizer.convert_tokens_to_ids("<image_soft_token>"),
        tie_word_embeddings=False,
        dtype="bfloat16",
    )


def qwen25_vl_processor(tokenizer: PreTrainedTokenizerFast) -> Qwen2_5_VLProcessor:
    return Qwen2_5_VLProcessor(
        image_processor=Qwen2VLImageProcessor(size=_pixels(4 * 28**2, 1280 * 28**2)),
        video_processor=Qwen2VLVideoProcessor(
            size=_pixels(4 * 28**2, 768 * 28**2), cap_pixels_per_frame=False
        ),
        tokenizer=tokenizer,
        chat_template=tokenizer.chat_template,
    )


def qwen3_vl_processor(tokenizer: PreTrainedTokenizerFast) -> Qwen3VLProcessor:
    """The sizes are those of Qwen's release; a video's are of all its frames."""
    cut = {"patch_size": 16, "merge_size": 2, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    return Qwen3VLProcessor(
        image_processor=Qwen2VLImageProcessor(size=_pixels(256**2, 4096**2), **cut),
        video_processor=Qwen3VLVideoProcessor(
            size=_pixels(4096, 25_165_824), cap_pixels_per_frame=False, **cut
        ),
        tokenizer=tokenizer,
        chat_template=tokenizer.chat_template,
    )


def gemma3_processor(tokenizer: PreTrainedTokenizerFast) -> Gemma3Processor:
    side = {"height": GEMMA_PICTURE, "width": GEMMA_PICTURE}
    return Gemma3Processor(
        image_processor=Gemma3ImageProcessor(size=side, image_mean=[0.5] * 3, image_std=[0.5] * 3),
        tokenizer=tokenizer,
        chat_template=tokenizer.chat_template,
        image_seq_length=GEMMA_TOKENS_PER_PICTURE,
    )


def _pixels(least: int, most: int) -> dict[str, int]:
    return {"shortest_edge": least, "longest_edge": most}


@dataclass(frozen=True, slots=True)
class Family:
    """How the checkpoints of one architecture are made."""

    name: str
    tokenizer: Callable[[], PreTrainedTokenizerFast]
    chat_template: str
    config: Callable[[PreTrainedTokenizerFast, Shape], PreTrainedConfig]
    #: None for a family that reads only text.
    processor: Callable[[PreTrainedTokenizerFast], Any] | None


FAMILIES: Mapping[str, Family] = {
    "qwen2.5-vl": Family(
        "Qwen2.5-VL", lambda: qwen_tokenizer([]), QWEN25_CHAT, qwen25_vl_config, qwen25_vl_processor
    ),
    "qwen3-vl": Family(
        "Qwen3-VL", lambda: qwen_tokenizer([]), QWEN3_VL_CHAT, qwen3_vl_config, qwen3_vl_processor
    ),
    "qwen3.5": Family(
        "Qwen3.5", lambda: qwen_tokenizer(THINKING_TOKENS), QWEN35_CHAT, qwen35_config, qwen3_vl_processor
    ),
    "gemma3": Family("Gemma 3", gemma_tokenizer, GEMMA_CHAT, gemma3_config, gemma3_processor),
    "qwen3": Family("Qwen3", lambda: qwen_tokenizer(THINKING_TOKENS), QWEN3_CHAT, qwen3_config, None),
}
