"""Video files as they come, good and bad, made with whatever encoders there are."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

#: Grey levels that a lossy codec keeps apart.
STEP = 8


def make_clip(
    path: Path,
    codec: str = "libx264",
    *,
    count: int = 30,
    rate: int = 10,
    size: tuple[int, int] = (64, 48),
    times: Sequence[int] | None = None,
    rotation: int | None = None,
    is_mirrored: bool = False,
    keyframe_every: int = 10,
    pixels: NDArray[np.uint8] | None = None,
    pixel_format: str = "yuv420p",
    muxer: dict[str, str] | None = None,
    options: dict[str, str] | None = None,
    aspect: Fraction | None = None,
) -> str:
    """Write a clip whose frame n is grey level n * STEP; `times` are milliseconds per frame."""
    with av.open(str(path), "w", options=muxer or {}) as container:
        stream = container.add_stream(codec, rate=rate, options={**QUIET.get(codec, {}), **(options or {})})
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height = size
        stream.pix_fmt = pixel_format
        context = stream.codec_context
        context.gop_size = keyframe_every
        context.time_base = Fraction(1, 1000) if times else Fraction(1, rate)
        if aspect:
            context.sample_aspect_ratio = aspect
        if rotation is not None:
            stream.set_display_rotation(rotation, hflip=is_mirrored)
        for number in range(count):
            grey = np.full((size[1], size[0], 3), number * STEP % 256, np.uint8)
            frame = av.VideoFrame.from_ndarray(grey if pixels is None else pixels, format="rgb24")
            frame.pts = times[number] if times else number
            frame.time_base = context.time_base
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return str(path)


#: Encoders that write to the terminal unless told not to.
QUIET = {"libx265": {"x265-params": "log-level=none"}}
#: A picture that no codec can make small, so that cutting or overwriting its bytes does harm.
NOISE = np.random.default_rng(0).integers(0, 255, (48, 64, 3), np.uint8)
#: Has FFmpeg write an encrypted MP4.
ENCRYPTED = {
    "encryption_scheme": "cenc-aes-ctr",
    "encryption_key": "76a6c65c5ea762046bd749a2e632ccbb",
    "encryption_kid": "a7e61c373e219033c21091fa607bf3b8",
}


def cut_short(path: str, share: float) -> str:
    file = Path(path)
    file.write_bytes(file.read_bytes()[: int(file.stat().st_size * share)])
    return path


def overwrite_middle(path: str) -> str:
    """Replace half of the bytes by noise."""
    file = Path(path)
    content = bytearray(file.read_bytes())
    start, end = len(content) // 4, len(content) * 3 // 4
    content[start:end] = np.random.default_rng(1).bytes(end - start)
    file.write_bytes(content)
    return path


def claim_seconds(path: str, seconds: float) -> str:
    """Have a Matroska file say that it lasts so long."""
    file = Path(path)
    content = bytearray(file.read_bytes())
    at = content.index(b"\x44\x89\x88") + 3  # Duration, a double in milliseconds
    content[at : at + 8] = struct.pack(">d", 1000 * seconds)
    file.write_bytes(content)
    return path


def make_sound(path: Path) -> str:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=8000)
        assert isinstance(stream, av.AudioStream)
        for number in range(8):
            silence = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
            silence.sample_rate, silence.pts = 8000, number * 1024
            container.mux(stream.encode(silence))
        container.mux(stream.encode(None))
    return str(path)
