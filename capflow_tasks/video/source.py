"""Opens a video file for `player.py`, and says why it cannot be opened."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import av
from av import VideoStream
from av.container import InputContainer

from capflow_tasks.errors import MediaCorrupt, MediaUnreadable, MediaUnsupported
from capflow_tasks.media.budget import MediaBudget, check_source_size
from capflow_tasks.media.paths import file_errors, unrecognised

#: Containers that FFmpeg may try; playlists and image sequences, which open other files, are left out.
_FORMATS = "mov,matroska,webm,avi,mpegts,mpeg,flv,asf,ogg,gif"
#: Containers that know where their keyframes are, and how long they should be.
_INDEXED = frozenset({"mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm", "avi"})
#: Threads per decoder: many videos are decoded side by side.
_THREADS = 2


@dataclass(frozen=True, slots=True)
class VideoFacts:
    """What is known of a video file once it has been measured."""

    frame_count: int
    #: When the first frame is shown, in the container's time.
    start_seconds: float
    #: From the first frame's start to the last one's end.
    seconds: float
    #: In pixels, upright, as if they were square.
    width: int
    height: int

    @property
    def fps(self) -> float:
        """Frames per second, on average."""
        return self.frame_count / self.seconds


@dataclass(frozen=True, slots=True)
class VideoSource:
    """An open file and its video stream."""

    path: str
    container: InputContainer
    stream: VideoStream
    #: When to give up, on the monotonic clock.
    deadline: float

    @property
    def is_indexed(self) -> bool:
        return self.container.format.name in _INDEXED

    @property
    def has_times(self) -> bool:
        """Whether frames have times of their own; AVI has none, and what FFmpeg guesses is out of order."""
        return self.container.format.name != "avi"

    @property
    def rate(self) -> float:
        return float(self.stream.average_rate or self.stream.guessed_rate or 25)

    def check_time(self) -> None:
        if time.monotonic() > self.deadline:
            raise MediaUnreadable(f"{self.path} was not decoded within its time limit.")


@contextmanager
def open_video(path: str, budget: MediaBudget, deadline: float) -> Iterator[VideoSource]:
    """Yield the file's video; it is read through Python's file, so that the disk's errors stay apart."""
    options = {"format_whitelist": _FORMATS, "protocol_whitelist": ""}
    is_known = False
    with file_errors(path):
        try:
            with (
                Path(path).open("rb") as file,
                av.open(file, "r", None, None, options, buffer_size=2**18) as container,
            ):
                is_known = True
                yield VideoSource(path, container, _video_stream(container, path, budget), deadline)
        except av.error.MemoryError:
            raise
        except (av.error.DecoderNotFoundError, av.error.PatchWelcomeError) as error:
            raise MediaUnsupported(f"{path} cannot be decoded here: {error.strerror}.") from error
        except av.error.FFmpegError as error:
            if is_known:
                raise MediaCorrupt(f"{path} is damaged or cut short: {error.strerror}.") from error
            raise unrecognised(path, "video") from error


def _video_stream(container: InputContainer, path: str, budget: MediaBudget) -> VideoStream:
    cover = av.stream.Disposition.attached_pic
    stream = next((stream for stream in container.streams.video if not stream.disposition & cover), None)
    if stream is None:
        others = ", ".join(sorted({stream.type for stream in container.streams})) or "nothing"
        raise MediaUnsupported(f"{path} holds no video, only {others}.")
    codec = stream.codec_context
    if codec is None:
        raise MediaUnsupported(f"{path} holds video in a codec that has no decoder here.")
    if not (codec.width and codec.height):
        raise MediaCorrupt(f"{path} is damaged: its {codec.name} video has no size.")
    check_source_size(path, codec.width, codec.height, budget)
    codec.options = {"max_pixels": str(budget.max_source_pixels)}
    codec.thread_type = "AUTO"
    codec.thread_count = _THREADS
    return stream
