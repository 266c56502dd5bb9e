"""A run of all kinds of samples, exported in every format and loaded again by what trainers load it with."""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import pytest
import webdataset
from PIL import Image

from tests.conftest import NewDatabase
from tests.datasets import draw_picture, film_video, read_lines, write_plan
from tests.e2e.conftest import Cli

pytestmark = pytest.mark.e2e

SYSTEM = {"from": "system", "value": "Look closely."}
QUESTION = {"role": "user", "content": "How many?"}
DATASETS: dict[str, list[dict[str, Any]]] = {
    "pictures": [
        {"id": 0, "image": "a.png", "conversations": [SYSTEM, QUESTION]},
        {"id": 1, "images": ["a.png", "a.png"], "task": "UI"},
        {"id": 2, "images": ["a.png", "b.jpg"], "messages": [QUESTION], "task": "Medical"},
        {"id": "three", "image": "poor.jpg", "task": "Natural", "source": {"licence": "CC0"}},
        {"id": None, "image": "b.jpg", "conversations": [{"from": "gpt", "value": "Two."}], "task": "code"},
    ],
    "films": [
        {"id": 5, "video": "clip.mp4", "task": "Video"},
        {"id": 6, "video": "clip.mp4", "image": "sub/b.jpg", "reports": "none", "source": "web"},
    ],
}
SAMPLES = sum(map(len, DATASETS.values()))


@pytest.fixture(scope="module")
def cli(new_database: NewDatabase) -> Iterator[Cli]:
    """Commands beside a run of two datasets that is captioned."""
    with (
        tempfile.TemporaryDirectory(prefix="capflow-e2e-", ignore_cleanup_errors=True) as name,
        new_database() as url,
    ):
        engine = "tests.e2e.engines:build_quoting"
        cli = Cli(Path(name), {"CAPFLOW_DATABASE_URL": url, "CAPFLOW_ENGINE": engine})
        _caption(cli)
        yield cli
        for process in cli.processes():
            process.kill()


def _caption(cli: Cli) -> None:
    media = cli.folder / "media"
    for number, name in enumerate(("a.png", "b.jpg", "poor.jpg", "sub/b.jpg")):
        draw_picture(media / name, number)
    film_video(media / "clip.mp4")
    plans = [write_plan(cli.folder, entries, name) for name, entries in DATASETS.items()]
    plan = cli.folder / "plan.jsonl"
    plan.write_text("".join(path.read_text() for path in plans))
    answer = cli.run("capflow-produce", plan, "--output", "out", "--run", "mixed")
    assert answer.returncode == 0, answer.stderr


def export(cli: Cli, form: str, *arguments: object) -> list[Path]:
    """The files of an export into a folder of its own."""
    folder = tempfile.mkdtemp(dir=cli.folder)
    answer = cli.run("capflow-export", "mixed", "--format", form, "-o", folder, "--json", *arguments)
    assert answer.returncode == 0, answer.stderr
    return [Path(file["path"]) for file in json.loads(answer.stdout)["files"]]


def load(form: str, files: list[Path], tmp_path: Path, **options: Any) -> Any:
    """All files in one call."""
    paths, cache = [str(path) for path in files], str(tmp_path / "cache")
    return datasets.load_dataset(form, data_files=paths, split="train", cache_dir=cache, **options)


def load_folder(folder: Path, tmp_path: Path, **options: Any) -> Any:
    """As the data set card says."""
    return datasets.load_dataset(str(folder), cache_dir=str(tmp_path / "cache"), **options)


def turns_of(sample: dict[str, Any]) -> list[tuple[str, str]]:
    """Who says what, with typed parts written as placeholders."""
    turns = sample.get("messages") or sample["conversations"]
    said = [(turn.get("role") or turn["from"], turn.get("content") or turn["value"]) for turn in turns]
    return [(who, what if isinstance(what, str) else "".join(map(_part, what))) for who, what in said]


def _part(part: dict[str, str]) -> str:
    return part["text"] if part["type"] == "text" else f"<{part['type']}>"


def media_of(sample: dict[str, Any], plural: str = "s") -> Counter[str]:
    """How many pictures and videos a loader finds."""
    found = {kind: sample.get(kind + plural) or [] for kind in ("image", "video")}
    return +Counter({kind: 1 if isinstance(paths, str) else len(paths) for kind, paths in found.items()})


def placeholders_in(sample: dict[str, Any]) -> Counter[str]:
    text = "".join(text for _, text in turns_of(sample))
    return +Counter({kind: text.count(f"<{kind}>") for kind in ("image", "video", "audio")})


@pytest.mark.parametrize("form", ["messages", "llama-factory", "ms-swift"])
def test_lines_for_trainers_load_in_one_call_and_count_right(cli: Cli, tmp_path: Path, form: str) -> None:
    files = export(cli, form)

    samples = list(load("json", files, tmp_path))

    assert len(samples) == SAMPLES
    assert list(load("json", files, tmp_path, streaming=True)) == samples
    for sample in samples:
        assert media_of(sample) == placeholders_in(sample) != Counter()
        speakers = [who for who, _ in turns_of(sample) if who != "system"]
        assert speakers in (["human", "gpt"], ["user", "assistant"])
        assert turns_of(sample)[-1][1].endswith("It has the tags <image > and <video >.")
    assert sum(turns_of(sample)[0] == ("system", "Look closely.") for sample in samples) == 1
    assert len(load_folder(files[0].parent, tmp_path)["train"]) == SAMPLES


def test_llama_factory_finds_each_split_in_its_registry_beside_those_of_others(cli: Cli) -> None:
    folder = cli.folder / "factory"
    folder.mkdir()
    (folder / "dataset_info.json").write_text('{"others": {"file_name": "o.json"}}')

    cli.run("capflow-export", "mixed", "--format", "llama-factory", "-o", folder, "--split", "train=0.7")

    known = json.loads((folder / "dataset_info.json").read_text())
    assert list(known) == ["others", "mixed-train", "mixed-test"]
    for name in ("mixed-train", "mixed-test"):
        columns = known[name]["columns"]
        samples = read_lines(folder / known[name]["file_name"])
        assert set(columns.values()) == {key for sample in samples for key in sample}


def test_llava_and_qwen_read_a_list_without_system_turns(cli: Cli, tmp_path: Path) -> None:
    (path,) = export(cli, "llava")

    samples = json.loads(path.read_text())

    assert len(samples) == len({sample["id"] for sample in samples}) == SAMPLES
    assert len(list(load("json", [path], tmp_path, streaming=True))) == SAMPLES
    for sample in samples:
        # LLaVA looks the speaker of each turn up among these two; Qwen's loader counts in human turns.
        assert [turn["from"] for turn in sample["conversations"]] == ["human", "gpt"]
        assert media_of(sample, plural="") == placeholders_in(sample)
        paths = [sample[key] for key in ("image", "video") if key in sample]
        for path_or_list in paths:
            for name in [path_or_list] if isinstance(path_or_list, str) else path_or_list:
                assert (cli.folder / "media" / name).exists()


def test_parquet_of_all_domains_loads_in_one_call(cli: Cli, tmp_path: Path) -> None:
    files = export(cli, "parquet")

    samples = list(load("parquet", files, tmp_path))

    assert list(load("parquet", files, tmp_path, streaming=True)) == samples
    assert len(files) == len(DATASETS)
    assert len({sample["domain"] for sample in samples}) > 3
    assert [len(sample["media"]) for sample in samples] == [1, 2, 2, 1, 1, 1, 2]
    assert all("<image> and <video>" in sample["caption"] for sample in samples)
    assert len(load_folder(files[0].parent, tmp_path)["train"]) == SAMPLES


def test_parquet_with_media_shows_pictures(cli: Cli, tmp_path: Path) -> None:
    files = export(cli, "parquet", "--embed", "--fields", "caption,images,videos")

    loaded = load("parquet", files, tmp_path)

    assert loaded.features["images"] == datasets.List(datasets.Image())
    assert loaded.features["videos"] == datasets.List(datasets.Video())
    films = loaded.cast_column("videos", datasets.List(datasets.Video(decode=False)))
    (first, *others) = films
    assert isinstance(first["images"][0], Image.Image)
    assert first["images"][0].size == (64, 48)
    assert others[-1]["videos"][0]["bytes"] == (cli.folder / "media" / "clip.mp4").read_bytes()
    kinds = {"images": datasets.Image(decode=False), "videos": datasets.Video(decode=False)}
    stored, streamed = loaded, load("parquet", files, tmp_path, streaming=True)
    for name, kind in kinds.items():
        stored, streamed = (each.cast_column(name, datasets.List(kind)) for each in (stored, streamed))
    assert list(streamed) == list(stored)


def test_tars_load_with_all_their_media(cli: Cli, tmp_path: Path) -> None:
    files = export(cli, "webdataset")

    samples = [sample for path in files for sample in _unpacked(path)]
    loaded = load_folder(files[0].parent, tmp_path, split="train", streaming=True)
    columns = [name for name in loaded.features if isinstance(loaded.features[name], datasets.Video)]
    for name in columns:
        loaded = loaded.cast_column(name, datasets.Video(decode=False))
    found = list(loaded)

    assert len(samples) == len(found) == SAMPLES
    assert {frozenset(sample) for sample in samples} > {frozenset({"__key__", "json", "txt", "png"})}
    for path in files:
        assert len({frozenset(sample) for sample in _unpacked(path)}) == 1
    media = {"json", "txt", "__key__", "__url__"}
    in_tars = Counter(sample["__key__"] for sample in samples for key in sample if key not in media)
    in_table = Counter(
        sample["__key__"]
        for sample in found
        for key in sample
        if key not in media and sample[key] is not None
    )
    assert in_table == in_tars
    assert {json.loads(sample["json"]["scores"])["professionalism"] for sample in found} == {1, 3}


def _unpacked(path: Path) -> list[dict[str, Any]]:
    """What the library finds in a tar, without what it says of the tar itself."""
    samples = list(webdataset.WebDataset(str(path), shardshuffle=False).decode("pil"))
    notes = ("__url__", "__local_path__")
    return [{key: value for key, value in sample.items() if key not in notes} for sample in samples]


def test_texts_stand_beside_their_pictures_and_are_not_replaced_unasked(cli: Cli) -> None:
    export(cli, "txt", "--min-overall", 3)
    folder = cli.folder / "texts"
    arguments = ("capflow-export", "mixed", "--format", "txt", "-o", folder)

    first = cli.run(*arguments)
    (folder / "a.txt").write_text("mine")
    refused = cli.run(*arguments)
    replaced = cli.run(*arguments, "--overwrite")

    assert first.returncode == replaced.returncode == 0, first.stderr
    assert refused.returncode == 2
    assert "a.txt: is there already; choose another --output, or replace with --overwrite" in refused.stderr
    names = sorted(str(path.relative_to(folder)) for path in folder.rglob("*.txt"))
    assert len(names) == SAMPLES
    assert {"a.txt", "a.png.txt", "b.txt", "clip.txt", "poor.txt", "sub/b.txt"} <= set(names)
    assert "<image> and <video>" in (folder / "a.txt").read_text()


def test_poor_captions_are_left_out_of_every_format_and_counted(cli: Cli) -> None:
    for form in ("jsonl", "parquet", "webdataset", "llava"):
        folder = cli.folder / f"good-{form}"

        answer = cli.run(
            *("capflow-export", "mixed", "--format", form, "-o", folder, "--min-overall", 3, "--json"),
            *("--drop-guard", "loop"),
        )

        told = json.loads(answer.stdout)
        assert (told["done"], told["rejected"]) == (SAMPLES, 1), answer.stderr
        assert sum(file["samples"] for file in told["files"]) == SAMPLES - 1
        assert "1 left out, as they do not meet the criteria" in answer.stderr
        card = (folder / "README.md").read_text()
        assert "| scripted | 6 |" in card
        assert "| Medical & Bio-Imaging | 1 |" in card


def test_a_shuffle_and_a_split_depend_on_the_seed_and_the_media_alone(cli: Cli) -> None:
    plain, mixed, again = (
        [read_lines(path) for path in export(cli, "jsonl", *arguments, "--split", "train=0.7")]
        for arguments in ((), ("--shuffle", 7), ("--shuffle", 7))
    )

    assert mixed == again
    ids = [[str(record["id"]) for record in records] for records in plain]
    assert [sorted(part) for part in ids] == [sorted(str(each["id"]) for each in part) for part in mixed]
    assert sum(map(len, ids)) == SAMPLES
    train, test = ({first_medium(record) for record in records} for records in plain)
    assert not train & test


def first_medium(record: dict[str, Any]) -> str:
    named = record.get("image") or record.get("images") or record["video"]
    return named if isinstance(named, str) else str(named[0])


def test_paths_can_be_absolute_and_keys_few(cli: Cli) -> None:
    (lines, _) = export(cli, "jsonl", "--absolute", "--fields", "image,images,caption", "--keep-question")
    (trainer,) = export(cli, "ms-swift", "--absolute", "--keep-question", "--no-placeholder-escape")

    first, second, *_ = read_lines(lines)
    assert list(first) == ["image", "caption"]
    assert first["image"] == str(cli.folder / "media" / "a.png")
    assert second["images"] == [first["image"]] * 2
    sample = next(sample for sample in read_lines(trainer) if sample["messages"][0]["role"] == "system")
    assert sample["images"] == [first["image"]]
    assert sample["messages"][1] == {"role": "user", "content": "<image>\nHow many?"}
    assert sample["messages"][2]["content"] == first["caption"]


def test_a_readme_of_others_stays(cli: Cli) -> None:
    folder = cli.folder / "published"
    folder.mkdir()
    (folder / "README.md").write_text("Mine.")

    answer = cli.run("capflow-export", "mixed", "--format", "parquet", "-o", folder)

    assert answer.returncode == 0, answer.stderr
    assert "README.md is not this run's, or was edited; no data set card was written" in answer.stderr
    assert (folder / "README.md").read_text() == "Mine."


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--split", "train=2"], "'train=2' is not NAME=SHARE with a share above 0 and up to 1"),
        (["--split", "a=0.7", "--split", "b=0.7"], "the shares add up to 1.4, more than 1"),
        (["--split", "test=0.5"], "the rest would be called test"),
        (["--embed"], "--embed is for --format parquet; leave it out"),
        (["--format", "txt", "--split", "train=0.5"], "--split is for --format jsonl, parquet"),
        (
            ["--format", "parquet", "--fields", "colour"],
            "there is no field colour; use some of: dataset, index",
        ),
        (["--min", "wit=3"], "--min: no judge grades wit"),
    ],
)
def test_what_cannot_be_exported_so_is_refused_with_the_remedy(
    cli: Cli, arguments: list[str], message: str
) -> None:
    answer = cli.run("capflow-export", "mixed", "-o", "refused", *arguments)

    assert (answer.returncode, answer.stdout) == (2, "")
    assert message in answer.stderr
