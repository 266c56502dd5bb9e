"""Parts of containers are read where they lie, with the limits and errors of files."""

from __future__ import annotations

import os
import tarfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import ExifTags, Image

from capflow_tasks.errors import MediaCorrupt, MediaMissing, MediaOutsideRoot, MediaTooLarge, SampleError
from capflow_tasks.media import player
from capflow_tasks.media.addresses import (
    ParquetCell,
    Part,
    TarMember,
    open_media,
    part_of,
    readable_name,
    split_address,
    with_part,
)
from capflow_tasks.media.budget import MediaBudget
from capflow_tasks.media.loader import load_media
from capflow_tasks.media.paths import check_file, resolve_media
from capflow_tasks.media.pictures import fit_image, load_image, media_key
from capflow_tasks.media.video import Windows, load_video
from capflow_tasks.records import MediaRef, Modality, Span
from tests.datasets import draw_picture, film_video

BUDGET = MediaBudget()


@pytest.fixture
def tar(tmp_path: Path) -> Path:
    """A tar of a picture and a video."""
    draw_picture(tmp_path / "a.png", 3)
    film_video(tmp_path / "clip.mp4")
    with tarfile.open(tmp_path / "set.tar", "w") as tar:
        tar.add(tmp_path / "a.png", "a.png")
        tar.add(tmp_path / "clip.mp4", "clip.mp4")
    return tmp_path / "set.tar"


def addresses(tar: Path) -> list[str]:
    with tarfile.open(tar) as opened:
        return [
            f"{tar.name}#{TarMember(each.offset_data, each.size, each.name)}" for each in opened.getmembers()
        ]


def in_parquet(folder: Path, values: Sequence[object], row_group_size: int = 2) -> str:
    pq.write_table(pa.table({"image": values}), folder / "p.parquet", row_group_size=row_group_size)
    return str(folder / "p.parquet")


def test_members_of_a_tar_decode_to_what_the_files_do(tar: Path) -> None:
    picture, video = (resolve_media(str(tar.parent), address) for address in addresses(tar))

    of_member = load_media(MediaRef(Modality.IMAGE, picture), BUDGET)
    of_file = load_media(MediaRef(Modality.IMAGE, str(tar.parent / "a.png")), BUDGET)

    assert of_member.value.tobytes() == of_file.value.tobytes()
    played = load_media(MediaRef(Modality.VIDEO, video), BUDGET)
    from_file = load_media(MediaRef(Modality.VIDEO, str(tar.parent / "clip.mp4")), BUDGET)
    assert (played.value[0] == from_file.value[0]).all()
    assert check_file(picture, 10_000).size == (tar.parent / "a.png").stat().st_size
    assert media_key(picture, BUDGET) != media_key(video, BUDGET)


def test_a_member_may_have_a_name_that_is_not_utf_8() -> None:
    member = TarMember(512, 3, "d/\udcff #&.png")

    assert str(member).isascii()
    assert split_address(f"set.tar#{member}") == ("set.tar", member)


def test_reading_a_member_costs_no_seek_and_one_read(tar: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The header, which tells that the tar is the one that was planned, and the content."""
    reads = list[int]()

    def noting(read: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *asked: (reads.append(asked[2]), read(*asked))[1]  # type: ignore[func-returns-value]

    monkeypatch.setattr(os, "pread", noting(os.pread))
    monkeypatch.setattr(os, "preadv", noting(os.preadv))
    file, member = split_address(str(tar.parent / addresses(tar)[0]))
    assert isinstance(member, TarMember)

    with open_media(f"{file}#{member}") as opened:
        content = opened.read(member.size)

    assert content == (tar.parent / "a.png").read_bytes()
    assert reads == [member.offset - 512, member.offset]


def test_cells_of_parquet_decode_to_what_the_files_do(tmp_path: Path) -> None:
    for number in range(3):
        draw_picture(tmp_path / f"{number}.png", number)
    content = [(tmp_path / f"{number}.png").read_bytes() for number in range(3)]
    file = in_parquet(tmp_path, [{"bytes": each, "path": None} for each in content])

    for number, expected in enumerate(content):
        with open_media(f"{file}#{ParquetCell(number // 2, number % 2, 'image')}") as opened:
            assert opened.read() == expected
    plain = in_parquet(tmp_path, content)
    with open_media(f"{plain}#{ParquetCell(1, 0, 'image')}") as opened:
        assert opened.read() == content[2]
    lists = in_parquet(tmp_path, [[{"bytes": each} for each in content]])
    with open_media(f"{lists}#{ParquetCell(0, 0, 'image', 1)}") as opened:
        assert opened.read() == content[1]


@pytest.mark.parametrize(
    ("cell", "kind"),
    [
        ((0, 1, "image"), MediaMissing),
        ((0, 2, "image"), MediaCorrupt),
        ((0, 9, "image"), MediaMissing),
        ((9, 0, "image"), MediaMissing),
        ((0, 0, "other"), MediaMissing),
    ],
)
def test_a_cell_without_a_medium_fails_by_name(
    tmp_path: Path, cell: tuple[int, int, str], kind: type[SampleError]
) -> None:
    file = in_parquet(tmp_path, [b"x", None, b""], row_group_size=3)

    with pytest.raises(kind, match=r"p\.parquet"):
        open_media(f"{file}#{ParquetCell(*cell)}")


@pytest.mark.parametrize("kind", ["bytes", "object", "list"])
def test_a_value_that_is_repeated_without_end_is_held_once(tmp_path: Path, kind: str) -> None:
    """Its file has 1 MiB; all its values, decoded one by one, 2 GiB."""
    repeated = pa.DictionaryArray.from_arrays(
        pa.array([0] * 2000, pa.int32()), pa.array([bytes(range(256)) * 4096])
    )
    columns = {
        "bytes": lambda: repeated,
        "object": lambda: pa.StructArray.from_arrays([repeated], ["bytes"]),
        "list": lambda: pa.ListArray.from_arrays(pa.array(range(2001), pa.int32()), repeated),
    }
    # without Arrow's own schema, as other programs write it
    pq.write_table(pa.table({"image": columns[kind]()}), tmp_path / "bomb.parquet", store_schema=False)
    before = pa.total_allocated_bytes()
    cell = ParquetCell(0, 1999, "image", 0 if kind == "list" else None)

    with open_media(f"{tmp_path}/bomb.parquet#{cell}") as file:
        assert len(file.read()) == 1 << 20

    assert (tmp_path / "bomb.parquet").stat().st_size < 3 << 20
    assert pa.total_allocated_bytes() - before < 64 << 20


def test_limits_and_roots_hold_for_parts_as_for_files(tar: Path) -> None:
    address = addresses(tar)[1]
    with pytest.raises(MediaTooLarge, match="CAPFLOW_MAX_MEDIA_MIB"):
        check_file(str(tar.parent / address), 1000)
    (tar.parent / "inside").mkdir()
    with pytest.raises(MediaOutsideRoot):
        resolve_media(str(tar.parent / "inside"), f"../{address}")
    broken = in_parquet(tar.parent, [b"x"])
    Path(broken).write_bytes(Path(broken).read_bytes()[:-8])
    with pytest.raises(MediaCorrupt, match="no sound Parquet file"):
        check_file(f"{broken}#{ParquetCell(0, 0, 'image')}", 1000)


def test_a_tar_that_was_cut_or_written_anew_is_noticed(tar: Path) -> None:
    first, last = (str(tar.parent / address) for address in addresses(tar))
    tar.write_bytes(tar.read_bytes()[:4096])
    with pytest.raises(MediaMissing, match="plan again"):
        open_media(last)
    with tarfile.open(tar, "w") as opened:
        opened.add(tar.parent / "clip.mp4", "other.mp4")
    with pytest.raises(MediaMissing, match="plan again"):
        open_media(first)


def test_names_for_people_tell_container_and_member() -> None:
    assert readable_name(f"s/0.tar#{TarMember(512, 3, 'd/a b.jpg')}") == "s/0.tar/d/a b.jpg"
    assert readable_name(f"t.parquet#{ParquetCell(1, 2, 'image', 0)}") == "t.parquet/1-2-0.image"
    assert readable_name("a#b.png") == "a#b.png"


@given(
    st.integers(512, 2**60),
    st.integers(0, 2**60),
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1),
)
def test_every_member_is_found_by_its_address(offset: int, size: int, name: str) -> None:
    member = TarMember(offset, size, name)

    assert split_address(f"a#b/set.tar#{member}") == ("a#b/set.tar", member)


@given(st.text())
def test_any_other_text_is_a_file(text: str) -> None:
    file, part = split_address(text)

    assert part is not None or file == text


@given(st.binary(max_size=2000), st.integers(0, 3000), st.integers(0, 3000))
def test_a_member_is_read_or_refused_whatever_the_tar_holds(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, offset: int, size: int
) -> None:
    path = tmp_path_factory.mktemp("tar") / "x.tar"
    path.write_bytes(content)
    try:
        with open_media(f"{path}#{TarMember(offset + 512, size, 'x')}") as opened:
            assert len(opened.read()) == size
    except SampleError:
        pass


def test_seeking_in_a_member_stays_inside_it(tar: Path) -> None:
    with open_media(str(tar.parent / addresses(tar)[0])) as opened:
        whole = opened.read()
        assert opened.seek(-4, os.SEEK_END) == len(whole) - 4
        assert opened.read(100) == whole[-4:]
        assert opened.seek(10) == 10
        assert BytesIO(whole).getvalue()[10:20] == opened.read(10)


def test_a_box_is_cut_from_the_upright_picture(tmp_path: Path) -> None:
    picture = Image.new("RGB", (600, 400), "white")
    picture.paste((255, 0, 0), (300, 100, 400, 200))
    for name in ("a.png", "a.jpg", "a.webp"):
        picture.save(tmp_path / name, quality=95)
        cut = load_image(f"{tmp_path / name}#xywh=300,100,100,100", BUDGET)
        assert np.asarray(cut)[8:-8, 8:-8, 1].max() < 40
        assert cut.size == fit_image(100, 100, BUDGET)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    picture.save(tmp_path / "turned.jpg", quality=95, exif=exif)
    turned = load_image(f"{tmp_path / 'turned.jpg'}#xywh=200,300,100,100", BUDGET)
    assert np.asarray(turned)[8:-8, 8:-8, 1].max() < 40
    with pytest.raises(MediaMissing, match="outside the 600 x 400"):
        load_image(f"{tmp_path / 'a.png'}#xywh=600,0,10,10", BUDGET)


def test_a_frame_of_an_animation_or_a_page_is_read(tmp_path: Path) -> None:
    pages = [Image.new("RGB", (64, 64), colour) for colour in ("red", "blue")]
    for name in ("a.gif", "a.tiff", "a.webp"):
        pages[0].save(tmp_path / name, save_all=True, append_images=pages[1:])
        second = load_image(f"{tmp_path / name}#frame=1", BUDGET)
        assert np.asarray(second)[9, 9, 2] > 200
        with pytest.raises(MediaMissing, match="no frame 2"):
            load_image(f"{tmp_path / name}#frame=2", BUDGET)


def test_a_part_of_a_video_is_read_and_cut_into_windows(tmp_path: Path) -> None:
    film_video(tmp_path / "clip.mp4", seconds=8)
    path = resolve_media(str(tmp_path), "clip.mp4#t=2,6.5")
    part = part_of(path)

    played = load_video(path, BUDGET, part.span)

    assert part.span == Span(2, 6.5)
    assert all(2 <= time < 6.5 for time in played.timestamps)
    assert played.duration_seconds == pytest.approx(4.5)
    short = replace(BUDGET, window_frames=4)
    windows = Windows(short, player).of(path, {})
    assert (windows[0].start, windows[-1].end) == (2, 6.5)
    assert len(windows) > 1
    assert media_key(path, BUDGET) != media_key(str(tmp_path / "clip.mp4"), BUDGET)


def test_a_part_may_follow_a_member() -> None:
    for path in ("clip.mp4", f"s.tar#{TarMember(512, 3, 'clip.mp4')}"):
        for part in (Part(Span(1, 2.5)), Part(Span(12345.678, 10**6)), Part(frame=3), Part(box=(1, 2, 3, 4))):
            address = with_part(path, part)
            assert (part_of(address), split_address(address)) == (part, split_address(path))
