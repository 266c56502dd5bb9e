"""Build a Qwen2.5-VL checkpoint of 1 million random weights, for the demo and the tests.

Everything but the weights is as in the real model: architecture, special tokens, chat template, processors.
So vLLM serves it with the same code, on a CPU, in seconds; its answers are noise. The same sources give the
same files.

    python deploy/demo/tiny_checkpoint.py FOLDER [tiny|small]

The small one has 31 million, so that the model takes more time than the code around it.
"""

import json
import os
import shutil
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import (
    GenerationConfig,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2Tokenizer,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
)
from transformers.utils import logging

REPOSITORY = Path(__file__).resolve().parents[2]
VOCABULARY_SIZE = 2000
CONTEXT_TOKENS = 32768
#: One media token stands for a square of 28 x 28 pixels.
TOKEN_PIXELS = 28 * 28


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
    def rope_sections(self) -> list[int]:
        """Time, height and width: together half of a head's size."""
        half = self.hidden // self.heads // 2
        return [half // 4, half * 3 // 8, half * 3 // 8]


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

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if loop.first and message.role != 'system' %}"
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    "{% endif %}"
    "<|im_start|>{{ message.role }}\n"
    "{% if message.content is string %}{{ message.content }}{% else %}"
    "{% for part in message.content %}"
    "{% if part.type == 'image' or 'image' in part or 'image_url' in part %}"
    "<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif part.type == 'video' or 'video' in part or 'video_url' in part %}"
    "<|vision_start|><|video_pad|><|vision_end|>"
    "{% elif 'text' in part %}{{ part.text }}"
    "{% endif %}"
    "{% endfor %}"
    "{% endif %}"
    "<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def read_corpus() -> Iterator[str]:
    """Return the text that the vocabulary is learned from: the project's prompts."""
    for path in sorted(REPOSITORY.glob("capflow_tasks/domains/*.yaml")):
        yield path.read_text("utf-8")


def train_tokenizer(corpus: Iterable[str], size: int) -> Qwen2Tokenizer:
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
        vocab_size=size - len(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    learner.train_from_iterator(corpus, trainer)
    learned = json.loads(learner.to_str())["model"]
    tokenizer = Qwen2Tokenizer(
        vocab=learned["vocab"],
        merges=[tuple(merge) for merge in learned["merges"]],
        eos_token="<|im_end|>",
        additional_special_tokens=SPECIAL_TOKENS,
        model_max_length=CONTEXT_TOKENS,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def make_config(tokenizer: Qwen2Tokenizer, shape: Shape) -> Qwen2_5_VLConfig:
    token_id = {token: tokenizer.convert_tokens_to_ids(token) for token in SPECIAL_TOKENS}
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": shape.hidden,
        "intermediate_size": shape.intermediate,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.key_value_heads,
        "max_position_embeddings": CONTEXT_TOKENS,
        "rope_parameters": {
            "rope_type": "default",
            "mrope_section": shape.rope_sections,
            "rope_theta": 1e6,
        },
        "bos_token_id": token_id["<|endoftext|>"],
        "eos_token_id": token_id["<|im_end|>"],
        "pad_token_id": token_id["<|endoftext|>"],
        "tie_word_embeddings": False,
        "dtype": "bfloat16",
    }
    vision = {
        "depth": shape.vision_depth,
        "hidden_size": shape.vision_hidden,
        "intermediate_size": 2 * shape.vision_hidden,
        "num_heads": shape.vision_hidden // 32,
        "window_size": 112,
        "fullatt_block_indexes": [shape.vision_depth - 1],
        "out_hidden_size": text["hidden_size"],
        "dtype": "bfloat16",
    }
    return Qwen2_5_VLConfig(
        text_config=text,
        vision_config=vision,
        image_token_id=token_id["<|image_pad|>"],
        video_token_id=token_id["<|video_pad|>"],
        vision_start_token_id=token_id["<|vision_start|>"],
        vision_end_token_id=token_id["<|vision_end|>"],
        # tied embeddings would make random weights repeat themselves
        tie_word_embeddings=False,
        dtype="bfloat16",
    )


def silence_blanks(model: Qwen2_5_VLForConditionalGeneration, tokenizer: Qwen2Tokenizer) -> None:
    """Never prefer a token without visible text, so that every caption has some."""
    texts = [tokenizer.decode([token]) for token in range(len(tokenizer))]
    blank = [token for token, text in enumerate(texts) if not text.strip(" \n\t\ufffd")]
    with torch.no_grad():
        model.lm_head.weight[blank] = 0


def save_checkpoint(folder: Path, shape: Shape) -> int:
    """Write the checkpoint to `folder` and return its number of weights."""
    tokenizer = train_tokenizer(read_corpus(), VOCABULARY_SIZE)
    config = make_config(tokenizer, shape)
    torch.manual_seed(0)
    model = Qwen2_5_VLForConditionalGeneration(config)
    silence_blanks(model, tokenizer)
    write_checkpoint(folder, model, tokenizer)
    return sum(weight.numel() for weight in model.parameters())


def write_checkpoint(
    folder: Path, model: Qwen2_5_VLForConditionalGeneration, tokenizer: Qwen2Tokenizer
) -> None:
    """Write what vLLM loads: weights in bfloat16, configuration, tokenizer and processors."""
    config = model.config
    model = model.to(torch.bfloat16)
    model.generation_config = GenerationConfig(
        bos_token_id=config.text_config.bos_token_id,
        eos_token_id=[config.text_config.eos_token_id, config.text_config.bos_token_id],
        pad_token_id=config.text_config.pad_token_id,
    )
    model.save_pretrained(folder)
    Qwen2_5_VLProcessor(
        image_processor=Qwen2VLImageProcessor(
            size={"shortest_edge": 4 * TOKEN_PIXELS, "longest_edge": 1280 * TOKEN_PIXELS}
        ),
        video_processor=Qwen2VLVideoProcessor(
            size={"shortest_edge": 4 * TOKEN_PIXELS, "longest_edge": 768 * TOKEN_PIXELS},
            cap_pixels_per_frame=False,
        ),
        tokenizer=tokenizer,
        chat_template=CHAT_TEMPLATE,
    ).save_pretrained(folder)


def build_checkpoint(folder: Path, shape: Shape) -> None:
    """Write the checkpoint to a temporary folder, then rename it."""
    aside = folder.with_name(f"{folder.name}.{os.getpid()}")
    aside.mkdir(parents=True)
    weights = save_checkpoint(aside, shape)
    shutil.rmtree(folder, ignore_errors=True)
    aside.rename(folder)
    print(f"{folder}: Qwen2.5-VL, {weights:,} random weights")


if __name__ == "__main__":
    logging.disable_progress_bar()
    build_checkpoint(Path(sys.argv[1]).absolute(), SHAPES[sys.argv[2] if len(sys.argv) > 2 else "tiny"])
