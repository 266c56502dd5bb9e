"""NeMo Curator's caption stages: cut clips into windows, caption each window, rewrite the captions."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any
from uuid import UUID, uuid4

import yaml

from capflow_tasks.curator.grouping import split_by_chunk_size
from capflow_tasks.curator.qwen_vl import OnError, PromptFormatter, QwenLM, QwenVL
from capflow_tasks.errors import SampleError
from capflow_tasks.media import player, video
from capflow_tasks.media.budget import MediaBudget
from capflow_tasks.records import JsonObject, Span

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class Window:
    """A span of a clip that gets one caption."""

    #: First and last frame in the clip.
    start_frame: int
    end_frame: int
    #: Input of each model, by variant; removed when the model has run.
    llm_inputs: dict[str, JsonObject] = field(default_factory=dict)
    #: Caption of each model, by variant; None, as from NeMo Curator, is none.
    caption: dict[str, str] | None = field(default_factory=dict)
    #: The rewritten caption, by the model that rewrote it.
    enhanced_caption: dict[str, str] = field(default_factory=dict)


@dataclass(slots=True)
class Clip:
    """A video file that is captioned window by window."""

    source_video: str
    #: Start and end in the source video, seconds.
    span: tuple[float, float] = (0.0, 0.0)
    #: The clip as the bytes of a file; without it, `source_video` is read.
    buffer: bytes | None = None
    windows: list[Window] = field(default_factory=list)
    #: Why a window, or all ("windows"), has no caption.
    errors: dict[str, str] = field(default_factory=dict)
    uuid: UUID = field(default_factory=uuid4)


@dataclass(slots=True)
class Video:
    """A video and its clips."""

    input_video: Path
    clips: list[Clip] = field(default_factory=list)


@dataclass(slots=True)
class VideoTask:
    """The input and output of each stage."""

    data: Video


def load_windows(
    path: str,
    budget: MediaBudget,
    window_size: int = video.WINDOW_FRAMES,
    remainder_threshold: int = video.REMAINDER_FRAMES,
) -> Iterator[tuple[range, video.DecodedVideo]]:
    """Yield each window's frame numbers and its frames, sampled and resized by the whole budget.

    Timestamps count from the start of the file, everything else from the start of the window.
    """
    facts = player.measure(path, budget)
    with player.playing(path, budget, facts) as playing:
        for numbers in video.compute_windows(facts.frame_count, window_size, remainder_threshold):
            plan = video.plan_frames(facts, budget, Span(numbers.start / facts.fps, numbers.stop / facts.fps))
            frames, timestamps = playing.collect(plan.times, plan.size)
            yield numbers, plan.decoded(frames, timestamps, facts.fps, numbers.start)


def prompt_for(stage: str, prompt_variant: str, prompt_text: str | None) -> str:
    """Return `prompt_text`, or the stored prompt of the stage ("caption" or "enhance") and variant."""
    if prompt_text is not None:
        return prompt_text
    stored = yaml.safe_load(Path(__file__).with_name("caption_prompts.yaml").read_text("utf-8"))
    prompts: dict[str, str] = stored[stage]
    if prompt_variant not in prompts:
        raise ValueError(
            f"Invalid prompt variant: {prompt_variant}. Valid variants are: {', '.join(prompts)}"
        )
    return prompts[prompt_variant]


@dataclass
class CaptionPreparationStage:
    """Cuts each clip into windows and prepares the model's input for each window."""

    model_variant: str = "qwen"
    prompt_variant: str = "default"
    prompt_text: str | None = None
    sampling_fps: float = 2.0
    window_size: int = video.WINDOW_FRAMES
    remainder_threshold: int = video.REMAINDER_FRAMES
    #: Folder with the chat template; None for the hub.
    model_dir: str | None = None
    #: Budget per window; `sampling_fps` and the variant set its frame rate and token size.
    budget: MediaBudget = field(default_factory=MediaBudget)
    name: str = "caption_preparation"

    def setup(self) -> None:
        self.prompt_formatter = PromptFormatter(self.model_variant, self.model_dir)

    def process(self, task: VideoTask) -> VideoTask:
        prompt = prompt_for("caption", self.prompt_variant, self.prompt_text)
        for clip in task.data.clips:
            try:
                clip.windows.extend(self._windows(clip, prompt))
            except SampleError as error:
                logger.error(f"Clip {clip.uuid} cannot be read: {error}")
                clip.errors["windows"] = str(error)
        return task

    def _windows(self, clip: Clip, prompt: str) -> Iterator[Window]:
        factor = 32 if self.model_variant == "qwen3" else self.budget.factor
        budget = replace(self.budget, fps=self.sampling_fps, factor=factor)
        with NamedTemporaryFile(prefix="clip-") as file:
            file.write(clip.buffer or b"")
            file.flush()
            path = clip.source_video if clip.buffer is None else file.name
            for numbers, decoded in load_windows(path, budget, self.window_size, self.remainder_threshold):
                inputs = self.prompt_formatter.generate_inputs(prompt, decoded.for_vllm())
                yield Window(numbers[0], numbers[-1], llm_inputs={self.model_variant: inputs})


@dataclass
class CaptionGenerationStage:
    """Captions all windows of a task in one call of `QwenVL`."""

    model_dir: str = "models/qwen"
    model_variant: str = "qwen"
    caption_batch_size: int = 16
    fp8: bool = False
    max_output_tokens: int = 512
    model_does_preprocess: bool = False
    disable_mmcache: bool = False
    generate_stage2_caption: bool = False
    stage2_prompt_text: str | None = None
    verbose: bool = False
    vllm_kwargs: dict[str, Any] = field(default_factory=dict)
    on_error: OnError = "skip"
    name: str = "caption_generation"

    def setup(self) -> None:
        self.model = QwenVL(
            model_dir=self.model_dir,
            model_variant=self.model_variant,
            caption_batch_size=self.caption_batch_size,
            fp8=self.fp8,
            max_output_tokens=self.max_output_tokens,
            model_does_preprocess=self.model_does_preprocess,
            disable_mmcache=self.disable_mmcache,
            stage2_prompt_text=self.stage2_prompt_text,
            verbose=self.verbose,
            **self.vllm_kwargs,
        )
        self.model.setup()

    def process(self, task: VideoTask) -> VideoTask:
        ready = []
        for clip, number, window in _windows_of(task):
            if self.model_variant in window.llm_inputs:
                ready.append((clip, number, window))
                continue
            logger.error(f"Clip {clip.uuid} window {number} has no prepared inputs for {self.model_variant}.")
            clip.errors[f"window-{number}"] = f"no_{self.model_variant}_input"
        captions = self.model.generate(
            [window.llm_inputs.pop(self.model_variant) for _, _, window in ready],
            generate_stage2_caption=self.generate_stage2_caption,
            batch_size=self.caption_batch_size,
            on_error=self.on_error,
        )
        for (clip, number, window), caption in zip(ready, captions, strict=True):
            if caption is None:
                clip.errors[f"window-{number}"] = "not captioned"
            else:
                window.caption = {**(window.caption or {}), self.model_variant: caption}
        return task


@dataclass
class CaptionEnhancementStage:
    """Rewrites each caption with `QwenLM`."""

    model_dir: str = "models/qwen"
    model_variant: str = "qwen"
    prompt_variant: str = "default"
    prompt_text: str | None = None
    model_batch_size: int = 128
    fp8: bool = False
    max_output_tokens: int = 512
    vllm_kwargs: dict[str, Any] = field(default_factory=dict)
    name: str = "caption_enhancement"
    #: Whose captions are rewritten; by default those of the same variant.
    captioning_model_variant: str | None = None

    def __post_init__(self) -> None:
        self.prompt = prompt_for("enhance", self.prompt_variant, self.prompt_text)

    def setup(self) -> None:
        self.model = QwenLM(
            model_dir=self.model_dir,
            model_variant=self.model_variant,
            caption_batch_size=self.model_batch_size,
            fp8=self.fp8,
            max_output_tokens=self.max_output_tokens,
            **self.vllm_kwargs,
        )
        self.model.setup()

    def process(self, task: VideoTask) -> VideoTask:
        captioned = []
        for clip, number, window in _windows_of(task):
            caption = (window.caption or {}).get(self.captioning_model_variant or self.model_variant)
            if caption is None:
                logger.error(f"Clip {clip.uuid} window {number} has no caption")
                clip.errors.setdefault(f"window-{number}", "empty")
            else:
                captioned.append((window, caption))
        system = {"role": "system", "content": self.prompt}
        for batch in split_by_chunk_size(captioned, self.model_batch_size):
            chats = [[system, {"role": "user", "content": caption}] for _, caption in batch]
            for (window, _), caption in zip(batch, self.model.generate(chats), strict=True):
                window.enhanced_caption["qwen_lm"] = caption
        return task


def _windows_of(task: VideoTask) -> Iterator[tuple[Clip, int, Window]]:
    for clip in task.data.clips:
        if not clip.windows and "windows" not in clip.errors:
            logger.warning(f"Clip {clip.uuid} has no windows")
            clip.errors["windows"] = "empty"
        for number, window in enumerate(clip.windows):
            yield clip, number, window
