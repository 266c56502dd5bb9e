"""Build a checkpoint of about 1 million random weights, for the demo and the tests.

Everything but the weights is as in the real model: architecture, special tokens, chat template, processors.
So vLLM serves it with the same code, on a CPU, in seconds; its answers are noise. The same sources give the
same files.

    python deploy/demo/tiny_checkpoint.py FOLDER [tiny|small] [FAMILY]

FAMILY is qwen2.5-vl (the default), qwen3-vl, qwen3.5 (hybrid attention), gemma3 (pictures of one size, no
video) or qwen3 (text only). The small ones are larger, Qwen2.5-VL has 31 million weights, so that the model
takes more time than the code around it.
"""

import os
import shutil
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from transformers.utils import logging

from model_families import FAMILIES, SHAPES, Family, Shape


def silence_blanks(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> None:
    """Never prefer a token without visible text, so that every caption has some."""
    texts = [tokenizer.decode([token]) for token in range(len(tokenizer))]
    blank = [token for token, text in enumerate(texts) if not text.strip(" \n\t\ufffd")]
    with torch.no_grad():
        model.lm_head.weight[blank] = 0


def restore_names(file: Path) -> None:
    """Name Gemma's vision weights as Google's release does, for vLLM; transformers shortens them."""
    weights = load_file(file)
    if any(name.startswith("vision_tower.") for name in weights):
        renamed = {
            name.replace("vision_tower.", "vision_tower.vision_model."): weight
            for name, weight in weights.items()
        }
        save_file(renamed, file, metadata={"format": "pt"})


def save_checkpoint(folder: Path, shape: Shape, family: Family) -> int:
    """Write the checkpoint to `folder` and return its number of weights."""
    tokenizer = family.tokenizer()
    tokenizer.chat_template = family.chat_template
    config = family.config(tokenizer, shape)
    auto = AutoModelForImageTextToText if family.processor else AutoModelForCausalLM
    torch.manual_seed(0)
    model = auto.from_config(config)
    silence_blanks(model, tokenizer)
    write_checkpoint(folder, model, tokenizer, family)
    return sum(weight.numel() for weight in model.parameters())


def write_checkpoint(
    folder: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, family: Family
) -> None:
    """Write what vLLM loads: weights in bfloat16, configuration, tokenizer and processors."""
    tokenizer.chat_template = family.chat_template
    model = model.to(torch.bfloat16)
    text = model.config.get_text_config()
    model.generation_config = GenerationConfig(
        bos_token_id=text.bos_token_id,
        eos_token_id=[text.eos_token_id, text.bos_token_id],
        pad_token_id=text.pad_token_id,
    )
    model.save_pretrained(folder)
    restore_names(folder / "model.safetensors")
    (family.processor(tokenizer) if family.processor else tokenizer).save_pretrained(folder)


def build_checkpoint(folder: Path, shape: Shape, family: Family) -> None:
    """Write the checkpoint to a temporary folder, then rename it."""
    aside = folder.with_name(f"{folder.name}.{os.getpid()}")
    aside.mkdir(parents=True)
    weights = save_checkpoint(aside, shape, family)
    shutil.rmtree(folder, ignore_errors=True)
    aside.rename(folder)
    print(f"{folder}: {family.name}, {weights:,} random weights")


if __name__ == "__main__":
    logging.disable_progress_bar()
    given = [*sys.argv[2:], *["tiny", "qwen2.5-vl"][len(sys.argv) - 2 :]]
    build_checkpoint(Path(sys.argv[1]).absolute(), SHAPES[given[0]], FAMILIES[given[1]])
