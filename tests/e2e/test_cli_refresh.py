"""`capflow caption --refresh` through the real command and worker: what is stale, and what is asked again."""

from __future__ import annotations

import json

import pytest
from sqlalchemy import Engine, text

from tests.datasets import entries_with_pictures, read_lines, write_plan
from tests.e2e.conftest import Cli

pytestmark = pytest.mark.e2e

#: A domain of one's own: two that look, one that thinks, one that writes, a judge.
POTS = """
name: Pots
description: pots
agents:
  visual_guideline:
  natural: {prompt: PROMPT}
  general_reasoning: {sees: [visual_guideline], prompt: "$reports Think."}
  general_summary:
  judge:
"""


def ages(engine: Engine) -> dict[tuple[str, str], set[int]]:
    """By domain and agent, in which of the calls of the command the answers were written."""
    query = text(
        "SELECT domain, agent, worker FROM results JOIN samples ON samples.id = sample_id ORDER BY created_at"
    )
    with engine.connect() as connection:
        rows = connection.execute(query).all()
    workers = list(dict.fromkeys(row.worker for row in rows))
    found: dict[tuple[str, str], set[int]] = {}
    for row in rows:
        found.setdefault((row.domain, row.agent), set()).add(workers.index(row.worker))
    return found


def test_a_changed_prompt_or_picture_is_asked_again_with_what_depends_on_it_and_nothing_else(
    quick_cli: Cli, engine: Engine
) -> None:
    cli = quick_cli
    domains = cli.folder / "domains"
    domains.mkdir()
    cli.environment["CAPFLOW_DOMAINS"] = str(domains)
    entries = entries_with_pictures(cli.folder, 4)
    tasks = ["Pots", "Pots", "Pots", "Natural"]
    plan = write_plan(
        cli.folder, [entry | {"task": task} for entry, task in zip(entries, tasks, strict=True)]
    )
    (domains / "pots.yaml").write_text(POTS.replace("PROMPT", "Look."))
    command = ("capflow", "caption", plan, "-o", "out")
    first = cli.run(*command)
    clean = cli.run(*command, "--refresh")
    before = read_lines(cli.folder / "out" / "Rank0_node0_set.jsonl")

    (domains / "pots.yaml").write_text(POTS.replace("PROMPT", "Look closely."))
    kept = cli.run(*command)
    (cli.folder / "media" / entries[3]["image"]).touch()
    shown = cli.run(*command, "--refresh", "--json")
    done = cli.run(*command, "--refresh", "--yes")
    after = read_lines(cli.folder / "out" / "Rank0_node0_set.jsonl")

    assert first.returncode == kept.returncode == done.returncode == 0, done.stderr
    assert "no answer is stale" in clean.stdout
    assert "--refresh" in kept.stderr
    assert "--refresh" not in first.stderr
    stale = json.loads(shown.stdout)["stale"]
    by_prompt = [each for each in stale if each["changed"] == "prompt"]
    assert {(each["domain"], each["agent"]): each["answers"] for each in by_prompt} == {
        ("Pots", "natural"): 3,
        ("Pots", "general_summary"): 3,
        ("Pots", "judge"): 3,
    }
    about_media = [each for each in stale if each["changed"] == "media"]
    assert {(each["domain"], each["answers"]) for each in about_media} == {("Natural", 1)}
    assert len(about_media) + 3 == len(stale)
    assert ages(engine) == {
        ("Pots", "visual_guideline"): {0},
        ("Pots", "natural"): {1},
        ("Pots", "general_reasoning"): {0},
        ("Pots", "general_summary"): {1},
        ("Pots", "judge"): {1},
        **{("Natural", each["agent"]): {1} for each in about_media},
    }
    changed = [one != other for one, other in zip(before, after, strict=True)]
    # The picture that was touched looks as before.
    assert changed == [True, True, True, False]
    assert "no answer is stale" in cli.run(*command, "--refresh").stdout
    write_plan(
        cli.folder, [entry | {"task": task, "note": 1} for entry, task in zip(entries, tasks, strict=True)]
    )
    edited = json.loads(cli.run(*command, "--refresh", "--json").stdout)["stale"]
    assert {(each["changed"], each["domain"]): each["answers"] for each in edited} == {
        ("entry", "Pots"): 3,
        ("entry", "Natural"): 1,
    }


def test_yes_alone_is_refused(quick_cli: Cli) -> None:
    answer = quick_cli.run("capflow", "caption", "plan.jsonl", "--yes")
    assert answer.returncode == 2
    assert "--refresh" in answer.stderr
