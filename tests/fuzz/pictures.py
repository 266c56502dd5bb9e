"""Damages pictures, and gives sound ones odd metadata, then counts what the reader finds and what it refuses.

    python -m tests.fuzz.pictures            # prints the tables of docs/explanation/damaged-media.md

The unit tests use the same files with the same seed. Needs no atheris.
"""

from __future__ import annotations

import struct
import tempfile
import zlib
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from PIL import Image
from skimage import data

from capflow_tasks.errors import SampleError
from capflow_tasks.media import integrity
from capflow_tasks.media.budget import MediaBudget
from capflow_tasks.media.pictures import load_image

#: By name: Pillow's format and options.
FORMATS: dict[str, tuple[str, dict[str, Any]]] = {
    "PNG": ("PNG", {}),
    "JPEG, baseline": ("JPEG", {"quality": 90}),
    "JPEG, progressive": ("JPEG", {"quality": 90, "progressive": True}),
    "WebP, lossy": ("WEBP", {"quality": 80}),
    "WebP, lossless": ("WEBP", {"lossless": True}),
    "AVIF": ("AVIF", {"speed": 10}),
    "GIF": ("GIF", {}),
    "TIFF, deflate": ("TIFF", {"compression": "tiff_adobe_deflate"}),
    "TIFF, LZW": ("TIFF", {"compression": "tiff_lzw"}),
    "TIFF, uncompressed": ("TIFF", {}),
}
_SMALL = MediaBudget(min_pixels=4 * 28 * 28, max_pixels=64 * 28 * 28)


def photographs(count: int) -> Iterator[Image.Image]:
    """Yield parts of photographs, 100 to 400 pixels per side."""
    random = np.random.default_rng(0)
    sources = [_photograph(name) for name in ("astronaut", "coffee", "rocket")]
    for number in range(count):
        width, height = (int(side) for side in random.integers(100, 400, 2))
        source = sources[number % len(sources)]
        left, top = int(random.integers(source.width - width)), int(random.integers(source.height - height))
        yield source.crop((left, top, left + width, top + height))


def _photograph(name: str) -> Image.Image:
    return Image.fromarray(getattr(data, name)())


def encoded(image: Image.Image, name: str, **options: Any) -> bytes:
    """Return the picture in one of FORMATS."""
    kind, ours = FORMATS[name]
    buffer = BytesIO()
    image.save(buffer, kind, **ours, **options)
    return buffer.getvalue()


Random = np.random.Generator


def _flip(whole: bytes, random: Random) -> bytes:
    position, bit = int(random.integers(len(whole))), int(random.integers(8))
    return whole[:position] + bytes([whole[position] ^ 1 << bit]) + whole[position + 1 :]


def _lose_sector(whole: bytes, random: Random) -> bytes:
    start = int(random.integers(len(whole))) // 512 * 512
    return (whole[:start] + bytes(512) + whole[start + 512 :])[: len(whole)]


def _cut(whole: bytes, random: Random) -> bytes:
    return whole[: int(random.integers(1, len(whole)))]


def _preallocate(whole: bytes, random: Random) -> bytes:
    written = int(random.integers(len(whole) // 10, len(whole) * 9 // 10))
    return whole[:written] + bytes(len(whole) - written)


#: By name: what happens to a file.
DAMAGES: dict[str, Callable[[bytes, Random], bytes]] = {
    "one bit flipped": _flip,
    "512 bytes zero": _lose_sector,
    "cut short": _cut,
    "rest zero": _preallocate,
    "LF to CRLF": lambda whole, _: whole.replace(b"\n", b"\r\n"),
    "CRLF to LF": lambda whole, _: whole.replace(b"\r\n", b"\n"),
}


def damaged(name: str, damage: str, count: int) -> Iterator[bytes]:
    """Yield up to `count` damaged files of one of FORMATS; files that stay as they are don't count."""
    random = np.random.default_rng(len(name))
    for image in photographs(count):
        whole = encoded(image, name)
        broken = DAMAGES[damage](whole, random)
        if broken != whole:
            yield broken


def is_refused(content: bytes, path: Path) -> bool:
    path.write_bytes(content)
    try:
        load_image(str(path), _SMALL)
    except SampleError:
        return True
    return False


def _pillow_refuses(content: bytes) -> bool:
    try:
        Image.open(BytesIO(content)).load()
    except Exception:  # a reader may raise anything on a malformed file
        return True
    return False


def _chunk(kind: bytes, body: bytes, flaw: int = 0) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body) ^ flaw)


def _odd_png(whole: bytes) -> Iterator[bytes]:
    noise = np.random.default_rng(0).bytes(4000)
    head, rest = whole[:33], whole[33:]
    for chunk in (
        _chunk(b"tEXt", b"Comment\0wrong checksum", flaw=1),
        _chunk(b"tEXt", b"parameters\0" + b"a cat, " * 300_000),
        _chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(20_000_000))),
        _chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(bytes(20_000_000))),
        _chunk(b"zTXt", b"Comment\0\0not compressed"),
        _chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0<x:xmpmeta tiff:Orientation='\xff\xfe'"),
        _chunk(b"iTXt", b"\xff\xfe\xfd" + noise),
        _chunk(b"eXIf", noise),
        _chunk(b"eXIf", b"II*\0\xff\xff\xff\xff"),
        _chunk(b"iCCP", b"profile\0\0" + noise),
        _chunk(b"iCCP", b"profile\0\7"),
        _chunk(b"pHYs", b"\0"),
        _chunk(b"gAMA", b""),
        _chunk(b"cHRM", noise),
        _chunk(b"tIME", b"\0"),
        _chunk(b"abCd", noise, flaw=1),
        _chunk(b"acTL", b"\0\0"),
    ):
        yield head + chunk + rest
        yield whole[:-12] + chunk + whole[-12:]
    yield whole + noise
    yield whole + bytes(8192)


def _segment(marker: int, body: bytes) -> bytes:
    return b"\xff" + bytes([marker]) + struct.pack(">H", len(body) + 2) + body


def _odd_jpeg(whole: bytes) -> Iterator[bytes]:
    noise = np.random.default_rng(0).bytes(4000)
    head, rest = whole[:20], whole[20:]
    for segment in (
        _segment(0xE1, b"Exif\0\0II*\0\xff\xff\xff\xff"),
        _segment(0xE1, b"Exif\0\0" + noise),
        _segment(0xE1, b"Exif\0\0MM\0*\0\0\0\x08\0\1\1\x12\0\3\0\0\0\1\0\x63\0\0\0\0\0\0"),
        _segment(0xE1, b"Exif\0\0" + whole[:3000]),  # a thumbnail with its own start and end
        _segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0<x:xmpmeta \xff\xd8\xff\xd9"),
        _segment(0xE2, b"ICC_PROFILE\0\7\2" + noise),
        _segment(0xE2, b"ICC_PROFILE\0"),
        _segment(0xE2, b"MPF\0" + noise),
        _segment(0xED, b"Photoshop 3.0\x008BIM\x04\x04\xff\xff\xff"),
        _segment(0xEE, b"Adobe\0\x64\0\0\0\0\x09"),
        _segment(0xEE, b"Adobe"),
        _segment(0xFE, noise),
        _segment(0xFE, b"\xff" * 100),
        _segment(0xFE, bytes(60_000)),
        _segment(0xEF, noise) * 16,
        b"\xff" * 7,
        b"\0\0" + _segment(0xFE, b"after two stray bytes"),
        b"stray" + _segment(0xE5, b"after five stray bytes"),
    ):
        yield head + segment + rest
    yield head[:11] + b"\x09\x09" + head[13:] + rest
    yield whole[:-2] + b"\0\0\0" + whole[-2:]  # as cameras pad
    yield whole[:-2] + b"\x5a" + whole[-2:]
    yield head[:2] + rest
    yield whole + noise
    yield whole + bytes(8192)


def _odd_riff(whole: bytes) -> Iterator[bytes]:
    noise = np.random.default_rng(0).bytes(4000)
    for kind, body in (
        (b"EXIF", noise),
        (b"XMP ", noise),
        (b"abcd", noise),
        (b"EXIF", b""),
        (b"ICCP", noise),
    ):
        grown = whole[12:] + kind + struct.pack("<I", len(body)) + body
        yield b"RIFF" + struct.pack("<I", len(grown) + 4) + b"WEBP" + grown
    yield whole + noise
    yield whole + bytes(8192)


def _odd_tiff(whole: bytes) -> Iterator[bytes]:
    """Append a directory with one more entry, little-endian as Pillow writes it."""
    noise = np.random.default_rng(0).bytes(4000)
    start = struct.unpack("<I", whole[4:8])[0]
    count = struct.unpack("<H", whole[start : start + 2])[0]
    entries = [whole[start + 2 + 12 * n : start + 14 + 12 * n] for n in range(count)]
    for extra in (
        struct.pack("<HHII", 34665, 4, 1, 2**31),  # EXIF beyond the file
        struct.pack("<HHII", 34675, 7, 100, 8),  # an ICC profile of pixels
        struct.pack("<HHII", 282, 5, 1, 2**30),  # a resolution beyond the file
        struct.pack("<HHII", 305, 2, 0, 0),  # a name of no letters
        struct.pack("<HHII", 306, 2, 10, 8),  # a date of pixels
        struct.pack("<HHII", 60000, 77, 1, 0),  # a private tag of no type
        struct.pack("<HHII", 700, 1, 50, 8),  # XMP of pixels
        struct.pack("<HHII", 274, 3, 1, 99),  # an orientation that there is not
    ):
        tags = sorted([*entries, extra], key=lambda entry: struct.unpack("<H", entry[:2])[0])
        table = struct.pack("<H", len(tags)) + b"".join(tags) + bytes(4)
        padded = whole + bytes(len(whole) % 2)
        yield padded[:4] + struct.pack("<I", len(padded)) + padded[8:] + table
    yield whole + noise


def _odd_gif(whole: bytes) -> Iterator[bytes]:
    at = 13 + 3 * 2 ** ((whole[10] & 7) + 1)
    for extension in (
        b"!\xfe" + b"\xff" + b"x" * 255 + b"\0",
        b"!\xfe\0",
        b"!\xff\x0bNETSCAPE2.0\1\1\0",
        b"!\xff\x0bXMP DataXMP\3abc\0",
        b"!\x42\3abc\0",
        b"!\x01\x0c" + bytes(12) + b"\2hi\0",
    ):
        yield whole[:at] + extension + whole[at:]
    yield whole + bytes(8192)


def _odd_avif(whole: bytes) -> Iterator[bytes]:
    noise = np.random.default_rng(0).bytes(4000)
    for kind in (b"free", b"uuid", b"skip", b"abcd"):
        yield whole + struct.pack(">I", 8 + len(noise)) + kind + noise
        yield whole + struct.pack(">I", 8 + 8192) + kind + bytes(8192)


_ODD = {
    "PNG": _odd_png,
    "JPEG, baseline": _odd_jpeg,
    "JPEG, progressive": _odd_jpeg,
    "WebP, lossy": _odd_riff,
    "WebP, lossless": _odd_riff,
    "AVIF": _odd_avif,
    "GIF": _odd_gif,
    "TIFF, deflate": _odd_tiff,
    "TIFF, uncompressed": _odd_tiff,
}


def with_odd_metadata(rounds: int) -> Iterator[tuple[str, bytes, bytes]]:
    """Yield (format, sound file, the same with odd metadata)."""
    for image in photographs(rounds):
        for name, odd in _ODD.items():
            whole = encoded(image, name)
            for content in odd(whole):
                yield name, whole, content


def read(content: bytes, path: Path) -> bytes | str:
    """Return the pixels, or why the file is refused."""
    path.write_bytes(content)
    try:
        return load_image(str(path), _SMALL).tobytes()
    except SampleError as error:
        return str(error)


def main(count: int = 40) -> None:
    path = Path(tempfile.mkdtemp()) / "picture"
    print("| format |", " | ".join(DAMAGES), "|\n|---|" + "---|" * len(DAMAGES))
    for name in FORMATS:
        cells = []
        for damage in DAMAGES:
            files = list(damaged(name, damage, count))
            found, before = sum(is_refused(each, path) for each in files), sum(map(_pillow_refuses, files))
            cells.append(f"{found} of {len(files)} ({before})" if files else "-")
        print(f"| {name} |", " | ".join(cells), "|", flush=True)
    odd = list(with_odd_metadata(2))
    answers = [(name, read(whole, path), read(each, path)) for name, whole, each in odd]
    refused = [(name, answer) for name, expected, answer in answers if answer != expected]
    print(f"\n{len(refused)} of {len(odd)} sound files with odd metadata are refused or look different")
    for name, answer in refused:
        print(f"  {name}: {answer if isinstance(answer, str) else 'other pixels'}")
    print("\n| one picture | checks, ms | whole, ms |\n|---|---|---|")
    for size in ((1024, 768), (4000, 3000)):
        image = _photograph("astronaut").resize(size)
        for name in FORMATS:
            path.write_bytes(encoded(image, name))
            whole = _milliseconds(lambda: load_image(str(path), MediaBudget()))
            checks = _milliseconds(lambda: _check(path))
            print(f"| {name}, {size[0]} x {size[1]} | {checks:.1f} | {whole:.0f} |", flush=True)


def _check(path: Path) -> None:
    with path.open("rb") as file:
        if file.read(2) == b"\xff\xd8":
            integrity.jpeg_pixels(path.read_bytes())
            return
        file.seek(0)
        with Image.open(integrity.checked(file)) as image:
            integrity.check_strips(image, file)


def _milliseconds(read: Callable[[], object], rounds: int = 5) -> float:
    times = []
    for _ in range(rounds):
        began = perf_counter()
        read()
        times.append(perf_counter() - began)
    return 1000 * min(times)


if __name__ == "__main__":
    main()
