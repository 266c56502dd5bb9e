"""How much of a picture or video the model gets, and how that is changed or cut down. Imports no torch."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace

from capflow_tasks.errors import MediaTooLarge, SettingsError
from capflow_tasks.records import MediaLimits
from capflow_tasks.settings import Settings

#: Side of the square of pixels that becomes one token of Qwen2.5-VL: patch 14, merged 2 by 2.
QWEN2_5_VL_FACTOR = 28
_TOKEN = QWEN2_5_VL_FACTOR**2
#: Frames that share their tokens.
FRAMES_PER_TOKEN = 2
#: Each field of `MediaLimits` that changes a budget, and the budget's own name for it.
_NAMES = {
    "min_pixels": "min_pixels",
    "max_pixels": "max_pixels",
    "fps": "video_fps",
    "min_frames": "video_min_frames",
    "max_frames": "video_max_frames",
    "frame_min_pixels": "video_frame_min_pixels",
    "frame_max_pixels": "video_frame_max_pixels",
    "total_pixels": "video_total_pixels",
}
#: The least and the most of the same thing.
_PAIRS = (
    ("min_pixels", "max_pixels"),
    ("video_min_frames", "video_max_frames"),
    ("video_frame_min_pixels", "video_frame_max_pixels"),
)
#: A video that is cut down gets a multiple of this, so that prompts of about the same length share it.
_STEP_TOKENS = 256


@dataclass(frozen=True, slots=True)
class MediaBudget:
    """How much of a picture or video the model gets; the defaults suit Qwen2.5-VL with 32 k of context."""

    #: Pixels per side of one token: 28 for Qwen2.5-VL, 32 for Qwen3-VL.
    factor: int = QWEN2_5_VL_FACTOR
    #: Pixels per picture, after resizing, at least (256 tokens, so that small print is enlarged).
    min_pixels: int = 256 * _TOKEN
    #: Pixels per picture, after resizing, at most (1,280 tokens).
    max_pixels: int = 1280 * _TOKEN
    #: Frames to take per second of video.
    video_fps: float = 2.0
    #: Frames per video, at least (as far as it has them).
    video_min_frames: int = 4
    #: Frames per video, at most.
    video_max_frames: int = 256
    #: Pixels per frame, after resizing, at least.
    video_frame_min_pixels: int = 128 * _TOKEN
    #: Pixels per frame, after resizing, at most.
    video_frame_max_pixels: int = 768 * _TOKEN
    #: Pixels per video, two frames counted as one, at most: never exceeded, fewer frames are taken instead.
    video_total_pixels: int = 20480 * _TOKEN
    #: Bytes per file, at most.
    max_file_bytes: int = 16 * 2**30
    #: Pixels per picture or frame as stored, at most; for pictures Pillow stops at 178,956,970 anyway.
    max_source_pixels: int = 150_000_000
    #: Seconds to read and decode one video, at most.
    timeout_seconds: float = 300.0

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if not value > 0:
                raise SettingsError(f"{name} must be above zero, not {value}.")
        if self.min_pixels > self.max_pixels:
            raise SettingsError("min_pixels must not be above max_pixels.")
        if self.video_frame_min_pixels > self.video_frame_max_pixels:
            raise SettingsError("video_frame_min_pixels must not be above video_frame_max_pixels.")
        if self.frame_limit < FRAMES_PER_TOKEN:
            raise SettingsError(
                "video_total_pixels and video_max_frames must allow two frames of least size."
            )

    @property
    def frame_limit(self) -> int:
        """Frames per video, at most, with the total in mind."""
        affordable = self.video_total_pixels * FRAMES_PER_TOKEN // self.frame_pixels_floor
        return min(self.video_max_frames, affordable) // FRAMES_PER_TOKEN * FRAMES_PER_TOKEN

    @property
    def frame_pixels_floor(self) -> int:
        """Pixels a frame may always have: room to round, or the processor enlarges it past the total."""
        return self.video_frame_min_pixels * 5 // 4

    @property
    def video_min_tokens(self) -> int:
        """Tokens without which no video is sent: two frames of least size."""
        return -(-self.frame_pixels_floor // self.factor**2)

    def limited(self, limits: MediaLimits) -> MediaBudget:
        """This budget with an agent's changes; they win where a least and a most conflict."""
        given = {own: getattr(limits, name) for name, own in _NAMES.items()}
        changes = {name: value for name, value in given.items() if value is not None}
        for least, most in _PAIRS:
            if most in changes and least not in changes:
                changes[least] = min(getattr(self, least), changes[most])
            if least in changes and most not in changes:
                changes[most] = max(getattr(self, most), changes[least])
        if "video_total_pixels" in changes:
            frame = changes.get("video_frame_min_pixels", self.video_frame_min_pixels)
            changes["video_frame_min_pixels"] = min(frame, changes["video_total_pixels"] * 4 // 5)
        return replace(self, **changes) if changes else self

    def within(self, tokens: int) -> MediaBudget:
        """This budget for a video that may cost no more than `tokens`: fewer pixels, then fewer frames."""
        rounded = tokens // _STEP_TOKENS * _STEP_TOKENS
        allowed = max(rounded, min(tokens, self.video_min_tokens))
        return replace(self, video_total_pixels=min(self.video_total_pixels, allowed * self.factor**2))


def budget_of(settings: Settings) -> MediaBudget:
    """The budget that the settings name."""
    return MediaBudget(
        min_pixels=settings.min_pixels,
        max_pixels=settings.max_pixels,
        video_fps=settings.video_fps,
        video_max_frames=settings.video_max_frames,
        video_total_pixels=settings.video_total_pixels,
        max_file_bytes=settings.max_media_mib * 2**20,
        timeout_seconds=settings.media_timeout_seconds,
    )


def check_source_size(path: str, width: int, height: int, budget: MediaBudget) -> None:
    """Refuse a picture or frame by the size in its header, before any pixel is decoded."""
    if width * height > budget.max_source_pixels:
        limit = f"the limit is {budget.max_source_pixels:,} pixels"
        raise MediaTooLarge(f"{path} is {width} x {height} = {width * height:,} pixels; {limit}.")
