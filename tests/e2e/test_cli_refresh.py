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


def ages(engine: Engine) -> dict[str, set[int]]:
    """By agent, in which of the calls of the command the answers were written, by their workers."""
    query = text("SELECT agent, worker FROM results ORDER BY created_at")
    with engine.connect() as connection:
        rows = connection.execute(query).all()
    workers = list(dict.fromkeys(row.worker for row in rows))
    found: dict[str, set[int]] = {}
    for row in rows:
        found.setdefault(row.agent, set()).add(workers.index(row.worker))
    return found


def test_a_changed_prompt_is_asked_again_with_what_depends_on_it_and_nothing_else(
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
    shown = cli.run(*command, "--refresh", "--json")
    done = cli.run(*command, "--refresh", "--yes")
    after = read_lines(cli.folder / "out" / "Rank0_node0_set.jsonl")

    assert first.returncode == kept.returncode == done.returncode == 0, done.stderr
    assert "no answer is stale" in clean.stdout
    assert "--refresh" in kept.stderr
    assert "--refresh" not in first.stderr
    stale = json.loads(shown.stdout)["stale"]
    assert {each["agent"]: each["answers"] for each in stale} == {
        "natural": 3,
        "general_summary": 3,
        "judge": 3,
    }
    assert {each["changed"] for each in stale} == {"prompt"}
    assert ages(engine) == {
        "visual_guideline": {0},
        "natural": {0, 1},
        "general_reasoning": {0},
        "general_summary": {0, 1},
        "judge": {0, 1},
    }
    changed = [one != other for one, other in zip(before, after, strict=True)]
    assert changed == [True, True, True, False]
    assert "no answer is stale" in cli.run(*command, "--refresh").stdout


def test_yes_alone_is_refused(quick_cli: Cli) -> None:
    answer = quick_cli.run("capflow", "caption", "plan.jsonl", "--yes")
    assert answer.returncode == 2
    assert "--refresh" in answer.stderr
