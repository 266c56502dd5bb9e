"""`capflow stop`, `capflow delete` and `capflow retry` on runs in a real database."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from sqlalchemy import Engine

from capflow_tasks.records import Stage
from capflow_tasks.settings import read_settings
from producer.cli.__main__ import capflow
from tests.stores import Fleet, some_entries

pytestmark = pytest.mark.integration

Run = Callable[..., Result]


@pytest.fixture
def run(database_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Run]:
    """Run `capflow` with these arguments on the database of this test."""
    monkeypatch.setenv("CAPFLOW_DATABASE_URL", database_url)
    read_settings.cache_clear()
    yield lambda *arguments, **options: CliRunner().invoke(capflow, arguments, prog_name="capflow", **options)
    read_settings.cache_clear()


@pytest.fixture
def fleet(engine: Engine) -> Fleet:
    """A run of three batches: one runs, and two are queued."""
    fleet = Fleet(engine, some_entries(12))
    fleet.publish()
    fleet.claim(Stage.ROUTE)
    return fleet


def test_stopping_takes_back_what_is_queued_and_says_how_to_go_on(run: Run, fleet: Fleet) -> None:
    by_plan = run("stop", "/plan.jsonl")
    by_name = run("stop", "run", "--json")

    assert by_plan.stdout == (
        "run run: 2 queued batches were taken back; 1 running stage will finish and be kept. "
        "`capflow caption /plan.jsonl --run run` goes on from here.\n"
    ), by_plan.output
    assert by_name.stdout == '{"run": "run", "taken_back": 0, "running": 1}\n'
    assert fleet.runs.is_stopped(fleet.run_id)


def test_a_run_that_has_finished_is_not_stopped(run: Run, engine: Engine) -> None:
    fleet = Fleet(engine, some_entries(1), domain="Natural")
    fleet.finish_all()

    assert run("stop", "run").stdout == "run run has finished; there is nothing to stop\n"
    assert not fleet.runs.is_stopped(fleet.run_id)


def test_a_run_is_deleted_when_nothing_of_it_runs_and_the_answer_is_yes(run: Run, fleet: Fleet) -> None:
    running = run("delete", "run", "--yes")
    fleet.let_leases_run_out()
    run("stop", "run")
    refused = run("delete", "run", input="n\n")
    rows_before = fleet.count("samples")
    deleted = run("delete", "/plan.jsonl", input="y\n")

    assert running.exit_code == 2
    assert "workers run 1 batch of it; run `capflow stop run`" in running.stderr
    assert (refused.exit_code, rows_before) == (1, 12)
    assert deleted.exit_code == 0
    assert "1 shard, 12 samples, 0 captioned" in deleted.stdout
    assert [fleet.count(table) for table in ("runs", "shards", "batches", "samples")] == [0] * 4


@pytest.mark.parametrize("command", ["stop", "delete", "retry", "status", "report", "export"])
def test_every_command_about_a_run_names_the_runs_there_are(run: Run, fleet: Fleet, command: str) -> None:
    answer = run(command, "no-such-run")

    assert answer.exit_code == 2
    assert f"capflow {command}: error: no-such-run: " in answer.stderr
    assert answer.stderr.rstrip().endswith(" run")


def test_a_retry_reads_the_plan_of_the_run_it_names(run: Run, fleet: Fleet, tmp_path: Path) -> None:
    answer = run("retry", "run")

    assert answer.exit_code == 2
    assert "/plan.jsonl" in answer.stderr
