"""capflow-status as it is typed, after a run and during one."""

from __future__ import annotations

import json
import os
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Engine

from capflow_tasks.records import Stage
from capflow_tasks.store.runs import RunStore
from tests.conftest import NewDatabase
from tests.datasets import entries_with_pictures, write_plan
from tests.e2e.conftest import Cli
from tests.stores import a_shard

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def captioned(new_database: NewDatabase) -> Iterator[Cli]:
    """Commands in a folder where `set.plan.jsonl` has been captioned: three samples, of which one failed."""
    with (
        tempfile.TemporaryDirectory(prefix="capflow-e2e-", ignore_cleanup_errors=True) as folder,
        new_database() as url,
    ):
        cli = Cli(Path(folder), {"CAPFLOW_DATABASE_URL": url})
        entries = entries_with_pictures(cli.folder, 3)
        entries[2]["image"] = "gone.png"
        plan = write_plan(cli.folder, entries, task="Natural")
        answer = cli.run("capflow-produce", plan, "--output", "out", "--run", "first")
        assert answer.returncode == 1, answer.stderr
        (cli.folder / "prices.yaml").write_text("models: {scripted: {prompt: 10, completion: 100}}")
        yield cli


def test_the_json_holds_everything_about_a_run(captioned: Cli) -> None:
    answer = captioned.run("capflow-status", "first", "--json", "--prices", "prices.yaml")

    assert answer.returncode == 0, answer.stderr
    status = json.loads(answer.stdout)
    assert (status["name"], status["state"], status["samples"], status["done"], status["failed"]) == (
        "first",
        "done",
        3,
        2,
        1,
    )
    assert [(row["domain"], row["done"], row["failed"]) for row in status["by_domain"]] == [("Natural", 2, 1)]
    assert [(row["dataset"], row["done"], row["in_flight"]) for row in status["by_shard"]] == [("set", 2, 0)]
    assert [row["prefix_hit_rate"] for row in status["by_model"]] == [status["tokens"]["prefix_hit_rate"]]
    assert [row["answers"] > 0 for row in status["by_stage"]] == [False, True, True, True, True]
    assert status["grades"]["accepted"] == status["grades"]["judged"] == 2
    tokens = status["tokens"]
    expected = (tokens["prompt_tokens"] * 10 + tokens["completion_tokens"] * 100) / 1e6
    assert status["cost"]["usd"] == pytest.approx(expected)
    assert status["cost"]["usd_per_100_samples"] == pytest.approx(50 * expected)
    (failure,) = status["failures"]
    assert (failure["kind"], failure["count"]) == ("media_missing", 1)


def test_the_line_to_type_tries_just_the_failed_samples_again(captioned: Cli) -> None:
    page = captioned.run("capflow-status", "set.plan.jsonl").stdout
    (line,) = (line for line in page.splitlines() if line.startswith("capflow retry "))
    (captioned.folder / "media" / "gone.png").write_bytes((captioned.folder / "media" / "0.png").read_bytes())

    retried = captioned.run("capflow-retry", *line.split()[2:])
    listed = captioned.run("capflow-status", "--json")

    assert retried.returncode == 0, retried.stderr
    (run,) = json.loads(listed.stdout)["runs"]
    assert (run["name"], run["done"], run["failed"]) == ("first", 3, 0)


def test_watching_prints_a_line_per_look_and_ends_at_ctrl_c(quick_cli: Cli, engine: Engine) -> None:
    runs = RunStore(engine)
    runs.add_shards(runs.open_run("later", "/plan.jsonl", "/out", tuple(Stage)), [a_shard(5)])

    watching = quick_cli.start("capflow-status", "later", "--watch", "--interval", 0.1)
    assert watching.stdout is not None
    lines = [watching.stdout.readline() for _ in range(2)]
    os.killpg(watching.pid, signal.SIGINT)
    _, errors = watching.communicate(timeout=60)

    assert [line.partition(",")[0] for line in lines] == ["later stopped: 0/5 samples"] * 2
    assert (watching.returncode, errors) == (0, "")
