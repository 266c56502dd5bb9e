"""What tells two checkpoints of one name apart."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from capflow_tasks.engine.revision import revision_of

MIB = 1 << 20


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(bytes(3 * MIB))
    return folder


def test_a_copy_has_the_revision_of_its_original(checkpoint: Path, tmp_path: Path) -> None:
    copied = shutil.copytree(checkpoint, tmp_path / "copy")
    (copied / ".cache").write_text("downloaded today")

    revision = revision_of(str(checkpoint))
    assert revision is not None
    assert revision.startswith("files:")
    assert revision_of(str(copied)) == revision


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("config.json", b"[]"),
        ("model.safetensors", b"\1" * 3 * MIB),
        ("model.safetensors", bytes(3 * MIB + 1)),
        ("adapter.bin", b""),
    ],
)
def test_other_files_or_weights_are_another_revision(checkpoint: Path, name: str, content: bytes) -> None:
    before = revision_of(str(checkpoint))
    (checkpoint / name).write_bytes(content)

    assert revision_of(str(checkpoint)) != before


def test_a_snapshot_of_the_hub_is_known_by_its_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = "5d41402abc4b2a76b9719d911017c592aa11bb22"
    cached = tmp_path / "models--some--model"
    snapshot = cached / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    (tmp_path / "link").symlink_to(snapshot)

    assert revision_of("some/model") == commit
    assert revision_of(str(snapshot)) == revision_of(str(tmp_path / "link")) == commit


@pytest.mark.parametrize("model", ["gpt-4.1", "never/downloaded", "/no/such/folder", "not a name!"])
def test_what_is_not_on_this_machine_has_no_known_revision(model: str) -> None:
    assert revision_of(model) is None
