"""What people have, captioned in one command: folders, tables, lists, annotations with other keys."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import sqlalchemy as sa
from PIL import Image
from sqlalchemy import Engine

from capflow_tasks.records import Stage
from capflow_tasks.store.tables import AgentResult, Sample
from tests.checkpoints import NOISE_RULES
from tests.datasets import draw_picture, film_video, read_lines
from tests.e2e.conftest import Cli
from tests.e2e.test_cli_vllm import vllm_with
from tests.media_server import media_server, status
from tests.s3_server import s3_server

pytestmark = pytest.mark.e2e


@pytest.fixture
def loading_cli(quick_cli: Cli) -> Cli:
    """The commands, with a worker that decodes all media and scripts the answers."""
    loaded = quick_cli.folder / "loaded.jsonl"
    quick_cli.environment |= {
        "CAPFLOW_ENGINE": "tests.e2e.loading_engine:build",
        "TEST_LOADED_MEDIA": str(loaded),
    }
    return quick_cli


def captioned(cli: Cli, name: str) -> list[dict[str, Any]]:
    return read_lines(cli.folder / "out" / f"Rank0_node0_{name}.jsonl")


def caption(cli: Cli, *arguments: object, code: int = 0) -> str:
    answer = cli.run("capflow", "caption", *arguments, "--output", "out")
    assert answer.returncode == code, answer.stdout + answer.stderr + cli.worker_log[-4000:]
    return answer.stderr


def test_a_folder_is_captioned_as_it_is_and_keeps_its_places_when_files_are_added(loading_cli: Cli) -> None:
    photos = loading_cli.folder / "photos"
    for number in range(12):
        draw_picture(photos / ("sub" if number % 3 == 0 else "") / f"{number:02}.png", number)
    film_video(photos / "clip.mp4")
    film_video(photos / "sub" / "other.mp4")
    (photos / "sub" / "other.mp4").rename(photos / "sub" / "no suffix")
    (photos / "05.png").rename(photos / "05.mp4")
    (photos / "01.txt").write_text("by hand\n")
    (photos / "empty.jpg").touch()
    (photos / "readme.md").write_text("about")

    said = caption(loading_cli, "photos", code=1)

    assert "leaves out 1 file: text (1)" in said
    records = captioned(loading_cli, "photos")
    names = [record["id"] for record in records]
    assert len(names) == 14
    assert names == sorted(names)
    by_id = {record["id"]: record for record in records}
    assert by_id["01.png"]["txt"] == "by hand"
    assert by_id["05.mp4"]["image"] == "05.mp4"
    assert [record["video"] for record in records if "video" in record] == ["clip.mp4", "sub/no suffix"]
    (failed,) = read_lines(loading_cli.folder / "out" / "Rank0_node0_photos.failed.jsonl")
    assert (failed["id"], failed["error"]["kind"]) == ("empty.jpg", "media_corrupt")
    asked = len(read_lines(loading_cli.folder / "loaded.jsonl"))

    draw_picture(photos / "00 first.png", 40)
    caption(loading_cli, "photos", code=1)

    assert [record["id"] for record in captioned(loading_cli, "photos")] == [*names, "00 first.png"]
    again = {line["name"] for line in read_lines(loading_cli.folder / "loaded.jsonl")[asked:]}
    assert again == {"00 first.png"}
    status = loading_cli.run("capflow", "status", "photos", "--json")
    assert json.loads(status.stdout)["name"].startswith("photos-"), status.stderr


def test_tables_lists_and_other_keys_need_no_script(loading_cli: Cli) -> None:
    folder = loading_cli.folder
    for number in range(4):
        draw_picture(folder / "media" / f"{number}.png", number)
    film_video(folder / "media" / "clip.mp4")
    (folder / "table.csv").write_text('sku,picture,note\n7,media/0.png,"a, b"\n8,media/clip.mp4,\n')
    (folder / "named.json").write_text(json.dumps([{"picture": ["media/1.png"], "sku": 9, "image": 3}]))
    (folder / "list.json").write_text(json.dumps(["media/2.png"]))
    (folder / "paths.txt").write_text("media/3.png\nmedia/clip.mp4\n")

    caption(loading_cli, "table.csv", "named.json", "--image-key", "picture", "--id-key", "sku")

    rows = captioned(loading_cli, "table")
    assert [(row["id"], row.get("image"), row.get("video")) for row in rows] == [
        ("7", "media/0.png", None),
        ("8", None, "media/clip.mp4"),
    ]
    assert (rows[0]["note"], rows[0]["picture"]) == ("a, b", "media/0.png")
    (named,) = captioned(loading_cli, "named")
    assert (named["id"], named["image"], named["source_image"]) == (9, ["media/1.png"], 3)

    caption(loading_cli, "list.json", "paths.txt", "media/0.png", "media/clip.mp4")

    assert [row["id"] for row in captioned(loading_cli, "list")] == ["media/2.png"]
    assert [row["task"] == "Video & Temporal" for row in captioned(loading_cli, "paths")] == [False, True]
    assert [row["id"] for row in captioned(loading_cli, "media")] == ["0.png", "clip.mp4"]


def test_metadata_of_an_imagefolder_is_read_as_keys(loading_cli: Cli) -> None:
    folder = loading_cli.folder / "birds"
    for name in ("train/0.png", "train/wild/1.png", "test/2.png"):
        draw_picture(folder / name, len(name))
    lines = [{"file_name": "0.png", "kind": "owl"}, {"file_name": "wild/1.png", "kind": "wren"}]
    (folder / "train" / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    (folder / "test" / "metadata.csv").write_text("file_name,kind\n2.png,crow\n")

    caption(loading_cli, "birds")

    kinds = {record["id"]: record["kind"] for record in captioned(loading_cli, "birds")}
    assert kinds == {"train/0.png": "owl", "train/wild/1.png": "wren", "test/2.png": "crow"}


def test_a_source_that_cannot_be_meant_is_refused_with_what_to_say(cli: Cli) -> None:
    draw_picture(cli.folder / "media" / "0.png", 0)
    (cli.folder / "named.jsonl").write_text('{"file_name": "media/0.png"}\n')
    (cli.folder / "elsewhere.jsonl").write_text('{"image": "0.png"}\n')
    (cli.folder / "archive.zip").write_bytes(b"PK\3\4\0\0")
    (cli.folder / "empty").mkdir()
    refusals = {
        "named.jsonl": 'found "file_name": say --image-key file_name',
        "archive.zip": "no annotation file, table, picture or video; name",
        "empty": "no picture or video; name",
        "nowhere": "no such file or folder; correct the path",
    }

    for source, reason in refusals.items():
        answer = cli.run("capflow", "caption", source, "--dry-run")
        assert answer.returncode == 2, answer.stderr
        assert reason in answer.stderr.splitlines()[-1]

    advised = cli.run("capflow", "caption", "named.jsonl", "--image-key", "file_name", "--dry-run")
    assert (advised.returncode, "1 shard, 1 sample" in advised.stdout) == (0, True), advised.stderr
    found = cli.run("capflow", "caption", "elsewhere.jsonl", "--root", "media", "--dry-run")
    assert found.returncode == 0, found.stderr


def test_foreign_tasks_are_counted_and_routed_unless_strict(loading_cli: Cli) -> None:
    draw_picture(loading_cli.folder / "0.png", 0)
    tasks = ["vqa", "vqa", "UI", "ocr"]
    lines = [json.dumps({"id": number, "image": "0.png", "task": task}) for number, task in enumerate(tasks)]
    (loading_cli.folder / "set.jsonl").write_text("\n".join(lines))

    said = caption(loading_cli, "set.jsonl", "--run", "strict", "--strict", code=1)
    failed = read_lines(loading_cli.folder / "out" / "Rank0_node0_set.failed.jsonl")
    assert [(each["id"], each["error"]["kind"]) for each in failed] == [
        (number, "bad_entry") for number in (0, 1, 3)
    ]
    again = loading_cli.run("capflow", "retry", "strict")
    assert (again.returncode, "no domain, and were routed" in again.stderr) == (1, False)

    said = caption(loading_cli, "set.jsonl", "--run", "set", "--overwrite")

    assert "3 samples named a task that is no domain" in said
    assert '"vqa" 2, "ocr" 1' in said
    confidences = [record["confidence"] for record in captioned(loading_cli, "set")]
    assert [confidence is not None for confidence in confidences] == [True, True, False, True]


def test_a_plan_of_a_folder_is_captioned_like_any_other(loading_cli: Cli) -> None:
    for number in range(5):
        draw_picture(loading_cli.folder / "photos" / f"{number}.png", number)
    planned = loading_cli.run("capflow", "plan", "photos", "--ranks", 2, "-o", "plan.jsonl")
    assert planned.returncode == 0, planned.stderr

    caption(loading_cli, "plan.jsonl")

    files = sorted(Path(loading_cli.folder, "out").glob("Rank*.jsonl"))
    assert [record["id"] for file in files for record in read_lines(file)] == [f"{n}.png" for n in range(5)]
    mixed = loading_cli.run("capflow", "caption", "plan.jsonl", "photos")
    assert mixed.returncode == 2
    assert "plan.jsonl: is a split plan" in mixed.stderr


def test_tars_and_parquet_are_captioned_where_they_lie(loading_cli: Cli) -> None:
    folder = loading_cli.folder
    for number in range(6):
        draw_picture(folder / "media" / f"{number}.png", number)
    film_video(folder / "media" / "clip.mp4")
    for shard in range(2):
        with tarfile.open(folder / f"shard-{shard:03}.tar", "w") as tar:
            for number in (2 * shard, 2 * shard + 1):
                tar.add(folder / "media" / f"{number}.png", f"k{number}.png")
                described = json.dumps({"n": number, "image": "else"}).encode()
                member = tarfile.TarInfo(f"k{number}.json")
                member.size = len(described)
                tar.addfile(member, BytesIO(described))
            tar.add(folder / "media" / "clip.mp4", f"v{shard}.mp4")
    (folder / "hub" / "data").mkdir(parents=True)
    pictures = [
        {"bytes": (folder / "media" / f"{number}.png").read_bytes(), "path": f"{number}.png"}
        for number in range(6)
    ]
    table = pa.table({"image": pictures, "label": list(range(6))})
    pq.write_table(table, folder / "hub" / "data" / "train.parquet", row_group_size=4)
    pq.write_table(pa.table({"image": ["0.png", "clip.mp4"]}), folder / "media" / "paths.parquet")

    caption(loading_cli, "shard-{000..001}.tar", "hub", "media/paths.parquet", "--run", "all")

    first, second = captioned(loading_cli, "shard-000"), captioned(loading_cli, "shard-001")
    assert [record["id"] for record in first + second] == ["k0", "k1", "v0", "k2", "k3", "v1"]
    assert [record.get("n") for record in second] == [2, 3, None]
    assert [record["label"] for record in captioned(loading_cli, "train")] == list(range(6))
    assert ["video" in record for record in captioned(loading_cli, "paths")] == [False, True]
    exported = loading_cli.run("capflow", "export", "all", "--format", "parquet", "--embed", "-o", "exported")
    assert exported.returncode == 0, exported.stderr
    (rows,) = (pq.read_table(file).to_pylist() for file in (folder / "exported").glob("*shard-000.parquet"))
    with Image.open(BytesIO(rows[1]["images"][0]["bytes"])) as picture:
        assert picture.getpixel((5, 5)) == Image.open(folder / "media" / "1.png").getpixel((5, 5))
    report = loading_cli.run("capflow", "report", "all", "-o", "report")
    assert "14 with pictures" in report.stdout or "14 captioned" in report.stdout, report.stderr


@pytest.fixture
def remote_environment(folder: Path) -> Iterator[dict[str, str]]:
    """S3 and the web with a picture and containers of it; what commands must know to read them."""
    draw_picture(folder / "photos" / "large.png", 1, (1120, 840))
    large, tar_file, parquet_file = (folder / "photos" / "large.png").read_bytes(), BytesIO(), BytesIO()
    with tarfile.open(fileobj=tar_file, mode="w") as tar:
        tar.add(folder / "photos" / "large.png", "large.png")
    pq.write_table(pa.table({"image": [{"bytes": large, "path": "large.png"}]}), parquet_file)
    with s3_server() as s3, media_server() as web:
        held = {"a.png": large, "in.tar": tar_file.getvalue(), "rows.parquet": parquet_file.getvalue()}
        s3.put("photos", {f"cloud/{name}": content for name, content in held.items()})
        web.files["/b.png"] = large
        web.faults["/b.png"] = [status(503)]
        lines = [{"id": name, "image": f"{web.url}/{name}.png"} for name in ("b", "gone")]
        (folder / "web.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
        allowed = f"s3://photos {web.url} 127.0.0.1"
        yield s3.environment | {"CAPFLOW_REMOTE_MEDIA": allowed}


def test_every_kind_of_source_is_captioned_by_vllm(
    quick_cli: Cli, engine: Engine, tiny_model: Path, remote_environment: dict[str, str]
) -> None:
    folder = quick_cli.folder
    film_video(folder / "photos" / "clip.mp4")
    (folder / "photos" / "clip.mp4").rename(folder / "photos" / "clip")
    large = (folder / "photos" / "large.png").read_bytes()
    with tarfile.open(folder / "shard.tar", "w") as tar:
        tar.add(folder / "photos" / "large.png", "large.png")
        tar.add(folder / "photos" / "clip", "clip.mp4")
    pq.write_table(pa.table({"image": [{"bytes": large, "path": "large.png"}]}), folder / "rows.parquet")
    (folder / "rows.csv").write_text("image\nphotos/large.png\nphotos/clip\n")
    (folder / "paths.txt").write_text("photos/large.png\n")
    coco = {"images": [{"id": 1, "file_name": "large.png"}], "annotations": [{"image_id": 1, "caption": "a"}]}
    (folder / "photos" / "coco.json").write_text(json.dumps(coco))
    metafile = {"named": {"root": "photos", "annotation": "named.json", "modality": "image"}}
    (folder / "meta.json").write_text(json.dumps(metafile))
    (folder / "named.json").write_text(json.dumps([{"id": 1, "image": "large.png"}]))
    sources = (
        "photos",
        "shard.tar",
        "rows.parquet",
        "rows.csv",
        "paths.txt",
        "photos/coco.json",
        "meta.json",
    )
    quick_cli.environment |= vllm_with(tiny_model) | {"CAPFLOW_GUARD_OFF": NOISE_RULES} | remote_environment

    caption(
        quick_cli,
        *sources,
        "web.jsonl",
        "s3://photos/cloud",
        "--workflow",
        "fast",
        "--stages",
        "route,summarize",
        code=1,
    )

    counts = {path.name: len(read_lines(path)) for path in (folder / "out").glob("Rank0_node0_*.jsonl")}
    assert counts == {
        f"Rank0_node0_{name}.jsonl": count
        for name, count in {
            "photos": 2,
            "shard": 2,
            "rows": 2,
            "paths": 1,
            "coco": 1,
            "named": 1,
            "web": 1,
            "web.failed": 1,
            "cloud": 1,
            "in": 1,
            "rows-2": 1,
            "rows-3": 1,
        }.items()
    }
    (gone,) = read_lines(folder / "out" / "Rank0_node0_web.failed.jsonl")
    assert gone["error"]["kind"] == "media_missing"
    with engine.connect() as connection:
        paths = sa.cast(Sample.entry, sa.String)
        tokens = sa.select(paths, AgentResult.prompt_tokens).join(Sample, AgentResult.sample_id == Sample.id)
        tokens = tokens.where(AgentResult.stage == Stage.SUMMARIZE)
        seen = connection.execute(tokens).all()
    pictures = {count for entry, count in seen if "video" not in entry}
    videos = {count for entry, count in seen if "video" in entry}
    assert (len(seen), len(pictures), len(videos)) == (14, 1, 1)
    assert min(pictures) > 1000


def test_a_tar_that_changes_fails_its_samples_and_is_planned_again(loading_cli: Cli) -> None:
    folder = loading_cli.folder
    draw_picture(folder / "0.png", 0)
    draw_picture(folder / "1.png", 1)
    with tarfile.open(folder / "set.tar", "w") as tar:
        tar.add(folder / "0.png", "a.png")
        tar.add(folder / "1.png", "b.png")
    planned = loading_cli.run("capflow", "plan", "set.tar", "-o", "plan.jsonl")
    assert planned.returncode == 0, planned.stderr
    with tarfile.open(folder / "set.tar", "w") as tar:
        tar.add(folder / "1.png", "b.png")

    caption(loading_cli, "plan.jsonl", code=1)

    failed = read_lines(folder / "out" / "Rank0_node0_set.failed.jsonl")
    assert {each["error"]["kind"] for each in failed} == {"media_missing"}
    assert "plan again" in failed[0]["error"]["message"]
    loading_cli.run("capflow", "plan", "set.tar", "-o", "plan.jsonl")

    caption(loading_cli, "plan.jsonl")

    assert [record["id"] for record in captioned(loading_cli, "set")] == ["b"]
