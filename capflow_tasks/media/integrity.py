"""Finds damage in pictures that decoders let pass, and keeps metadata from deciding over pixels.

PNG has checksums. JPEG, WebP and AVIF have none, but a lost sector or translated newlines leave traces in
compressed data that no encoder writes. Each function raises Damage.
"""

import re
import struct
import zlib
from collections.abc import Iterator
from io import BytesIO
from typing import BinaryIO

import numpy as np
from PIL import Image

#: Bytes of a disk's sector: what is lost or was never written comes in multiples of it.
_SECTOR = 512
#: Newlines in compressed data of which some would stand without a carriage return before it.
_ENOUGH_NEWLINES = 8
#: Zeros at the end of compressed data that need no explanation; flat pictures have up to 8 %.
_FEW_ZEROS = 32


class Damage(Exception):
    """What is wrong with the file, to follow "is damaged:"."""


def checked(file: BinaryIO) -> BinaryIO:
    """Return the picture for Pillow, with its checksums checked, from a file at its start."""
    head = file.read(16)
    file.seek(0)
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return BytesIO(_png_pixels(file))
    if head.startswith(b"RIFF") and head.startswith(b"WEBP", 8):
        data = file.read()
        _check_compressed(data, 12, 8 + int.from_bytes(data[4:8], "little"))
        return BytesIO(data)
    if head.startswith(b"ftypavi", 4):
        data = file.read()
        _check_compressed(data, *_avif_pixels(data))
        return BytesIO(data)
    return file


#: Where a PNG may say how the camera was held: text counts under two keywords only.
_PNG_ORIENTATION = re.compile(rb"eXIf|[tz]TXtRaw profile type exif\0|iTXtXML:com.adobe.xmp\0")
#: Maximum bytes of such a chunk.
_PNG_METADATA = 65_536


def _png_pixels(file: BinaryIO) -> bytes:
    """Return the PNG without what is beside the pixels and their orientation."""
    signature, pixels, metadata = file.read(8), list[bytes](), list[bytes]()
    while not (pixels and pixels[-1].startswith(b"IEND", 4)):
        head = file.read(8)
        if len(head) < 8:
            raise Damage("it is cut short: its last chunk, IEND, is missing")
        length, kind = struct.unpack(">I4s", head)
        decides = not kind[0] & 0x20 or kind == b"tRNS"  # upper case: no picture without it
        if not decides and (length > _PNG_METADATA or kind not in (b"eXIf", b"tEXt", b"zTXt", b"iTXt")):
            file.seek(length + 4, 1)
            continue
        body = file.read(length + 4)
        if len(body) < length + 4:
            raise Damage(f"it is cut short within its chunk {kind.decode('latin-1')!r}")
        is_sound = zlib.crc32(memoryview(body)[:-4], zlib.crc32(kind)) == int.from_bytes(body[-4:])
        if decides and not is_sound:
            at = file.tell() - length - 12
            raise Damage(f"the checksum of its chunk {kind.decode('latin-1')!r} at byte {at:,} is wrong")
        if decides:
            pixels.append(head + body)
        elif is_sound and _PNG_ORIENTATION.match(kind + body[:32]):
            metadata.append(head + body)
    with_metadata = b"".join([signature, *pixels[:1], *metadata, *pixels[1:]])
    return with_metadata if not metadata or _can_open(with_metadata) else b"".join([signature, *pixels])


def _can_open(data: bytes) -> bool:
    try:
        Image.open(BytesIO(data), formats=["PNG"]).close()
    except Exception:  # readers of metadata may raise anything
        return False
    return True


#: As short as it may be. Whatever its version and thumbnail, it says that colours are stored as YCbCr.
_JFIF = b"\xff\xe0\0\x10JFIF\0\1\1\0\0\1\0\1\0\0"
#: The values by which Adobe's segment says how colours are stored.
_ADOBE_COLOURS = (b"\0", b"\1", b"\2")


def jpeg_pixels(data: bytes) -> bytes:
    """Return the JPEG without metadata, after a check of its compressed data."""
    kept, position = [data[:2]], 2
    for start, marker, stop in _jpeg_segments(data):
        stray, segment = data[position:start], data[start:stop]
        position = stop
        if 0xE0 <= marker <= 0xEF or marker == 0xFE:
            if segment.startswith(b"JFIF\0", 4):
                kept.append(_JFIF)
            elif segment.startswith(b"Adobe", 4) and segment[15:16] in _ADOBE_COLOURS:
                kept.append(segment)
            continue
        if stray.strip(b"\0\xff"):
            kept.append(stray)  # libjpeg warns of it
        kept.append(segment)
    end = data.find(b"\xff\xd9", position)
    _check_compressed(data, position, end if end > 0 else len(data))
    return b"".join([*kept, data[position:]])


_MARKER = re.compile(rb"\xff([\x01-\xfe])")


def _jpeg_segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Yield (start, marker, stop) of each segment up to the first scan's head."""
    position, marker = 2, 0
    while marker != 0xDA and (found := _MARKER.search(data, position)):
        start, marker = found.start(), found[1][0]
        position = found.end() + int.from_bytes(data[found.end() : found.end() + 2])
        if not found.end() + 2 <= position <= len(data):
            return
        yield start, marker, position


def _avif_pixels(data: bytes) -> tuple[int, int]:
    """Return where the first box `mdat` starts and stops."""
    position = 0
    while position + 16 <= len(data):
        size, kind = struct.unpack_from(">I4s", data, position)
        start = position + 8
        if size == 1:
            start, size = position + 16, int.from_bytes(data[position + 8 : position + 16])
        stop = position + size if size else len(data)
        if kind == b"mdat":
            return start, stop
        if stop < start:
            break
        position = stop
    raise Damage("it holds no picture data (a box `mdat`)")


def _check_compressed(data: bytes, start: int, stop: int) -> None:
    """Check compressed data for what only a disk or a transfer writes."""
    newlines = data.count(b"\n", start, stop)
    if newlines >= _ENOUGH_NEWLINES and newlines == data.count(b"\r\n", start, stop):
        raise Damage("its newlines were translated, as by a transfer in text mode; copy it in binary mode")
    part = data[start:stop]
    written = start + len(part.rstrip(b"\0"))
    if start + len(part) - written > max(_FEW_ZEROS, len(part) // 10):
        raise Damage(f"all its bytes from {written:,} on are zero, as if they were never written")
    first = -(-start // _SECTOR)
    sectors = np.frombuffer(data, np.uint8)[: written // _SECTOR * _SECTOR].reshape(-1, _SECTOR)[first:]
    empty = np.flatnonzero(~sectors.any(axis=1)) + first
    for run in np.split(empty, np.flatnonzero(np.diff(empty) > 1) + 1):
        # an encoder's zeros, such as of a white area, start and end anywhere
        if len(run) and data[run[0] * _SECTOR - 1] and data[(run[-1] + 1) * _SECTOR]:
            raise Damage(
                f"{len(run) * _SECTOR:,} bytes from {run[0] * _SECTOR:,} on are zero, a disk's lost sector"
            )


#: Bytes read at a time; whole sectors.
_CHUNK = 1 << 20


def lost_sectors(file: BinaryIO) -> list[range]:
    """Return the bytes of whole sectors that are zero, with data directly before and after them."""
    file.seek(0)
    found, position = [], 0
    while chunk := file.read(_CHUNK):
        sectors = np.frombuffer(chunk, np.uint8)[: len(chunk) // _SECTOR * _SECTOR].reshape(-1, _SECTOR)
        found.append(np.flatnonzero(~sectors.any(axis=1)) + position // _SECTOR)
        position += len(chunk)
    empty = np.concatenate(found) if found else np.empty(0, np.int64)
    runs = np.split(empty, np.flatnonzero(np.diff(empty) > 1) + 1)
    spans = [range(int(run[0]) * _SECTOR, (int(run[-1]) + 1) * _SECTOR) for run in runs if len(run)]
    return [span for span in spans if span.start and _has_data(file, span.start - 1, span.stop)]


def _has_data(file: BinaryIO, *positions: int) -> bool:
    """Whether none of these bytes is zero or beyond the end."""
    for position in positions:
        file.seek(position)
        if file.read(1) in (b"", b"\0"):
            return False
    return True


#: TIFF's tags and values (TIFF 6.0 and Adobe's Technical Note 2).
_COMPRESSION, _DEFLATE = 259, (8, 32946)
_PARTS = ((273, 279), (324, 325))


def check_strips(image: Image.Image, file: BinaryIO) -> None:
    """Check the checksums of a TIFF's deflated strips or tiles, which libtiff leaves unread."""
    tags = getattr(image, "tag_v2", {})
    if tags.get(_COMPRESSION) not in _DEFLATE:
        return
    offsets, sizes = next(((tags[offset], tags[size]) for offset, size in _PARTS if offset in tags), ((), ()))
    here = file.tell()
    for offset, size in zip(offsets, sizes, strict=False):
        file.seek(offset)
        try:
            zlib.decompress(file.read(size))
        except zlib.error as error:
            raise Damage(f"its strip at byte {offset:,} is not sound: {error}") from error
    file.seek(here)
