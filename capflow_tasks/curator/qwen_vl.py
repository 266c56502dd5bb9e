"""NeMo Curator's `QwenVL`, `PromptFormatter` and `QwenLM`, without their faults; vLLM runs in this process.

Code and tests written for theirs work with only the import path changed, so the names are theirs, including
the private ones that tests patch. The differences: a caption may hold any character, the caller's inputs are
not modified, a missing stage-2 prompt is refused before stage 1 runs, and `on_error="skip"` keeps the other
captions when one video fails. vLLM is imported by `setup`.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Literal, TypeVar, overload

import numpy as np
from numpy.typing import NDArray

from capflow_tasks.curator import grouping
from capflow_tasks.curator.library import (
    LLM,
    VLLM_AVAILABLE,
    AutoProcessor,
    AutoTokenizer,
    ModelInterface,
    SamplingParams,
)
from capflow_tasks.engine.weights import download_model_from_hf, has_all_weights
from capflow_tasks.records import JsonObject

logger = logging.getLogger(__name__)

_QWEN2_5_VL_MODEL_ID = "Qwen/Qwen2.5-VL-7B-Instruct"
_QWEN2_5_VL_MODEL_REVISION = "cc59489"
_QWEN3_VL_MODEL_ID = "Qwen/Qwen3-VL-8B-Instruct"
_QWEN3_VL_MODEL_REVISION = "0c351dd"
_QWEN_LM_MODEL_ID = "Qwen/Qwen2.5-14B-Instruct"
_QWEN_LM_MODEL_REVISION = "cf98f3b"

_QWEN_VARIANTS_INFO = {
    "qwen": _QWEN2_5_VL_MODEL_ID,
    "qwen2.5": _QWEN2_5_VL_MODEL_ID,
    "qwen3": _QWEN3_VL_MODEL_ID,
}
#: Hub name of each variant's checkpoint, which holds the chat template.
VARIANT_MAPPING = dict(_QWEN_VARIANTS_INFO)

#: (mean, deviation) of red, green and blue in an encoder's training.
Colours = tuple[tuple[float, float, float], tuple[float, float, float]]
CLIP_COLOURS: Colours = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
EVEN_COLOURS: Colours = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
_COLOURS = {"qwen": CLIP_COLOURS, "qwen2.5": CLIP_COLOURS, "qwen3": EVEN_COLOURS}
#: Assumed frames per second of frames without metadata; NeMo Curator samples at this rate.
_SAMPLING_FPS = 2.0
#: In a prompt of Qwen's chat template, the user's text about the video is between these.
_VIDEO_END, _TURN_END = "<|vision_end|>", "<|im_end|>"

OnError = Literal["raise", "skip"]
#: A chat: {"role", "content"} per message.
Chat = list[dict[str, str]]
S = TypeVar("S")
T = TypeVar("T")


class QwenVL(ModelInterface):
    """Qwen2.5-VL or Qwen3-VL in vLLM's synchronous engine; `vllm_kwargs` override the arguments set here."""

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
        self.stage2_prompt = self.stage2_prompt_text = stage2_prompt_text
        self.verbose = verbose
        self.vllm_kwargs = vllm_kwargs
        self.weight_file = str(Path(model_dir) / _QWEN_VARIANTS_INFO[model_variant])
        #: Stage 2 replaces the second group of this in a prompt.
        self.pattern = r"(.*)(user_prompt)(.*)"
        self.model: Any = None
        self.sampling_params: Any = None

    @property
    def model_id_names(self) -> list[str]:
        return [_QWEN_VARIANTS_INFO[self.model_variant]]

    def setup(self) -> None:
        _require_vllm("QwenVL")
        switches = ("do_resize", "do_rescale", "do_normalize")
        arguments = {
            "model": self.weight_file,
            "limit_mm_per_prompt": {"image": 0, "video": 1},
            "quantization": "fp8" if self.fp8 else None,
            "max_model_len": 32768,
            "gpu_memory_utilization": 0.85,
            "mm_processor_kwargs": dict.fromkeys(switches, self.model_does_preprocess),
            "mm_processor_cache_gb": 0 if self.disable_mmcache else 4,
            "max_num_batched_tokens": 32768,
        }
        self.model = LLM(**{**arguments, **self.vllm_kwargs})
        self.sampling_params = _sampling_params(self.max_output_tokens)
        logger.info(
            "CUDA graph enabled for sequences smaller than 16k tokens; "
            "adjust accordingly for even longer sequences"
        )

    @overload
    def generate(
        self, videos: list[JsonObject], generate_stage2_caption: bool = ..., batch_size: int = ...
    ) -> list[str]: ...

    @overload
    def generate(
        self,
        videos: list[JsonObject],
        generate_stage2_caption: bool = ...,
        batch_size: int = ...,
        *,
        on_error: OnError,
    ) -> list[str | None]: ...

    def generate(
        self,
        videos: list[JsonObject],
        generate_stage2_caption: bool = False,
        batch_size: int = 16,
        *,
        on_error: OnError = "raise",
    ) -> list[Any]:
        """Return a caption per video, in order; with `on_error="skip"`, None for each video that failed.

        A video is {"prompt", "multi_modal_data": {"video": frames or (frames, metadata)}}. Frames are
        (T, H, W, RGB) of 0 to 255, with sides that are multiples of 28 (32 for qwen3) unless the model
        preprocesses, or (T, RGB, H, W), preprocessed. Stage 2 replaces `user_prompt` in the prompt with the
        stage-2 prompt and the first caption; in a prompt without that word, all the user's text.
        """
        if on_error not in ("raise", "skip"):
            raise ValueError(f'on_error must be "raise" or "skip", not {on_error!r}.')
        if generate_stage2_caption and not self.stage2_prompt:
            raise ValueError("A stage-2 caption needs a prompt: give QwenVL(stage2_prompt_text=...).")
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
        revisions = {
            "qwen": (_QWEN2_5_VL_MODEL_ID, _QWEN2_5_VL_MODEL_REVISION),
            "qwen2.5": (_QWEN2_5_VL_MODEL_ID, _QWEN2_5_VL_MODEL_REVISION),
            "qwen3": (_QWEN3_VL_MODEL_ID, _QWEN3_VL_MODEL_REVISION),
        }
        _download("QwenVL", model_dir, *revisions[variant])

    def _caption(self, videos: list[JsonObject], with_stage2: bool, on_error: OnError) -> list[str | None]:
        inputs = _attempt(self._prepare, videos, on_error)
        captions = self._ask(inputs, on_error)
        if self.verbose:
            for caption in captions:
                logger.info(f"Stage 1 caption: {caption}")
        if with_stage2:
            pairs = [
                None if video is None or caption is None else (video, caption)
                for video, caption in zip(inputs, captions, strict=True)
            ]
            captions = self._ask(_attempt(self._add_caption, pairs, on_error), on_error)
        return captions

    def _prepare(self, video: JsonObject) -> JsonObject:
        """Return the input as vLLM takes it: the same object if it is complete."""
        media = video.get("multi_modal_data") or {}
        if "video" in media and media["video"] is None:
            # vLLM would drop it silently and caption nothing
            raise ValueError(f"The input has no video, only a prompt: {video.get('prompt')!r:.200}.")
        colours = None if self.model_does_preprocess else _COLOURS[self.model_variant]
        ready = _complete_video(media.get("video"), colours)
        if ready is media.get("video"):
            return video
        return {**video, "multi_modal_data": {**media, "video": ready}}

    def _add_caption(self, pair: tuple[JsonObject, str]) -> JsonObject:
        """Return the input of stage 2 for an input of stage 1 and its caption."""
        video, caption = pair
        prompt, text = video["prompt"], f"{self.stage2_prompt}{caption}"
        replaced = re.sub(self.pattern, _replacement(text), prompt, flags=re.DOTALL)
        return {**video, "prompt": replaced if replaced != prompt else _replace_user_text(prompt, text)}

    def _ask(self, inputs: list[JsonObject | None], on_error: OnError) -> list[str | None]:
        answers = iter(self._answers([video for video in inputs if video is not None], on_error))
        return [None if video is None else next(answers) for video in inputs]

    def _answers(self, inputs: list[JsonObject], on_error: OnError) -> list[str | None]:
        """Answer all in one call; if it fails and may, retry each half, down to the input at fault."""
        if not inputs:
            return []
        try:
            outputs = self.model.generate(inputs, sampling_params=self.sampling_params, use_tqdm=False)
            return [output.outputs[0].text for output in outputs]
        except Exception as error:
            # by name, as vLLM is not imported; a dead engine fails every half too
            if on_error == "raise" or type(error).__name__ == "EngineDeadError":
                raise
            if len(inputs) == 1:
                logger.warning(f"A video was not captioned: {error}")
                return [None]
        middle = len(inputs) // 2
        return [*self._answers(inputs[:middle], on_error), *self._answers(inputs[middle:], on_error)]


class QwenLM(ModelInterface):
    """Qwen2.5 for text, which rewrites captions; `vllm_kwargs` override the arguments set here."""

    def __init__(
        self, model_dir: str, caption_batch_size: int, fp8: bool, max_output_tokens: int, **vllm_kwargs: Any
    ) -> None:
        self.model_dir = model_dir
        self.caption_batch_size = caption_batch_size
        self.fp8 = fp8
        self.max_output_tokens = max_output_tokens
        self.vllm_kwargs = vllm_kwargs

    def model_id_names(self) -> list[str]:  # type: ignore[override]
        """A method, as in NeMo Curator, where it is a property of every other model."""
        return [_QWEN_LM_MODEL_ID]

    def setup(self) -> None:
        _require_vllm("QwenLM")
        self.weight_file = str(Path(self.model_dir) / _QWEN_LM_MODEL_ID)
        quantization = "fp8" if self.fp8 else None
        arguments = {"model": self.weight_file, "quantization": quantization, "enforce_eager": False}
        self.llm: Any = LLM(**{**arguments, **self.vllm_kwargs})
        self.sampling_params = _sampling_params(self.max_output_tokens)
        self.tokenizer = AutoTokenizer.from_pretrained(self.weight_file)

    def generate(self, inputs: list[Chat]) -> list[str]:
        """Return the answer to each chat, in order."""
        prompts = self.tokenizer.apply_chat_template(inputs, tokenize=False, add_generation_prompt=True)
        outputs = self.llm.generate(prompts, sampling_params=self.sampling_params)
        return [output.outputs[0].text for output in outputs]

    @classmethod
    def download_weights_on_node(cls, model_dir: str) -> None:
        """Download the checkpoint to where `QwenLM(model_dir, ...)` reads it."""
        _download("QwenLM", model_dir, _QWEN_LM_MODEL_ID, _QWEN_LM_MODEL_REVISION)


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
        `fps` is the sampling rate of frames in `video_inputs` that come without metadata.
        """
        if self.text_prompt is None or override_text_prompt:
            self.text_prompt = self.processor.apply_chat_template(
                self.create_message(prompt), tokenize=False, add_generation_prompt=True
            )
        if fps is not None and video_inputs is not None:
            video_inputs = (video_inputs, _describe_frames(len(video_inputs), fps))
        return {"prompt": self.text_prompt, "multi_modal_data": {"video": video_inputs}}

    def create_message(self, prompt: str) -> list[JsonObject]:
        return [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": prompt}]}]


def _require_vllm(model: str) -> None:
    if not VLLM_AVAILABLE:
        raise ImportError(
            f"vllm is required for {model} model but is not installed. Please install vllm: "
            "pip install vllm, or from a checkout: pip install '.[gpu]', without a GPU pip install '.[cpu]'."
        )


def _sampling_params(max_tokens: int) -> Any:
    return SamplingParams(
        temperature=0.1, top_p=0.001, repetition_penalty=1.05, max_tokens=max_tokens, stop_token_ids=[]
    )


def _download(model: str, model_dir: str, model_id: str, revision: str) -> None:
    folder = Path(model_dir) / model_id
    folder.mkdir(parents=True, exist_ok=True)
    if has_all_weights(folder):
        logger.info(f"{model} weights already present at: {folder}")
        return
    download_model_from_hf(model_id=model_id, local_dir=folder, revision=revision)
    logger.info(f"{model} weights downloaded to: {folder}")


def _attempt(step: Callable[[S], T], items: Iterable[S | None], on_error: OnError) -> list[T | None]:
    """Return the step's result per item: None for an item that is None, or failed and may be skipped."""
    results: list[T | None] = []
    for item in items:
        try:
            results.append(None if item is None else step(item))
        except Exception as error:
            if on_error == "raise":
                raise
            logger.warning(f"A video was not captioned: {error}")
            results.append(None)
    return results


def _replacement(text: str) -> str:
    """Return a regex template that puts `text` unchanged between the first and the third group."""
    if "\\" not in text and not text[:1].isdigit():
        return rf"\1{text}\3"  # as NeMo Curator's tests expect it
    escaped = text.replace("\\", r"\\")
    return rf"\g<1>{escaped}\g<3>"


def _replace_user_text(prompt: str, text: str) -> str:
    head, mark, rest = prompt.rpartition(_VIDEO_END)
    if not mark:
        raise ValueError(
            f"The stage-2 prompt has no place: write user_prompt where it belongs in {prompt!r:.200}."
        )
    _, end, tail = rest.partition(_TURN_END)
    return head + mark + text + end + tail


def _complete_video(video: Any, colours: Colours | None) -> Any:
    """Return frames, or (frames, metadata), as vLLM takes them: the same object if it is complete.

    Frames of 0 to 255 are normalised to `colours`, unless those are None.
    """
    frames, metadata = video if isinstance(video, tuple) else (video, None)
    if len(getattr(frames, "shape", ())) != 4:
        return video
    is_raw = str(frames.dtype).endswith("uint8")
    if metadata is not None and not (is_raw and colours):
        return video
    if is_raw and colours:
        frames = normalise(np.asarray(frames), colours)
    return frames, metadata or _describe_frames(len(frames), _SAMPLING_FPS)


def normalise(frames: NDArray[np.uint8], colours: Colours) -> NDArray[np.float32]:
    """Return values of 0 to 255 as (frames, RGB, height, width) around 0; RGB may also come last."""
    mean, deviation = (np.asarray(values, np.float32)[:, None, None] for values in colours)
    planes = frames if frames.shape[-1] != 3 else frames.transpose(0, 3, 1, 2)
    scaled = np.empty(planes.shape, np.float32)
    np.multiply(planes, 1 / (255 * deviation), out=scaled)
    scaled -= mean / deviation
    return scaled


def _describe_frames(count: int, fps: float) -> JsonObject:
    """Return vLLM's metadata for `count` frames that were sampled at `fps`."""
    return {
        "fps": fps,
        "frames_indices": list(range(count)),
        "total_num_frames": count,
        "duration": count / fps,
        "video_backend": "pyav",
        "do_sample_frames": False,
    }
