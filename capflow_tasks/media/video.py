"""The one way to read a video: which of its frames the model gets, and in what size.

Decoding is `player.py`'s, in this process or in one of its own. Knows nothing of prompts or the engine.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from capflow_tasks.errors import FatalSampleError
from capflow_tasks.media.pictures import MediaBudget, count_frames, fit_frame, video_tokens
from capflow_tasks.media.player import VideoFacts, measure_video, play_video
from capflow_tasks.records import MediaLimits, Span


class VideoReader(Protocol):
    """Where the files are opened: `VideoFiles`, or `here`."""

    def measure(self, path: str, budget: MediaBudget) -> VideoFacts: ...

    def play(
        self, path: str, budget: MediaBudget, facts: VideoFacts, times: list[float], size: tuple[int, int]
    ) -> tuple[NDArray[np.uint8], list[float]]: ...


class _Here:
    """Reads in this process, which a codec that crashes takes with it."""

    measure = staticmethod(measure_video)
    play = staticmethod(play_video)


here: VideoReader = _Here()


@dataclass(frozen=True, slots=True, eq=False)
class DecodedVideo:
    """What the model gets of a video."""

    #: RGB, (frames, height, width, 3); the number of frames is even.
    frames: NDArray[np.uint8]
    #: Seconds since the first frame of the file, per frame: when it is first shown, true to the container.
    timestamps: tuple[float, ...]
    #: Frames in the file.
    total_num_frames: int
    #: From the first frame's start to the last one's end.
    duration_seconds: float

    @property
    def fps(self) -> float:
        """Frames per second as sampled: each frame stands for 1 / fps seconds."""
        return len(self.frames) / self.duration_seconds

    @property
    def source_fps(self) -> float:
        """Frames per second in the file, on average."""
        return self.total_num_frames / self.duration_seconds

    @property
    def frames_indices(self) -> tuple[int, ...]:
        """The number in the file of the frame at each even time, as if the rate were constant."""
        count = len(self.frames)
        return tuple(number * self.total_num_frames // count for number in range(count))

    def for_vllm(self) -> tuple[NDArray[np.uint8], dict[str, Any]]:
        """Return the item for vLLM's `multi_modal_data["video"]`.

        Its `fps` is the file's: Qwen2.5-VL's second_per_grid_ts is 2 * total_num_frames / (frames * fps),
        which is 2 * duration / frames, and Qwen3-VL writes frames_indices / fps into the prompt.
        """
        return self.frames, {
            "fps": self.source_fps,
            "frames_indices": list(self.frames_indices),
            "total_num_frames": self.total_num_frames,
            "duration": self.duration_seconds,
            "video_backend": "pyav",
            "do_sample_frames": False,
        }


@dataclass(frozen=True, slots=True)
class FramePlan:
    """Which frames of a video the model gets, known before any of them is decoded."""

    #: Seconds from the first frame of the file.
    times: list[float]
    #: (width, height) in pixels.
    size: tuple[int, int]
    #: What they stand for: frames in the file, and seconds.
    frame_count: int
    seconds: float
    #: What they cost in the prompt.
    tokens: int


def plan_frames(facts: VideoFacts, budget: MediaBudget, span: Span | None = None) -> FramePlan:
    """Return evenly spaced frames of the video, or of a span of it."""
    start, seconds, frame_count = 0.0, facts.seconds, facts.frame_count
    if span is not None:
        start = min(span.start, facts.seconds)
        seconds = max(min(span.end, facts.seconds) - start, 1 / facts.fps)
        frame_count = max(1, round(seconds * facts.fps))
    count = count_frames(frame_count, facts.fps, budget)
    return FramePlan(
        times=[start + number * seconds / count for number in range(count)],
        size=fit_frame(facts.width, facts.height, count, budget),
        frame_count=frame_count,
        seconds=seconds,
        tokens=video_tokens(facts.width, facts.height, count, budget),
    )


def load_video(
    path: str, budget: MediaBudget, span: Span | None = None, reader: VideoReader = here
) -> DecodedVideo:
    """Return the frames of `plan_frames`, each as a viewer sees it at that time."""
    facts = reader.measure(path, budget)
    plan = plan_frames(facts, budget, span)
    frames, timestamps = reader.play(path, budget, facts, plan.times, plan.size)
    return DecodedVideo(frames, tuple(timestamps), plan.frame_count, plan.seconds)


#: Frames per window.
WINDOW_FRAMES = 256
#: A remainder of fewer frames joins the window before it.
REMAINDER_FRAMES = 128
#: A video of fewer frames has no window.
WINDOW_MIN_FRAMES = 4


@dataclass(frozen=True, slots=True)
class WindowFrameInfo:
    """Where a window lies, in frames."""

    start: int
    #: The last frame that belongs to it.
    end: int

    @property
    def frame_count(self) -> int:
        return self.end - self.start + 1


def compute_windows(
    total_frames: int, window_size: int = WINDOW_FRAMES, remainder_threshold: int = REMAINDER_FRAMES
) -> list[WindowFrameInfo]:
    """Return the windows of a video of `total_frames` frames."""
    if window_size < 1:
        raise ValueError(f"A window must have at least one frame, not {window_size}.")
    if total_frames < WINDOW_MIN_FRAMES:
        return []
    starts = list(range(0, total_frames, window_size))
    if len(starts) > 1 and total_frames - starts[-1] < min(remainder_threshold, window_size):
        del starts[-1]
    ends = [*(start - 1 for start in starts[1:]), total_frames - 1]
    return [WindowFrameInfo(start, end) for start, end in zip(starts, ends, strict=True)]


@dataclass(frozen=True, slots=True)
class WindowRule:
    """When a video is long, and how it is cut then."""

    #: Frames taken per second of video.
    fps: float = 2.0
    #: Frames so taken per window.
    window_frames: int = WINDOW_FRAMES
    #: Windows of one video; a longer one gets longer windows.
    max_windows: int = 64

    def limited(self, limits: MediaLimits) -> WindowRule:
        return WindowRule(
            limits.fps or self.fps,
            limits.window_frames or self.window_frames,
            limits.max_windows or self.max_windows,
        )

    def cut(self, facts: VideoFacts) -> tuple[Span, ...]:
        """Return the windows of a long video in order; of one that is not, none."""
        fps = min(self.fps, facts.fps)
        taken = int(facts.seconds * fps + 1e-6)
        size = max(self.window_frames, -(-taken // self.max_windows))
        starts = [window.start for window in compute_windows(taken, size, size // 2)]
        # in milliseconds, as they are named: no two windows may have one name
        bounds = sorted({round(1000 * start / fps) for start in starts} | {round(1000 * facts.seconds)})
        spans = tuple(Span(start / 1000, end / 1000) for start, end in pairwise(bounds))
        return spans if len(spans) > 1 else ()


class Windows:
    """Tells which windows a video file has."""

    def __init__(self, rule: WindowRule, measure: Callable[[str], VideoFacts]) -> None:
        self._rule = rule
        self._measure = measure

    def of(self, path: str, limits: MediaLimits) -> tuple[Span, ...]:
        """Return the windows in order, none of a short video. Raises RetryableSampleError."""
        try:
            facts = self._measure(path)
        except FatalSampleError:
            return ()  # it will be said again where the file is loaded
        return self._rule.limited(limits).cut(facts)
