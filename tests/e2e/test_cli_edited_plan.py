"""Plans and annotation files that are edited between two runs of the same command."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from capflow_tasks.records import JsonObject
from tests.datasets import entries_with_pictures, read_lines, write_plan
from tests.e2e.conftest import Cli
from tests.e2e.test_cli_scripted import FAILED, record_requests, requests_by_name

pytestmark = pytest.mark.e2e


def caption(cli: Cli, plan: Path, *options: object) -> subprocess.CompletedProcess[str]:
    return cli.run("capflow", "caption", plan, "--output", "out", *options)


def edit(plan: Path, **changes: Any) -> None:
    plan.write_text(json.dumps(json.loads(plan.read_text()) | changes) + "\n")


def captions(cli: Cli, name: str = "Rank0_node0_set.jsonl") -> list[JsonObject]:
    return read_lines(cli.folder / "out" / name)


def status(cli: Cli, plan: Path) -> JsonObject:
    shown: JsonObject = json.loads(cli.run("capflow", "status", plan, "--json").stdout)
    return shown


@pytest.mark.parametrize(
    ("changes", "said", "captioned", "asked_again"),
    [
        (
            {"end_idx": 3},
            'set[0-3] of an earlier plan ("end_idx" was 4, is 3): '
            "3 of its 3 samples are taken over, 0 are captioned again, 0 are new",
            [0, 1, 2],
            False,
        ),
        (
            {"end_idx": 6},
            '("end_idx" was 4, is 6): 4 of its 6 samples are taken over, 0 are captioned again, 2 are new',
            [0, 1, 2, 3, 4, 5],
            False,
        ),
        (
            {"start_idx": 1},
            "3 of its 3 samples are taken over, 0 are captioned again, 0 are new",
            [1, 2, 3],
            False,
        ),
        (
            {"task": "Natural"},
            '("task" was null, is "Natural"): '
            "0 of its 4 samples are taken over, 4 are captioned again, 0 are new",
            [0, 1, 2, 3],
            True,
        ),
    ],
)
def test_a_plan_whose_line_was_edited_runs_what_is_new_says_so_and_ends(
    quick_cli: Cli, changes: JsonObject, said: str, captioned: list[int], asked_again: bool
) -> None:
    plan = write_plan(quick_cli.folder, entries_with_pictures(quick_cli.folder, 6), end_idx=4)
    requests = record_requests(quick_cli)
    assert caption(quick_cli, plan).returncode == 0
    edit(plan, **changes)

    again = caption(quick_cli, plan)

    assert again.returncode == 0, again.stderr
    assert f"{plan}:1 replaces set[0-3] of an earlier plan" in again.stderr
    assert said in again.stderr
    assert [record["id"] for record in captions(quick_cli)] == captioned
    assert any(times > 1 for times in requests_by_name(requests).values()) is asked_again
    shown = status(quick_cli, plan)
    assert (shown["samples"], shown["done"]) == (len(captioned), len(captioned))
    assert "replaces" not in caption(quick_cli, plan).stderr


def test_an_edit_that_is_taken_back_costs_nothing(quick_cli: Cli) -> None:
    plan = write_plan(quick_cli.folder, entries_with_pictures(quick_cli.folder, 4))
    requests = record_requests(quick_cli)
    caption(quick_cli, plan)
    edit(plan, assign_rank=3, end_idx=2)
    caption(quick_cli, plan)
    assert len(captions(quick_cli, "Rank3_node0_set.jsonl")) == 2
    edit(plan, assign_rank=0, end_idx=4)

    back = caption(quick_cli, plan)

    assert back.returncode == 0, back.stderr
    assert "4 of its 4 samples are taken over" in back.stderr
    assert len(captions(quick_cli)) == 4
    assert set(requests_by_name(requests).values()) == {1}


def test_doing_what_the_message_about_a_large_end_idx_says_works(quick_cli: Cli) -> None:
    plan = write_plan(quick_cli.folder, entries_with_pictures(quick_cli.folder, 3), end_idx=4)
    requests = record_requests(quick_cli)
    refused = caption(quick_cli, plan)
    assert (refused.returncode, 'set "end_idx" to 3 at most' in refused.stderr) == (2, True)
    edit(plan, end_idx=3)

    corrected = caption(quick_cli, plan)

    assert corrected.returncode == 0, corrected.stderr
    assert len(captions(quick_cli)) == 3
    assert set(requests_by_name(requests).values()) == {1}


@pytest.mark.parametrize("command", ["caption", "retry"])
def test_corrected_entries_are_read_again_and_the_others_are_not_captioned_again(
    quick_cli: Cli, command: str
) -> None:
    entries = entries_with_pictures(quick_cli.folder, 4)
    plan = write_plan(quick_cli.folder, entries)
    annotations = quick_cli.folder / "set.json"
    lines = [json.dumps(entry) for entry in entries]
    annotations.write_text("\n".join([lines[0], '{"id":1,"image":"1.png",}', '{"id": 2}', lines[3]]))
    requests = record_requests(quick_cli)
    assert caption(quick_cli, plan).returncode == 1
    assert len(read_lines(quick_cli.folder / "out" / FAILED)) == 2
    annotations.write_text("\n".join(lines))

    corrected = quick_cli.run("capflow", command, plan, "--output", "out")

    assert corrected.returncode == 0, corrected.stderr
    assert f"{annotations}: 2 entries have changed and will be captioned again" in corrected.stderr
    assert [record["id"] for record in captions(quick_cli)] == [0, 1, 2, 3]
    assert set(requests_by_name(requests).values()) == {1}
    assert not (quick_cli.folder / "out" / FAILED).exists()
    assert "changed" not in caption(quick_cli, plan).stderr


def test_a_caption_follows_its_entry(quick_cli: Cli) -> None:
    entries = entries_with_pictures(quick_cli.folder, 4)
    plan = write_plan(quick_cli.folder, entries)
    caption(quick_cli, plan)
    entries[1] = {"id": 1, "image": "3.png", "note": "the right picture"}
    entries[2] = {"id": 2}
    (quick_cli.folder / "set.json").write_text(json.dumps(entries))

    changed = caption(quick_cli, plan)

    assert changed.returncode == 1, changed.stderr
    assert "2 entries have changed" in changed.stderr
    assert [record["id"] for record in captions(quick_cli)] == [0, 1, 3]
    assert captions(quick_cli)[1]["note"] == "the right picture"
    (failed,) = read_lines(quick_cli.folder / "out" / FAILED)
    assert failed["error"]["kind"] == "text_only"


@pytest.mark.parametrize("is_copied", [False, True])
def test_a_root_that_moved_is_taken_over_and_another_folder_is_captioned_and_told(
    quick_cli: Cli, is_copied: bool
) -> None:
    plan = write_plan(quick_cli.folder, entries_with_pictures(quick_cli.folder, 4))
    caption(quick_cli, plan)
    media, moved = quick_cli.folder / "media", quick_cli.folder / "disk2"
    media.rename(moved)
    if is_copied:
        media.mkdir()
    edit(plan, root="disk2")

    again = caption(quick_cli, plan)

    assert again.returncode == 0, again.stderr
    taken, anew = (0, 4) if is_copied else (4, 0)
    assert f"{taken} of its 4 samples are taken over, {anew} are captioned again" in again.stderr
    assert f'"root" was "{media}", is "{moved}"' in again.stderr
