"""Reads a video window after window, each of so many frames of the file: one is decoded at a time.

Knows nothing of prompts or the engine.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from capflow_tasks.media.pictures import MediaBudget, Video
from capflow_tasks.records import Span
from capflow_tasks.video.player import measure_video, playing
from capflow_tasks.video.reader import plan_frames
from capflow_tasks.video.spans import REMAINDER_FRAMES as REMAINDER_FRAMES
from capflow_tasks.video.spans import WINDOW_FRAMES as WINDOW_FRAMES
from capflow_tasks.video.spans import WindowFrameInfo
from capflow_tasks.video.spans import compute_windows as compute_windows


@dataclass(frozen=True, slots=True)
class VideoWindow:
    """One decoded window."""

    info: WindowFrameInfo
    #: Its timestamps are the file's, everything else is the window's own.
    video: Video


def load_windows(
    path: str,
    budget: MediaBudget,
    window_size: int = WINDOW_FRAMES,
    remainder_threshold: int = REMAINDER_FRAMES,
) -> Iterator[VideoWindow]:
    """Yield the windows in order; each is sampled and sized by the whole `budget`."""
    facts = measure_video(path, budget)
    with playing(path, budget, facts) as player:
        for info in compute_windows(facts.frame_count, window_size, remainder_threshold):
            span = Span(info.start / facts.fps, (info.end + 1) / facts.fps)
            plan = plan_frames(facts, budget, span)
            frames, timestamps = player.collect(plan.times, plan.size)
            yield VideoWindow(info, Video(frames, tuple(timestamps), plan.frame_count, plan.seconds))
