from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from pyarrow import parquet

from capflow_tasks.errors import MediaMissing
from capflow_tasks.records import FinishedSample, JsonObject, Result, Stage
from capflow_tasks.store.states import SampleState, ShardRow
from producer.writing import captions
from producer.writing.captions import ReadSamples, export, export_parquet, export_webdataset, key_of, latest
from tests.datasets import read_lines
from tests.stores import a_failure, a_result, a_shard

GRADES = {"wit": 2, "factual_accuracy": 3, "overall": 3}
DIMENSIONS = ["factual_accuracy", "professionalism"]
DOCUMENT = Path(__file__).parents[2] / "docs" / "reference" / "files.md"


def results(caption: str = "A cat.") -> tuple[Result, ...]:
    judgement = Result(Stage.SCORE, "judge", "{}", GRADES, "m", "d", 1, 0, 1, "stop", 0.5, "w")
    return (
        a_result(Stage.PERCEIVE, "natural", "Fur."),
        a_result(Stage.SUMMARIZE, "summary", caption),
        judgement,
    )


def reader(*entries: JsonObject, said: tuple[Result, ...] | None = None) -> ReadSamples:
    """Return captioned samples with these entries for every shard."""

    def read(shard_id: int, state: SampleState) -> Iterator[FinishedSample]:
        made = results() if said is None else said
        for index, entry in enumerate(entries if state is SampleState.DONE else ()):
            yield FinishedSample(index, entry, "Natural", 0.5, made, None, 0)

    return read


def ended(*states: SampleState) -> ReadSamples:
    """Return one sample for each state."""

    def read(shard_id: int, state: SampleState) -> Iterator[FinishedSample]:
        failure = a_failure(Stage.ROUTE, MediaMissing("gone")) if state is SampleState.FAILED else None
        for index, each in enumerate(states):
            if each is state:
                yield FinishedSample(index, {"id": index}, "Natural", 0.5, results(), failure, 1)

    return read


@pytest.fixture
def media(tmp_path: Path) -> Path:
    folder = tmp_path / "media"
    (folder / "sub.dir").mkdir(parents=True)
    for name in ("a.JPG", "b.png", "clip.Mp4", "sub.dir/bare", "odd.j-g", "c.json", "日本.webp"):
        (folder / name).write_bytes(f"bytes of {name}".encode() * 999)
    return folder


def row(media: Path, shard_id: int = 1, **changes: object) -> ShardRow:
    return ShardRow(shard_id, 9, a_shard(9, str(media), **{"dataset": "s.e t", **changes}))


def pack(media: Path, read: ReadSamples, size: int = 1000, rows: Sequence[ShardRow] = ()) -> list[Path]:
    """The tars, in `media`'s neighbour."""
    files = export_webdataset(read, rows or [row(media)], media.parent / "tars", "run", size)
    return [file.path for file in files]


def unpacked(path: Path) -> dict[str, dict[str, bytes]]:
    """The samples of a tar as the webdataset library groups them: a key ends at the name's first dot."""
    samples: dict[str, dict[str, bytes]] = {}
    with tarfile.open(path) as tar:
        for member in tar:
            key, _, suffix = member.name.partition(".")
            content = tar.extractfile(member)
            assert content is not None
            assert suffix not in samples.setdefault(key, {})
            samples[key][suffix] = content.read()
    return samples


def test_captions_and_failures_go_to_files_named_by_rank_shard_and_dataset(tmp_path: Path) -> None:
    read = ended(SampleState.DONE, SampleState.FAILED, SampleState.DONE)
    shard = row(tmp_path, dataset="my set", assign_rank=3, shard_index=4)

    files = export(read, [shard], tmp_path / "out")

    assert [(file.path.name, file.samples) for file in files] == [
        ("Rank3_node4_my_set.jsonl", 2),
        ("Rank3_node4_my_set.failed.jsonl", 1),
    ]
    captions, failed = (read_lines(file.path) for file in files)
    assert [record["id"] for record in captions] == [0, 2]
    assert captions[0]["caption"] == "A cat."
    assert failed[0]["error"]["kind"] == "media_missing"


def test_a_shard_without_captions_has_an_empty_file_and_no_other(tmp_path: Path) -> None:
    (file,) = export(ended(), [row(tmp_path)], tmp_path)

    assert (file.path.name, file.samples) == ("Rank0_node0_s.e_t.jsonl", 0)
    assert list(tmp_path.iterdir()) == [file.path]


def test_failures_that_are_fixed_leave_no_file_behind(tmp_path: Path) -> None:
    export(ended(SampleState.FAILED), [row(tmp_path)], tmp_path)
    (file,) = export(ended(SampleState.DONE), [row(tmp_path)], tmp_path)

    assert list(tmp_path.iterdir()) == [file.path]


def test_a_parquet_file_has_a_typed_row_per_sample(tmp_path: Path, media: Path) -> None:
    entry = {"id": 7, "images": ["a.JPG", "b.png"], "source": {"größe": [1]}}

    (file,) = export_parquet(reader(entry), [row(media)], tmp_path, DIMENSIONS)

    assert (file.path.name, file.samples) == ("Rank0_node0_s.e_t.parquet", 1)
    (found,) = parquet.read_table(file.path).to_pylist()
    assert found == {
        "dataset": "s.e t",
        "index": 0,
        "id": "7",
        "root": str(media),
        "media": [{"kind": "image", "path": "a.JPG"}, {"kind": "image", "path": "b.png"}],
        "domain": "Natural",
        "confidence": 0.5,
        "caption": "A cat.",
        "conversations": [
            {"from": "human", "value": "<image>\n<image>\nDescribe these images in detail."},
            {"from": "gpt", "value": "A cat."},
        ],
        "reports": [{"agent": "natural", "text": "Fur."}],
        "scores": [{"dimension": "wit", "grade": 2}, {"dimension": "factual_accuracy", "grade": 3}],
        "score_factual_accuracy": 3,
        "score_professionalism": None,
        "overall": 3,
        "expected_scores": [],
        "errors": [],
        "model": "model",
        "workflow": "digest",
        "finish_reason": "stop",
        "guard": [],
        "entry": json.dumps(entry, ensure_ascii=False),
    }


def test_a_parquet_file_takes_whatever_an_entry_brought_along(tmp_path: Path, media: Path) -> None:
    entry = {"image": 1, "caption": ["x"], "scores": "good", "reports": 1, "overall": 99, "conversations": {}}

    (file,) = export_parquet(reader(entry, said=()), [row(media)], tmp_path, DIMENSIONS)

    (found,) = parquet.read_table(file.path).to_pylist()
    assert found["caption"] == '["x"]'
    assert found["overall"] is None
    assert [found[name] for name in ("media", "scores", "reports", "conversations")] == [[]] * 4


def test_parquet_comes_out_the_same_in_row_groups_of_one_size(
    tmp_path: Path, media: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(captions, "ROW_GROUP", 3)
    read = reader(*[{"image": "a.JPG"}] * 7)

    (first,) = export_parquet(read, [row(media)], tmp_path / "1", DIMENSIONS)
    (second,) = export_parquet(read, [row(media)], tmp_path / "2", reversed(DIMENSIONS))
    (empty,) = export_parquet(reader(), [row(media)], tmp_path / "3", DIMENSIONS)

    assert first.path.read_bytes() == second.path.read_bytes()
    groups = parquet.ParquetFile(first.path).metadata
    assert [groups.row_group(number).num_rows for number in range(3)] == [3, 3, 1]
    assert parquet.read_table(empty.path).num_rows == 0
    assert parquet.read_schema(empty.path) == parquet.read_schema(first.path)


def test_every_column_is_documented() -> None:
    text = DOCUMENT.read_text("utf-8")

    assert [name for name in captions.schema_of(["factual_accuracy"]).names if f"`{name}`" not in text] == []


def test_a_tar_holds_captions_and_media_under_keys_without_dots(media: Path) -> None:
    entries: list[JsonObject] = [
        {"image": "a.JPG"},
        {"images": ["b.png", "日本.webp"]},
        {"video": "clip.Mp4", "image": "a.JPG"},
    ]

    (path,) = pack(media, reader(*entries))

    found = unpacked(path)
    assert list(found) == [f"Rank0_node0_s~e_t-00000000{index}" for index in range(3)]
    one, two, film = found.values()
    assert list(one) == ["json", "txt", "jpg"]
    assert one["jpg"] == (media / "a.JPG").read_bytes()
    assert one["txt"] == b"A cat."
    assert json.loads(one["json"])["conversations"][-1] == {"from": "gpt", "value": "A cat."}
    assert list(two) == ["json", "txt", "0.png", "1.webp"]
    assert two["1.webp"] == (media / "日本.webp").read_bytes()
    assert list(film) == ["json", "txt", "0.jpg", "1.mp4"]


def test_a_suffix_that_would_mislead_gives_way_to_the_kind(media: Path) -> None:
    entries = [
        {"image": "sub.dir/bare"},
        {"image": "odd.j-g"},
        {"image": "c.json"},
        {"video": "sub.dir/bare"},
    ]

    (path,) = pack(media, reader(*entries))

    assert [list(sample)[2] for sample in unpacked(path).values()] == ["image", "image", "image", "video"]


def test_tars_are_full_come_out_the_same_and_leave_no_earlier_ones(media: Path) -> None:
    read = reader(*[{"image": "a.JPG"}] * 5)
    rows = [row(media), row(media, 2, shard_index=1)]

    small = pack(media, read, 3, rows)
    first = [path.read_bytes() for path in small]
    (media / "a.JPG").touch()

    assert [path.name for path in small] == [f"run-00000{number}.tar" for number in range(4)]
    assert [len(unpacked(path)) for path in small] == [3, 3, 3, 1]
    assert [path.read_bytes() for path in pack(media, read, 3, rows)] == first
    large = pack(media, read, 100, rows)
    assert len(unpacked(large[0])) == 10
    assert [path.name for path in large[0].parent.iterdir()] == ["run-000000.tar"]


def test_a_sample_whose_media_are_gone_is_listed_and_the_rest_goes_on(media: Path) -> None:
    entries: list[JsonObject] = [
        {"image": "a.JPG"},
        {"images": ["a.JPG", "gone.png"]},
        {"image": "../x"},
        {"image": "b.png"},
    ]

    tar, left_out = export_webdataset(reader(*entries), [row(media)], media.parent, "run", 2)

    assert (left_out.samples, left_out.is_left_out) == (2, True)
    assert [key[-1] for key in unpacked(tar.path)] == ["0", "3"]
    reasons = [json.loads(line) for line in left_out.path.read_text().splitlines()]
    assert [(reason["key"][-1], reason["kind"]) for reason in reasons] == [
        ("1", "media_missing"),
        ("2", "media_outside_root"),
    ]
    assert str(media / "gone.png") in reasons[0]["message"]


def test_a_file_that_breaks_while_it_is_read_leaves_nothing_in_the_tar(media: Path) -> None:
    # The kernel says that it has a page, and gives a few bytes.
    liar = Path("/sys/devices/system/cpu/online")
    if not liar.exists() or liar.stat().st_size <= len(liar.read_bytes()):
        pytest.skip("needs Linux's sysfs")
    root = Path("/")
    entries = [{"image": str(media / name)} for name in ("a.JPG", "b.png")]
    broken = {"images": [str(media / "b.png"), str(liar)]}

    read = reader(entries[0], broken, entries[1])
    tar, left_out = export_webdataset(read, [row(root)], media.parent, "run", 9)

    found = unpacked(tar.path)
    assert (left_out.samples, [key[-1] for key in found]) == (1, ["0", "2"])
    assert list(found.values())[1]["png"] == (media / "b.png").read_bytes()
    assert "became shorter" in left_out.path.read_text()


def test_without_a_caption_there_is_no_text(media: Path) -> None:
    (path,) = pack(media, reader({"image": "a.JPG"}, said=()))

    assert [list(sample) for sample in unpacked(path).values()] == [["json", "jpg"]]


def test_keys_of_datasets_that_differ_by_a_dot_differ() -> None:
    keys = {key_of(a_shard(1, dataset=name), 0) for name in ("a.b", "a_b", "a-b", "ab", "日.本")}

    assert len(keys) == 5
    assert not any("." in key for key in keys)


def test_a_plan_line_that_has_changed_stands_for_its_earlier_self(media: Path) -> None:
    rows = [row(media, 1), row(media, 2, shard_index=1), row(media, 3, task="Natural")]

    assert [each.id for each in latest(rows)] == [2, 3]
