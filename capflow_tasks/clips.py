"""What the caption stages hand on: a video, its clips, their windows and what was said of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from uuid import UUID, uuid4

from capflow_tasks.records import JsonObject


@dataclass(slots=True)
class Window:
    """A stretch of a clip that is captioned at once."""

    #: First and last frame of the clip that belong to it.
    start_frame: int
    end_frame: int
    #: What each model is to be asked, by variant; gone once it was asked.
    llm_inputs: dict[str, JsonObject] = field(default_factory=dict)
    #: What each model said, by variant.
    caption: dict[str, str] = field(default_factory=dict)
    #: What became of the caption, by the model that rewrote it.
    enhanced_caption: dict[str, str] = field(default_factory=dict)


@dataclass(slots=True)
class Clip:
    """A video file that is captioned window by window."""

    source_video: str
    #: From where to where in the video that it was cut from, in seconds.
    span: tuple[float, float] = (0.0, 0.0)
    #: The clip's own file, as bytes; without it `source_video` is read.
    buffer: bytes | None = None
    windows: list[Window] = field(default_factory=list)
    #: Why something of it has no caption, by what.
    errors: dict[str, str] = field(default_factory=dict)
    uuid: UUID = field(default_factory=uuid4)


@dataclass(slots=True)
class Video:
    """A video and the clips that it was cut into."""

    input_video: Path
    clips: list[Clip] = field(default_factory=list)


@dataclass(slots=True)
class VideoTask:
    """What a stage is given and gives back."""

    data: Video
