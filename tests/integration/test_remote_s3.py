"""Media in S3, read from a real server on loopback with faults injected."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from capflow_tasks.captioning.blame import node_fault
from capflow_tasks.domains.catalogue import load_catalogue
from capflow_tasks.errors import (
    MediaAway,
    MediaForbidden,
    MediaMissing,
    MediaUnreadable,
    PlanError,
    SampleError,
)
from capflow_tasks.media.addresses import ParquetCell, TarMember, open_media
from capflow_tasks.media.paths import check_file, resolve_media
from capflow_tasks.media.remote import forget_connections
from capflow_tasks.settings import read_settings
from producer.planning.listings import SourceOrder
from producer.planning.sources import read_sources
from tests.s3_server import CREDENTIALS, S3Server, s3_server

pytestmark = pytest.mark.integration

CONTENT = b"\x89PNG\r\n\x1a\n and more"


@pytest.fixture(scope="module")
def s3() -> Iterator[S3Server]:
    with s3_server() as server:
        server.put("photos", {"set/a.png": CONTENT, "set/b c.png": CONTENT, **_containers()})
        yield server


@pytest.fixture(autouse=True)
def may_read(s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name, value in s3.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("CAPFLOW_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("CAPFLOW_REMOTE_MEDIA", "s3://photos")
    read_settings.cache_clear()
    forget_connections()
    s3.asked.clear()
    yield
    s3.faults.clear()
    read_settings.cache_clear()


def _containers() -> dict[str, bytes]:
    tar_file, parquet_file = io.BytesIO(), io.BytesIO()
    with tarfile.open(fileobj=tar_file, mode="w") as tar:
        member = tarfile.TarInfo("in.png")
        member.size = len(CONTENT)
        tar.addfile(member, io.BytesIO(CONTENT))
    pq.write_table(pa.table({"image": [CONTENT, CONTENT]}), parquet_file)
    return {"s.tar": tar_file.getvalue(), "s.parquet": parquet_file.getvalue()}


def read(address: str) -> bytes:
    with open_media(resolve_media("s3://photos", address)) as file:
        return file.read()


@pytest.mark.parametrize(
    "address",
    [
        "set/a.png",
        "s3://photos/set/b c.png",
        f"s.tar#{TarMember(512, len(CONTENT), 'in.png')}",
        f"s.parquet#{ParquetCell(0, 1, 'image')}",
    ],
)
def test_an_object_and_a_part_of_one_are_read_with_one_request(s3: S3Server, address: str) -> None:
    assert read(address) == CONTENT
    assert check_file(resolve_media("s3://photos", address), 1 << 20).size
    assert [method for method, _ in s3.asked] == ["GET"]


@pytest.mark.parametrize("faults", [["503 Slow Down"] * 2, ["500 Internal Server Error"]])
def test_an_answer_in_passing_costs_nothing(s3: S3Server, faults: list[str]) -> None:
    s3.faults["/photos/set/a.png"] = list(faults)

    assert read("set/a.png") == CONTENT


@pytest.mark.parametrize(
    ("name", "faults", "error", "said"),
    [
        ("set/gone.png", [], MediaMissing, "does not exist"),
        ("set/a.png", ["403 Forbidden"] * 9, MediaForbidden, "give each worker credentials"),
        ("set/a.png", ["500 Internal Server Error"] * 99, MediaUnreadable, "the server says 500"),
    ],
)
def test_failures_have_their_true_kind(
    s3: S3Server, name: str, faults: list[str], error: type[SampleError], said: str
) -> None:
    s3.faults[f"/photos/{name}"] = list(faults)

    with pytest.raises(error, match=said) as caught:
        read(name)
    assert node_fault(caught.value, "s3://photos", [name]) is None


def test_no_credentials_are_said_to_be_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in CREDENTIALS:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))

    with pytest.raises(MediaForbidden, match="needs credentials"):
        read("set/a.png")


def test_an_endpoint_that_is_away_pauses_the_node(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("CAPFLOW_MEDIA_TIMEOUT_SECONDS", "1")
    read_settings.cache_clear()

    with pytest.raises(MediaUnreadable) as caught:
        read("set/a.png")
    fault = node_fault(caught.value, "s3://photos", ["set/a.png"])

    assert isinstance(fault, MediaAway)
    assert not fault.is_over()


def test_a_folder_is_planned_without_opening_its_media(s3: S3Server, tmp_path: Path) -> None:
    order = SourceOrder(tmp_path / "listings")
    s3.put("photos", {"d/b.png": CONTENT, "d/.hidden/x.png": CONTENT, "d/notes.md": b"", "d/c.mp4": b"?"})
    for name in ("s.tar", "s.parquet"):
        s3.put("photos", {f"d/{name}": _containers()[name]})
    s3.asked.clear()

    first = _planned("s3://photos/d/", order)
    asked = list(s3.asked)
    s3.put("photos", {"d/a.png": CONTENT})
    s3.asked.clear()
    second = _planned("s3://photos/d", order)

    assert first["d"] == [{"id": "b.png", "image": "b.png"}, {"id": "c.mp4", "video": "c.mp4"}]
    assert second["d"] == [*first["d"], {"id": "a.png", "image": "a.png"}]
    cells = [f"s.parquet#{ParquetCell(0, row, 'image')}" for row in (0, 1)]
    assert [each["image"] for each in first["s"]] == cells
    (member,) = first["s-2"]
    assert member["image"] == f"s.tar#{TarMember(512, len(CONTENT), 'in.png')}"
    assert not [path for _, path in asked if path.endswith((".png", ".mp4"))]
    # what has not changed is not read again
    assert {path for _, path in s3.asked} == {"/photos"}
    for address in (cells[0], member["image"]):
        with open_media(resolve_media("s3://photos/d", address)) as file:
            assert file.read() == CONTENT


def test_a_single_file_is_planned_and_what_cannot_be_read_is_said(tmp_path: Path) -> None:
    order = SourceOrder(tmp_path / "listings")

    assert _planned("s3://photos/set/a.png", order) == {"a.png": [{"id": "a.png", "image": "a.png"}]}
    assert len(_planned("s3://photos/s.tar", order)["s"]) == 1
    for url, said in [
        ("s3://photos/gone.tar", "does not exist"),
        ("s3://photos/nothing", "holds no file"),
        ("s3://other/set", "add s3://other to it"),
        ("https://cdn.example.org/set", "add https://cdn.example.org to it"),
    ]:
        with pytest.raises(PlanError, match=said):
            _planned(url, order)


def _planned(url: str, order: SourceOrder) -> dict[str, list[dict[str, Any]]]:
    """Return the entries of each dataset by its name."""
    found = read_sources([url], order, load_catalogue().resolve, lambda _: None)
    lines = {each.name: Path(each.annotation).read_text().splitlines() for each in found.datasets}
    return {name: [json.loads(line) for line in each] for name, each in lines.items()}
