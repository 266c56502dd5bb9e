"""Estimates, without vLLM or a GPU, what a GPU's memory holds: weights, working memory, KV cache, samples.

Good to about a tenth. vLLM measures the same when it starts, and logs it.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from capflow_tasks.domains.yaml_file import Keys, read_yaml
from capflow_tasks.engine import demand
from capflow_tasks.errors import SettingsError
from capflow_tasks.settings import GPU_MEMORY_SHARE, Settings

GIB = 2**30
#: CUDA's context, libraries and graphs, per GPU.
_FIXED_BYTES = 3 * GIB // 2
#: Working memory per token of a step: about 16 vectors of the hidden size, 2 bytes each.
_VECTORS = 16
#: Per token of a picture in the vision tower: vLLM set aside 12 to 14 GB for 114,688 tokens.
_VISION_BYTES = 120_000
#: Instruction, reports and answer that a sample in flight holds in the cache beside its media, tokens.
_SAMPLE_TEXT_TOKENS = 2_048
#: Cards with at least so much memory, but the A100, take larger steps; vLLM's own rule.
_LARGE_MIB = 70 * 1024

_Count = Annotated[int, Field(gt=0)]


class _ModelKeys(Keys):
    weights: Annotated[float, Field(gt=0)]
    layers: _Count
    kv_heads: _Count
    head_size: _Count
    hidden: _Count
    vocabulary: _Count


class _KnownSizes(Keys):
    gpus: dict[str, _Count]
    models: dict[str, _ModelKeys]


@dataclass(frozen=True, slots=True)
class Gpus:
    """The cards that one model is spread over."""

    name: str
    count: int
    #: Of each.
    memory_mib: int

    def __str__(self) -> str:
        return f"{self.count} x {self.name}" if self.count > 1 else self.name

    @property
    def step_limits(self) -> tuple[int, int]:
        """VLLM's defaults for a batch job: requests and tokens in one engine step."""
        is_large = self.memory_mib >= _LARGE_MIB and "a100" not in self.name.lower()
        return (1024, 16_384) if is_large else (256, 8_192)


@dataclass(frozen=True, slots=True)
class ModelSize:
    """What decides how much memory a model takes."""

    weight_bytes: int
    #: Of these, the word vectors, which quantizing leaves as they are.
    embedding_bytes: int
    #: Layers that keep keys and values of the whole context; linear attention keeps none.
    layers: int
    kv_heads: int
    head_size: int
    hidden: int
    is_quantized: bool = False

    def quantized(self, method: str | None) -> "ModelSize":
        """Return the size after vLLM has quantized the weights by this method: by half, or to 4 bits."""
        if method is None or self.is_quantized:
            return self
        part = 4 if re.search("awq|gptq|int4|4bit|bitsandbytes", method, re.IGNORECASE) else 2
        weights = (self.weight_bytes - self.embedding_bytes) // part + self.embedding_bytes
        return replace(self, weight_bytes=weights, is_quantized=True)


@dataclass(frozen=True, slots=True)
class MemoryEstimate:
    """How one model's memory is divided; bytes are those of each GPU."""

    gpus: Gpus
    memory_bytes: int
    weight_bytes: int
    work_bytes: int
    #: Longest prompt with its answer; -1 where vLLM chooses.
    context_tokens: int
    #: Requests and tokens in one engine step.
    max_requests: int
    step_tokens: int
    cache_token_bytes: int
    #: Tokens that a picture of the usual and of the largest size takes at most.
    picture_tokens: tuple[int, int]

    @property
    def cache_bytes(self) -> int:
        """Below 0 when weights and work alone do not fit."""
        return self.memory_bytes - self.weight_bytes - self.work_bytes

    @property
    def cache_tokens(self) -> int:
        return max(0, self.cache_bytes // self.cache_token_bytes)

    @property
    def fits(self) -> bool:
        return self.cache_tokens >= max(self.context_tokens, 1)

    @property
    def samples_in_flight(self) -> tuple[int, int]:
        """How many samples the cache holds at once: with pictures of usual size, and of the largest."""
        usual, largest = (self.cache_tokens // (each + _SAMPLE_TEXT_TOKENS) for each in self.picture_tokens)
        return usual, largest


def estimate(settings: Settings, model: ModelSize, config: dict[str, Any], gpus: Gpus) -> MemoryEstimate:
    """Divide the memory of each of these GPUs for one model with these settings."""
    largest_request, arguments, count = demand.demand_of(settings), settings.engine_args, gpus.count
    requests, tokens = gpus.step_limits
    requests = arguments.get("max_num_seqs", settings.max_num_seqs or requests)
    tokens = arguments.get("max_num_batched_tokens", tokens)
    model = model.quantized(arguments.get("quantization", settings.quantization))
    share = arguments.get("gpu_memory_utilization", settings.gpu_memory_utilization or GPU_MEMORY_SHARE)
    cached = 1 if str(arguments.get("kv_cache_dtype", "")).startswith("fp8") else 2
    largest, video = (
        demand.tokens(largest_request.picture_pixels),
        demand.tokens(largest_request.video_pixels),
    )
    encoded = max(tokens, largest, video * largest_request.videos)
    work = tokens * model.hidden * 2 * _VECTORS // count + encoded * _VISION_BYTES
    return MemoryEstimate(
        gpus,
        int(gpus.memory_mib * 2**20 * share),
        model.weight_bytes // count,
        _FIXED_BYTES + work,
        arguments.get("max_model_len", demand.context_of(settings, config)),
        requests,
        tokens,
        2 * model.layers * -(-model.kv_heads // count) * model.head_size * cached,
        (demand.tokens(settings.max_pixels), largest),
    )


def remedy(settings: Settings, model: ModelSize, config: dict[str, Any], gpus: Gpus) -> str:
    """Return the settings with which the model fits on cards of this kind."""
    for changes in _changes(settings, gpus):
        count = changes.get("tensor_parallel_size", gpus.count)
        changed = settings.model_copy(update=changes)
        if estimate(changed, model, config, replace(gpus, count=count)).fits:
            return " ".join(f"CAPFLOW_{name.upper()}={value}" for name, value in changes.items())
    return "choose a smaller model, or cards with more memory"


def _changes(settings: Settings, gpus: Gpus) -> Iterator[dict[str, Any]]:
    """Yield what to try, the least first."""
    for context in (16_384, 8_192):
        yield {"max_model_len": context}
    yield {"quantization": "fp8"}
    for count in (2, 4, 8):
        if count > gpus.count:
            yield {"tensor_parallel_size": count}
            yield {"tensor_parallel_size": count, "quantization": "fp8"}


@cache
def _known() -> _KnownSizes:
    return read_yaml(files("capflow_tasks") / "engine" / "known_sizes.yaml", _KnownSizes, SettingsError)


def gpus_of(text: str) -> Gpus:
    """Read `h200`, `4xa800` or `24gb`. Raises SettingsError for a card that is not known."""
    count, name = re.fullmatch(
        r"(?:(\d+)\s*x\s*)?(.*)", text.strip().lower().replace(" ", ""), re.DOTALL
    ).groups()  # type: ignore[union-attr]
    if size := re.fullmatch(r"(\d+)gb", name):
        return Gpus(f"{size[1]} GB", int(count or 1), int(size[1]) * 1024)
    memory = _known().gpus.get(name)
    if memory is None or count == "0":
        raise SettingsError(
            f"no GPU {text!r}; expected such as h200, 4xa800 or 24gb; known: {', '.join(_known().gpus)}"
        )
    return Gpus(name.upper(), int(count or 1), memory)


def size_of(model: str, config: dict[str, Any]) -> ModelSize | None:
    """Return the size of a folder or cached hub model, else of one that is known by name, else None."""
    if config and (weights := _weight_bytes(model)):
        return _size_from(config, weights)
    name, _, method = re.fullmatch(r"(.*?)(-(FP8|AWQ))?", Path(model).name).groups()  # type: ignore[union-attr]
    known = _known().models.get(name)
    if known is None:
        return None
    vectors = 2 * 2 * known.vocabulary * known.hidden
    weights = int(known.weights * 2e9)
    size = ModelSize(weights, vectors, known.layers, known.kv_heads, known.head_size, known.hidden)
    return size.quantized(method)


def _size_from(config: dict[str, Any], weight_bytes: int) -> ModelSize | None:
    text = demand.text_config(config)
    try:
        heads, hidden, layers = text["num_attention_heads"], text["hidden_size"], text["num_hidden_layers"]
        vectors = 2 * text["vocab_size"] * hidden * (1 if text.get("tie_word_embeddings") else 2)
    except KeyError:
        return None
    kinds = text.get("layer_types") or ["full_attention"] * layers
    return ModelSize(
        weight_bytes,
        vectors,
        sum(kind != "linear_attention" for kind in kinds),
        text.get("num_key_value_heads") or heads,
        text.get("head_dim") or hidden // heads,
        hidden,
        is_quantized="quantization_config" in config or "quantization_config" in text,
    )


def _weight_bytes(model: str) -> int:
    config = demand.config_path(model)
    return sum(path.stat().st_size for path in config.parent.glob("*.safetensors")) if config else 0
