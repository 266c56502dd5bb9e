"""Opens, measures and plays video files with FFmpeg."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from math import inf
from typing import Any, cast

import av
import numpy as np
from av import Packet, VideoFrame, VideoStream
from numpy.typing import NDArray

from capflow_tasks.errors import MediaCorrupt, MediaUnreadable, MediaUnsupported
from capflow_tasks.media.addresses import open_media
from capflow_tasks.media.budget import MediaBudget, check_source_size
from capflow_tasks.media.integrity import lost_sectors
from capflow_tasks.media.paths import check_file, file_errors, unrecognised

#: Containers that FFmpeg may try; without playlists and image sequences, which open other files.
_FORMATS = "mov,matroska,webm,avi,mpegts,mpeg,flv,asf,ogg,gif"
#: Containers that index their keyframes and state their length.
_INDEXED = frozenset({"mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm", "avi"})


@dataclass(frozen=True, slots=True)
class VideoFacts:
    """The measured length and size of a video file."""

    frame_count: int
    #: When the first frame is shown, in the container's time.
    start_seconds: float
    #: From the start of the first frame to the end of the last.
    seconds: float
    #: Upright, in square pixels.
    width: int = 0
    height: int = 0

    @property
    def fps(self) -> float:
        """Average frames per second."""
        return self.frame_count / self.seconds


@dataclass(frozen=True, slots=True)
class VideoSource:
    """An open file and its video stream."""

    path: str
    container: av.container.InputContainer
    stream: VideoStream
    #: When decoding times out, on the monotonic clock.
    deadline: float

    @property
    def is_indexed(self) -> bool:
        return self.container.format.name in _INDEXED

    @property
    def has_times(self) -> bool:
        """Whether frames carry timestamps; AVI has none, and FFmpeg's guesses are out of order."""
        return self.container.format.name != "avi"

    @property
    def rate(self) -> float:
        return float(self.stream.average_rate or self.stream.guessed_rate or 25)

    def check_time(self) -> None:
        if time.monotonic() > self.deadline:
            raise MediaUnreadable(f"{self.path} was not decoded within its time limit.")


@contextmanager
def open_video(path: str, budget: MediaBudget, deadline: float) -> Iterator[VideoSource]:
    """Open a video file; Python reads it, to distinguish disk errors from format errors."""
    options = {"format_whitelist": _FORMATS, "protocol_whitelist": ""}
    is_known = False
    with file_errors(path):
        try:
            with (
                open_media(path) as file,
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


def _video_stream(container: av.container.InputContainer, path: str, budget: MediaBudget) -> VideoStream:
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
    codec.thread_count = 2  # few, because many videos are decoded at a time
    return stream


#: Files up to this size in bytes are scanned whole, larger files only at their end.
SCAN_BYTES = 64 * 2**20
#: Codecs that fill no frame with zeros, as MPEG-2 and DNxHD do; a raw black picture is zeros.
_WITHOUT_ZEROS = frozenset({"h264", "hevc", "vp8", "vp9", "av1", "mpeg4", "mjpeg"})
#: Bytes of a packet in a lost sector; a sound packet may end with a few zeros beside a muxer's padding.
_ENOUGH_ZEROS = 16
#: Seconds that a jump lands before its target, so that reordered frames are complete there.
_RUN_UP_SECONDS = 1.0
#: Share of frames that may be damaged; each is replaced by the frame before it.
_DAMAGED_SHARE = 0.05
#: (height, width, RGB) or (frames, height, width, RGB).
_Pixels = NDArray[np.uint8]
#: FFmpeg's display matrix (a, b, c, d): pixel (x, y) is shown at (ax + cy, bx + dy); a = d = 0 or b = c = 0.
_Matrix = tuple[int, int, int, int]


def measure(path: str, budget: MediaBudget) -> VideoFacts:
    """Measure a video's length by its packets and its size by its first frame."""
    is_small = check_file(path, budget.max_file_bytes).size <= SCAN_BYTES
    with open_video(path, budget, time.monotonic() + budget.timeout_seconds) as source:
        facts = _true_length(source, is_small)
        if is_small:
            _check_sectors(source)
    with playing(path, budget, facts) as player:
        width, height = player.upright_size()
    return replace(facts, width=width, height=height)


def play(
    path: str, budget: MediaBudget, facts: VideoFacts, times: Sequence[float], size: tuple[int, int]
) -> tuple[_Pixels, list[float]]:
    """Return the frame on screen at each time, resized to (width, height), and its start."""
    with playing(path, budget, facts) as player:
        return player.collect(times, size)


@contextmanager
def playing(path: str, budget: MediaBudget, facts: VideoFacts) -> Iterator[Player]:
    """Open a player of a measured file; the budget's time limit covers everything done with it."""
    with (
        open_video(path, budget, time.monotonic() + budget.timeout_seconds) as source,
        closing(Player(source, facts)) as player,
    ):
        yield player


def _true_length(source: VideoSource, is_small: bool) -> VideoFacts:
    """Measure the video's true length; refuse a file that ends long before its stated length."""
    container, stream, frame_count = source.container, source.stream, 0
    claimed = container.duration / av.time_base if container.duration and source.is_indexed else 0.0
    offset = (container.start_time or 0) / av.time_base
    if claimed and not is_small:
        container.seek(int((offset + claimed - 2) * av.time_base))
        scanned, _, end, data_end, is_cut = _scan(source)
        start = (stream.start_time or 0) * float(stream.time_base or 0)
        frame_count = scanned and (stream.frames or round(max(end - start, 1e-3) * source.rate))
        container.seek(int(offset * av.time_base))
    if frame_count == 0:
        frame_count, start, end, data_end, is_cut = _scan(source)
    real = data_end - offset
    if frame_count == 0:
        raise MediaCorrupt(f"{source.path} is cut short: it holds no video data.")
    if real < claimed - max(0.5, 0.02 * claimed):
        raise MediaCorrupt(f"{source.path} claims {claimed:.1f} s, but its data ends at {real:.1f} s.")
    if is_cut and source.is_indexed:
        raise MediaCorrupt(f"{source.path} is cut short: its last frame is incomplete.")
    return VideoFacts(frame_count, start, max(end - start, 1e-3))


def _check_sectors(source: VideoSource) -> None:
    """Refuse a file in which sectors of a disk were lost; zeros beside the packets are a muxer's padding."""
    is_stream = source.container.format.name == "mpegts"
    if not is_stream and source.stream.codec.canonical_name not in _WITHOUT_ZEROS:
        return
    with open_media(source.path) as file:
        lost = lost_sectors(file)
    # Each 188 bytes of a transport stream begin with 0x47.
    damaged = lost if is_stream else []
    if lost and not damaged:
        source.container.seek(0)
        for packet in source.container.demux(source.stream):
            source.check_time()
            if packet.pos is None or packet.size is None:
                continue
            held = range(packet.pos, packet.pos + packet.size)
            damaged = damaged or [span for span in lost if _shared(span, held) >= _ENOUGH_ZEROS]
    if damaged:
        first = damaged[0]
        said = f"{len(first):,} bytes from {first.start:,} on are zero, a disk's lost sector"
        raise MediaCorrupt(f"{source.path} is damaged: {said}.")


def _shared(one: range, other: range) -> int:
    return min(one.stop, other.stop) - max(one.start, other.start)


def _scan(source: VideoSource) -> tuple[int, float, float, float, bool]:
    """Return what the packets from here on hold, in the container's time.

    The number of frames, the start and end of the video, the end of any stream, as sound often lasts longer
    than the picture, and whether the file ends inside the last packet.
    """
    frame_count, is_cut = 0, False
    first, end, data_end, last = inf, -inf, -inf, -inf
    for packet in source.container.demux():
        source.check_time()
        stamp = packet.pts if source.has_times and packet.pts is not None else packet.dts
        if stamp is None or packet.is_discard:
            continue
        began, ended = (float(at * packet.time_base) for at in (stamp, stamp + (packet.duration or 0)))
        data_end, is_cut = max(data_end, ended), packet.is_corrupt
        if packet.stream_index != source.stream.index:
            continue
        if packet.has_sidedata("encryption_info"):
            raise MediaUnsupported(f"{source.path} is encrypted.")
        frame_count += 1
        first = min(first, began)
        if began > last:
            # reordered frames may have their neighbour's duration: only the last frame's is used
            last, end = began, ended if packet.duration else began + 1 / source.rate
    return frame_count, first, end, data_end, is_cut


class Player:
    """Plays a video forwards, and jumps to keyframes."""

    def __init__(self, source: VideoSource, facts: VideoFacts) -> None:
        self.stream = source.stream
        self._source, self._facts = source, facts
        self._can_jump = source.is_indexed
        self._good = self._damaged = 0
        self._shown: tuple[float, VideoFrame] | None = None
        if self._can_jump:
            source.container.seek(self._stamp(0.0), stream=source.stream)  # makes Matroska read its index
        self._coming = self._play()
        self._next = next(self._coming, None)

    def close(self) -> None:
        """Free the frames at once instead of at the next garbage collection."""
        self._coming.close()
        self._shown = self._next = None

    def collect(self, times: Sequence[float], size: tuple[int, int]) -> tuple[_Pixels, list[float]]:
        """Return the frame on screen at each time, resized to (width, height), and its start."""
        width, height = size
        frames = np.empty((len(times), height, width, 3), np.uint8)
        timestamps: list[float] = []
        matrix = last = None
        for number, (began, frame) in enumerate(self._show(times)):
            matrix = matrix or _display_matrix(frame)
            frames[number] = frames[number - 1] if frame is last else _pixels(frame, width, height, matrix)
            timestamps.append(began)
            last = frame
        return frames, timestamps

    def upright_size(self) -> tuple[int, int]:
        """Return the upright (width, height) of the first frame in square pixels."""
        _, frame = next(self._show([0.0]))
        width = max(1, round(frame.width * (self.stream.sample_aspect_ratio or 1)))
        return (width, frame.height) if _display_matrix(frame)[0] else (frame.height, width)

    def _show(self, times: Sequence[float]) -> Iterator[tuple[float, VideoFrame]]:
        """Yield (start in seconds, frame) for the frame on screen at each of the ascending times."""
        for seconds in times:
            if self._is_keyframe_ahead(seconds):
                self._seek(seconds - _RUN_UP_SECONDS)
                if self._next is None or self._next[0] > seconds:
                    # the index led past the target: play everything before it
                    self._can_jump = False
                    self._seek(0.0)
            while self._next and (self._shown is None or self._next[0] <= seconds + 1e-6):
                self._shown = self._next
                self._next = next(self._coming, None)
            if self._shown is None:
                raise MediaCorrupt(f"{self._source.path} is damaged: none of its frames can be decoded.")
            yield self._shown
        if self._damaged > _DAMAGED_SHARE * (self._good + self._damaged):
            lost = f"{self._damaged} of {self._good + self._damaged} frames are lost"
            raise MediaCorrupt(f"{self._source.path} is damaged: {lost}.")

    def _seek(self, seconds: float) -> None:
        self._source.container.seek(self._stamp(max(0.0, seconds)), stream=self.stream)
        self._coming = self._play()
        self._next = next(self._coming, None)

    def _play(self) -> Generator[tuple[float, VideoFrame], None, None]:
        at = first = None
        for packet in self._source.container.demux(self.stream):
            self._source.check_time()
            first = packet.dts if first is None else first
            for frame in self._decode(packet, has_begun=at is not None):
                if self._source.has_times and frame.time is not None:
                    at = max(0.0, frame.time - self._facts.start_seconds)
                elif at is None:
                    at = max(0.0, float((first or 0) * packet.time_base) - self._facts.start_seconds)
                else:
                    at += 1 / self._facts.fps
                self._good += 1
                yield at, frame

    def _decode(self, packet: Packet[VideoStream], has_begun: bool) -> list[VideoFrame]:
        """Return the undamaged frames; after a seek, errors before the first good frame do not count."""
        try:
            frames = packet.decode()
        except av.error.InvalidDataError:
            self._damaged += has_begun
            return []
        whole = [frame for frame in frames if not frame.is_corrupt]
        self._damaged += (len(frames) - len(whole)) * has_begun
        return whole

    def _is_keyframe_ahead(self, seconds: float) -> bool:
        if not self._can_jump or self._next is None or self._next[0] + _RUN_UP_SECONDS >= seconds:
            return False
        entries = self.stream.index_entries
        found = entries.search_timestamp(self._stamp(seconds - _RUN_UP_SECONDS))
        return found >= 0 and entries[found].timestamp > self._stamp(self._next[0] + _RUN_UP_SECONDS)

    def _stamp(self, seconds: float) -> int:
        return int((self._facts.start_seconds + seconds) / float(self.stream.time_base or 1))


def _display_matrix(frame: VideoFrame) -> _Matrix:
    # reading side data ties a frame into a reference cycle: read it from a small copy
    data = frame.reformat(16, 16).side_data.get("DISPLAYMATRIX")
    if data is None:
        return 1, 0, 0, 1
    a, b, _, c, d = np.frombuffer(bytes(cast(Any, data)), np.int32)[:5].tolist()
    return (0, b, c, 0) if abs(b) > abs(a) else (a, 0, 0, d)


def _pixels(frame: VideoFrame, width: int, height: int, matrix: _Matrix) -> _Pixels:
    """Return the frame as (height, width, 3), upright."""
    a, b, c, d = matrix
    size = (width, height) if a else (height, width)
    small = frame.reformat(*size, format="rgb24", interpolation="BICUBIC")
    pixels = np.asarray(small.to_ndarray(), np.uint8).transpose((0, 1, 2) if a else (1, 0, 2))
    right, down = (a, d) if a else (c, b)
    return pixels[:: -1 if down < 0 else 1, :: -1 if right < 0 else 1]
