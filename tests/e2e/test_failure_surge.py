"""Most of the latest samples fail alike: the run pauses, or only the worker that is alone with it."""

from __future__ import annotations

import json

import pytest
from sqlalchemy import Engine

from capflow_tasks.store.statistics import Statistics
from tests.conftest import Eventually
from tests.datasets import entries_with_pictures, read_lines, write_plan
from tests.e2e.conftest import Cli
from tests.e2e.test_nodes_at_fault import SLOW, faults, working

pytestmark = pytest.mark.e2e

SOUND, GONE = 24, 56


def test_a_run_in_which_most_fails_at_once_pauses_and_is_resumed(quick_cli: Cli) -> None:
    cli = quick_cli
    cli.environment |= {"CAPFLOW_SURGE_SAMPLES": "16", "CAPFLOW_CONCURRENCY": "2"}
    plan = write_plan(cli.folder, entries_with_pictures(cli.folder, SOUND + GONE))
    media, away = cli.folder / "media", cli.folder / "away"
    away.mkdir()
    for number in range(SOUND, SOUND + GONE):
        (media / f"{number}.png").rename(away / f"{number}.png")

    paused = cli.run("capflow", "caption", plan, "-o", "out", "--batch-size", 4, "--run", "vqa")
    status = cli.run("capflow", "status", "vqa")
    listed = json.loads(cli.run("capflow", "status", "vqa", "--json").stdout)
    for picture in list(away.iterdir())[: GONE // 2]:
        picture.rename(media / picture.name)
    resumed = cli.run("capflow", "resume", "vqa", "--json")
    retried = cli.run("capflow", "retry", "vqa", "--kind", "media_missing", "--json")

    assert paused.returncode == 5, paused.stderr
    assert "run vqa is paused: " in paused.stderr
    assert "of the latest 16 samples failed as media_missing (embedded-" in paused.stderr
    assert "`capflow retry vqa --kind media_missing` tries them again" in paused.stderr
    assert "`capflow resume vqa` goes on. What was running" in paused.stderr
    assert "It has paused by itself: " in status.stdout
    assert listed["state"] == "stopped"
    assert listed["failed"] < GONE
    assert resumed.returncode == 1, resumed.stderr
    assert json.loads(resumed.stdout)["failed"] >= GONE // 2
    assert retried.returncode == 1, retried.stderr
    assert json.loads(retried.stdout)["failed"] == GONE // 2
    assert len(read_lines(cli.folder / "out" / "Rank0_node0_set.jsonl")) == SOUND + GONE // 2


def test_a_worker_that_is_alone_with_its_failures_pauses_alone(
    quick_cli: Cli, engine: Engine, broker_url: str, eventually: Eventually
) -> None:
    def is_paused() -> None:
        assert "failed in route as request_refused, last: the kernel is broken" in faults(engine).get(
            "broken", ""
        )

    def has_begun() -> None:
        assert sum(each.tally.done for each in Statistics(engine).runs())

    cli = quick_cli
    cli.environment |= {"CAPFLOW_BROKER_URL": broker_url, "CAPFLOW_SURGE_SAMPLES": "16"}
    cli.environment["CAPFLOW_CONCURRENCY"] = "2"
    plan = write_plan(cli.folder, entries_with_pictures(cli.folder, 400))
    broken = {"CAPFLOW_ENGINE": "tests.e2e.engines:build_refusing"}

    with working(cli, "sound", cli.folder, **SLOW):
        process = cli.start(
            "capflow", "caption", plan, "-o", "out", "--batch-size", 4, "--run", "vqa", "--json"
        )
        eventually(has_begun, 60)
        with working(cli, "broken", cli.folder, **broken):
            eventually(is_paused, 60)
            output, errors = process.communicate(timeout=120)
        retried = cli.run("capflow", "retry", "vqa", "--kind", "request_refused")

    assert process.returncode == 1, errors
    assert 9 <= json.loads(output)["failed"] <= 48
    assert "worker broken@" in errors
    assert retried.returncode == 0, retried.stderr
