from __future__ import annotations

import contextlib
import dataclasses
import io
import os
import struct
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms, ImageFile

from capflow_tasks.errors import (
    MediaCorrupt,
    MediaMissing,
    MediaTooLarge,
    MediaUnreadable,
    MediaUnsupported,
    SettingsError,
)
from capflow_tasks.media.budget import MediaBudget, budget_of
from capflow_tasks.media.loader import load_media
from capflow_tasks.media.pictures import count_tokens, fit, fit_image, load_image, media_key
from capflow_tasks.records import MediaRef, Modality
from capflow_tasks.settings import Settings
from tests.fuzz.pictures import DAMAGES, damaged, is_refused, photographs, read, with_odd_metadata

#: Between 4 and 64 tokens, so that tests stay quick.
BUDGET = MediaBudget(min_pixels=4 * 28 * 28, max_pixels=64 * 28 * 28)
RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def save(path: Path, image: Image.Image, **options: Any) -> str:
    image.save(path, **options)
    return str(path)


def halves(left: tuple[int, int, int] = RED, right: tuple[int, int, int] = BLUE) -> Image.Image:
    image = Image.new("RGB", (112, 56), left)
    image.paste(right, (56, 0, 112, 56))
    return image


def pixel(image: Image.Image, x: float, y: float) -> tuple[int, ...]:
    found = image.getpixel((int(x * (image.width - 1)), int(y * (image.height - 1))))
    assert isinstance(found, tuple)
    return tuple(int(value) for value in found)


def is_near(found: tuple[int, ...], wanted: tuple[int, ...], tolerance: int = 12) -> bool:
    return all(abs(one - other) <= tolerance for one, other in zip(found, wanted, strict=True))


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "gif", "bmp", "tiff", "ppm", "jp2", "avif"])
def test_every_common_format_comes_out_as_rgb_in_whole_tokens(tmp_path: Path, suffix: str) -> None:
    image = load_image(save(tmp_path / f"a.{suffix}", halves()), BUDGET)
    assert (image.mode, image.size) == ("RGB", (112, 56))
    assert is_near(pixel(image, 0.2, 0.5), RED, 40)
    assert is_near(pixel(image, 0.8, 0.5), BLUE, 40)


@pytest.mark.parametrize(
    "mode", ["1", "L", "P", "CMYK", "YCbCr", "I", "I;16", "F", "LA", "PA", "RGBA", "LAB"]
)
def test_every_colour_mode_comes_out_as_rgb(tmp_path: Path, mode: str) -> None:
    image = halves(WHITE, (0, 0, 0)).convert("L") if mode[0] in "IF" else halves()
    if mode == "LAB":
        profiles = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
        turned = ImageCms.applyTransform(image, ImageCms.buildTransform(*profiles, "RGB", "LAB"))
        assert turned is not None
        image = turned
    else:
        image = image.convert("P" if mode == "PA" else mode)
    if mode == "PA":
        image.info["transparency"] = b"\xff" * 256
    loaded = load_image(save(tmp_path / ("a.png" if mode == "PA" else "a.tiff"), image), BUDGET)
    assert loaded.mode == "RGB"
    if mode[0] not in "1LIF":
        assert is_near(pixel(loaded, 0.2, 0.5), RED, 20)


@pytest.mark.parametrize("bits", [8, 10, 12, 16])
def test_a_deep_scan_is_shown_over_the_depth_its_values_use(tmp_path: Path, bits: int) -> None:
    values = np.zeros((56, 112), np.uint16)
    values[:, 56:] = 2**bits - 1
    image = load_image(save(tmp_path / "a.png", Image.fromarray(values)), BUDGET)
    assert pixel(image, 0.2, 0.5) == (0, 0, 0)
    assert is_near(pixel(image, 0.8, 0.5), WHITE)


def test_a_picture_of_floats_with_gaps_is_stretched_to_what_is_there(tmp_path: Path) -> None:
    values = np.full((56, 112), -2.5, np.float32)
    values[:, 56:] = 7.5
    values[0, 0] = np.nan
    image = load_image(save(tmp_path / "a.tiff", Image.fromarray(values)), BUDGET)
    assert is_near(pixel(image, 0.2, 0.5), (0, 0, 0))
    assert is_near(pixel(image, 0.8, 0.5), WHITE)


def test_an_all_black_deep_picture_is_black(tmp_path: Path) -> None:
    image = load_image(save(tmp_path / "a.png", Image.fromarray(np.zeros((56, 56), np.uint16))), BUDGET)
    assert image.getextrema() == ((0, 0), (0, 0), (0, 0))


@pytest.mark.parametrize("mode", ["RGBA", "P"])
def test_what_is_transparent_is_white(tmp_path: Path, mode: str) -> None:
    image = Image.new("RGBA", (112, 56), (0, 0, 0, 0))
    image.paste((*BLUE, 255), (56, 0, 112, 56))
    if mode == "P":
        image = image.quantize(4)
    loaded = load_image(save(tmp_path / "a.png", image), BUDGET)
    assert is_near(pixel(loaded, 0.2, 0.5), WHITE)
    assert is_near(pixel(loaded, 0.8, 0.5), BLUE)


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tiff"])
@pytest.mark.parametrize(
    ("orientation", "size", "red_at"),
    [
        (1, (112, 56), (0.2, 0.5)),
        (2, (112, 56), (0.8, 0.5)),
        (3, (112, 56), (0.8, 0.5)),
        (6, (56, 112), (0.5, 0.2)),
        (8, (56, 112), (0.5, 0.8)),
    ],
)
def test_the_orientation_flag_is_applied(
    tmp_path: Path, suffix: str, orientation: int, size: tuple[int, int], red_at: tuple[float, float]
) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = load_image(save(tmp_path / f"a.{suffix}", halves(), exif=exif), BUDGET)
    assert image.size == size
    assert is_near(pixel(image, *red_at), RED, 40)


def test_a_broken_orientation_flag_costs_nothing(tmp_path: Path) -> None:
    path = save(tmp_path / "a.jpg", halves(), exif=b"Exif\0\0II*\0\xff\xff\xff\xff garbage")
    assert load_image(path, BUDGET).size == (112, 56)


def test_of_an_animation_the_first_frame_is_taken(tmp_path: Path) -> None:
    first, second = Image.new("RGB", (56, 56), RED), Image.new("RGB", (56, 56), GREEN)
    for suffix in ("gif", "webp", "png"):
        path = save(tmp_path / f"a.{suffix}", first, save_all=True, append_images=[second])
        assert is_near(pixel(load_image(path, BUDGET), 0.5, 0.5), RED, 20)


@pytest.mark.parametrize("size", [(1, 1), (13, 7), (57, 200), (1000, 700), (3, 500), (2999, 15), (1, 200)])
@pytest.mark.parametrize("factor", [28, 32])
def test_a_picture_is_sized_within_the_budget_and_costs_the_tokens_foretold(
    tmp_path: Path, size: tuple[int, int], factor: int
) -> None:
    budget = dataclasses.replace(BUDGET, factor=factor)
    image = load_image(save(tmp_path / "a.png", Image.new("RGB", size)), budget)
    assert image.width % factor == image.height % factor == 0
    assert image.width * image.height <= budget.max_pixels
    assert max(image.size) <= 200 * min(image.size)
    assert count_tokens(fit_image(*size, budget), budget) == image.width * image.height // factor**2
    assert fit_image(*image.size, budget) == image.size


def test_a_size_that_fits_is_left_alone_by_the_model_s_own_processor() -> None:
    """Otherwise it would resize again, and the tokens foretold would be wrong."""
    smart_resize = pytest.importorskip("transformers.models.qwen2_vl.image_processing_qwen2_vl").smart_resize
    random = np.random.default_rng(0)
    for low, high in ((4, 64), (128, 160), (256, 1280)):
        for width, ratio in zip(random.integers(1, 6000, 400), random.uniform(-2.3, 2.3, 400), strict=True):
            height = max(1, round(width * 10**ratio))
            if max(width, height) > 200 * min(width, height):
                continue
            fitted = fit(int(width), height, low * 28**2, high * 28**2, 28)
            assert smart_resize(*fitted[::-1], 28, low * 28**2, high * 28**2) == fitted[::-1]
            assert fitted[0] * fitted[1] <= high * 28**2


@pytest.mark.parametrize("size", [(640, 480), (1920, 1080), (4000, 3000), (100, 3000), (224, 224)])
def test_the_size_is_what_qwen_vl_utils_gives(size: tuple[int, int]) -> None:
    from qwen_vl_utils.vision_process import smart_resize

    budget = MediaBudget()
    height, width = smart_resize(size[1], size[0], 28, budget.min_pixels, budget.max_pixels)
    assert fit_image(*size, budget) == (width, height)


@pytest.mark.parametrize("size", [(201, 1), (1, 5000)])
def test_a_picture_that_is_over_200_times_as_long_as_wide_is_refused(
    tmp_path: Path, size: tuple[int, int]
) -> None:
    with pytest.raises(MediaUnsupported, match="too long and thin"):
        load_image(save(tmp_path / "a.png", Image.new("RGB", size)), BUDGET)


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "gif", "bmp", "tiff", "jp2", "avif"])
@pytest.mark.parametrize("share", [0.5, 0.9])
def test_a_file_that_is_cut_short_is_corrupt(tmp_path: Path, suffix: str, share: float) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (120, 160, 3), np.uint8)
    path = Path(save(tmp_path / f"a.{suffix}", Image.fromarray(noise)))
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    with pytest.raises(MediaCorrupt, match=r"a\.\w+ (is damaged|begins as)"):
        load_image(str(path), BUDGET)


def test_every_single_damaged_byte_gives_a_picture_or_a_reason(tmp_path: Path) -> None:
    """Whatever a reader of Pillow raises on a malformed file, the sample gets one of its own errors."""
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (32, 32, 3), np.uint8))
    path = tmp_path / "a"
    for suffix in ("png", "jpeg", "gif", "tiff", "webp", "bmp"):
        buffer = io.BytesIO()
        noise.save(buffer, suffix)
        whole = buffer.getvalue()
        for position in range(0, min(len(whole), 160), 3):
            path.write_bytes(whole[:position] + bytes([whole[position] ^ 0xFF]) + whole[position + 1 :])
            with contextlib.suppress(MediaCorrupt, MediaUnsupported, MediaTooLarge):
                assert load_image(str(path), BUDGET).mode == "RGB"


def test_an_empty_file_a_text_and_a_video_are_each_named(tmp_path: Path) -> None:
    for content, kind, reason in (
        (b"", MediaCorrupt, "zero bytes"),
        (b"Not a picture\n", MediaUnsupported, "text"),
        (b"\0\0\0\x18ftypisom\0\0", MediaUnsupported, "MP4 or MOV video, not a picture"),
        (b"\xff\xd8\xff\xe0", MediaCorrupt, "begins as a JPEG picture"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", MediaUnsupported, "not a picture"),
    ):
        (tmp_path / "a.jpg").write_bytes(content)
        with pytest.raises(kind, match=reason):
            load_image(str(tmp_path / "a.jpg"), BUDGET)


def test_a_wrong_suffix_does_not_matter(tmp_path: Path) -> None:
    halves().save(tmp_path / "a.jpg", "PNG")
    assert load_image(str(tmp_path / "a.jpg"), BUDGET).size == (112, 56)


def bomb(path: Path, width: int, height: int) -> str:
    """Write a PNG of a few bytes that claims this size."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b""))
        + chunk(b"IEND", b"")
    )
    return str(path)


@pytest.mark.parametrize("side", [10_000, 13_000, 60_000])
def test_a_decompression_bomb_is_refused_by_its_header_without_a_warning(tmp_path: Path, side: int) -> None:
    path = bomb(tmp_path / "a.png", side, side)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with pytest.raises(MediaTooLarge, match="pixels"):
            load_image(path, dataclasses.replace(BUDGET, max_source_pixels=50_000_000))
    assert caught == []


def test_a_file_over_the_limit_of_bytes_is_not_opened(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", halves())
    with pytest.raises(MediaTooLarge, match="the limit is 10"):
        load_image(path, dataclasses.replace(BUDGET, max_file_bytes=10))


def test_a_missing_file_and_a_folder_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(MediaMissing):
        load_image(str(tmp_path / "none.png"), BUDGET)
    with pytest.raises(MediaUnsupported, match="folder"):
        load_image(str(tmp_path), BUDGET)


def test_a_disk_that_fails_while_reading_is_worth_another_try(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save(tmp_path / "a.jpg", halves())

    def fail(*_: object, **__: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(Path, "open", fail)
    with pytest.raises(MediaUnreadable, match="Input/output error") as caught:
        load_image(path, BUDGET)
    assert caught.value.is_retryable


def test_a_file_nobody_may_read_is_worth_another_try(tmp_path: Path) -> None:
    path = save(tmp_path / "a.jpg", halves())
    Path(path).chmod(0)
    if os.access(path, os.R_OK):
        pytest.skip("this user may read everything")
    with pytest.raises(MediaUnreadable):
        load_image(path, BUDGET)


def test_a_picture_that_needs_too_much_memory_is_too_large(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(ImageFile.ImageFile, "load", fail)
    with pytest.raises(MediaTooLarge, match="memory"):
        load_image(save(tmp_path / "a.bmp", halves()), BUDGET)


def test_a_large_jpeg_is_decoded_at_a_fraction_of_its_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save(tmp_path / "a.jpg", halves().resize((3200, 1600)))
    sizes = []
    resize = Image.Image.resize

    def spy(self: Image.Image, *arguments: Any, **options: Any) -> Image.Image:
        sizes.append(self.size)
        return resize(self, *arguments, **options)

    monkeypatch.setattr(Image.Image, "resize", spy)
    image = load_image(path, BUDGET)
    assert image.size == fit_image(3200, 1600, BUDGET)
    assert sizes == [(800, 400)]
    assert is_near(pixel(image, 0.2, 0.5), RED)


def test_pillows_warnings_stay_inside_even_with_many_threads(tmp_path: Path) -> None:
    image = halves().quantize(4)
    image.info["transparency"] = b"\xff\x80"
    paths = [save(tmp_path / f"{number}.png", image) for number in range(24)]
    broken = save(tmp_path / "exif.jpg", halves(), exif=b"Exif\0\0II*\0\x08\0\0\0\x40\0\x0e\x01\x02\0")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with ThreadPoolExecutor(4) as pool:
            sizes = set(pool.map(lambda path: load_image(path, BUDGET).size, [*paths, broken]))
    assert sizes == {(112, 56)}
    assert caught == []


def test_the_key_changes_with_the_file_and_with_what_shapes_the_pixels_only(tmp_path: Path) -> None:
    path = Path(save(tmp_path / "a.png", halves()))
    (tmp_path / "link.png").symlink_to(path)
    key = media_key(str(path), BUDGET)
    assert key == media_key(str(tmp_path / "link.png"), BUDGET)
    assert key == media_key(str(path), dataclasses.replace(BUDGET, timeout_seconds=1, max_file_bytes=10**6))
    assert key != media_key(str(path), dataclasses.replace(BUDGET, max_pixels=28 * 28 * 9))
    stamp = path.stat().st_mtime_ns
    os.utime(path, ns=(stamp, stamp + 1))
    assert key != media_key(str(path), BUDGET)
    assert len(key) == 64


def test_a_key_of_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MediaMissing):
        media_key(str(tmp_path / "none.png"), BUDGET)


@pytest.mark.parametrize(
    "change",
    [
        {"min_pixels": 10**6, "max_pixels": 10**5},
        {"frame_min_pixels": 10**6, "frame_max_pixels": 10**5},
        {"total_pixels": 128 * 28 * 28},
        {"max_frames": 1},
        {"fps": 0.0},
        {"max_pixels": -1},
    ],
)
def test_a_budget_that_contradicts_itself_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(SettingsError):
        MediaBudget(**change)


def test_a_picture_is_handed_to_the_engine_with_its_bytes_and_tokens(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", halves())
    loaded = load_media(MediaRef(Modality.IMAGE, path), BUDGET)
    assert loaded.value.size == (112, 56)
    assert loaded.nbytes == 112 * 56 * 3
    assert loaded.tokens == 8 == count_tokens(fit_image(112, 56, BUDGET), BUDGET)


#: The least share of 6 damaged files that is found, by format and damage; what is left out cannot be told.
FOUND = {
    "PNG": dict.fromkeys(DAMAGES, 1.0),
    "JPEG, baseline": {
        "one bit flipped": 0.15,
        "512 bytes zero": 1.0,
        "cut short": 1.0,
        "rest zero": 1.0,
        "LF to CRLF": 1.0,
    },
    "JPEG, progressive": {
        "one bit flipped": 0.15,
        "512 bytes zero": 1.0,
        "cut short": 1.0,
        "rest zero": 1.0,
        "LF to CRLF": 1.0,
    },
    "WebP, lossy": {"512 bytes zero": 0.8, "cut short": 1.0, "rest zero": 1.0, "LF to CRLF": 0.8},
    "WebP, lossless": {"512 bytes zero": 0.8, "cut short": 1.0, "rest zero": 1.0, "LF to CRLF": 1.0},
    "AVIF": {"512 bytes zero": 0.8, "cut short": 1.0, "rest zero": 1.0, "LF to CRLF": 1.0},
    "GIF": {"512 bytes zero": 1.0, "cut short": 1.0, "rest zero": 1.0, "LF to CRLF": 1.0},
    "TIFF, deflate": dict.fromkeys(DAMAGES, 1.0),
    "TIFF, LZW": {"512 bytes zero": 1.0, "cut short": 1.0, "rest zero": 1.0, "LF to CRLF": 1.0},
}


@pytest.mark.parametrize("name", FOUND)
def test_damage_is_found_where_the_format_can_tell(tmp_path: Path, name: str) -> None:
    for damage, share in FOUND[name].items():
        files = list(damaged(name, damage, 6))
        found = sum(is_refused(content, tmp_path / "a") for content in files)
        assert found >= share * len(files), f"{damage}: {found} of {len(files)}"


def test_metadata_never_decides_over_pixels(tmp_path: Path) -> None:
    for name, whole, odd in with_odd_metadata(1):
        assert read(odd, tmp_path / "a") == read(whole, tmp_path / "a"), name


def test_a_damaged_picture_says_what_is_wrong(tmp_path: Path) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (120, 160, 3), np.uint8))
    png, jpeg, webp = tmp_path / "a.png", tmp_path / "a.jpg", tmp_path / "a.webp"
    for path in (png, jpeg, webp):
        noise.save(path)
    png.write_bytes(png.read_bytes()[:-2] + b"\0\0")
    with pytest.raises(MediaCorrupt, match=r"the checksum of its chunk 'IEND' at byte .* is wrong"):
        load_image(str(png), BUDGET)
    content = jpeg.read_bytes()
    jpeg.write_bytes(content[:2048] + bytes(1024) + content[3072:])
    with pytest.raises(MediaCorrupt, match="1,024 bytes from 2,048 on are zero"):
        load_image(str(jpeg), BUDGET)
    jpeg.write_bytes(content[:3000] + content[5000:])
    with pytest.raises(MediaCorrupt, match=r"damaged: .*(extraneous|premature|Huffman)"):
        load_image(str(jpeg), BUDGET)
    webp.write_bytes(webp.read_bytes().replace(b"\n", b"\r\n"))
    with pytest.raises(MediaCorrupt, match="copy it in binary mode"):
        load_image(str(webp), BUDGET)


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "avif"])
@pytest.mark.parametrize("size", [(56, 56), (2000, 1000)])
def test_a_plain_white_picture_whose_data_are_mostly_zeros_is_sound(
    tmp_path: Path, suffix: str, size: tuple[int, int]
) -> None:
    options = {"progressive": True} if suffix == "jpg" else {}
    path = save(tmp_path / f"a.{suffix}", Image.new("RGB", size, WHITE), **options)
    assert is_near(pixel(load_image(path, BUDGET), 0.5, 0.5), WHITE)


@pytest.mark.parametrize("mode", ["L", "CMYK", "RGB"])
@pytest.mark.parametrize("subsampling", [0, 1, 2])
def test_a_jpeg_has_the_pixels_that_pillow_decodes(tmp_path: Path, mode: str, subsampling: int) -> None:
    image = next(photographs(1)).convert(mode)
    size = fit_image(*image.size, BUDGET)
    path = save(tmp_path / "a.jpg", image, subsampling=subsampling)
    with Image.open(path) as opened:
        opened.draft(None, (2 * size[0], 2 * size[1]))
        expected = opened.convert("RGB").resize(size, Image.Resampling.BICUBIC)
    assert np.array_equal(np.asarray(load_image(path, BUDGET)), np.asarray(expected))


@pytest.mark.parametrize(
    ("colour", "background"),
    [(WHITE, (0, 0, 0)), ((250, 250, 240), (0, 0, 0)), ((20, 20, 20), WHITE), (BLUE, WHITE)],
)
def test_a_transparent_picture_stands_out_from_its_background(
    tmp_path: Path, colour: tuple[int, int, int], background: tuple[int, int, int]
) -> None:
    logo = Image.new("RGBA", (112, 56), (*WHITE, 0))
    logo.paste((*colour, 255), (56, 0, 112, 56))
    loaded = load_image(save(tmp_path / "a.png", logo), BUDGET)
    assert is_near(pixel(loaded, 0.2, 0.5), background)
    assert is_near(pixel(loaded, 0.8, 0.5), colour)


def test_a_logo_in_black_and_white_stands_on_gray(tmp_path: Path) -> None:
    logo = Image.new("RGBA", (168, 56), (0, 0, 0, 0))
    logo.paste((*WHITE, 255), (56, 0, 112, 56))
    logo.paste((0, 0, 0, 255), (112, 0, 168, 56))
    loaded = load_image(save(tmp_path / "a.png", logo), BUDGET)
    assert is_near(pixel(loaded, 0.1, 0.5), (128, 128, 128))


def test_a_large_scan_is_read_once_the_setting_that_the_message_names_allows_it(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    path = save(tmp_path / "a.jpg", Image.new("L", (14_000, 13_000)), exif=exif)
    with pytest.raises(MediaTooLarge, match=r"182,000,000 pixels; .*150,000,000 \(CAPFLOW_MAX_SOURCE_PIXELS"):
        load_image(path, budget_of(Settings()))
    upright = load_image(path, budget_of(Settings(max_source_pixels=182_000_000)))
    assert upright.height > upright.width
