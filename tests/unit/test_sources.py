"""What users have becomes datasets: recognised by content, listed in an order that stays."""

from __future__ import annotations

import gzip
import io
import json
import os
import shutil
import tarfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from capflow_tasks.domains.catalogue import load_catalogue
from capflow_tasks.errors import CapflowError, MediaCorrupt, PlanError
from capflow_tasks.media.paths import head_of, kind_of, resolve_media
from capflow_tasks.records import Modality
from producer.planning.listings import SourceOrder
from producer.planning.preflight import check_datasets
from producer.planning.sources import Found, read_sources
from producer.reading.folders import MediaFolder, differs_by_guess, named_by_content, walk
from producer.reading.plan import kept_plan
from producer.reading.samples import read_samples
from producer.reading.tables import Keys
from tests.datasets import draw_picture, film_video
from tests.stores import a_shard

RESOLVE = load_catalogue().resolve
PNG = b"\x89PNG\r\n\x1a\n and more"

Read = Callable[..., Found]


@pytest.fixture
def read(tmp_path: Path) -> Read:
    """Reads sources, named relative to the test's folder."""

    def read(*sources: str, root: Path | None = None, **keys: Any) -> Found:
        order = SourceOrder(tmp_path / "listings", Keys(**keys), root)
        return read_sources([str(tmp_path / each) for each in sources], order, RESOLVE, lambda _: None)

    return read


def entries(found: Found, number: int = 0) -> list[dict[str, Any]]:
    lines = Path(found.datasets[number].annotation).read_text().splitlines()
    assert found.datasets[number].length == len(lines)
    return [json.loads(line) for line in lines]


def write(path: Path, content: bytes = PNG) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def add(tar: tarfile.TarFile, name: str, content: bytes = PNG, **fields: Any) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    for key, value in fields.items():
        setattr(member, key, value)
    tar.addfile(member, io.BytesIO(content))


def test_files_that_are_added_come_last_and_the_others_keep_their_places(tmp_path: Path, read: Read) -> None:
    for name in ("b.png", "d/1.png", "d/2.png"):
        write(tmp_path / "set" / name)
    first = entries(read("set"))
    write(tmp_path / "set" / "a.png")
    write(tmp_path / "set" / "c" / "0.png")
    second = entries(read("set"))
    write(tmp_path / "set" / "b2.png")
    (tmp_path / "set" / "d" / "1.txt").write_text("said")
    (tmp_path / "set" / "b.png").unlink()

    third = entries(read("set"))

    assert [each["id"] for each in first] == ["b.png", "d/1.png", "d/2.png"]
    assert [each["id"] for each in second] == ["b.png", "d/1.png", "d/2.png", "a.png", "c/0.png"]
    assert [each["id"] for each in third] == [*(each["id"] for each in second), "b2.png"]
    assert third[1] == {"id": "d/1.png", "txt": "said", "image": "d/1.png"}


def test_a_folder_may_change_while_it_is_read(tmp_path: Path) -> None:
    for name in ("a.png", "b.png", "c/d.png", "e.png"):
        write(tmp_path / name)
        (tmp_path / name).with_suffix(".txt").write_text("said")
    listed = MediaFolder(tmp_path).entries([], lambda _: False)

    first = next(listed)
    (tmp_path / "b.txt").unlink()
    shutil.rmtree(tmp_path / "c")
    (tmp_path / "e.png").unlink()
    rest = list(listed)

    assert first == {"id": "a.png", "txt": "said", "image": "a.png"}
    assert rest == [
        {"id": "b.png", "txt": "", "image": "b.png"},
        {"id": "e.png", "txt": "said", "image": "e.png"},  # and fails as media_missing
    ]


def test_ids_from_metadata_do_not_list_files_again(tmp_path: Path, read: Read) -> None:
    ids = {"a.png": "first", "b.png": 7, "c.png": None}
    for name in ids:
        write(tmp_path / "set" / name)
    lines = [json.dumps({"file_name": name, "id": value}) for name, value in ids.items()]
    (tmp_path / "set" / "metadata.jsonl").write_text("\n".join(lines))

    once = entries(read("set"))

    assert once == [{"id": value, "image": name} for name, value in ids.items()]
    assert entries(read("set")) == once


def test_media_of_a_folder_are_found_whatever_the_root(tmp_path: Path, read: Read) -> None:
    write(tmp_path / "set" / "a.png")
    with tarfile.open(tmp_path / "set" / "s.tar", "w") as tar:
        add(tar, "b.png")
    (tmp_path / "elsewhere").mkdir()

    for root in (tmp_path, tmp_path / "elsewhere"):
        found = read("set", root=root)
        for number, dataset in enumerate(found.datasets):
            (entry,) = entries(found, number)
            assert first_bytes(Path(dataset.root), entry["image"]) == PNG


def test_other_files_of_a_folder_have_a_listing_of_their_own(tmp_path: Path, read: Read) -> None:
    for name in "abc":
        write(tmp_path / f"{name}.png")

    first, second = read("a.png", "b.png"), read("b.png", "c.png")

    assert [each["image"] for each in entries(first)] == ["a.png", "b.png"]
    assert [each["image"] for each in entries(second)] == ["b.png", "c.png"]


def test_files_that_are_named_again_keep_their_places_and_their_listing(tmp_path: Path, read: Read) -> None:
    for name in "bd":
        write(tmp_path / f"{name}.png")
    before = read("b.png", "d.png")
    for name in "ac":
        write(tmp_path / f"{name}.png")

    more = read("a.png", "b.png", "c.png", "d.png")
    (tmp_path / "b.png").unlink()
    fewer = read("a.png", "c.png", "d.png")

    assert before.datasets[0].annotation == more.datasets[0].annotation == fewer.datasets[0].annotation
    for found in (more, fewer):
        assert [each["id"] for each in entries(found)] == ["b.png", "d.png", "a.png", "c.png"]


def test_links_are_followed_inside_the_folder_and_never_around(tmp_path: Path) -> None:
    write(tmp_path / "set" / "a.png")
    write(tmp_path / "other" / "b.png")
    write(tmp_path / "set" / ".hidden" / "c.png")
    (tmp_path / "set" / "loop").symlink_to(tmp_path / "set")
    (tmp_path / "set" / "out").symlink_to(tmp_path / "other")
    (tmp_path / "set" / "again.png").symlink_to(tmp_path / "set" / "a.png")
    (tmp_path / "set" / "gone.png").symlink_to(tmp_path / "nothing")
    os.mkfifo(tmp_path / "set" / "pipe.png")

    assert list(walk(tmp_path / "set")) == ["a.png", "again.png"]


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("rows.csv", "image,n\na.png,1\n", [{"image": "a.png", "n": "1"}]),
        ("rows.tsv", 'image\tn\na.png\t"x, y"\n', [{"image": "a.png", "n": "x, y"}]),
        ("rows.json", "image,n\na.png,\n", [{"image": "a.png", "n": None}]),
        ("column.csv", "image\na.png\n", [{"image": "a.png"}]),
        ("list.json", '["a.png", 3]', [{"id": "a.png", "image": "a.png"}, 3]),
        ("paths.txt", "a.png\n\n  b.png\n", [{"id": p, "image": p} for p in ("a.png", "b.png")]),
    ],
)
def test_tables_and_lists_are_recognised_by_content(
    tmp_path: Path, read: Read, name: str, content: str, expected: list[Any]
) -> None:
    (tmp_path / name).write_text(content)

    assert entries(read(name)) == expected


def test_annotations_are_taken_as_they_are_and_listed_only_for_other_keys(tmp_path: Path, read: Read) -> None:
    (tmp_path / "a.jsonl").write_text('{"file": "a.png", "n": 1}\n{"file": "b.png"\n7\n')
    with gzip.open(tmp_path / "b.json.gz", "wt") as file:
        file.write('[{"image": "a.png"}]')

    plain, packed = read("a.jsonl", "b.json.gz").datasets
    assert (plain.annotation, packed.annotation) == (str(tmp_path / "a.jsonl"), str(tmp_path / "b.json.gz"))
    assert (plain.root, plain.name, packed.name) == (str(tmp_path), "a", "b")
    keyed = entries(read("a.jsonl", image="file", id="n"))
    assert keyed[0] == {"file": "a.png", "n": 1, "image": "a.png", "id": 1}
    assert len(keyed) == 3


def test_parts_are_named_by_other_keys_only_when_asked(tmp_path: Path, read: Read) -> None:
    rows = [
        {"video": "a.mp4", "start": 1.5, "end": "3"},
        {"video": "a.mp4", "start": 4},
        {"image": "a.gif", "frame": 2},
        {"image": "a.jpg", "bbox": [1, 2.4, 3, 4]},
        {"image": "a.jpg", "bbox": [[1, 2, 3, 4]]},
    ]
    (tmp_path / "a.json").write_text(json.dumps(rows))

    named = [each.get("video") or each.get("image") for each in entries(read("a.json", parts=True))]

    assert read("a.json").datasets[0].annotation == str(tmp_path / "a.json")
    assert named == ["a.mp4#t=1.5,3", "a.mp4#t=4,1000000", "a.gif#frame=2", "a.jpg#xywh=1,2,3,4", "a.jpg"]


def test_coco_gives_an_entry_per_picture(tmp_path: Path, read: Read) -> None:
    coco = {
        "info": {"year": 2017},
        "images": [{"id": 5, "file_name": "5.jpg", "width": 9}, {"id": 6, "file_name": "6.jpg"}],
        "annotations": [
            {"image_id": 5, "caption": "one"},
            {"image_id": 5, "caption": "two"},
            {"image_id": 5, "bbox": [1, 2, 3, 4], "category_id": 1},
        ],
        "categories": [{"id": 1, "name": "cat"}],
    }
    (tmp_path / "captions.json").write_text(json.dumps(coco, indent=1))

    first, second = entries(read("captions.json"))

    assert (first["id"], first["image"], first["captions"]) == (5, "5.jpg", ["one", "two"])
    assert first["objects"] == [{"bbox": [1, 2, 3, 4], "category": "cat"}]
    assert second["image"] == "6.jpg"


def test_samples_of_a_tar_are_those_of_webdataset(tmp_path: Path, read: Read) -> None:
    film_video(tmp_path / "clip.mp4")
    with tarfile.open(tmp_path / "s.tar", "w") as tar:
        add(tar, "d/1.left.png")
        add(tar, "d/1.right.png")
        add(tar, "d/1.json", b'{"id": 8, "video": 2}')
        add(tar, "2.cls", b"3")
        add(tar, "2.bin", (tmp_path / "clip.mp4").read_bytes())
        add(tar, "3.txt", b"no media")

    first, second = entries(read("s.tar"))

    assert (first["id"], first["source_video"], len(first["images"])) == (8, 2, 2)
    assert (second["id"], second["cls"]) == ("2", "3")
    assert kind_of(head_of(resolve_media(str(tmp_path), second["video"]))) is Modality.VIDEO


def test_hostile_members_are_left_out_and_what_stands_before_damage_is_planned(
    tmp_path: Path, read: Read
) -> None:
    with tarfile.open(tmp_path / "s.tar", "w") as tar:
        add(tar, "../../out.png")
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE):
            add(tar, f"{kind!r}.png", b"", type=kind, linkname="/etc/passwd")
        add(tar, "last.png")
    whole = (tmp_path / "s.tar").read_bytes()

    assert [each["id"] for each in entries(read("s.tar"))] == ["../../out", "last"]

    cut = whole.index(b"last.png") + 600
    (tmp_path / "s.tar").write_bytes(b"".join([whole[: cut - 600], b"\xff" * 512, whole[cut:]]))
    found = read("s.tar")
    assert [each["id"] for each in entries(found)] == ["../../out"]
    assert not found.warnings or "fetch the tar again" in found.warnings[0]


def test_a_compressed_tar_is_refused_and_never_unpacked(tmp_path: Path, read: Read) -> None:
    with tarfile.open(tmp_path / "s.tar.gz", "w:gz") as tar:
        add(tar, "a.png")
    (tmp_path / "bomb.json.gz").write_bytes(gzip.compress(b'[{"image": "' + b"0" * 10_000_000))

    with pytest.raises(PlanError, match="gunzip it"):
        read("s.tar.gz")
    assert len(read("bomb.json.gz").datasets) == 1


def test_columns_of_parquet_are_those_that_datasets_noted(tmp_path: Path, read: Read) -> None:
    images = [{"bytes": PNG, "path": None}, None, {"bytes": PNG, "path": "b.png"}]
    features = datasets.Features({"scan": datasets.Image(), "n": datasets.Value("int64")})
    noted = datasets.Dataset.from_dict({"scan": images, "n": [1, 2, 3]}, features=features)
    noted.to_parquet(str(tmp_path / "set" / "data.parquet"))
    pq.write_table(
        pa.table({"pics": [["a.png", "b.png"], []], "x": [float("nan"), 1.0]}), tmp_path / "p.parquet"
    )

    rows = entries(read("set"))

    assert [row["n"] for row in rows] == [1, 2, 3]
    assert head_of(resolve_media(str(tmp_path / "set"), rows[2]["image"])) == PNG
    listed = entries(read("p.parquet", image="pics"))
    assert [(row.get("images"), row["x"]) for row in listed] == [(["a.png", "b.png"], None), (None, 1.0)]
    with pytest.raises(PlanError, match="--image-key, one of: pics, x"):
        read("p.parquet")


def test_text_that_is_not_utf_8_breaks_off_with_a_sentence(tmp_path: Path, read: Read) -> None:
    text = pa.array([b"good", b"\x95"]).view(pa.string())
    pq.write_table(pa.table({"image": ["a.png", "b.png"], "text": text}), tmp_path / "rows.parquet")

    with pytest.raises(PlanError, match=r"rows\.parquet: cannot be read on: 'utf-8' codec"):
        read("rows.parquet")


def test_a_dataset_saved_to_disk_is_read_where_it_lies(tmp_path: Path, read: Read) -> None:
    pictures = [PNG + bytes([number]) for number in range(5)]
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "pages": datasets.List(datasets.Image()),
            "label": datasets.Value("int64"),
        }
    )
    rows = {
        "image": [{"bytes": each, "path": None} for each in pictures[:4]] + [None],
        "pages": [
            [],
            [{"bytes": pictures[4], "path": "a.png"}] * 2,
            None,
            [],
            [{"bytes": PNG, "path": None}],
        ],
        "label": [0, 1, 2, 3, 4],
    }
    datasets.Dataset.from_dict(rows, features).save_to_disk(tmp_path / "set", num_shards=2)

    found = read("set")
    listed = [entry for number in range(2) for entry in entries(found, number)]

    assert [each["label"] for each in listed] == [0, 1, 2, 3, 4]
    media = [each["images"] if "images" in each else [each["image"]] for each in listed]
    read_back = [[first_bytes(tmp_path / "set", address) for address in each] for each in media]
    assert read_back == [
        [pictures[0]],
        [pictures[1], pictures[4], pictures[4]],
        [pictures[2]],
        [pictures[3]],
        [PNG],
    ]
    for file in (tmp_path / "set").glob("*.arrow"):
        file.write_bytes(file.read_bytes()[:-600])
    with pytest.raises(MediaCorrupt, match="cut short"):
        first_bytes(tmp_path / "set", media[0][0])


def test_a_count_of_rows_that_no_file_has_is_refused(tmp_path: Path, read: Read) -> None:
    rows = 12_345
    pq.write_table(pa.table({"image": [PNG] * rows}), tmp_path / "lies.parquet")
    honest = (tmp_path / "lies.parquet").read_bytes()
    start = len(honest) - 8 - int.from_bytes(honest[-8:-4], "little")
    assert len(entries(read("lies.parquet"))) == rows
    for count in (-1, -(1 << 40), 1 << 40):
        footer = honest[start:-8].replace(_varint(rows), _varint(count))
        (tmp_path / "lies.parquet").write_bytes(
            honest[:start] + footer + len(footer).to_bytes(4, "little") + b"PAR1"
        )

        with pytest.raises(PlanError, match=r"lies\.parquet: .*; fetch the file again"):
            read("lies.parquet")


def _varint(number: int) -> bytes:
    """Return a number as Thrift's compact protocol writes it, which a Parquet footer is in."""
    left, written = (number << 1) ^ (number >> 63), b""
    while left > 0x7F:
        written, left = written + bytes([left & 0x7F | 0x80]), left >> 7
    return written + bytes([left])


def test_listings_of_tars_are_kept_until_they_change(tmp_path: Path, read: Read) -> None:
    with tarfile.open(tmp_path / "s.tar", "w") as tar:
        add(tar, "a.png")
    listing = Path(read("s.tar").datasets[0].annotation)
    written = listing.stat()
    assert Path(read("s.tar").datasets[0].annotation).stat().st_ino == written.st_ino
    with tarfile.open(tmp_path / "s.tar", "w") as tar:
        add(tar, "b.png")
    os.utime(tmp_path / "s.tar", ns=(1, 1))

    assert [each["id"] for each in entries(read("s.tar"))] == ["b"]


def test_a_container_is_listed_anew_for_another_root(tmp_path: Path, read: Read) -> None:
    (tmp_path / "d").mkdir()
    with tarfile.open(tmp_path / "d" / "s.tar", "w") as tar:
        add(tar, "a.png")
    pq.write_table(pa.table({"image": [PNG]}), tmp_path / "d" / "p.parquet")

    for name in ("d/s.tar", "d/p.parquet"):
        for root in (None, tmp_path):
            found = read(name, root=root)
            (entry,) = entries(found)
            assert first_bytes(Path(found.datasets[0].root), entry["image"]) == PNG


def test_a_member_whose_name_is_not_utf_8_is_read_or_refused_alone(tmp_path: Path, read: Read) -> None:
    with tarfile.open(tmp_path / "s.tar", "w", format=tarfile.GNU_FORMAT) as tar:
        for name in ("a.png", "b.\udcff.png", "\udcff.png", "d.png"):
            add(tar, name)

    found = read("s.tar")

    assert [each["id"] for each in entries(found)] == ["a", "b", "\udcff", "d"]
    for entry in entries(found):
        assert first_bytes(tmp_path, entry["image"]) == PNG
    shard = a_shard(4, str(tmp_path), annotation=found.datasets[0].annotation)
    samples = list(read_samples(load_catalogue(), shard, 0))
    assert [bool(each.failure) for each in samples] == [False, False, True, False]


def test_numbered_names_are_expanded_and_a_missing_one_is_named(tmp_path: Path, read: Read) -> None:
    for number in range(9, 12):
        with tarfile.open(tmp_path / f"s-{number:03}.tar", "w") as tar:
            add(tar, "a.png")

    assert [each.name for each in read("s-{009..011}.tar").datasets] == ["s-009", "s-010", "s-011"]
    with pytest.raises(PlanError, match=r"s-012\.tar: there is no such"):
        read("s-{009..012}.tar")


def test_datasets_of_one_name_get_numbers(tmp_path: Path, read: Read) -> None:
    write(tmp_path / "a" / "photos" / "1.png")
    write(tmp_path / "b" / "photos" / "1.png")

    found = read("a/photos", "b/photos")

    assert [each.name for each in found.datasets] == ["photos", "photos-2"]
    assert len({each.annotation for each in found.datasets}) == 2


def test_preflight_names_the_key_that_was_meant(tmp_path: Path, read: Read) -> None:
    draw_picture(tmp_path / "a.png", 1)
    (tmp_path / "s.jsonl").write_text('{"n": "x", "picture": {"path": "a.png"}}\n' * 50)
    (tmp_path / "half.jsonl").write_text('{"image": "a.png"}\n{"image": 7}\n')
    (tmp_path / "lost.txt").write_text("b.png\n")

    with pytest.raises(PlanError, match="--image-key picture"):
        check_datasets(read("s.jsonl").datasets, [50])
    assert check_datasets(read("half.jsonl").datasets, [2]) == []
    with pytest.raises(PlanError, match="name their folder with --root"):
        check_datasets(read("lost.txt").datasets, [1])
    assert check_datasets(read("s.jsonl", image="picture").datasets, [50]) == []


def test_videos_among_pictures_are_found_by_content(tmp_path: Path) -> None:
    draw_picture(tmp_path / "a.png", 1)
    (tmp_path / "a.png").rename(tmp_path / "picture.mp4")
    film_video(tmp_path / "clip.mp4")
    film_video(tmp_path / "other.mp4")

    def named(**entry: Any) -> dict[str, Any]:
        return named_by_content(entry, str(tmp_path))

    assert named(image="clip.mp4", n=1) == {"n": 1, "video": "clip.mp4"}
    assert named(image="picture.mp4") == {"image": "picture.mp4"}
    assert named(images=["picture.mp4", "clip.mp4"]) == {"images": ["picture.mp4"], "video": "clip.mp4"}
    assert named(image=["clip.mp4"], video="other.mp4") == {"video": "other.mp4", "videos": ["clip.mp4"]}
    assert named(image="gone.mp4") == {"video": "gone.mp4"}
    assert named(image="gone.mp4#t=1,2.5") == {"video": "gone.mp4#t=1,2.5"}
    assert named(image="gone") == {"image": "gone"}
    assert named(image=None, images=7) == {"image": None, "images": 7}


def test_remote_media_are_what_their_names_promise_and_not_opened() -> None:
    named = {
        "images": ["https://cdn.example.org/clip.MP4?x=1", "https://cdn.example.org/a.jpg", "s3://b/image"]
    }
    kept = {"images": named["images"][1:], "video": named["images"][0]}

    assert named_by_content(named, "/") == kept
    assert named_by_content({"image": "clip.mp4"}, "s3://b") == {"video": "clip.mp4"}
    assert not differs_by_guess(kept, named, "/")


def test_a_plan_of_remote_sources_is_kept_wherever_the_command_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = kept_plan(["s3://bucket/photos"])
    monkeypatch.chdir(tmp_path)

    assert kept_plan(["s3://bucket/photos"]) == here
    assert here.name == "photos.jsonl"


def test_an_entry_differs_by_guess_only_where_its_media_cannot_be_read(tmp_path: Path) -> None:
    def differs(entry: dict[str, Any], stored: dict[str, Any]) -> bool:
        return differs_by_guess(entry, stored, str(tmp_path))

    as_image, as_video = {"n": 1, "image": "clip"}, {"n": 1, "video": "clip"}
    assert differs(as_image, as_video)
    assert differs({"images": ["a.png", "clip"]}, {"images": ["a.png"], "video": "clip"})
    assert differs({"video": "picture.mp4"}, {"image": "picture.mp4"})
    assert not differs(as_video, as_image)  # nothing but the entry itself says so
    assert not differs({"image": "a.png"}, {"video": "a.png"})
    assert not differs(as_video, as_video)
    assert not differs(as_image | {"n": 2}, as_video)
    assert not differs({"n": 1, "image": "other"}, as_video)
    film_video(tmp_path / "clip.mp4")
    (tmp_path / "clip.mp4").rename(tmp_path / "clip")
    assert not differs(as_image, as_video)


def first_bytes(root: Path, address: str) -> bytes:
    return head_of(resolve_media(str(root), address))


def refusal_of(call: Callable[[], object]) -> str | None:
    """Return why the call was refused; None when it was not. Any other error is a failure."""
    try:
        call()
    except CapflowError as error:
        return str(error)
    return None


quietly = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@quietly
@given(
    st.binary(max_size=3000), st.sampled_from(["x.csv", "x.json", "x.jsonl", "x.tar", "x.parquet", "x.gz"])
)
def test_any_file_is_read_or_refused_in_one_sentence(
    tmp_path: Path, read: Read, content: bytes, name: str
) -> None:
    (tmp_path / name).write_bytes(content)

    refused = refusal_of(lambda: read(name))

    assert refused is None or (str(tmp_path / name) in refused and "; " in refused)


@quietly
@given(st.data())
def test_a_damaged_tar_or_parquet_file_never_breaks_the_reader(
    tmp_path: Path, read: Read, data: st.DataObject
) -> None:
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        add(tar, "a.png")
        add(tar, "a.json", b'{"n": 1}')
        add(tar, "b.png")
    pq.write_table(pa.table({"image": [PNG, PNG], "n": [1, 2]}), tmp_path / "x.parquet")
    name = data.draw(st.sampled_from(["x.tar", "x.parquet"]))
    content = bytearray((tmp_path / name).read_bytes())
    for place in data.draw(st.lists(st.integers(0, len(content) - 1), max_size=5)):
        content[place] ^= data.draw(st.integers(1, 255))
    (tmp_path / name).write_bytes(content[: data.draw(st.integers(1, len(content)))])
    found = list[Found]()

    refused = refusal_of(lambda: found.append(read(name)))

    assert refused is None or "; " in refused
    for entry in (entry for each in found for entry in entries(each)):
        assert refusal_of(partial(first_bytes, tmp_path, str(entry.get("image")))) != ""
