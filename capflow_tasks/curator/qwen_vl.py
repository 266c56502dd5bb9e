"""NeMo Curator's `QwenVL`, `PromptFormatter` and `QwenLM`, without their faults; vLLM runs in this process.

Code and tests written for theirs work with only the import path changed, so the names are theirs,
including the private ones that tests patch. Releases 1.0 to 1.4 order arguments and prepare frames
differently, and all are understood: the variant "qwen" behaves as in 1.0 to 1.2, "qwen2.5" and "qwen3"
as from 1.3 on. Here, captions hold any character, the caller's inputs are not modified, and
`on_error="skip"` keeps the other captions when one video fails. vLLM is imported by `setup`.
"""

import importlib.util
import json
import logging
import os
import re
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import wraps
from pathlib import Path
from typing import Any, Literal, TypeVar

from capflow_tasks.curator import grouping
from capflow_tasks.curator.frames import (
    CLIP_COLOURS,
    EVEN_COLOURS,
    describe_frames,
    normalise,
    pixel_params,
    raw_frames,
    resizing,
)
from capflow_tasks.records import JsonObject

logger = logging.getLogger(__name__)

#: False also where a test puts None in place of the module.
VLLM_AVAILABLE = bool(sys.modules.get("vllm") or importlib.util.find_spec("vllm"))


class _OnDemand:
    """A class of a library that takes seconds to import, which happens when an instance is made.

    This module can hold the class's name, and a test can patch it here, without that cost.
    """

    def __init__(self, library: str, name: str) -> None:
        self._library, self._name = library, name

    def _load(self) -> Any:
        # vLLM reads its environment when it is imported
        os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
        return getattr(importlib.import_module(self._library), self._name)

    def __call__(self, **arguments: Any) -> Any:
        return self._load()(**arguments)

    def from_pretrained(self, source: str) -> Any:
        return self._load().from_pretrained(source)


LLM = _OnDemand("vllm", "LLM")
SamplingParams = _OnDemand("vllm", "SamplingParams")
AutoProcessor = _OnDemand("transformers", "AutoProcessor")
AutoTokenizer = _OnDemand("transformers", "AutoTokenizer")

_QWEN2_5_VL_MODEL_ID = "Qwen/Qwen2.5-VL-7B-Instruct"
_QWEN2_5_VL_MODEL_REVISION = "cc59489"
_QWEN3_VL_MODEL_ID = "Qwen/Qwen3-VL-8B-Instruct"
_QWEN3_VL_MODEL_REVISION = "0c351dd"
_QWEN_LM_MODEL_ID = "Qwen/Qwen2.5-14B-Instruct"
_QWEN_LM_MODEL_REVISION = "cf98f3b"

_QWEN_LM_VARIANTS_INFO = {
    "qwen": (_QWEN_LM_MODEL_ID, _QWEN_LM_MODEL_REVISION),
    "qwen2.5": (_QWEN_LM_MODEL_ID, _QWEN_LM_MODEL_REVISION),
    "qwen3": ("Qwen/Qwen3-14B", "f8c293d"),
}
_QWEN_VARIANTS_INFO = {
    "qwen": _QWEN2_5_VL_MODEL_ID,
    "qwen2.5": _QWEN2_5_VL_MODEL_ID,
    "qwen3": _QWEN3_VL_MODEL_ID,
}
#: Hub name of each variant's checkpoint, which holds the chat template.
VARIANT_MAPPING = dict(_QWEN_VARIANTS_INFO)

_QWEN_REVISION_INFO = {
    "qwen": _QWEN2_5_VL_MODEL_REVISION,
    "qwen2.5": _QWEN2_5_VL_MODEL_REVISION,
    "qwen3": _QWEN3_VL_MODEL_REVISION,
}
#: Side of the square of pixels that becomes one token.
_FACTORS = {"qwen": 28, "qwen2.5": 28, "qwen3": 32}
#: The options that NeMo Curator gives the processor from release 1.3 on.
_QWEN_VL_PIXEL_PARAMS = {variant: pixel_params(_FACTORS[variant]) for variant in ("qwen2.5", "qwen3")}
_STAGE2_PROMPT = "Please refine this caption: "

_COLOURS = {"qwen": CLIP_COLOURS, "qwen2.5": CLIP_COLOURS, "qwen3": EVEN_COLOURS}

OnError = Literal["raise", "skip"]
Initializer = Callable[..., None]
S = TypeVar("S")
T = TypeVar("T")


class ModelInterface(ABC):
    """A model whose weights are in a folder and are loaded on demand."""

    @property
    @abstractmethod
    def model_id_names(self) -> list[str]:
        """The hub names of the checkpoints that it needs."""

    @abstractmethod
    def setup(self) -> None:
        """Load the weights."""


def _named(order: Callable[[Sequence[Any]], Sequence[str]]) -> Callable[[Initializer], Initializer]:
    """Name an initializer's positional arguments by the order of the release that they were written for."""

    def decorate(initialize: Initializer) -> Initializer:
        @wraps(initialize)
        def named(self: Any, *values: Any, **options: Any) -> None:
            names = order(values)
            if len(values) > len(names):
                raise TypeError(f"Expected at most {len(names)} positional arguments: {', '.join(names)}.")
            initialize(self, **dict(zip(names, values, strict=False)), **options)

        return named

    return decorate


def _order_vl(values: Sequence[Any]) -> Sequence[str]:
    """Leave out `model_does_preprocess`, as in NeMo Curator 1.3, if a later value or the variant says so."""
    start = ["model_dir", "model_variant", "caption_batch_size", "fp8", "max_output_tokens"]
    end = ["disable_mmcache", "stage2_prompt_text", "verbose"]
    is_1_3 = not isinstance(values[6], bool) if len(values) > 6 else values[1:2] != ("qwen",)
    return [*start, *end] if is_1_3 else [*start, "model_does_preprocess", *end]


def _order_lm(values: Sequence[Any]) -> Sequence[str]:
    """Put the variant second, as NeMo Curator 1.3 does, if the second value is a name."""
    is_1_3 = len(values) > 1 and isinstance(values[1], str)
    variant = ["model_variant"] if is_1_3 else []
    return ["model_dir", *variant, "caption_batch_size", "fp8", "max_output_tokens"]


def _variant(variants: Mapping[str, T], name: str) -> T:
    if name not in variants:
        raise KeyError(f"Invalid model variant: {name}. Valid variants are: {', '.join(variants)}")
    return variants[name]


class QwenVL(ModelInterface):
    """Qwen2.5-VL or Qwen3-VL in vLLM's synchronous engine; `vllm_kwargs` override the arguments set here."""

    @_named(_order_vl)
    def __init__(
        self,
        model_dir: str,
        model_variant: str,
        caption_batch_size: int,
        fp8: bool = True,
        max_output_tokens: int = 512,
        model_does_preprocess: bool = False,
        disable_mmcache: bool = False,
        stage2_prompt_text: str | None = None,
        verbose: bool = False,
        **vllm_kwargs: Any,
    ) -> None:
        self.model_dir = model_dir
        self.model_variant = model_variant
        self.caption_batch_size = caption_batch_size
        self.fp8 = fp8
        self.max_output_tokens = max_output_tokens
        self.model_does_preprocess = model_does_preprocess
        self.disable_mmcache = disable_mmcache
        self.stage2_prompt_text = stage2_prompt_text
        self.stage2_prompt = stage2_prompt_text or _STAGE2_PROMPT
        self.verbose = verbose
        self.vllm_kwargs = vllm_kwargs
        self.weight_file = str(Path(model_dir) / _variant(_QWEN_VARIANTS_INFO, model_variant))
        #: Stage 2 replaces the second group of this in a prompt.
        self.pattern = r"(.*)(user_prompt)(.*)"
        self.model: Any = None
        self.sampling_params: Any = None

    @property
    def model_id_names(self) -> list[str]:
        return [_QWEN_VARIANTS_INFO[self.model_variant]]

    def setup(self) -> None:
        arguments = {
            "model": self.weight_file,
            "limit_mm_per_prompt": {"image": 0, "video": 1},
            "quantization": "fp8" if self.fp8 else None,
            "max_model_len": 32768,
            "gpu_memory_utilization": 0.85,
            "mm_processor_kwargs": {
                **dict.fromkeys(("do_resize", "do_rescale", "do_normalize"), self._takes_raw_frames),
                **_QWEN_VL_PIXEL_PARAMS.get(self.model_variant, {}),
            },
            "mm_processor_cache_gb": 0 if self.disable_mmcache else 4,
            "max_num_batched_tokens": 32768,
        }
        self.model, self.sampling_params = _load(self, arguments)
        logger.info(
            "CUDA graph enabled for sequences smaller than 16k tokens; "
            "adjust accordingly for even longer sequences"
        )

    @property
    def _takes_raw_frames(self) -> bool:
        """Whether the processor resizes, rescales and normalises; from NeMo Curator 1.3 on it always does."""
        return self.model_does_preprocess or self.model_variant in _QWEN_VL_PIXEL_PARAMS

    def generate(
        self,
        videos: Iterable[JsonObject],
        generate_stage2_caption: bool = False,
        batch_size: int = 16,
        *,
        on_error: OnError = "raise",
    ) -> list[Any]:
        """Return a caption per video, in order; with `on_error="skip"`, None for each video that failed.

        A video is {"prompt", "multi_modal_data": {"video": frames or (frames, metadata)}}. Frames are of
        (T, H, W, RGB) or (T, RGB, H, W), an array or tensor, of 0 to 255 in any type or normalised. They are
        resized if a side is no multiple of 28 (32 for qwen3) or the video has over 24,576 tokens. Stage 2
        puts the stage-2 prompt and the first caption in place of `user_prompt` in the prompt or, if it has no
        such word, of all the user's text.
        """
        if on_error not in ("raise", "skip"):
            raise ValueError(f'on_error must be "raise" or "skip", not {on_error!r}.')
        videos = list(videos)
        if videos and self.model is None:
            raise RuntimeError("The model is not loaded: call setup() first.")
        captions: list[Any] = []
        for chunk in grouping.split_by_chunk_size(videos, batch_size):
            try:
                captions += self._caption(list(chunk), generate_stage2_caption, on_error)
            except Exception as error:
                logger.error(f"Error generating caption for batch: {error}")
                raise
        return captions

    @classmethod
    def download_weights_on_node(cls, model_dir: str, variant: str = "qwen") -> None:
        """Download a variant's checkpoint to where `QwenVL(model_dir, variant, ...)` reads it."""
        # built here, not at import: tests patch the names
        qwen2_5 = (_QWEN2_5_VL_MODEL_ID, _QWEN2_5_VL_MODEL_REVISION)
        qwen3 = (_QWEN3_VL_MODEL_ID, _QWEN3_VL_MODEL_REVISION)
        checkpoints = {"qwen": qwen2_5, "qwen2.5": qwen2_5, "qwen3": qwen3}
        _download("QwenVL", model_dir, *_variant(checkpoints, variant))

    def _caption(self, videos: list[JsonObject], with_stage2: bool, on_error: OnError) -> list[str | None]:
        inputs = _attempt(self._prepare, dict(enumerate(videos)), on_error)
        captions = self._ask(inputs, on_error)
        if self.verbose:
            for caption in captions.values():
                logger.info(f"Stage 1 caption: {caption}")
        if with_stage2:
            pairs = {number: (inputs[number], caption) for number, caption in captions.items()}
            captions = self._ask(_attempt(self._add_caption, pairs, on_error), on_error)
        return [captions.get(number) for number in range(len(videos))]

    def _prepare(self, video: JsonObject) -> JsonObject:
        """Return the input as vLLM takes it: the same object if it is complete."""
        media = video.get("multi_modal_data") or {}
        if "video" in media and media["video"] is None:
            # vLLM would drop it silently and caption nothing
            raise ValueError(f"The input has no video, only a prompt: {video.get('prompt')!r:.200}.")
        given = media.get("video")
        frames, metadata = given if isinstance(given, tuple) else (given, None)
        if len(getattr(frames, "shape", ())) != 4:
            return video  # no frames: vLLM says what is wrong
        colours, factor = _COLOURS[self.model_variant], _FACTORS[self.model_variant]
        frames = raw_frames(frames, colours)
        # frames without metadata are taken as sampled at NeMo Curator's 2 frames per second
        metadata = metadata or describe_frames(len(frames), 2.0)
        options = resizing(frames.shape, factor, is_total=self.model_variant == "qwen3")
        if not self._engine_normalises:
            frames = normalise(frames, colours)
        prepared = {**video, "multi_modal_data": {**media, "video": (frames, metadata)}}
        return {**prepared, "mm_processor_kwargs": options} if options else prepared

    @property
    def _engine_normalises(self) -> bool:
        """Whether vLLM normalises what it is given: in its processor, or on the device (from 0.29 on).

        On the device it does so even if the processor's options say not to normalise.
        """
        config = getattr(getattr(self.model, "model_config", None), "multimodal_config", None)
        return self._takes_raw_frames or bool(getattr(config, "mm_device_do_normalize", False))

    def _add_caption(self, pair: tuple[JsonObject, str]) -> JsonObject:
        """Return the input of stage 2 for an input of stage 1 and its caption."""
        video, caption = pair
        prompt, text = video["prompt"], f"{self.stage2_prompt}{caption}"
        template = rf"\1{text}\3"  # as NeMo Curator's tests expect it
        if "\\" in text or text[:1].isdigit():
            template = r"\g<1>" + text.replace("\\", r"\\") + r"\g<3>"
        replaced = re.sub(self.pattern, template, prompt, flags=re.DOTALL)
        if replaced == prompt:
            # in a prompt of Qwen's chat template, the user's text is between these tokens
            head, mark, rest = prompt.rpartition("<|vision_end|>")
            if not mark:
                raise ValueError(
                    f"The stage-2 prompt has no place: write user_prompt where it belongs in {prompt!r:.200}."
                )
            _, end, tail = rest.partition("<|im_end|>")
            replaced = head + mark + text + end + tail
        return {**video, "prompt": replaced}

    def _ask(self, inputs: dict[int, JsonObject], on_error: OnError) -> dict[int, str]:
        """Answer all in one call; if it fails and may, retry each half, down to the input at fault."""
        if not inputs:
            return {}
        items = list(inputs.items())
        try:
            outputs = self.model.generate(
                [video for _, video in items], sampling_params=self.sampling_params, use_tqdm=False
            )
            return {number: out.outputs[0].text for number, out in zip(inputs, outputs, strict=True)}
        except Exception as error:
            # by name, as vLLM is not imported; a dead engine fails every half too
            if on_error == "raise" or type(error).__name__ == "EngineDeadError":
                raise
            if len(items) == 1:
                logger.warning(f"A video was not captioned: {error}")
                return {}
        middle = len(items) // 2
        return self._ask(dict(items[:middle]), on_error) | self._ask(dict(items[middle:]), on_error)


class QwenLM(ModelInterface):
    """Qwen2.5 or Qwen3 for text, which rewrites captions; `vllm_kwargs` override the arguments set here."""

    @_named(_order_lm)
    def __init__(
        self,
        model_dir: str = "",
        model_variant: str = "qwen",
        caption_batch_size: int = 1,
        fp8: bool = False,
        max_output_tokens: int = 512,
        **vllm_kwargs: Any,
    ) -> None:
        self.model_dir = model_dir
        self.model_variant = model_variant
        self.caption_batch_size = caption_batch_size
        self.fp8 = fp8
        self.max_output_tokens = max_output_tokens
        self.vllm_kwargs = vllm_kwargs
        self._model_id, _ = _variant(_QWEN_LM_VARIANTS_INFO, model_variant)

    def model_id_names(self) -> list[str]:  # type: ignore[override]
        """A method, as in NeMo Curator, where it is a property of every other model."""
        return [self._model_id]

    def setup(self) -> None:
        self.weight_file = str(Path(self.model_dir) / self._model_id)
        quantization = "fp8" if self.fp8 else None
        arguments = {"model": self.weight_file, "quantization": quantization, "enforce_eager": False}
        self.llm, self.sampling_params = _load(self, arguments)
        self.tokenizer = AutoTokenizer.from_pretrained(self.weight_file)

    def generate(self, inputs: Iterable[list[dict[str, str]]]) -> list[str]:
        """Return the answer to each chat, in order; a chat has a {"role", "content"} per message."""
        # Qwen3 would think aloud in the caption
        options = {"enable_thinking": False} if self.model_variant == "qwen3" else {}
        prompts = self.tokenizer.apply_chat_template(
            list(inputs), tokenize=False, add_generation_prompt=True, **options
        )
        outputs = self.llm.generate(prompts, sampling_params=self.sampling_params)
        return [output.outputs[0].text for output in outputs]

    @classmethod
    def download_weights_on_node(cls, model_dir: str, variant: str = "qwen") -> None:
        """Download a variant's checkpoint to where `QwenLM(model_dir, variant, ...)` reads it."""
        _download("QwenLM", model_dir, *_variant(_QWEN_LM_VARIANTS_INFO, variant))


class PromptFormatter:
    """Renders one user message, video first, by the chat template of `model_dir` or, without it, the hub."""

    def __init__(self, prompt_variant: str, model_dir: str | None = None) -> None:
        if prompt_variant not in VARIANT_MAPPING:
            valid = ", ".join(VARIANT_MAPPING)
            raise ValueError(f"Invalid prompt variant: {prompt_variant}. Valid variants are: {valid}")
        name = VARIANT_MAPPING[prompt_variant]
        self.prompt_variant = prompt_variant
        self.text_prompt: str | None = None
        self.processor: Any = AutoProcessor.from_pretrained(
            str(Path(model_dir) / name) if model_dir else name
        )

    def generate_inputs(
        self,
        prompt: str,
        video_inputs: Any = None,
        *,
        override_text_prompt: bool = False,
        fps: float | None = None,
    ) -> JsonObject:
        """Return an input for `QwenVL.generate`.

        The text is rendered once and reused whatever `prompt` is, unless `override_text_prompt` is set.
        `fps`, the sampling rate, gives frames metadata; qwen2.5 and qwen3 always get some, for 2 by default.
        """
        if self.text_prompt is None or override_text_prompt:
            self.text_prompt = self.processor.apply_chat_template(
                self.create_message(prompt), tokenize=False, add_generation_prompt=True
            )
        if self.prompt_variant in _QWEN_VL_PIXEL_PARAMS:
            fps = fps or 2.0
        if fps is not None and getattr(video_inputs, "shape", None):
            video_inputs = (video_inputs, describe_frames(len(video_inputs), fps))
        return {"prompt": self.text_prompt, "multi_modal_data": {"video": video_inputs}}

    def create_message(self, prompt: str) -> list[JsonObject]:
        return [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": prompt}]}]


def _load(model: QwenVL | QwenLM, arguments: JsonObject) -> tuple[Any, Any]:
    """Return vLLM's engine and the sampling parameters of a model. Raises ImportError without vLLM."""
    if not VLLM_AVAILABLE:
        raise ImportError(
            f"vllm is required for {type(model).__name__} model but is not installed. Please install vllm: "
            "pip install vllm, or from a checkout: pip install '.[gpu]', without a GPU pip install '.[cpu]'."
        )
    most = model.max_output_tokens
    return LLM(**{**arguments, **model.vllm_kwargs}), SamplingParams(
        temperature=0.1, top_p=0.001, repetition_penalty=1.05, max_tokens=most, stop_token_ids=[]
    )


def _download(model: str, model_dir: str, model_id: str, revision: str) -> None:
    folder = Path(model_dir) / model_id
    folder.mkdir(parents=True, exist_ok=True)
    if _weights_complete(folder):
        logger.info(f"{model} weights already present at: {folder}")
        return
    download_model_from_hf(model_id=model_id, local_dir=folder, revision=revision)
    logger.info(f"{model} weights downloaded to: {folder}")


def download_model_from_hf(
    model_id: str,
    local_dir: str | Path,
    ignore_patterns: list[str] | None = None,
    filename: str | None = None,
    revision: str | None = None,
) -> None:
    """Download a checkpoint, or one file of it, to `local_dir`, without the files already there."""
    from huggingface_hub import hf_hub_download, snapshot_download

    if filename is None:
        snapshot_download(model_id, revision=revision, local_dir=local_dir, ignore_patterns=ignore_patterns)
    elif ignore_patterns:
        raise ValueError("ignore_patterns and filename exclude each other.")
    else:
        hf_hub_download(model_id, filename, revision=revision, local_dir=local_dir)


def has_all_weights(folder: Path) -> bool:
    """Check that every file of weights exists, by the index or, without one, by the file names."""
    index = folder / "model.safetensors.index.json"
    if index.exists():
        try:
            names = {str(name) for name in json.loads(index.read_bytes())["weight_map"].values()}
        except (ValueError, LookupError, TypeError, AttributeError):
            return False  # the index is cut short: download it again
    else:
        names = {path.name for path in folder.glob("*.safetensors")}
        for name in sorted(names):
            if shard := re.fullmatch(r"(.+)-(\d+)-of-(\d+)\.safetensors", name):
                stem, width, count = shard[1], len(shard[2]), shard[3]
                names |= {f"{stem}-{i:0{width}d}-of-{count}.safetensors" for i in range(1, int(count) + 1)}
    return bool(names) and all((folder / name).is_file() for name in names)


#: Their name from NeMo Curator 1.3 on, which its tests patch.
_weights_complete = has_all_weights


def _attempt(step: Callable[[S], T], items: Mapping[int, S], on_error: OnError) -> dict[int, T]:
    """Return the step's result per item; those that failed and may be skipped are left out."""
    results: dict[int, T] = {}
    for number, item in items.items():
        try:
            results[number] = step(item)
        except Exception as error:
            if on_error == "raise":
                raise
            logger.warning(f"A video was not captioned: {error}")
    return results
