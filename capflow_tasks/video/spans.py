"""Where a long video is cut: windows as NeMo Curator has them. Opens no file and imports no torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

from capflow_tasks.errors import FatalSampleError
from capflow_tasks.records import MediaLimits, Span
from capflow_tasks.video.source import VideoFacts

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
