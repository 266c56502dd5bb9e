"""Reads pictures, and computes what pictures and videos share: sizes, tokens and keys. Thread-safe."""

import hashlib
import json
import re
import warnings
from dataclasses import asdict, replace
from io import BytesIO
from math import ceil, floor, prod, sqrt
from pathlib import Path
from typing import BinaryIO

import numpy as np
import simplejpeg
from PIL import ExifTags, Image, ImageColor, UnidentifiedImageError

from capflow_tasks.errors import MediaCorrupt, MediaMissing, MediaTooLarge, MediaUnsupported, SampleError
from capflow_tasks.media import integrity
from capflow_tasks.media.addresses import open_media, part_of, split_address
from capflow_tasks.media.budget import FRAMES_PER_TOKEN, MediaBudget, check_source_size
from capflow_tasks.media.paths import check_file, file_errors, unrecognised
from capflow_tasks.records import Span

#: Fields of the budget that never change a pixel: they refuse media or cut windows.
_NO_PIXELS = {"max_file_bytes", "max_source_pixels", "timeout_seconds", "window_frames", "max_windows"}


#: The longest picture that Qwen's processors accept, in widths.
_MAX_RATIO = 200


def fit(width: int, height: int, min_pixels: int, max_pixels: int, factor: int) -> tuple[int, int]:
    """Return the (width, height) for the model: as in qwen-vl-utils, but never 0 or a refused ratio."""
    # Not by qwen-vl-utils itself, which imports torch: a worker of a remote model has none.
    short, long = sorted((width, height))
    if long > _MAX_RATIO * short:
        raise MediaUnsupported(
            f"{width} x {height} pixels is too long and thin: one side is over {_MAX_RATIO} times the other."
        )
    sides = [max(factor, round(side / factor) * factor) for side in (short, long)]
    if prod(sides) > max_pixels:
        shrink = sqrt(short * long / max_pixels)
        sides = [floor(side / shrink / factor) * factor for side in (short, long)]
    elif prod(sides) < min_pixels:
        grow = sqrt(min_pixels / (short * long))
        sides = [ceil(side * grow / factor) * factor for side in (short, long)]
    short, long = (max(factor, side) for side in sides)
    # rounding can take a thin picture out of the allowed pixels or ratio; the processor would resize it again
    long = max(long, -(-min_pixels // (short * factor)) * factor)
    long = min(long, _MAX_RATIO * short, max(short, max_pixels // (short * factor) * factor))
    return (long, short) if width > height else (short, long)


def fit_image(width: int, height: int, budget: MediaBudget) -> tuple[int, int]:
    """Return the (width, height) of a resized picture, pixels."""
    return fit(width, height, budget.min_pixels, budget.max_pixels, budget.factor)


def count_tokens(size: tuple[int, int], budget: MediaBudget, frame_count: int = 1) -> int:
    """Return the tokens of a picture, or of a video's frames, that has been resized to this size."""
    return budget.tokens(-(-frame_count // FRAMES_PER_TOKEN) * size[0] * size[1])


def media_key(path: str, budget: MediaBudget, span: Span | None = None) -> str:
    """Return a digest that is equal only for the same part of the same file, read with the same budget."""
    found = check_file(path, budget.max_file_bytes)
    shape = {name: value for name, value in asdict(budget).items() if name not in _NO_PIXELS}
    part = None if span is None else str(span)
    file, member = split_address(path)
    place = [str(Path(file).resolve()), str(member), str(part_of(path)), part]
    identity = [*place, found.size, found.mtime_ns, shape]
    return hashlib.sha256(json.dumps(identity).encode("utf-8", "surrogateescape")).hexdigest()


#: Formats that Pillow may try; without those, such as PostScript, that start other programs.
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "AVIF", "TIFF", "BMP", "DIB", "PPM", "JPEG2000")
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def load_image(path: str, budget: MediaBudget) -> Image.Image:
    """Read a picture, or an animation's first frame, or the part that the path names, as upright RGB.

    It has the budget's size. Transparent parts get a background that contrasts. Raises SampleError.
    """
    box = part_of(path).box
    if box is None:
        return _load(path, budget)
    whole = _load(path, replace(budget, factor=1, min_pixels=1, max_pixels=budget.max_source_pixels))
    left, top, width, height = box
    right, bottom = min(left + width, whole.width), min(top + height, whole.height)
    if left >= right or top >= bottom:
        raise MediaMissing(f"{path}: the box lies outside the {whole.width} x {whole.height} pixels.")
    size = fit_image(right - left, bottom - top, budget)
    return whole.resize(size, Image.Resampling.BICUBIC, (left, top, right, bottom))


def _load(path: str, budget: MediaBudget) -> Image.Image:
    check_file(path, budget.max_file_bytes)
    # Pillow warns of odd metadata, and of sizes that are checked here; repeated calls add no second filter
    warnings.filterwarnings("ignore", module=r"PIL\.")
    if Image.MAX_IMAGE_PIXELS is not None:  # Pillow's limit must not stand below the budget's
        Image.MAX_IMAGE_PIXELS = max(Image.MAX_IMAGE_PIXELS, budget.max_source_pixels)
    with file_errors(path):
        try:
            with open_media(path) as file:
                return _read(file, path, budget)
        except UnidentifiedImageError as error:
            raise unrecognised(path, "picture") from error
        except Image.DecompressionBombError as error:
            limit = f"{budget.max_source_pixels:,} pixels (CAPFLOW_MAX_SOURCE_PIXELS)"
            raise MediaTooLarge(f"{path} has more than the limit of {limit}.") from error
        except integrity.Damage as error:
            raise MediaCorrupt(f"{path} is damaged: {error}.") from error
        except (SampleError, OSError, MemoryError):
            raise
        except Exception as error:  # Pillow's readers may raise anything on a malformed file
            raise MediaCorrupt(f"{path} is damaged: {type(error).__name__}: {error}.") from error


def _read(file: BinaryIO, path: str, budget: MediaBudget) -> Image.Image:
    if file.read(3) == b"\xff\xd8\xff":
        file.seek(0)
        return _read_jpeg(file.read(), path, budget)
    file.seek(0)
    with Image.open(integrity.checked(file), formats=_FORMATS) as image:
        _seek_frame(image, path)
        check_source_size(path, image.width, image.height, budget)
        integrity.check_strips(image, file)
        return _upright(_resized(image, budget), image)


def _seek_frame(image: Image.Image, path: str) -> None:
    frame = part_of(path).frame
    try:
        image.seek(frame or 0)
    except EOFError as error:
        count = getattr(image, "n_frames", 1)
        raise MediaMissing(f"{path}: there is no frame {frame}; it has {count}, from 0.") from error


def _read_jpeg(data: bytes, path: str, budget: MediaBudget) -> Image.Image:
    """Read a JPEG by libjpeg-turbo, whose warnings Pillow does not pass on."""
    pixels = integrity.jpeg_pixels(data)
    try:
        resized = _decode_jpeg(pixels, path, budget)
    except (ValueError, KeyError) as error:
        if _JPEG_DAMAGE.search(str(error)) and not _JPEG_PADDING.search(str(error)):
            raise integrity.Damage(str(error).removeprefix("Corrupt JPEG data: ")) from error
        with Image.open(BytesIO(pixels), formats=["JPEG"]) as image:  # padded, or of a rare sampling
            check_source_size(path, image.width, image.height, budget)
            resized = _resized(image, budget)
    try:
        with Image.open(BytesIO(data), formats=["JPEG"]) as image:
            return _upright(resized, image)
    except Exception:  # broken metadata must not cost a good picture
        return resized


#: What libjpeg says of damaged pixels; its other warnings are about how the file is written.
_JPEG_DAMAGE = re.compile("Corrupt JPEG data|Premature end|Inconsistent progression")
#: Some cameras pad the data with a few bytes before the end.
_JPEG_PADDING = re.compile("data: [1-4] extraneous bytes before marker 0xd9")
#: By libjpeg's name of the stored colours: what is asked for, and Pillow's mode.
_JPEG_MODES = {"Gray": ("GRAY", "L"), "CMYK": ("CMYK", "CMYK"), "YCCK": ("CMYK", "CMYK")}


def _decode_jpeg(data: bytes, path: str, budget: MediaBudget) -> Image.Image:
    height, width, stored, _ = simplejpeg.decode_jpeg_header(data, strict=False)
    check_source_size(path, width, height, budget)
    size = fit_image(width, height, budget)
    # it decodes directly to 1/2, 1/4 or 1/8; twice the target size is kept for resampling
    room = min(width // (2 * size[0]), height // (2 * size[1]))
    shrink = next(factor for factor in (8, 4, 2, 1) if factor <= max(room, 1))
    asked, mode = _JPEG_MODES.get(stored, ("RGB", "RGB"))
    values = simplejpeg.decode_jpeg(
        data, asked, min_height=-(-height // shrink), min_width=-(-width // shrink), strict=True
    )
    if mode == "CMYK":  # stored as Adobe does, inverted
        values = 255 - values
    image = Image.fromarray(values[:, :, 0] if mode == "L" else values, mode)
    return image.convert("RGB").resize(size, Image.Resampling.BICUBIC)


def _resized(image: Image.Image, budget: MediaBudget) -> Image.Image:
    """Decode the picture as RGB of the budget's size."""
    size = fit_image(image.width, image.height, budget)
    image.draft(None, (2 * size[0], 2 * size[1]))
    image.load()
    if image.mode.startswith("I") or image.mode == "F":
        rgb = _from_deep(image)
    elif image.has_transparency_data:
        rgba = image.convert("RGBA")
        rgb = Image.alpha_composite(Image.new("RGBA", image.size, _background(rgba)), rgba).convert("RGB")
    else:
        rgb = image if image.mode == "RGB" else image.convert("RGB")
    return rgb.resize(size, Image.Resampling.BICUBIC)


#: Backgrounds for transparent pictures, the first that hides little.
_BACKGROUNDS = ("white", "black", "gray")
#: Share of what is visible that a background may hide, and the distance (of 255) at which a colour is seen.
_MAX_HIDDEN, _CONTRAST = 0.1, 32


def _background(image: Image.Image) -> str:
    """Return the name of the background on which the visible parts of an RGBA picture stand out."""
    sample = np.asarray(image.resize((min(image.width, 256), min(image.height, 256)), Image.Resampling.BOX))
    colours, alpha = sample[..., :3].astype(np.int16), sample[..., 3].astype(np.float64)
    hidden = {}
    for name in _BACKGROUNDS:
        near = np.abs(colours - np.array(ImageColor.getrgb(name))).max(axis=-1) < _CONTRAST
        hidden[name] = float((alpha * near).sum() / max(alpha.sum(), 1))
        if hidden[name] <= _MAX_HIDDEN:
            return name
    return min(_BACKGROUNDS, key=lambda name: hidden[name])


def _upright(image: Image.Image, source: Image.Image) -> Image.Image:
    """Turn the picture as the metadata of its source say."""
    try:
        turn = _UPRIGHT.get(int(source.getexif().get(ExifTags.Base.Orientation, 1)))
    except Exception:  # broken metadata must not cost a good picture
        turn = None
    return image if turn is None else image.transpose(turn)


def _from_deep(image: Image.Image) -> Image.Image:
    """Convert one deep channel to RGB; the values give the depth, as scans of 10 or 12 bits come in 16."""
    values = np.nan_to_num(np.asarray(image).astype(np.float32), posinf=0.0, neginf=0.0)
    low, high = min(float(values.min()), 0.0), float(values.max())
    if image.mode != "F" and low == 0.0:
        high = float(2 ** max(8, int(high).bit_length()) - 1)
    scaled = (values - low) * (255.0 / max(high - low, 1e-12))
    return Image.fromarray(np.clip(np.rint(scaled), 0, 255).astype(np.uint8)).convert("RGB")
