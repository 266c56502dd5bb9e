"""`--candidates` through the real command and worker: written again, the best is kept, and all are shown."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import NewDatabase
from tests.datasets import draw_picture, read_lines, write_plan
from tests.e2e.conftest import Cli
from tests.e2e.engines import GRADES
from tests.unit.test_report_data import read

pytestmark = pytest.mark.e2e

CAPTIONS = "Rank0_node0_set.jsonl"


@pytest.fixture(scope="module")
def captioned(new_database: NewDatabase) -> Iterator[Cli]:
    """Commands in a folder where a strict judge has made the run `verified` of `set.plan.jsonl`."""
    with (
        tempfile.TemporaryDirectory(prefix="capflow-e2e-", ignore_cleanup_errors=True) as folder,
        new_database() as url,
    ):
        cli = Cli(Path(folder), {"CAPFLOW_DATABASE_URL": url})
        cli.environment["CAPFLOW_ENGINE"] = "tests.e2e.engines:build_strict"
        for number, name in enumerate(GRADES):
            draw_picture(cli.folder / "media" / name, number)
        plan = write_plan(cli.folder, [{"id": name, "image": name} for name in GRADES], task="Natural")
        done = cli.run("capflow", "caption", plan, "--workflow", "verified", "--run", "verified", "-o", "out")
        assert done.returncode == 0, done.stderr
        yield cli


def test_a_caption_below_the_bar_is_written_again_and_the_best_is_kept(captioned: Cli) -> None:
    records = {line["id"]: line for line in read_lines(captioned.folder / "out" / CAPTIONS)}

    assert records.keys() == GRADES.keys()
    kept = {name: (record["caption"][-20:], record["overall"]) for name, record in records.items()}
    assert {name: overall for name, (_, overall) in kept.items()} == {
        "good.png": 3,
        "mended.png": 3,
        "hopeless.png": 2,
        "refused.png": 2,
    }
    assert "version 2" in records["mended.png"]["caption"]
    assert "version 2" in records["hopeless.png"]["caption"]
    listed = {
        name: [(each["overall"], each["is_chosen"]) for each in record.get("candidates", ())]
        for name, record in records.items()
    }
    assert listed == {
        "good.png": [],
        "mended.png": [(1, False), (3, True)],
        "hopeless.png": [(1, False), (2, True), (1, False)],
        "refused.png": [],
    }
    assert all(each["errors"] == ["no lamp"] for each in records["hopeless.png"]["candidates"])


def test_the_status_tells_what_it_brought_and_what_it_cost(captioned: Cli) -> None:
    status = json.loads(captioned.run("capflow", "status", "verified", "--json").stdout)
    page = captioned.run("capflow", "status", "verified").stdout

    assert (status["workflow"], status["candidates"]) == ("verified", 3)
    first, best = status["written_again"]["first"], status["written_again"]["best"]
    assert (first["judged"], first["accepted"], first["keep_rate"]) == (4, 1, 0.25)
    assert (best["judged"], best["accepted"], best["keep_rate"]) == (4, 2, 0.5)
    assert first["tokens"] < best["tokens"]
    assert best["tokens"] == status["tokens"]["prompt_tokens"] + status["tokens"]["completion_tokens"]
    assert [each["samples"] for each in status["written_again"]["captions"]] == [3, 1]
    assert "Captions written again" in page
    assert "the best of up to 3" in page


def test_the_report_shows_the_captions_that_were_not_chosen(captioned: Cli) -> None:
    made = captioned.run("capflow", "report", "verified", "-o", "report", "--thumbnails", 0)

    assert made.returncode == 0, made.stderr
    samples = {each["name"]: each for each in read(captioned.folder / "report", "samples-0")}
    by_file = dict(zip(GRADES, samples.values(), strict=True))
    others = {name: [each["stage"] for each in sample["others"]] for name, sample in by_file.items()}
    assert others == {
        "good.png": [],
        # The list of its claims, the caption, and its grades.
        "mended.png": ["summarize", "summarize", "score"],
        "hopeless.png": ["summarize", "summarize", "score"] * 2,
        "refused.png": [],
    }


def test_the_same_command_has_nothing_left_to_do(captioned: Cli) -> None:
    before = captioned.run("capflow", "status", "verified", "--json").stdout
    again = captioned.run("capflow", "retry", "verified")
    after = captioned.run("capflow", "status", "verified", "--json").stdout

    assert again.returncode == 0, again.stderr
    assert json.loads(after)["tokens"] == json.loads(before)["tokens"]


def test_the_bar_and_the_budget_decide_who_gets_another_caption(captioned: Cli) -> None:
    plan = captioned.folder / "set.plan.jsonl"
    command = ("capflow", "caption", plan, "--candidates", 2)

    low = captioned.run(*command, "--min-overall", 2, "--run", "low", "-o", "low")
    poor = captioned.run(*command, "--token-budget", 1, "--run", "poor", "-o", "poor")
    ungraded = captioned.run(*command, "--stages", "summarize", "--run", "ungraded", "-o", "ungraded")

    assert low.returncode == poor.returncode == ungraded.returncode == 0, low.stderr + poor.stderr
    side_by_side = captioned.run("capflow", "status", "low", "poor").stdout
    cells = ([cell.strip() for cell in line.split("│")] for line in side_by_side.splitlines())
    rows = {row[1]: row[2:-1] for row in cells if len(row) > 2}
    assert rows["captions of a sample, at most"] == ["2", "2"]
    assert rows["captions accepted"] == ["2", "1"]
    assert rows["mean overall grade"] == ["2.50", "1.75"]
    counts = {
        folder: {
            record["id"]: len(record.get("candidates", ()))
            for record in read_lines(captioned.folder / folder / CAPTIONS)
        }
        for folder in ("low", "poor")
    }
    assert counts["low"] == {"good.png": 0, "mended.png": 2, "hopeless.png": 2, "refused.png": 0}
    assert set(counts["poor"].values()) == {0}
    assert "no caption is written again before a run with the stage score has graded it" in ungraded.stderr

    # A finished run goes on with what is below a higher bar.
    higher = captioned.run("capflow", "retry", "low", "--candidates", 3, "--min-overall", 3)
    assert higher.returncode == 0, higher.stderr
    assert "writing again the captions of 2 samples" in higher.stderr
    listed = {
        record["id"]: [(each["overall"], each["is_chosen"]) for each in record.get("candidates", ())]
        for record in read_lines(captioned.folder / "low" / CAPTIONS)
    }
    assert listed["mended.png"] == [(1, False), (3, True)]
    assert listed["hopeless.png"] == [(1, False), (2, True), (1, False)]
    assert listed["refused.png"] == []
