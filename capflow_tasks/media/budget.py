"""The media budget: how much of a picture or video the model gets. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from typing import Any

from capflow_tasks.errors import MediaTooLarge, SettingsError
from capflow_tasks.records import BUDGET_PAIRS
from capflow_tasks.settings import Settings

#: Pixels of one token of Qwen2.5-VL: patch 14, merged 2 by 2.
_TOKEN = 28**2
#: Frames that share their tokens.
FRAMES_PER_TOKEN = 2


class FrameSampling(StrEnum):
    """Which n of a video's N frames are taken."""

    #: Frame i is i * N / n, rounded down: n equal steps, of which the last ends with the video. Qwen2.5-VL.
    EVEN = "even"
    #: From the first frame to the last, as numpy.linspace does. Qwen3-VL and later.
    LINSPACE = "linspace"


@dataclass(frozen=True, slots=True)
class PixelRange:
    """Sizes that a model's processor leaves as they are, pixels."""

    least: int
    most: int

    def clamp(self, pixels: int) -> int:
        return max(self.least, min(self.most, pixels))


@dataclass(frozen=True, slots=True)
class MediaForm:
    """The form in which a model takes media, so that its processor need not resize them again.

    The defaults are Qwen2.5-VL's.
    """

    #: Pixels per side of one token; None if the processor brings pictures of any size into its own form.
    token_side: int | None = 28
    picture_pixels: PixelRange = PixelRange(4 * _TOKEN, 16384 * _TOKEN)
    frame_pixels: PixelRange = PixelRange(4 * _TOKEN, 16384 * _TOKEN)
    #: Maximum pixels per video, two frames counted as one; None for no limit.
    video_pixels: int | None = None
    sampling: FrameSampling = FrameSampling.EVEN


@dataclass(frozen=True, slots=True)
class MediaBudget:
    """How much of a picture or video the model gets; the defaults suit Qwen2.5-VL with 32 k of context.

    Domain files use the same names as keys of `budget`.
    """

    #: Pixels per side of one token: 28 for Qwen2.5-VL, 32 for Qwen3-VL; 1 if tokens have no such size.
    factor: int = 28
    #: Which frames of a video are taken.
    sampling: FrameSampling = FrameSampling.EVEN
    #: Minimum pixels per resized picture (256 tokens, so that small print is enlarged).
    min_pixels: int = 256 * _TOKEN
    #: Maximum pixels per resized picture (1,280 tokens).
    max_pixels: int = 1280 * _TOKEN
    #: Frames sampled per second of video.
    fps: float = 2.0
    #: Minimum frames per video, or per window; a shorter video gives what it has.
    min_frames: int = 4
    #: Maximum frames per video, or per window.
    max_frames: int = 256
    #: Minimum pixels per resized frame.
    frame_min_pixels: int = 128 * _TOKEN
    #: Maximum pixels per resized frame.
    frame_max_pixels: int = 768 * _TOKEN
    #: Maximum pixels per video or window, two frames counted as one: never exceeded, fewer frames are taken.
    total_pixels: int = 20480 * _TOKEN
    #: Sampled frames per window of a long video.
    window_frames: int = 256
    #: Maximum windows per video; a longer video gets longer windows.
    max_windows: int = 64
    #: Maximum bytes per file.
    max_file_bytes: int = 16 * 2**30
    #: Maximum pixels per stored picture or frame.
    max_source_pixels: int = 150_000_000
    #: Seconds to read and decode one video.
    timeout_seconds: float = 300.0

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if name != "sampling" and not value > 0:
                raise SettingsError(f"{name} must be above zero, not {value}.")
        if self.min_pixels > self.max_pixels:
            raise SettingsError("min_pixels must not be above max_pixels.")
        if self.frame_min_pixels > self.frame_max_pixels:
            raise SettingsError("frame_min_pixels must not be above frame_max_pixels.")
        if self.frame_limit < FRAMES_PER_TOKEN:
            raise SettingsError("total_pixels and max_frames must allow two frames of minimum size.")

    @property
    def frame_limit(self) -> int:
        """Maximum frames per video that the total allows, even."""
        affordable = self.total_pixels * FRAMES_PER_TOKEN // self.frame_pixels_floor
        return min(self.max_frames, affordable) // FRAMES_PER_TOKEN * FRAMES_PER_TOKEN

    @property
    def frame_pixels_floor(self) -> int:
        """Pixels a frame may always have: with room to round, or the processor enlarges it past the total."""
        return self.frame_min_pixels * 5 // 4

    @property
    def video_min_tokens(self) -> int:
        """Minimum tokens of a video: two frames of minimum size."""
        return self.tokens(self.frame_pixels_floor)

    def tokens(self, pixels: int) -> int:
        """Return the tokens of so many pixels; 0 where they do not follow from the size."""
        return 0 if self.factor == 1 else -(-pixels // self.factor**2)

    def for_model(self, form: MediaForm) -> MediaBudget:
        """Return this budget in the form that a model takes, so that its processor resizes nothing again."""
        if form.token_side is None:
            # not enlarged: the processor resizes everything once
            return replace(self, factor=1, sampling=form.sampling, min_pixels=1, frame_min_pixels=1)
        total = min(self.total_pixels, form.video_pixels or self.total_pixels)
        within = self.overridden_by({"total_pixels": total})
        picture, frame = form.picture_pixels, form.frame_pixels
        # with room to round, or no size may lie between minimum and maximum
        return replace(
            within,
            factor=form.token_side,
            sampling=form.sampling,
            min_pixels=picture.clamp(min(within.min_pixels, picture.most * 4 // 5)),
            max_pixels=picture.clamp(max(within.max_pixels, picture.least * 5 // 4)),
            frame_min_pixels=frame.clamp(min(within.frame_min_pixels, frame.most * 4 // 5)),
            frame_max_pixels=frame.clamp(within.frame_max_pixels),
        )

    def overridden_by(self, changes: Mapping[str, Any]) -> MediaBudget:
        """Change this budget by a domain file's keys; the opposite limit moves where a key passes it."""
        changed = dict(changes)
        for least, most in BUDGET_PAIRS:
            if most in changes:
                changed.setdefault(least, min(getattr(self, least), changes[most]))
            if least in changes:
                changed.setdefault(most, max(getattr(self, most), changes[least]))
        if "frame_min_pixels" in changes:
            changed.setdefault("total_pixels", max(self.total_pixels, changes["frame_min_pixels"] * 5 // 4))
        if "total_pixels" in changes:
            frame = changed.get("frame_min_pixels", self.frame_min_pixels)
            changed["frame_min_pixels"] = min(frame, changes["total_pixels"] * 4 // 5)
        return replace(self, **changed)

    def within(self, tokens: int) -> MediaBudget:
        """Return this budget for a video of at most `tokens`: fewer pixels, then fewer frames."""
        # in steps of 256 tokens, so that prompts of similar length share the video
        rounded = tokens // 256 * 256
        allowed = max(rounded, min(tokens, self.video_min_tokens))
        return replace(self, total_pixels=min(self.total_pixels, allowed * self.factor**2))


def budget_of(settings: Settings) -> MediaBudget:
    """Return the budget that the settings name."""
    return MediaBudget(
        min_pixels=settings.min_pixels,
        max_pixels=settings.max_pixels,
        fps=settings.video_fps,
        max_frames=settings.video_max_frames,
        total_pixels=settings.video_total_pixels,
        window_frames=settings.video_window_frames,
        max_windows=settings.video_max_windows,
        max_file_bytes=settings.max_media_mib * 2**20,
        max_source_pixels=settings.max_source_pixels,
        timeout_seconds=settings.media_timeout_seconds,
    )


def check_source_size(path: str, width: int, height: int, budget: MediaBudget) -> None:
    """Refuse a picture or frame by the size in its header, before any pixel is decoded."""
    if width * height > budget.max_source_pixels:
        raise MediaTooLarge(
            f"{path} is {width} x {height} = {width * height:,} pixels; the limit is "
            f"{budget.max_source_pixels:,} (CAPFLOW_MAX_SOURCE_PIXELS)."
        )
