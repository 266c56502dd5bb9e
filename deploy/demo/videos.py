"""Make the demo's videos with PyAV: moving scenes of a few seconds."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import cast

import av
import numpy as np
from av.video.stream import VideoStream
from PIL import Image, ImageDraw

WIDTH, HEIGHT, FRAMES_PER_SECOND = 448, 336, 12


def encode(path: Path, frames: Iterable[Image.Image]) -> int:
    """Write `frames`, all of one size, as an MP4 and return their number."""
    # x264's other presets, and more than one thread, give different bytes from run to run.
    codec, options = (
        ("libx264", {"preset": "ultrafast"}) if "libx264" in av.codecs_available else ("mpeg4", {})
    )
    count = 0
    with av.open(path, "w") as container:
        stream = cast("VideoStream", container.add_stream(codec, rate=FRAMES_PER_SECOND, options=options))
        for frame in frames:
            if count == 0:
                stream.width, stream.height = frame.size
                stream.pix_fmt, stream.codec_context.thread_count = "yuv420p", 1
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.asarray(frame), format="rgb24")))
            count += 1
        container.mux(stream.encode(None))
    return count


def pan(photograph: Image.Image, seconds: float) -> Iterator[Image.Image]:
    """Move the camera from the left to the right edge, zooming in a little."""
    count = round(seconds * FRAMES_PER_SECOND)
    for progress in np.linspace(0, 1, count):
        height = photograph.height * (1 - 0.25 * progress)
        width = min(height * WIDTH / HEIGHT, photograph.width)
        left, top = (photograph.width - width) * progress, (photograph.height - height) / 2
        yield photograph.resize((WIDTH, HEIGHT), box=(left, top, left + width, top + height))


def bouncing_ball(seconds: float) -> Iterator[Image.Image]:
    """Let a red ball cross a floor in four bounces, each lower than the last."""
    count = round(seconds * FRAMES_PER_SECOND)
    for progress in np.linspace(0, 1, count):
        frame = Image.new("RGB", (WIDTH, HEIGHT), "#dfe9f2")
        pen = ImageDraw.Draw(frame)
        pen.rectangle((0, 280, WIDTH, HEIGHT), "#8b7355")
        x = 30 + 390 * progress
        y = 262 - 200 * (1 - 0.75 * progress) * abs(np.sin(progress * np.pi * 4))
        pen.ellipse((x - 24, 276, x + 24, 288), "#6e5a42")
        pen.ellipse((x - 20, y - 20, x + 20, y + 20), "#c8322b")
        yield frame


def day_to_night(photograph: Image.Image, seconds: float) -> Iterator[Image.Image]:
    """Darken a scene and let a moon rise."""
    day = np.asarray(photograph.resize((WIDTH, HEIGHT)), dtype=float)
    night = day * (0.18, 0.22, 0.42)
    for progress in np.linspace(0, 1, round(seconds * FRAMES_PER_SECOND)):
        frame = Image.fromarray((day + (night - day) * progress).astype(np.uint8))
        y = HEIGHT * (0.75 - 0.6 * progress)
        if progress > 0.4:
            ImageDraw.Draw(frame).ellipse((340, y - 18, 376, y + 18), "#f4f1dc")
        yield frame
