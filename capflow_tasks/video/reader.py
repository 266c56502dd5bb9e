"""The one way to read a video: which of its frames the model gets, and in what size.

Decoding is `player.py`'s, in this process or in one of its own. Knows nothing of prompts or the engine.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from capflow_tasks.media.pictures import MediaBudget, Video, count_frames, fit_frame, video_tokens
from capflow_tasks.records import Span
from capflow_tasks.video.player import measure_video, play_video
from capflow_tasks.video.source import VideoFacts


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


def load_video(path: str, budget: MediaBudget, span: Span | None = None, reader: VideoReader = here) -> Video:
    """Return the frames of `plan_frames`, each as a viewer sees it at that time."""
    facts = reader.measure(path, budget)
    plan = plan_frames(facts, budget, span)
    frames, timestamps = reader.play(path, budget, facts, plan.times, plan.size)
    return Video(frames, tuple(timestamps), plan.frame_count, plan.seconds)
