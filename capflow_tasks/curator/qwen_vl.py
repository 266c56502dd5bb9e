"""NeMo Curator's `QwenVL` without its faults: captions videos in this process, in one stage or two.

Code and tests written against theirs work with only the import path changed, so names here are theirs, the
private ones that tests patch included. What differs: a caption may hold any character, the caller's inputs
stay as they are, stage 2 is refused before stage 1 is paid when it has no prompt, and `on_error="skip"` keeps
the captions of a call in which a video fails. vLLM is imported by `setup`, not with this module.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Literal, TypeVar, overload

from capflow_tasks.curator import grouping
from capflow_tasks.curator.frames import CLIP_COLOURS, EVEN_COLOURS, complete_video
from capflow_tasks.curator.library import LLM, VLLM_AVAILABLE, ModelInterface, SamplingParams, missing_vllm
from capflow_tasks.engine.weights import download_model_from_hf, has_all_weights
from capflow_tasks.records import JsonObject

logger = logging.getLogger(__name__)

_QWEN2_5_VL_MODEL_ID = "Qwen/Qwen2.5-VL-7B-Instruct"
_QWEN2_5_VL_MODEL_REVISION = "cc59489"
_QWEN3_VL_MODEL_ID = "Qwen/Qwen3-VL-8B-Instruct"
_QWEN3_VL_MODEL_REVISION = "0c351dd"

_QWEN_VARIANTS_INFO = {
    "qwen": _QWEN2_5_VL_MODEL_ID,
    "qwen2.5": _QWEN2_5_VL_MODEL_ID,
    "qwen3": _QWEN3_VL_MODEL_ID,
}

_COLOURS = {"qwen": CLIP_COLOURS, "qwen2.5": CLIP_COLOURS, "qwen3": EVEN_COLOURS}
#: Between these, in a prompt of Qwen's chat template, stands what the user says of the video.
_VIDEO_END, _TURN_END = "<|vision_end|>", "<|im_end|>"

OnError = Literal["raise", "skip"]
S = TypeVar("S")
T = TypeVar("T")


class QwenVL(ModelInterface):
    """Qwen2.5-VL or Qwen3-VL in vLLM's synchronous engine; `vllm_kwargs` go to it, over what is set here."""

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
        #: What stage 2 replaces in a prompt is the second group.
        self.pattern = r"(.*)(user_prompt)(.*)"
        self.model: Any = None
        self.sampling_params: Any = None

    @property
    def model_id_names(self) -> list[str]:
        return [_QWEN_VARIANTS_INFO[self.model_variant]]

    def setup(self) -> None:
        if not VLLM_AVAILABLE:
            raise missing_vllm("QwenVL")
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
        self.sampling_params = SamplingParams(
            temperature=0.1,
            top_p=0.001,
            repetition_penalty=1.05,
            max_tokens=self.max_output_tokens,
            stop_token_ids=[],
        )
        logger.info(
            "CUDA graph enabled for sequences smaller than 16k tokens; "
            "adjust accordingly for even longer sequences"
        )

    @overload
    def generate(
        self,
        videos: list[JsonObject],
        generate_stage2_caption: bool = ...,
        batch_size: int = ...,
        *,
        on_error: Literal["raise"] = ...,
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
    ) -> list[str] | list[str | None]:
        """Return a caption per video, in order; with `on_error="skip"` None for each that failed.

        A video is {"prompt", "multi_modal_data": {"video": frames or (frames, metadata)}}, where frames are
        (T, H, W, RGB) of 0 to 255, with sides that are multiples of 28 (32 for qwen3) unless the model
        preprocesses, or (T, RGB, H, W), preprocessed. Stage 2 replaces `user_prompt` in the prompt with the
        stage-2 prompt and the first caption; without such a word, all that the user says of the video.
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
        """Bring a variant's checkpoint to where `QwenVL(model_dir, variant, ...)` looks for it."""
        # read here, not kept in a table: tests patch them
        revisions = {
            "qwen": (_QWEN2_5_VL_MODEL_ID, _QWEN2_5_VL_MODEL_REVISION),
            "qwen2.5": (_QWEN2_5_VL_MODEL_ID, _QWEN2_5_VL_MODEL_REVISION),
            "qwen3": (_QWEN3_VL_MODEL_ID, _QWEN3_VL_MODEL_REVISION),
        }
        model_id, revision = revisions[variant]
        folder = Path(model_dir) / model_id
        folder.mkdir(parents=True, exist_ok=True)
        if has_all_weights(folder):
            logger.info(f"QwenVL weights already present at: {folder}")
            return
        download_model_from_hf(model_id=model_id, local_dir=folder, revision=revision)
        logger.info(f"QwenVL weights downloaded to: {folder}")

    def _caption(self, videos: list[JsonObject], with_stage2: bool, on_error: OnError) -> list[str | None]:
        inputs = _attempt(self._prepare, videos, on_error)
        captions = self._ask(inputs, on_error)
        if self.verbose:
            for caption in captions:
                logger.info(f"Stage 1 caption: {caption}")
        if with_stage2:
            told = [
                None if video is None or caption is None else (video, caption)
                for video, caption in zip(inputs, captions, strict=True)
            ]
            captions = self._ask(_attempt(self._tell_caption, told, on_error), on_error)
        return captions

    def _prepare(self, video: JsonObject) -> JsonObject:
        """Return the input as vLLM takes it, the same object where nothing is missing."""
        media = video.get("multi_modal_data") or {}
        if "video" in media and media["video"] is None:
            # vLLM would drop it without a word and caption nothing
            raise ValueError(f"The input has no video, only a prompt: {video.get('prompt')!r:.200}.")
        colours = None if self.model_does_preprocess else _COLOURS[self.model_variant]
        ready = complete_video(media.get("video"), colours)
        if ready is media.get("video"):
            return video
        return {**video, "multi_modal_data": {**media, "video": ready}}

    def _tell_caption(self, told: tuple[JsonObject, str]) -> JsonObject:
        video, caption = told
        return {**video, "prompt": self._stage2_prompt_for(video["prompt"], caption)}

    def _stage2_prompt_for(self, prompt: str, caption: str) -> str:
        text = f"{self.stage2_prompt}{caption}"
        replaced = re.sub(self.pattern, _replacement(text), prompt, flags=re.DOTALL)
        return replaced if replaced != prompt else _replace_what_the_user_says(prompt, text)

    def _ask(self, inputs: list[JsonObject | None], on_error: OnError) -> list[str | None]:
        answers = iter(self._answers([video for video in inputs if video is not None], on_error))
        return [None if video is None else next(answers) for video in inputs]

    def _answers(self, inputs: list[JsonObject], on_error: OnError) -> list[str | None]:
        """Ask for all at once; when that fails and may, for each half, down to the one that is at fault."""
        if not inputs:
            return []
        try:
            outputs = self.model.generate(inputs, sampling_params=self.sampling_params, use_tqdm=False)
            return [output.outputs[0].text for output in outputs]
        except Exception as error:
            # by name: what a dead engine raises is vLLM's own, and no half would fare better
            if on_error == "raise" or type(error).__name__ == "EngineDeadError":
                raise
            if len(inputs) == 1:
                logger.warning(f"A video was not captioned: {error}")
                return [None]
        middle = len(inputs) // 2
        return [*self._answers(inputs[:middle], on_error), *self._answers(inputs[middle:], on_error)]


def _attempt(step: Callable[[S], T], items: Iterable[S | None], on_error: OnError) -> list[T | None]:
    """Return the step's result per item, None where the item is None or the step failed and may."""
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
    """Return a regex template that puts `text` between the first and the third group, whatever it holds."""
    if "\\" not in text and not text[:1].isdigit():
        return rf"\1{text}\3"
    escaped = text.replace("\\", r"\\")
    return rf"\g<1>{escaped}\g<3>"


def _replace_what_the_user_says(prompt: str, text: str) -> str:
    head, mark, said = prompt.rpartition(_VIDEO_END)
    if not mark:
        raise ValueError(
            f"Stage 2 has no place for its prompt: write user_prompt where it is to stand in {prompt!r:.200}."
        )
    _, end, rest = said.partition(_TURN_END)
    return head + mark + text + end + rest
