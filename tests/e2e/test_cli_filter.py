"""capflow-filter as it is typed, on files as capflow-produce writes them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.datasets import entries_with_pictures, read_lines, write_plan
from tests.e2e.conftest import Cli

pytestmark = pytest.mark.e2e

DIMENSIONS = (
    "factual_accuracy",
    "information_completeness",
    "reasoning_rigor",
    "core_intent_capture",
    "professionalism",
)


def a_record(overall: Any, task: str = "Natural", **grades: int) -> dict[str, Any]:
    return {"task": task, "scores": dict.fromkeys(DIMENSIONS, 3) | grades, "overall": overall}


def write_captions(folder: Path, name: str, *records: Any) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text("".join(json.dumps(record) + "\n" for record in records))


def test_the_published_command_splits_a_folder_and_counts_by_domain(cli: Cli) -> None:
    captions = cli.folder / "Output" / "Caption"
    write_captions(captions, "Rank0_node0_a.jsonl", a_record(3), a_record(3, professionalism=2), {"id": 3})
    write_captions(captions, "Rank4_node1_b.jsonl", a_record(2, task="UI"), a_record(True), a_record(3))
    write_captions(captions, "Rank0_node0_a.failed.jsonl", {"error": {}})
    arguments = ("--data-folder", "./Output/Caption", "--min-overall", 3, "--min-dim-score", 3)

    answer = cli.run("capflow-filter", *arguments, "--json")

    assert answer.returncode == 0, answer.stderr
    assert json.loads(answer.stdout) == {
        "kept": 2,
        "rejected": 2,
        "invalid": 2,
        "keep_rate": 0.3333,
        "by_domain": {
            "(none)": {"kept": 0, "rejected": 0, "invalid": 1, "keep_rate": 0},
            "Natural": {"kept": 2, "rejected": 1, "invalid": 1, "keep_rate": 0.5},
            "UI & Interaction": {"kept": 0, "rejected": 1, "invalid": 0, "keep_rate": 0},
        },
        "rejected_by": {"professionalism": 1, "overall": 1},
    }
    assert read_lines(captions / "kept" / "Rank0_node0_a.jsonl") == [a_record(3)]
    assert read_lines(captions / "rejected" / "Rank4_node1_b.jsonl") == [
        a_record(2, task="UI") | {"rejected_because": ["overall is 2, below 3"]},
        a_record(True) | {"rejected_because": ['"overall" is true, not 1, 2 or 3']},
    ]
    assert sorted(path.name for path in (captions / "kept").iterdir()) == [
        "Rank0_node0_a.jsonl",
        "Rank4_node1_b.jsonl",
    ]
    assert 'invalid: Output/Caption/Rank0_node0_a.jsonl:3: has no "scores"' in answer.stderr

    again = cli.run("capflow-filter", *arguments)

    assert again.returncode == 0, again.stderr
    assert "33.3%" in again.stdout
    assert "professionalism was too low in 1 of 2 rejected records" in again.stdout


def test_minimums_of_a_dimension_and_a_domain_take_the_place_of_the_general_ones(cli: Cli) -> None:
    captions = cli.folder / "captions"
    write_captions(
        captions, "Rank0_node0_a.jsonl", a_record(2, task="UI"), a_record(2), a_record(3, professionalism=1)
    )

    answer = cli.run(
        "capflow-filter",
        *("--data-folder", captions, "--output", "good", "--min", "professionalism=1", "--json"),
        *("--min-domain", "ui & interaction:2"),
    )

    assert answer.returncode == 0, answer.stderr
    assert [json.loads(answer.stdout)[key] for key in ("kept", "rejected", "invalid")] == [2, 1, 0]
    assert len(read_lines(cli.folder / "good" / "kept" / "Rank0_node0_a.jsonl")) == 2
    assert [path.name for path in captions.iterdir()] == ["Rank0_node0_a.jsonl"]


def test_what_was_produced_can_be_filtered(quick_cli: Cli) -> None:
    plan = write_plan(quick_cli.folder, entries_with_pictures(quick_cli.folder, 3))
    produced = quick_cli.run("capflow-produce", plan, "--output", "out")
    assert produced.returncode == 0, produced.stderr

    strict = quick_cli.run("capflow-filter", "--data-folder", "out", "--json")
    lenient = quick_cli.run(
        "capflow-filter", "--data-folder", "out", "--min-overall", 1, "--min-dim-score", 1, "--json"
    )

    name = "Rank0_node0_set.jsonl"
    assert json.loads(strict.stdout)["invalid"] == 0
    assert json.loads(lenient.stdout)["kept"] == 3
    kept = quick_cli.folder / "out" / "kept" / name
    assert kept.read_bytes() == (quick_cli.folder / "out" / name).read_bytes()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data-folder", "gone"], "gone: cannot be read: No such file or directory"),
        (["--data-folder", "."], "holds no Rank*_node*_*.jsonl"),
        (["--min", "accuracy=3"], "--min: no judge grades accuracy; use some of: core_intent_capture"),
        (["--min", "professionalism=4"], "'professionalism=4' is not NAME=GRADE with a grade of 1, 2 or 3"),
        (["--min-domain", "Pottery:2"], "there is no domain 'Pottery'"),
        (["--min-overall", "5"], "expected a whole number from 1 to 3, not '5'"),
    ],
)
def test_what_cannot_be_used_is_refused_with_the_remedy(cli: Cli, arguments: list[str], message: str) -> None:
    answer = cli.run("capflow-filter", *arguments)

    assert (answer.returncode, answer.stdout) == (2, "")
    assert message in answer.stderr
    assert "Traceback" not in answer.stderr
