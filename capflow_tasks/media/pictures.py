"""Reads pictures, and computes what pictures and videos share: sizes, tokens and keys. Thread-safe."""

import hashlib
import json
import warnings
from dataclasses import asdict
from math import ceil, floor, prod, sqrt
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from capflow_tasks.errors import MediaCorrupt, MediaTooLarge, MediaUnsupported, SampleError
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
    identity = [str(Path(path).resolve()), found.st_size, found.st_mtime_ns, shape, part]
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
    """Read a picture, or an animation's first frame, as upright RGB on white, resized to the budget."""
    check_file(path, budget.max_file_bytes)
    # Pillow warns of odd metadata, and of sizes that are checked here; repeated calls add no second filter
    warnings.filterwarnings("ignore", module=r"PIL\.")
    with file_errors(path):
        try:
            with Image.open(path, formats=_FORMATS) as image:
                return _prepare(image, path, budget)
        except UnidentifiedImageError as error:
            raise unrecognised(path, "picture") from error
        except Image.DecompressionBombError as error:
            raise MediaTooLarge(f"{path} has more pixels than Pillow decodes: {error}") from error
        except (SampleError, OSError, MemoryError):
            raise
        except Exception as error:  # Pillow's readers may raise anything on a malformed file
            raise MediaCorrupt(f"{path} is damaged: {type(error).__name__}: {error}.") from error


def _prepare(image: Image.Image, path: str, budget: MediaBudget) -> Image.Image:
    check_source_size(path, image.width, image.height, budget)
    size = fit_image(image.width, image.height, budget)
    # JPEG decodes directly to 1/2, 1/4 or 1/8; twice the target size is kept for resampling
    image.draft(None, (2 * size[0], 2 * size[1]))
    image.load()
    if image.mode.startswith("I") or image.mode == "F":
        rgb = _from_deep(image)
    elif image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        rgb = Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")
    else:
        rgb = image.convert("RGB")
    resized = rgb.resize(size, Image.Resampling.BICUBIC)
    try:
        turn = _UPRIGHT.get(int(image.getexif().get(ExifTags.Base.Orientation, 1)))
    except Exception:  # broken metadata must not cost a good picture
        turn = None
    return resized if turn is None else resized.transpose(turn)


def _from_deep(image: Image.Image) -> Image.Image:
    """Convert one deep channel to RGB; the values give the depth, as scans of 10 or 12 bits come in 16."""
    values = np.nan_to_num(np.asarray(image).astype(np.float32), posinf=0.0, neginf=0.0)
    low, high = min(float(values.min()), 0.0), float(values.max())
    if image.mode != "F" and low == 0.0:
        high = float(2 ** max(8, int(high).bit_length()) - 1)
    scaled = (values - low) * (255.0 / max(high - low, 1e-12))
    return Image.fromarray(np.clip(np.rint(scaled), 0, 255).astype(np.uint8)).convert("RGB")
