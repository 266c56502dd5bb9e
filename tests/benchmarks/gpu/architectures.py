"""`python -m tests.benchmarks.gpu.architectures FOLDER 7b`: Qwen2.5-VL's shapes without its weights.

A folder that vLLM loads with `load_format=dummy`: sizes and token ids are those of the public model,
tokenizer and processors are made as the demo's checkpoint makes its own.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import click

from capflow_tasks.records import JsonObject
from producer.cli.options import Command
from tests.benchmarks.gpu.vocabulary import VOCABULARY, filled_up
from tests.checkpoints import tiny_checkpoint

#: The layers whose attention sees a whole picture; all others look through windows.
_FULL_ATTENTION = (7, 15, 23, 31)


@dataclass(frozen=True, slots=True)
class Architecture:
    """What the config.json of a public model says of its size; the vision tower is that of all sizes."""

    #: Where that can be read.
    source: str
    hidden: int
    intermediate: int
    layers: int
    heads: int
    key_value_heads: int
    vision_intermediate: int
    vision_hidden: int = 1280
    vision_heads: int = 16
    full_attention: tuple[int, ...] = _FULL_ATTENTION
    #: Largest picture that the processor lets through, pixels.
    max_pixels: int = 12_845_056
    #: Weights and activations of the language model in 8 bits, as the published FP8 checkpoints have them.
    is_fp8: bool = False

    @property
    def vision_depth(self) -> int:
        return self.full_attention[-1] + 1

    @property
    def engine_args(self) -> JsonObject:
        """How vLLM comes to weights."""
        worker = {"worker_cls": "tests.benchmarks.gpu.worker.RandomWeightsWorker"} if self.is_fp8 else {}
        return {"load_format": "dummy", **worker}

    @property
    def rope_sections(self) -> list[int]:
        """Time, height and width, in pairs of a head's dimensions."""
        half = self.hidden // self.heads // 2
        return [half // 4, half * 3 // 8, half * 3 // 8]


_HUB = "https://huggingface.co/{}/blob/main/config.json"
ARCHITECTURES = {
    "7b": Architecture(
        _HUB.format("Qwen/Qwen2.5-VL-7B-Instruct"), 3584, 18944, 28, 28, 4, vision_intermediate=3420
    ),
    # 77 GB with 8 bits per weight of the language model; 147 GB with 16, more than any single GPU of today.
    "72b": Architecture(
        _HUB.format("Qwen/Qwen2.5-VL-72B-Instruct"),
        8192, 29568, 80, 64, 8, vision_intermediate=3456, is_fp8=True,
    ),
    "tiny": Architecture(
        "none: small enough for a CPU", 128, 256, 2, 4, 2,
        vision_intermediate=128, vision_hidden=64, vision_heads=2, full_attention=(1,), max_pixels=1_003_520,
    ),
}  # fmt: skip


@click.command(cls=Command)
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
@click.argument("name", type=click.Choice(list(ARCHITECTURES)))
def main(folder: Path, name: str) -> None:
    """Write the model folder of the architecture NAME."""
    write_model(folder, ARCHITECTURES[name])
    click.echo(folder)


def write_model(folder: Path, architecture: Architecture) -> None:
    """All files of a model but its weights."""
    folder.mkdir(parents=True, exist_ok=True)
    demo = tiny_checkpoint()
    read = {path.name: json.loads(path.read_text()) for path in demo.glob("*.json")}
    tokenizer = filled_up(read["tokenizer.json"])
    ids = {token["content"]: token["id"] for token in tokenizer["added_tokens"]}
    processor = read["processor_config.json"]
    processor["image_processor"]["size"]["longest_edge"] = architecture.max_pixels
    files = {
        "config.json": config(read["config.json"], architecture, ids),
        "generation_config.json": read["generation_config.json"] | _text_ids(ids, is_list=True),
        "processor_config.json": processor,
        "tokenizer.json": tokenizer,
        # Qwen2Tokenizer would build its tokenizer anew, and drop how the filled up one looks words up.
        "tokenizer_config.json": read["tokenizer_config.json"]
        | {"tokenizer_class": "PreTrainedTokenizerFast"},
    }
    for file, content in files.items():
        (folder / file).write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    (folder / "chat_template.jinja").write_text((demo / "chat_template.jinja").read_text())


def config(demo: JsonObject, architecture: Architecture, ids: dict[str, int]) -> JsonObject:
    """The demo's config.json with the architecture's sizes and the tokenizer's ids."""
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
        **_text_ids(ids),
    }
    vision = demo["vision_config"] | {
        "depth": architecture.vision_depth,
        "hidden_size": architecture.vision_hidden,
        "intermediate_size": architecture.vision_intermediate,
        "num_heads": architecture.vision_heads,
        "out_hidden_size": architecture.hidden,
        "fullatt_block_indexes": list(architecture.full_attention),
        "tokens_per_second": 2,
    }
    media = {
        "image_token_id": ids["<|image_pad|>"],
        "video_token_id": ids["<|video_pad|>"],
        "vision_start_token_id": ids["<|vision_start|>"],
        "vision_end_token_id": ids["<|vision_end|>"],
    }
    quantization = {"quantization_config": fp8_by_channel()} if architecture.is_fp8 else {}
    return (
        demo
        | media
        | {"text_config": text, "vision_config": vision, "tie_word_embeddings": False}
        | quantization
    )


def fp8_by_channel() -> JsonObject:
    """A scale per row of weights and per token, as LLM Compressor's FP8_DYNAMIC; the vision tower stays."""
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


def _text_ids(ids: dict[str, int], is_list: bool = False) -> JsonObject:
    end, nothing = ids["<|im_end|>"], ids["<|endoftext|>"]
    return {
        "bos_token_id": nothing,
        "eos_token_id": [end, nothing] if is_list else end,
        "pad_token_id": nothing,
    }


if __name__ == "__main__":
    main()
