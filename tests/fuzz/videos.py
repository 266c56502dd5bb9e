"""Damages videos, and counts what the reader finds.

python -m tests.fuzz.videos            # prints the table of videos in docs/explanation/damaged-media.md
"""

from __future__ import annotations

import struct
import tempfile
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

from capflow_tasks.errors import SampleError
from capflow_tasks.media.budget import MediaBudget
from capflow_tasks.media.video import load_video
from tests.fuzz.pictures import DAMAGES, Random, photographs

#: By name: the file's suffix, its encoder and pixel format.
FORMATS = {
    "H.264 in MP4": (".mp4", "libx264", "yuv420p"),
    "H.265 in MKV": (".mkv", "libx265", "yuv420p"),
    "VP9 in WebM": (".webm", "libvpx-vp9", "yuv420p"),
    "MPEG-4 in AVI": (".avi", "mpeg4", "yuv420p"),
    "H.264 in MPEG-TS": (".ts", "libx264", "yuv420p"),
    "Motion JPEG in MOV": (".mov", "mjpeg", "yuvj420p"),
}
_QUIET = {
    "libx265": {"x265-params": "log-level=none"},
    "libvpx-vp9": {"deadline": "realtime", "cpu-used": "8"},
}
_BUDGET = MediaBudget(frame_min_pixels=4 * 28 * 28, frame_max_pixels=16 * 28 * 28)
#: A box at the end.
_TAIL = struct.pack(">I", 16) + b"skip" + b"the end."
#: Frames of a clip, 10 a second, and their size.
_FRAMES, _SIZE = 30, (160, 96)


def clips(name: str, count: int, folder: Path, **changes: Any) -> Iterator[bytes]:
    """Yield clips that pan over parts of photographs; `changes` are those of `_clip`."""
    suffix, codec, pixel_format = FORMATS[name]
    for image in photographs(count):
        path = folder / f"clip{suffix}"
        _clip(path, codec, pixel_format, np.asarray(image.convert("RGB").resize((320, 192))), **changes)
        yield path.read_bytes()


def _clip(
    path: Path,
    codec: str,
    pixel_format: str,
    picture: NDArray[np.uint8],
    *,
    muxer: dict[str, str] | None = None,
    metadata: dict[str, str] | None = None,
    has_silence: bool = False,
) -> None:
    with av.open(str(path), "w", options=muxer or {}) as container:
        container.metadata.update(metadata or {})
        stream = container.add_stream(codec, rate=10, options=_QUIET.get(codec, {}))
        assert isinstance(stream, av.VideoStream)
        (stream.width, stream.height), stream.pix_fmt = _SIZE, pixel_format
        stream.codec_context.gop_size = 15
        sound = container.add_stream("pcm_s16le", rate=8000, layout="mono") if has_silence else None
        for number in range(_FRAMES):
            part = picture[number * 2 : number * 2 + _SIZE[1], number * 4 : number * 4 + _SIZE[0]]
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(part), format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, 10)
            container.mux(stream.encode(frame))
            if sound is not None:
                silence = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), "s16", "mono")
                silence.sample_rate, silence.pts = 8000, number * 800
                container.mux(sound.encode(silence))
        container.mux(stream.encode(None))


def with_odd_metadata(count: int, folder: Path) -> Iterator[tuple[str, bytes]]:
    """Yield (suffix, sound clip with something odd beside its pictures)."""
    noise = np.random.default_rng(0).bytes(4000)
    for name, (suffix, _, _) in FORMATS.items():
        made: list[dict[str, Any]] = [
            {"metadata": {"comment": "a cat, " * 20_000}},
            {"metadata": {"title": "\u202e\x07 half of a title", "rotate": "99", "creation_time": "never"}},
        ]
        if suffix in (".mp4", ".mov"):
            made += [{"muxer": {"movflags": flag}} for flag in ("faststart", "frag_keyframe+empty_moov")]
            made += [{"muxer": {"movflags": "faststart", "moov_size": "40000"}}]
        if suffix in (".mkv", ".avi", ".mov"):
            made += [{"has_silence": True}]
        if suffix in (".mkv", ".webm", ".avi"):
            made += [{"muxer": {"reserve_index_space": "20000"}}]
        for changes in made:
            yield from ((suffix, content) for content in clips(name, count, folder, **changes))
        for content in clips(name, count, folder):
            yield suffix, content + noise
            yield suffix, content + bytes(8192)
            if suffix in (".mp4", ".mov"):
                for kind in (b"free", b"uuid", b"abcd"):
                    padding = -len(content) % 512 + 512 - 8
                    yield suffix, content + struct.pack(">I", padding + 8) + kind + bytes(padding) + _TAIL


def _lose_sectors(whole: bytes, random: Random) -> bytes:
    start = int(random.integers(len(whole))) // 4096 * 4096
    return (whole[:start] + bytes(4096) + whole[start + 4096 :])[: len(whole)]


#: By name: what happens to a file.
VIDEO_DAMAGES: dict[str, Callable[[bytes, Random], bytes]] = {
    **{name: DAMAGES[name] for name in ("one bit flipped", "512 bytes zero")},
    "4,096 bytes zero": _lose_sectors,
    **{name: DAMAGES[name] for name in ("cut short", "rest zero")},
}


def is_refused(content: bytes, path: Path) -> bool:
    path.write_bytes(content)
    try:
        load_video(str(path), _BUDGET)
    except SampleError:
        return True
    return False


def main(count: int = 40) -> None:
    folder = Path(tempfile.mkdtemp())
    print("| format | sound |", " | ".join(VIDEO_DAMAGES), "|\n|---|---|" + "---|" * len(VIDEO_DAMAGES))
    for name, (suffix, _, _) in FORMATS.items():
        path, random = folder / f"damaged{suffix}", np.random.default_rng(len(name))
        sound = list(clips(name, count, folder))
        cells = [f"{sum(is_refused(each, path) for each in sound)} of {len(sound)}"]
        for damage in VIDEO_DAMAGES.values():
            broken = [found for each in sound if (found := damage(each, random)) != each]
            cells.append(f"{sum(is_refused(each, path) for each in broken)} of {len(broken)}")
        print(f"| {name} |", " | ".join(cells), "|", flush=True)
    odd = list(with_odd_metadata(6, folder))
    refused = [suffix for suffix, content in odd if is_refused(content, folder / f"odd{suffix}")]
    print(f"\n{len(refused)} of {len(odd)} sound clips with odd metadata are refused", *refused)


if __name__ == "__main__":
    main()
