"""Two plans, the original scripts and a second user write to one folder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.conftest import NewDatabase
from tests.datasets import entries_with_pictures, read_lines, write_plan
from tests.e2e import engines
from tests.e2e.conftest import Cli

pytestmark = pytest.mark.e2e

NAME = "Rank0_node0_set.jsonl"


def second_plan(folder: Path) -> Path:
    """Other samples of the same dataset, for the same rank."""
    plan = write_plan(folder, entries_with_pictures(folder, 4), start_idx=2)
    return plan.rename(folder / "second.jsonl")


def test_a_second_plan_and_a_second_user_are_told_before_anything_is_asked(
    quick_cli: Cli, new_database: NewDatabase
) -> None:
    cli, requests = quick_cli, quick_cli.folder / "requests"
    cli.environment |= {"CAPFLOW_ENGINE": "tests.e2e.engines:build", engines.REQUESTS: str(requests)}
    second = second_plan(cli.folder)
    first = write_plan(cli.folder, entries_with_pictures(cli.folder, 4), end_idx=2)

    done = cli.run("capflow", "caption", first, "-o", "out")
    asked = requests.read_bytes()
    refused = cli.run("capflow", "caption", second, "-o", "out")
    listed = cli.run("capflow", "status")
    with new_database() as url:
        other = Cli(cli.folder, cli.environment | {"CAPFLOW_DATABASE_URL": url}, cli.mark)
        elsewhere = other.run("capflow", "caption", first, "-o", "out")
    again = cli.run("capflow", "caption", first, "-o", "out")
    kept = read_lines(cli.folder / "out" / NAME)
    beside = cli.run("capflow", "caption", second, "-o", "beside")
    taken = cli.run("capflow", "caption", second, "-o", "out", "--overwrite")

    assert done.returncode == 0, done.stderr
    for answer in (refused, elsewhere):
        assert answer.returncode == 2, answer.stderr
        assert f"out/{NAME}: is a file of run set.plan-" in answer.stderr
        assert "choose another --output, or replace the file with --overwrite" in answer.stderr
    assert requests.read_bytes().startswith(asked)
    assert "second.jsonl" not in listed.stdout
    assert again.returncode == 0, again.stderr
    assert [record["id"] for record in kept] == [0, 1]
    assert (beside.returncode, taken.returncode) == (0, 0), taken.stderr
    assert [record["id"] for record in read_lines(cli.folder / "out" / NAME)] == [2, 3]


def test_files_of_the_scripts_stay(quick_cli: Cli) -> None:
    plan = write_plan(quick_cli.folder, entries_with_pictures(quick_cli.folder, 1))
    theirs = quick_cli.folder / "out" / NAME.replace(".jsonl", ".failed.jsonl")
    theirs.parent.mkdir()
    theirs.write_text(json.dumps({"id": 7}) + "\n")

    refused = quick_cli.run("capflow", "caption", plan, "-o", "out")

    assert refused.returncode == 2, refused.stderr
    assert f"{theirs}: was not written by this run" in refused.stderr
    assert read_lines(theirs) == [{"id": 7}]


def test_a_folder_that_cannot_be_written_is_told_before_anything_is_asked(quick_cli: Cli) -> None:
    requests = quick_cli.folder / "requests"
    quick_cli.environment |= {"CAPFLOW_ENGINE": "tests.e2e.engines:build", engines.REQUESTS: str(requests)}
    plan = write_plan(quick_cli.folder, entries_with_pictures(quick_cli.folder, 1))

    # Root may write everywhere but here.
    refused = quick_cli.run("capflow", "caption", plan, "-o", "/proc/captions")

    assert refused.returncode == 3, refused.stderr
    assert "cannot be written" in refused.stderr
    assert not requests.exists()
