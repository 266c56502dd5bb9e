from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Literal
from unicodedata import normalize

import pytest

from capflow_tasks.errors import (
    BadEntry,
    MediaCorrupt,
    MediaMissing,
    MediaOutsideRoot,
    MediaTooLarge,
    MediaUnreadable,
    MediaUnsupported,
)
from capflow_tasks.media.paths import check_file, file_errors, resolve_media, unrecognised

Form = Literal["NFC", "NFD"]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "root"
    (folder / "sub").mkdir(parents=True)
    (folder / "sub" / "a b.png").write_bytes(b"x")
    (tmp_path / "secret.png").write_bytes(b"x")
    (tmp_path / "root-twin").mkdir()
    (tmp_path / "root-twin" / "a.png").write_bytes(b"x")
    return folder


def test_a_relative_path_is_found_below_the_root(root: Path) -> None:
    assert resolve_media(str(root), "sub/a b.png") == str((root / "sub" / "a b.png").resolve())


def test_dots_that_stay_inside_the_root_are_fine(root: Path) -> None:
    assert resolve_media(str(root), "sub/../sub/./a b.png").endswith("sub/a b.png")


def test_an_absolute_path_inside_the_root_is_fine(root: Path) -> None:
    path = str((root / "sub" / "a b.png").resolve())
    assert resolve_media(str(root), path) == path


@pytest.mark.parametrize("everything", ["", "/"])
def test_an_empty_root_and_the_slash_hold_every_absolute_path(root: Path, everything: str) -> None:
    path = str((root / "sub" / "a b.png").resolve())
    assert resolve_media(everything, path) == path


def test_a_root_that_is_itself_a_link_holds_its_files_under_both_names(root: Path) -> None:
    link = root.parent / "link"
    link.symlink_to(root)
    assert resolve_media(str(link), "sub/a b.png") == resolve_media(str(root), "sub/a b.png")
    assert resolve_media(str(root), str(link / "sub" / "a b.png")).endswith("root/sub/a b.png")


@pytest.mark.parametrize("path", ["../secret.png", "sub/../../secret.png", "../root-twin/a.png"])
def test_dots_that_leave_the_root_are_refused(root: Path, path: str) -> None:
    with pytest.raises(MediaOutsideRoot, match="leads to"):
        resolve_media(str(root), path)


def test_an_absolute_path_outside_the_root_is_refused(root: Path) -> None:
    with pytest.raises(MediaOutsideRoot):
        resolve_media(str(root), str(root.parent / "secret.png"))


def test_a_link_that_leads_outside_the_root_is_refused(root: Path) -> None:
    (root / "innocent.png").symlink_to(root.parent / "secret.png")
    (root / "folder").symlink_to(root.parent / "root-twin")
    for path in ("innocent.png", "folder/a.png"):
        with pytest.raises(MediaOutsideRoot):
            resolve_media(str(root), path)


def test_a_path_outside_the_root_is_refused_whether_or_not_it_exists(root: Path) -> None:
    with pytest.raises(MediaOutsideRoot):
        resolve_media(str(root), "../no such file.png")


@pytest.mark.parametrize("path", ["none.png", "sub/a b.png/deeper.png", "x" * 300, "a/" * 3000])
def test_a_file_that_does_not_exist_is_missing(root: Path, path: str) -> None:
    with pytest.raises(MediaMissing):
        resolve_media(str(root), path)


def test_a_dangling_link_and_a_link_to_itself_are_missing(root: Path) -> None:
    (root / "dangling.png").symlink_to(root / "gone.png")
    (root / "loop.png").symlink_to(root / "loop.png")
    for path in ("dangling.png", "loop.png"):
        with pytest.raises(MediaMissing):
            resolve_media(str(root), path)


@pytest.mark.parametrize("path", ["", "   ", "a\0b.png", None, 7, ["a.png"], {"path": "a.png"}, "\ud800.png"])
def test_what_is_no_path_at_all_is_a_bad_entry(root: Path, path: object) -> None:
    with pytest.raises(BadEntry):
        resolve_media(str(root), path)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "path",
    [
        "http://a/b.png",
        "HTTPS://a/b.png",
        "s3://bucket/b.png",
        "file:///etc/passwd",
        "data:image/png;base64,AA",
    ],
)
def test_remote_media_is_refused_with_the_remedy(root: Path, path: str) -> None:
    with pytest.raises(MediaUnsupported, match="copy"):
        resolve_media(str(root), path)


def test_a_colon_in_a_file_name_makes_no_url(root: Path) -> None:
    (root / "12:30:00.png").write_bytes(b"x")
    assert resolve_media(str(root), "12:30:00.png").endswith("12:30:00.png")


def test_a_file_name_that_is_not_utf8_is_found(root: Path) -> None:
    Path(os.fsdecode(os.fsencode(root) + b"/\xff.png")).write_bytes(b"x")
    assert resolve_media(str(root), os.fsdecode(b"\xff.png")).endswith("\udcff.png")


def test_a_folder_an_empty_file_and_a_large_file_are_told_apart(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    (tmp_path / "large").write_bytes(b"12345")
    os.mkfifo(tmp_path / "pipe")
    for name, kind, reason in (
        (".", MediaUnsupported, "folder"),
        ("pipe", MediaUnsupported, "not a plain file"),
        ("empty", MediaCorrupt, "zero bytes"),
        ("large", MediaTooLarge, "5 bytes; the limit is 4"),
        ("none", MediaMissing, "does not exist"),
    ):
        with pytest.raises(kind, match=reason):
            check_file(str(tmp_path / name), 4)
    assert check_file(str(tmp_path / "large"), 5).size == 5


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (OSError(5, "Input/output error"), MediaUnreadable),
        (OSError(116, "Stale file handle"), MediaUnreadable),
        (PermissionError(13, "Permission denied"), MediaUnreadable),
        (OSError(24, "Too many open files"), MediaUnreadable),
        (FileNotFoundError(2, "No such file"), MediaMissing),
        (OSError(12, "Cannot allocate memory"), MediaTooLarge),
        (MemoryError(), MediaTooLarge),
        (OSError("image file is truncated"), MediaCorrupt),
    ],
)
def test_what_the_disk_says_is_retryable_and_what_the_bytes_say_is_not(
    error: Exception, kind: type[Exception]
) -> None:
    with pytest.raises(kind, match=r"^a\.png") as caught, file_errors("a.png"):
        raise error
    assert caught.value.__cause__ is error


@pytest.mark.parametrize(
    ("head", "wanted", "kind", "reason"),
    [
        (b"\xff\xd8\xff\xe0", "picture", MediaCorrupt, "JPEG picture, but is damaged"),
        (b"\xff\xd8\xff\xe0", "video", MediaUnsupported, "JPEG picture, not a video"),
        (b"\0\0\0\x18ftypisom", "picture", MediaUnsupported, "MP4 or MOV video, not a picture"),
        (b"\0\0\0\x18ftypheic", "picture", MediaUnsupported, "HEIF"),
        (b"<!DOCTYPE html><html>404", "picture", MediaUnsupported, "an HTML page"),
        (b"version https://git-lfs.github.com/spec/v1", "video", MediaUnsupported, "Git LFS pointer"),
        ("Grüße, Welt\n".encode(), "video", MediaUnsupported, "text"),
        (b"\0" * 512, "video", MediaUnsupported, "zero bytes"),
        (b"\x01\x02\x03", "picture", MediaUnsupported, "unknown data"),
    ],
)
def test_the_reason_names_what_the_file_holds(
    tmp_path: Path, head: bytes, wanted: str, kind: type[Exception], reason: str
) -> None:
    path = tmp_path / "file"
    path.write_bytes(head)
    error = unrecognised(str(path), wanted)
    assert type(error) is kind
    assert reason in str(error)


def test_paths_are_resolved_without_torch_or_a_codec() -> None:
    code = (
        "import sys, importlib.util, types; "
        "import capflow_tasks.media.paths; "
        "print(sorted({'torch', 'av', 'PIL', 'qwen_vl_utils'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(("on_disk", "asked"), [("NFC", "NFD"), ("NFD", "NFC")])
def test_a_name_is_found_in_either_unicode_form(root: Path, on_disk: Form, asked: Form) -> None:
    folder = root / normalize(on_disk, "été")
    folder.mkdir()
    (folder / normalize(asked, "café.jpg")).write_bytes(b"x")
    (folder / normalize(on_disk, "crème.jpg")).write_bytes(b"x")
    for name in ("café.jpg", "crème.jpg"):
        found = resolve_media(str(root), normalize(asked, f"été/{name}"))
        assert Path(found).read_bytes() == b"x"


@pytest.mark.parametrize("asked", ["sub/A B.PNG", "sub/a b.png ", "sub/ａ b.png"])
def test_a_missing_name_is_told_with_the_one_that_was_probably_meant(root: Path, asked: str) -> None:
    with pytest.raises(MediaMissing, match=r"does not exist, but 'a b\.png' does; correct the entry"):
        resolve_media(str(root), asked)


def test_a_name_that_is_only_similar_is_not_proposed(root: Path) -> None:
    (root / "a.txt").write_bytes(b"x")
    with pytest.raises(MediaMissing, match=r"a\.png does not exist\.$"):
        resolve_media(str(root), "a.png")


@pytest.fixture
def snapshot(tmp_path: Path) -> Path:
    """A dataset as huggingface_hub keeps it."""
    folder = tmp_path / "datasets--org--name"
    (folder / "blobs").mkdir(parents=True)
    (folder / "blobs" / "5d41").write_bytes(b"x")
    (folder / "secret.png").write_bytes(b"x")
    revision = folder / "snapshots" / "8c1f"
    (revision / "images").mkdir(parents=True)
    (revision / "images" / "1.png").symlink_to("../../../blobs/5d41")
    return revision


@pytest.mark.parametrize(("below", "asked"), [("", "images/1.png"), ("images", "1.png")])
def test_links_of_a_hugging_face_snapshot_lead_to_its_blobs(snapshot: Path, below: str, asked: str) -> None:
    assert resolve_media(str(snapshot / below), asked).endswith("blobs/5d41")


def test_links_of_a_snapshot_lead_nowhere_else(snapshot: Path) -> None:
    (snapshot / "2.png").symlink_to("../../secret.png")
    for path in ("2.png", "../../secret.png"):
        with pytest.raises(MediaOutsideRoot, match="name a root that holds both"):
            resolve_media(str(snapshot), path)
