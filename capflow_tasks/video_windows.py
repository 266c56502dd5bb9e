"""Cuts a video into windows of frames and reads one after the other: one window is decoded at a time.

Knows nothing of prompts or the engine.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from capflow_tasks.media import MediaBudget, Video, count_frames
from capflow_tasks.video import playing

#: Frames of the file per window.
WINDOW_FRAMES = 256
#: A remainder of fewer frames joins the window before it.
REMAINDER_FRAMES = 128
#: A video of fewer frames has no window.
WINDOW_MIN_FRAMES = 4


@dataclass(frozen=True, slots=True)
class WindowFrameInfo:
    """Where a window lies, in frames of the file."""

    start: int
    #: The last frame that belongs to it.
    end: int

    @property
    def frame_count(self) -> int:
        return self.end - self.start + 1


@dataclass(frozen=True, slots=True)
class VideoWindow:
    """One decoded window."""

    info: WindowFrameInfo
    #: Its timestamps are the file's, everything else is the window's own.
    video: Video


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


def load_windows(
    path: str,
    budget: MediaBudget,
    window_size: int = WINDOW_FRAMES,
    remainder_threshold: int = REMAINDER_FRAMES,
) -> Iterator[VideoWindow]:
    """Yield the windows in order; each is sampled and sized by the whole `budget`."""
    with playing(path, budget) as player:
        length = player.length
        for info in compute_windows(length.frame_count, window_size, remainder_threshold):
            count = count_frames(info.frame_count, length.fps, budget)
            step = info.frame_count / length.fps / count
            times = [info.start / length.fps + number * step for number in range(count)]
            frames, timestamps = player.collect(times, budget)
            yield VideoWindow(info, Video(frames, tuple(timestamps), info.frame_count, step * count))
