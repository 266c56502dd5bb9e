"""A run replaces and removes its own files, and no others."""

from __future__ import annotations

from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from capflow_tasks.errors import ServiceError, UserError
from producer.writing.ownership import OwnFiles

BEGUN = datetime(2026, 11, 26, tzinfo=UTC)
NAME = "Rank0_node0_set.jsonl"


def own(folder: Path, run: str = "vqa", *, overwrites: bool = False, begun: datetime = BEGUN) -> OwnFiles:
    return OwnFiles(folder, run, begun, overwrites=overwrites)


def write(files: OwnFiles, folder: Path, text: str) -> None:
    with files.writing([NAME]):
        (folder / NAME).write_text(text)


def test_a_run_replaces_what_it_has_written(tmp_path: Path) -> None:
    write(own(tmp_path), tmp_path, "first")
    write(own(tmp_path), tmp_path, "second, which is longer")

    assert (tmp_path / NAME).read_text().startswith("second")


def test_a_file_that_something_else_has_written_stays(tmp_path: Path) -> None:
    (tmp_path / NAME).write_text("by a script")

    with pytest.raises(
        UserError, match=r"was not written by this run; choose another --output, or .*--overw"
    ):
        own(tmp_path).claim([NAME])
    own(tmp_path).claim(["Rank1_node0_set.jsonl"])


def test_a_file_that_comes_after_the_claim_stays(tmp_path: Path) -> None:
    own(tmp_path).claim([NAME])
    (tmp_path / NAME).write_text("by a script")

    with pytest.raises(UserError, match="was not written by this run"):
        write(own(tmp_path), tmp_path, "captions")
    assert (tmp_path / NAME).read_text() == "by a script"


def test_a_file_that_was_changed_since_stays(tmp_path: Path) -> None:
    write(own(tmp_path), tmp_path, "captions")
    (tmp_path / NAME).write_text("captions, corrected by hand")

    with pytest.raises(UserError, match="has changed since this run wrote it"):
        write(own(tmp_path), tmp_path, "captions again")


@pytest.mark.parametrize(("run", "begun"), [("other", BEGUN), ("vqa", BEGUN + timedelta(seconds=1))])
def test_two_runs_that_would_write_one_file_meet_before_they_work(
    tmp_path: Path, run: str, begun: datetime
) -> None:
    own(tmp_path).claim([NAME])

    with pytest.raises(UserError, match=f"{NAME}: is a file of run vqa"):
        own(tmp_path, run, begun=begun).claim([NAME])


def test_who_overwrites_takes_the_file_over(tmp_path: Path) -> None:
    write(own(tmp_path), tmp_path, "captions")

    write(own(tmp_path, "other", overwrites=True), tmp_path, "other captions")
    write(own(tmp_path, "other"), tmp_path, "other captions again")

    with pytest.raises(UserError, match="is a file of run other"):
        write(own(tmp_path), tmp_path, "captions")


def test_a_run_that_dies_while_it_writes_goes_on_with_its_files(tmp_path: Path) -> None:
    write(own(tmp_path), tmp_path, "captions")
    with suppress(KeyboardInterrupt), own(tmp_path).writing([NAME]):
        (tmp_path / NAME).write_text("captions again")
        raise KeyboardInterrupt

    write(own(tmp_path), tmp_path, "captions again and again")


def test_a_damaged_list_owns_nothing(tmp_path: Path) -> None:
    write(own(tmp_path), tmp_path, "captions")
    for path in tmp_path.glob(".capflow-*.json"):
        path.write_text('{"run": "vqa", "fil')

    with pytest.raises(UserError, match="was not written by this run"):
        own(tmp_path).claim([NAME])


def test_a_folder_that_cannot_be_written_is_found_by_the_claim(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("no folder")

    with pytest.raises(ServiceError, match="cannot be written"):
        own(tmp_path / "out").claim([NAME])
