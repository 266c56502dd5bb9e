"""Reads a video: chooses the frames that the model gets and their size, and cuts long videos into windows.

`player.py` decodes, in this process or in a child process.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from math import ceil
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from capflow_tasks.errors import FatalSampleError
from capflow_tasks.media import player
from capflow_tasks.media.addresses import part_of
from capflow_tasks.media.budget import FRAMES_PER_TOKEN, FrameSampling, MediaBudget
from capflow_tasks.media.pictures import count_tokens, fit
from capflow_tasks.media.player import VideoFacts
from capflow_tasks.records import Span


class VideoReader(Protocol):
    """Opens video files: in child processes (`VideoFiles`) or in this process (the module `player`)."""

    def measure(self, path: str, budget: MediaBudget) -> VideoFacts: ...

    def play(
        self, path: str, budget: MediaBudget, facts: VideoFacts, times: list[float], size: tuple[int, int]
    ) -> tuple[NDArray[np.uint8], list[float]]: ...


@dataclass(frozen=True, slots=True, eq=False)
class DecodedVideo:
    """The frames of a video that the model gets."""

    #: RGB, (frames, height, width, 3); an even number of frames.
    frames: NDArray[np.uint8]
    #: When each frame is first shown, in the container's own seconds from the file's first frame.
    timestamps: tuple[float, ...]
    #: The number, in the file, of each frame, as if the rate were constant.
    frames_indices: tuple[int, ...]
    #: Frames in the file, or in the span that was read.
    total_num_frames: int
    #: Of these, from the start of the first frame to the end of the last.
    duration_seconds: float
    #: Average frames per second of the file.
    fps: float

    def for_vllm(self) -> tuple[NDArray[np.uint8], dict[str, Any]]:
        """Return the item for vLLM's `multi_modal_data["video"]`.

        `fps` is the file's rate: Qwen2.5-VL's second_per_grid_ts is 2 * total_num_frames / (frames * fps),
        which is 2 * duration / frames, and Qwen3-VL writes frames_indices / fps into the prompt: the time in
        the whole film, also of a span.
        """
        return self.frames, {
            "fps": self.fps,
            "frames_indices": list(self.frames_indices),
            "total_num_frames": self.total_num_frames,
            "duration": self.duration_seconds,
            "video_backend": "pyav",
            "do_sample_frames": False,
        }


@dataclass(frozen=True, slots=True)
class FramePlan:
    """The frames of a video that the model will get, computed before any frame is decoded."""

    #: Seconds from the first frame of the file.
    times: list[float]
    #: The frames' numbers in the file, as if the rate were constant.
    indices: list[int]
    #: (width, height) in pixels.
    size: tuple[int, int]
    #: Frames and seconds of the file that they represent.
    frame_count: int
    seconds: float
    #: Tokens in the prompt.
    tokens: int

    def decoded(
        self, frames: NDArray[np.uint8], timestamps: list[float], fps: float, first_frame: int = 0
    ) -> DecodedVideo:
        """Return the video of these frames, which are counted from `first_frame` of the file."""
        indices = tuple(index - first_frame for index in self.indices)
        return DecodedVideo(frames, tuple(timestamps), indices, self.frame_count, self.seconds, fps)


def plan_frames(facts: VideoFacts, budget: MediaBudget, span: Span | None = None) -> FramePlan:
    """Choose frames of the video, or of a span, as the model does: an even number, a single one twice."""
    start, seconds, frame_count = 0.0, facts.seconds, facts.frame_count
    if span is not None:
        start = min(span.start, facts.seconds)
        seconds = max(min(span.end, facts.seconds) - start, 1 / facts.fps)
        frame_count = max(1, round(seconds * facts.fps))
    # as qwen-vl-utils counts them, which imports torch
    wanted = max(frame_count * min(budget.fps / facts.fps, 1), ceil(budget.min_frames / 2) * 2)
    count = max(int(min(wanted, budget.frame_limit, frame_count)) // 2 * 2, FRAMES_PER_TOKEN)
    share = budget.total_pixels * FRAMES_PER_TOKEN // count
    most = max(min(budget.frame_max_pixels, share), budget.frame_pixels_floor)
    size = fit(facts.width, facts.height, budget.frame_min_pixels, most, budget.factor)
    times, indices = _sample(count, frame_count, seconds, budget.sampling)
    first = round(start * facts.fps)
    return FramePlan(
        times=[start + time for time in times],
        indices=[first + index for index in indices],
        size=size,
        frame_count=frame_count,
        seconds=seconds,
        tokens=count_tokens(size, budget, count),
    )


def _sample(
    count: int, frame_count: int, seconds: float, sampling: FrameSampling
) -> tuple[list[float], list[int]]:
    """Return when each frame is on screen, and its number."""
    if sampling is FrameSampling.LINSPACE:
        indices = [round(number * (frame_count - 1) / (count - 1)) for number in range(count)]
        # the middle of the frame's time, as containers round its start
        return [(index + 0.5) * seconds / frame_count for index in indices], indices
    times = [number * seconds / count for number in range(count)]
    return times, [number * frame_count // count for number in range(count)]


def load_video(
    path: str, budget: MediaBudget, span: Span | None = None, reader: VideoReader = player
) -> DecodedVideo:
    """Read the frames of `plan_frames`, each as a viewer sees it at that time."""
    facts = reader.measure(path, budget)
    plan = plan_frames(facts, budget, span)
    frames, timestamps = reader.play(path, budget, facts, plan.times, plan.size)
    return plan.decoded(frames, timestamps, facts.fps)


#: Frames per window of NeMo Curator's clips; a remainder of fewer frames joins the window before it.
WINDOW_FRAMES, REMAINDER_FRAMES = 256, 128


def compute_windows(
    total_frames: int, window_size: int = WINDOW_FRAMES, remainder_threshold: int = REMAINDER_FRAMES
) -> list[range]:
    """Return the frame numbers of each window; a video of fewer than 4 frames has none."""
    if window_size < 1:
        raise ValueError(f"A window must have at least one frame, not {window_size}.")
    if total_frames < 4:
        return []
    starts = list(range(0, total_frames, window_size))
    if len(starts) > 1 and total_frames - starts[-1] < min(remainder_threshold, window_size):
        del starts[-1]
    return [range(start, end) for start, end in pairwise([*starts, total_frames])]


@dataclass(frozen=True, slots=True)
class Windows:
    """Cuts long video files into windows."""

    budget: MediaBudget
    reader: VideoReader

    def of(self, path: str, changes: Mapping[str, float]) -> tuple[Span, ...]:
        """Return the windows in order, or none for a short video. Raises RetryableSampleError.

        `changes` are the domain's to the media budget.
        """
        try:
            facts = self.reader.measure(path, self.budget)
        except FatalSampleError:
            return ()  # raised again when the file is loaded
        budget = self.budget.overridden_by(changes)
        fps = min(budget.fps, facts.fps)
        named = part_of(path).span or Span(0, facts.seconds)
        first, last = min(named.start, facts.seconds), min(named.end, facts.seconds)
        sampled = int(max(last - first, 0) * fps + 1e-6)
        size = max(budget.window_frames, -(-sampled // budget.max_windows))
        starts = [window.start for window in compute_windows(sampled, size, size // 2)]
        # in milliseconds, as in their names: no two windows may share a name
        bounds = sorted({round(1000 * (first + start / fps)) for start in starts} | {round(1000 * last)})
        spans = tuple(Span(start / 1000, end / 1000) for start, end in pairwise(bounds))
        return spans if len(spans) > 1 else ()
