from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from pyarrow import parquet

from capflow_tasks.errors import MediaMissing, UserError
from capflow_tasks.records import FinishedSample, JsonObject, Result, Stage
from capflow_tasks.store.states import SampleState, ShardRow
from producer.writing import parquet as parquet_files
from producer.writing.captions import (
    Captioned,
    ExportedFile,
    ReadSamples,
    caption_record,
    export,
    key_of,
    latest,
    listing_left_out,
)
from producer.writing.ownership import OwnFiles
from producer.writing.parquet import Columns, schema_of, write_parquet
from producer.writing.tars import Packing, values_of
from tests.datasets import read_lines
from tests.stores import a_failure, a_result, a_shard

GRADES = {"wit": 2, "factual_accuracy": 3, "overall": 3}
COLUMNS = Columns(["factual_accuracy", "professionalism"])
DOCUMENT = Path(__file__).parents[2] / "docs" / "reference" / "files.md"


def own_files(folder: Path) -> OwnFiles:
    return OwnFiles(folder, "run", datetime(2026, 11, 26, tzinfo=UTC))


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


def captioned(read: ReadSamples, rows: Sequence[ShardRow]) -> Iterator[Captioned]:
    for each in rows:
        for sample in read(each.id, SampleState.DONE):
            yield Captioned(each.shard, sample, caption_record(sample))


def pack_all(folder: Path, read: ReadSamples, size: int, rows: Sequence[ShardRow]) -> list[ExportedFile]:
    """The tars and the list of what was left out."""
    files: list[ExportedFile] = []
    with listing_left_out(folder / "run.left_out.jsonl", files) as left_out:
        tars = Packing(own_files(folder), folder, "run", size).write(captioned(read, rows), left_out)
    return tars + files


def pack(media: Path, read: ReadSamples, size: int = 1000, rows: Sequence[ShardRow] = ()) -> list[Path]:
    """The tars, in `media`'s neighbour."""
    files = pack_all(media.parent / "tars", read, size, rows or [row(media)])
    return [file.path for file in files]


def tabulate(path: Path, read: ReadSamples, shard: ShardRow, columns: Columns = COLUMNS) -> list[JsonObject]:
    """Write a Parquet file and return its rows."""
    with listing_left_out(path.with_suffix(".left_out.jsonl"), []) as left_out:
        count = write_parquet(path, captioned(read, [shard]), columns, left_out)
    rows: list[JsonObject] = parquet.read_table(path).to_pylist()
    assert len(rows) == count
    return rows


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

    files = export(read, [shard], tmp_path / "out", own_files(tmp_path / "out"))

    assert [(file.path.name, file.samples) for file in files] == [
        ("Rank3_node4_my_set.jsonl", 2),
        ("Rank3_node4_my_set.failed.jsonl", 1),
    ]
    captions, failed = (read_lines(file.path) for file in files)
    assert [record["id"] for record in captions] == [0, 2]
    assert captions[0]["caption"] == "A cat."
    assert failed[0]["error"]["kind"] == "media_missing"


def test_a_shard_without_captions_has_an_empty_file_and_no_other(tmp_path: Path) -> None:
    (file,) = export(ended(), [row(tmp_path)], tmp_path, own_files(tmp_path))

    assert (file.path.name, file.samples) == ("Rank0_node0_s.e_t.jsonl", 0)
    assert list(tmp_path.glob("[!.]*")) == [file.path]


def test_failures_that_are_fixed_leave_no_file_behind(tmp_path: Path) -> None:
    export(ended(SampleState.FAILED), [row(tmp_path)], tmp_path, own_files(tmp_path))
    (file,) = export(ended(SampleState.DONE), [row(tmp_path)], tmp_path, own_files(tmp_path))

    assert list(tmp_path.glob("[!.]*")) == [file.path]


def test_a_parquet_file_has_a_typed_row_per_sample(tmp_path: Path, media: Path) -> None:
    entry = {"id": 7, "images": ["a.JPG", "b.png"], "source": {"größe": [1]}}

    (found,) = tabulate(tmp_path / "a.parquet", reader(entry), row(media))

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
            {"from": "human", "value": "<image>\n<image>\nProvide a comprehensive caption for these images."},
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
        "revision": None,
        "engine": None,
        "sampling": None,
        "workflow": "digest",
        "finish_reason": "stop",
        "quote_support": None,
        "text_coverage": None,
        "claim_support": None,
        "claims": None,
        "unsupported_quotes": [],
        "guard": [],
        "entry": json.dumps(entry, ensure_ascii=False),
    }


def test_a_parquet_file_takes_whatever_an_entry_brought_along(tmp_path: Path, media: Path) -> None:
    entry = {"image": 1, "caption": ["x"], "scores": "good", "reports": 1, "overall": 99, "conversations": {}}

    (found,) = tabulate(tmp_path / "a.parquet", reader(entry, said=()), row(media))

    assert found["caption"] == '["x"]'
    assert found["overall"] is None
    assert [found[name] for name in ("media", "scores", "reports", "conversations")] == [[]] * 4


def test_parquet_comes_out_the_same_in_row_groups_of_one_size(
    tmp_path: Path, media: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parquet_files, "ROW_GROUP", 3)
    read = reader(*[{"image": "a.JPG"}] * 7)
    first, second, empty = (tmp_path / f"{number}.parquet" for number in range(3))

    tabulate(first, read, row(media))
    tabulate(second, read, row(media), Columns(COLUMNS.dimensions[::-1]))

    assert first.read_bytes() == second.read_bytes()
    groups = parquet.ParquetFile(first).metadata
    assert [groups.row_group(number).num_rows for number in range(3)] == [3, 3, 1]
    assert tabulate(empty, reader(), row(media)) == []
    assert parquet.read_schema(empty) == parquet.read_schema(first)


def test_every_column_is_documented() -> None:
    text = DOCUMENT.read_text("utf-8")

    columns = Columns(["factual_accuracy"], embeds=True)
    assert [name for name in schema_of(columns).names if f"`{name}`" not in text] == []


def test_a_tar_holds_captions_and_media_under_keys_without_dots(media: Path) -> None:
    entries: list[JsonObject] = [
        {"image": "a.JPG"},
        {"images": ["b.png", "日本.webp"]},
        {"video": "clip.Mp4", "image": "a.JPG"},
    ]

    paths = pack(media, reader(*entries))

    found = unpacked(paths[0]) | unpacked(paths[1]) | unpacked(paths[2])
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

    pictures, film = pack(media, reader(*entries))

    assert [list(sample)[2] for sample in unpacked(pictures).values()] == ["image"] * 3
    assert [list(sample)[2] for sample in unpacked(film).values()] == ["video"]


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
    assert [path.name for path in large[0].parent.glob("*.tar")] == ["run-000000.tar"]


def test_a_sample_whose_media_are_gone_is_listed_and_the_rest_goes_on(media: Path) -> None:
    entries: list[JsonObject] = [
        {"image": "a.JPG"},
        {"images": ["a.JPG", "gone.png"]},
        {"image": "../x"},
        {"image": "b.png"},
    ]

    *tars, left_out = pack_all(media.parent, reader(*entries), 2, [row(media)])

    assert (left_out.samples, left_out.is_left_out) == (2, True)
    assert [key[-1] for tar in tars for key in unpacked(tar.path)] == ["0", "3"]
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
    entries = [
        {"images": [str(media / "b.png"), str(media / name)]} for name in ("sub.dir/bare", "sub.dir/bare")
    ]
    broken = {"images": [str(media / "b.png"), str(liar)]}

    read = reader(entries[0], broken, entries[1])
    tar, left_out = pack_all(media.parent, read, 9, [row(root)])

    found = unpacked(tar.path)
    assert (left_out.samples, [key[-1] for key in found]) == (1, ["0", "2"])
    assert list(found.values())[1]["0.png"] == (media / "b.png").read_bytes()
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


def test_all_samples_of_a_tar_have_the_same_suffixes_and_fields_of_the_same_types(media: Path) -> None:
    names = ["a.JPG", "b.png", "a.JPG", "clip.Mp4", "b.png"]
    entries = [{"image": name, "id": number} for number, name in enumerate(names)]

    def read(shard_id: int, state: SampleState) -> Iterator[FinishedSample]:
        for sample in reader(*entries)(shard_id, state):
            yield replace(sample, confidence=0.5 if sample.index % 2 else None)

    tars = [unpacked(path) for path in pack(media, read)]

    assert [{tuple(sample) for sample in tar.values()} for tar in tars] == [
        {("json", "txt", "jpg")},
        {("json", "txt", "png")},
        {("json", "txt", "mp4")},
    ]
    values = [json.loads(sample["json"]) for tar in tars for sample in tar.values()]
    assert {tuple((key, type(value)) for key, value in each.items()) for each in values} == {
        tuple((key, type(value)) for key, value in values[0].items())
    }
    assert json.loads(values[0]["scores"]) == {"wit": 2, "factual_accuracy": 3}


def test_parquet_and_tars_have_what_was_checked_of_a_caption(tmp_path: Path, media: Path) -> None:
    claims = {"kept": 3, "unsure": 1, "dropped": 0}
    text = {"quotes": 2, "unsupported": 1, "unsupported_quotes": ["Bar"], "words": 0, "covered_words": 0}
    caption = replace(a_result(Stage.SUMMARIZE, text='"Foo", "Bar"'), checks=text | claims)
    read = reader({"image": "a.JPG"}, said=(caption,))

    (found,) = tabulate(tmp_path / "a.parquet", read, row(media))
    ((sample,),) = [unpacked(path).values() for path in pack(media, read)]
    packed = json.loads(sample["json"])

    shares = {"quote_support": 0.5, "text_coverage": None, "claim_support": 0.75}
    assert {name: found[name] for name in shares} == shares
    assert (found["claims"], found["unsupported_quotes"]) == (claims, ["Bar"])
    assert {name: packed[name] for name in shares} == shares | {"text_coverage": -1.0}
    assert json.loads(packed["claims"]) == claims
    assert json.loads(packed["unsupported_quotes"]) == ["Bar"]


def test_media_can_be_embedded_and_columns_chosen(tmp_path: Path, media: Path) -> None:
    entries: list[JsonObject] = [{"images": ["a.JPG", "b.png"]}, {"image": "gone.png"}, {"video": "clip.Mp4"}]
    columns = Columns([], ("caption", "images", "videos"), embeds=True)

    pictures, film = tabulate(tmp_path / "a.parquet", reader(*entries), row(media), columns)

    assert list(pictures) == ["caption", "images", "videos"]
    assert pictures["images"] == [
        {"bytes": (media / name).read_bytes(), "path": name} for name in ("a.JPG", "b.png")
    ]
    assert film["videos"] == [{"bytes": (media / "clip.Mp4").read_bytes(), "path": "clip.Mp4"}]
    left_out = read_lines(tmp_path / "a.left_out.jsonl")
    assert [line["kind"] for line in left_out] == ["media_missing"]


def test_an_unknown_column_is_refused_with_the_known_ones(media: Path) -> None:
    (sample,) = captioned(reader({"image": "a.JPG"}), [row(media)])

    with pytest.raises(UserError, match=r"--fields: there is no field colour; use some of: dataset, index"):
        schema_of(Columns([], ("colour",)))
    with pytest.raises(UserError, match="no field colour"):
        values_of(sample, ("caption", "colour"))
