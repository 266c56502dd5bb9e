"""capflow-plan as it is typed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.datasets import entries_with_pictures, read_lines
from tests.e2e.conftest import Cli

pytestmark = pytest.mark.e2e


def write_metafile(folder: Path, **datasets: dict[str, Any]) -> Path:
    """Datasets in the published format, each with the entries given and what is changed."""
    metafile = {}
    for name, changes in datasets.items():
        entries = changes.pop("entries")
        (folder / f"{name}.json").write_text(json.dumps(entries))
        metafile[name] = {
            "root": str(folder / "media"),
            "annotation": f"{name}.json",
            "length": len(entries),
            "task": "Natural",
            "sample_count": len(entries),
            "modality": "image",
            **changes,
        }
    path = folder / "Metafile.json"
    path.write_text(json.dumps(metafile))
    return path


def some_entries(count: int) -> list[dict[str, Any]]:
    return [{"id": number, "image": f"{number}.png"} for number in range(count)]


def test_a_metafile_becomes_a_balanced_plan(cli: Cli) -> None:
    (cli.folder / "media").mkdir()
    metafile = write_metafile(
        cli.folder,
        ADE20K={"entries": some_entries(100), "sample_count": 42},
        big={"entries": some_entries(1000), "length": 999, "weight": 2},
    )

    answer = cli.run("capflow-plan", metafile, "--ranks", 8, "-o", "plan.jsonl", "--json")

    assert answer.returncode == 0, answer.stderr
    planned = json.loads(answer.stdout)
    assert (planned["datasets"], planned["total"], planned["processed"], planned["remain"]) == (
        2,
        1042,
        0,
        1042,
    )
    assert sorted(rank["samples"] for rank in planned["ranks"]) == [130] * 6 + [131] * 2
    lines = read_lines(cli.folder / "plan.jsonl")
    assert len(lines) == planned["lines"] == 9
    assert {line["json_url"] for line in lines[1:]} == {str(cli.folder / "big.json")}
    assert lines[-1]["weight"] == 2
    assert 'warning: dataset "big": "length" is 999' in answer.stderr
    sample = read_lines(Path(lines[0]["json_url"]))
    assert len(sample) == 42
    assert "2/2 annotation files counted" in answer.stderr

    dry_run = cli.run("capflow-produce", "plan.jsonl", "--dry-run")

    assert dry_run.returncode == 0, dry_run.stderr
    assert "9 shards, 1,042 samples" in dry_run.stdout


def test_what_a_run_has_captioned_is_left_out_of_the_plan_of_the_rest(quick_cli: Cli) -> None:
    entries = entries_with_pictures(quick_cli.folder, 6)
    metafile = write_metafile(
        quick_cli.folder,
        set={"entries": entries[:4]},
        drawn={"entries": entries, "sample_count": 3},
        more={"entries": entries[4:]},
    )
    everything = quick_cli.run("capflow-plan", metafile, "-o", "plan.jsonl")
    assert everything.returncode == 0, everything.stderr
    lines = (quick_cli.folder / "plan.jsonl").read_text().splitlines()
    half = json.loads(lines[0]) | {"end_idx": 2}
    (quick_cli.folder / "part.jsonl").write_text("\n".join([json.dumps(half), lines[1]]))
    assert quick_cli.run("capflow-produce", "part.jsonl", "--output", "out").returncode == 0

    rest = quick_cli.run("capflow-plan", metafile, "--remaining", "-o", "rest.jsonl")

    assert rest.returncode == 0, rest.stderr
    assert "4 samples of 3 datasets (5 of 9 are captioned)" in rest.stdout
    of_set, of_more = read_lines(quick_cli.folder / "rest.jsonl")
    assert (of_set["processed"], of_set["start_idx"], of_set["end_idx"]) == (2, 2, 4)
    assert of_more["data_name"] == "more"

    produced = quick_cli.run("capflow-produce", "rest.jsonl", "--output", "out")

    assert produced.returncode == 0, produced.stderr
    records = [read_lines(path) for path in sorted((quick_cli.folder / "out").glob("Rank*_set.jsonl"))]
    assert [record["id"] for file in records for record in file] == [0, 1, 2, 3]

    nothing = quick_cli.run("capflow-plan", metafile, "--remaining", "-o", "none.jsonl")

    assert (nothing.returncode, nothing.stdout) == (
        0,
        "no plan is needed: all 9 samples of 3 datasets are captioned\n",
    )
    assert not (quick_cli.folder / "none.jsonl").exists()


def test_a_bad_metafile_is_refused_with_every_problem_and_nothing_is_written(cli: Cli) -> None:
    metafile = write_metafile(
        cli.folder, a={"entries": [], "task": "Naturel"}, b={"entries": [], "length": -1}
    )

    answer = cli.run("capflow-plan", metafile, "-o", "plan.jsonl")

    assert (answer.returncode, answer.stdout) == (2, "")
    problems = answer.stderr.splitlines()
    assert len(problems) == 4
    assert all(problem.startswith(f"capflow-plan: error: {metafile}: dataset ") for problem in problems)
    assert not (cli.folder / "plan.jsonl").exists()


def test_remaining_without_a_database_says_how_to_get_one(cli: Cli) -> None:
    (cli.folder / "media").mkdir()
    metafile = write_metafile(cli.folder, a={"entries": some_entries(1)})

    answer = cli.run("capflow-plan", metafile, "--remaining")

    assert answer.returncode == 3
    assert answer.stderr.splitlines()[-1].startswith(
        "capflow-plan: error: no database: set CAPFLOW_DATABASE_URL"
    )


def test_the_metafile_is_not_written_over(cli: Cli) -> None:
    (cli.folder / "media").mkdir()
    metafile = write_metafile(cli.folder, a={"entries": some_entries(1)})
    content = metafile.read_text()

    answer = cli.run("capflow-plan", metafile, "-o", "Metafile.json")

    assert answer.returncode == 2
    assert "names a source itself" in answer.stderr
    assert metafile.read_text() == content
