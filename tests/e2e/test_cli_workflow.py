"""`--workflow` through the real command and worker: fast, a folder, and no two of them in one run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from sqlalchemy import Engine, text

from capflow_tasks.records import JsonObject
from tests.datasets import draw_picture, entries_with_pictures, film_video, read_lines, write_plan
from tests.e2e.conftest import Cli

pytestmark = pytest.mark.e2e

#: A domain of one's own, beside the nine.
AERIAL = """
name: Aerial
description: pictures from above
agents: {natural: , general_summary: }
"""


def records_of(folder: Path) -> list[JsonObject]:
    return read_lines(folder / "Rank0_node0_set.jsonl")


def agents(engine: Engine, run: str) -> dict[tuple[str, str], int]:
    """Answers of the run by stage and agent."""
    query = text(
        "SELECT stage, agent, count(*) FROM results JOIN samples ON samples.id = sample_id"
        " JOIN shards ON shards.id = samples.shard_id JOIN runs ON runs.id = run_id"
        " WHERE runs.name = :run GROUP BY stage, agent"
    )
    with engine.connect() as connection:
        return {(stage, agent): count for stage, agent, count in connection.execute(query, {"run": run})}


def test_fast_is_one_call_and_the_judge_and_a_run_keeps_its_workflow(quick_cli: Cli, engine: Engine) -> None:
    cli = quick_cli
    entries = entries_with_pictures(cli.folder, 2)
    film_video(cli.folder / "media" / "clip.mp4")
    plan = write_plan(cli.folder, [*entries, {"id": 2, "video": "clip.mp4"}])

    done = cli.run("capflow", "caption", plan, "--workflow", "fast", "--run", "quick", "-o", "fast")
    mixed = cli.run("capflow", "caption", plan, "--run", "quick", "-o", "other")
    again = cli.run("capflow", "retry", "quick")
    status = cli.run("capflow", "status", "quick", "--json")

    assert done.returncode == 0, done.stderr
    assert agents(engine, "quick") == {
        ("route", "router"): 2,
        ("summarize", "fast_caption"): 2,
        ("summarize", "fast_video_caption"): 1,
        ("score", "judge"): 2,
        ("score", "video_judge"): 1,
    }
    for record in records_of(cli.folder / "fast"):
        assert record["caption"]
        assert "reports" not in record
        assert record["overall"] == 3
    assert mixed.returncode == 2
    assert "run quick was started with --workflow fast, not standard" in mixed.stderr
    assert not (cli.folder / "other").exists()
    assert again.returncode == 0, again.stderr
    assert json.loads(status.stdout)["workflow"] == "fast"
    assert json.loads(status.stdout)["stages"] == ["route", "summarize", "score"]


def test_a_fast_run_that_was_only_routed_goes_on_with_its_captions(quick_cli: Cli, engine: Engine) -> None:
    cli = quick_cli
    plan = write_plan(cli.folder, entries_with_pictures(cli.folder, 2))
    command = ("capflow", "caption", plan, "--workflow", "fast", "--run", "later", "-o", "out")

    routed = cli.run(*command, "--stages", "route")
    useless = cli.run(*command, "--stages", "perceive")
    captioned = cli.run(*command)

    assert routed.returncode == 0, routed.stderr
    assert useless.returncode == 2
    assert "workflow fast has no agent in perceive; its stages are route, summarize, score" in useless.stderr
    assert captioned.returncode == 0, captioned.stderr
    assert [bool(record["caption"]) for record in records_of(cli.folder / "out")] == [True, True]
    assert set(agents(engine, "later").values()) == {2}


def test_a_folder_is_a_workflow_for_one_run_while_others_keep_theirs(quick_cli: Cli, engine: Engine) -> None:
    cli = quick_cli
    own = cli.folder / "own"
    own.mkdir()
    (own / "aerial.yaml").write_text(AERIAL)
    (cli.folder / "media").mkdir()
    draw_picture(cli.folder / "media" / "0.png", 0)
    plan = write_plan(cli.folder, [{"id": 0, "image": "0.png"}], task="Aerial")

    unknown = cli.run("capflow", "caption", plan)
    done = cli.run("capflow", "caption", plan, "--workflow", "own", "--run", "own", "-o", "out", "--json")
    exported = cli.run("capflow", "export", "own", "--format", "parquet", "-o", "parquet")
    wrong = cli.run("capflow", "caption", plan, "--workflow", "fats")

    assert unknown.returncode == 2
    assert "there is no domain 'Aerial'" in unknown.stderr
    assert done.returncode == 0, done.stderr
    assert agents(engine, "own") == {("perceive", "natural"): 1, ("summarize", "general_summary"): 1}
    assert exported.returncode == 0, exported.stderr
    assert wrong.returncode == 2
    assert "did you mean fast?" in wrong.stderr


def test_the_routers_confidence_is_measured_and_put_right(quick_cli: Cli) -> None:
    """The scripted router is 90 % sure of the first domain, which is right for 36 of 60."""
    cli = quick_cli
    labels = ["Code & Programming"] * 36 + ["Natural"] * 24
    entries = [
        entry | {"label": label}
        for entry, label in zip(entries_with_pictures(cli.folder, 60), labels, strict=True)
    ]
    plan = write_plan(cli.folder, entries)
    domains = cli.folder / "domains"
    domains.mkdir()
    (domains / "aerial.yaml").write_text(AERIAL)

    routed = cli.run("capflow", "caption", plan, "--stages", "route", "--run", "before")
    found = cli.run("capflow", "domains", "calibrate", "before", "--json")
    shown = cli.run("capflow", "domains", "calibrate", "before")
    *_, line = shown.stdout.splitlines()
    (domains / "_defaults.yaml").write_text(f"router:\n{line}\n")
    cli.environment["CAPFLOW_DOMAINS"] = str(domains)
    after = cli.run("capflow", "caption", plan, "--stages", "route", "--run", "after", "-o", "after")

    assert routed.returncode == after.returncode == 0, after.stderr
    figures = json.loads(found.stdout)
    assert figures["error_before"] == pytest.approx(0.9 - 0.6)
    assert figures["error_after"] < 0.1
    confidences = {record["confidence"] for record in records_of(cli.folder / "after")}
    assert all(confidence == pytest.approx(0.6, abs=0.1) for confidence in confidences)
