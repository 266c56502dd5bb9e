"""A real worker is watched while it captions a plan: metrics, probes, and its log as JSON."""

from __future__ import annotations

import json
import subprocess
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import Engine
from sqlalchemy.engine import make_url

from capflow_tasks.records import JsonObject, Stage
from tests.conftest import Eventually
from tests.datasets import entries_with_pictures, read_lines, write_plan
from tests.e2e.conftest import Cli

pytestmark = pytest.mark.e2e

PASSWORD = "open-sesame"


@dataclass(frozen=True, slots=True)
class WatchedWorker:
    process: subprocess.Popen[str]
    log: Path

    @property
    def lines(self) -> list[JsonObject]:
        return read_lines(self.log) if self.log.exists() else []

    @property
    def url(self) -> str:
        ports = [line["port"] for line in self.lines if line.get("event") == "serving"]
        assert ports, "nothing is served yet"
        return f"http://127.0.0.1:{ports[0]}"

    def probe(self, path: str) -> tuple[int, JsonObject]:
        answer = httpx.get(self.url + path)
        return answer.status_code, answer.json()


def samples_of(text: str) -> dict[tuple[str, ...], float]:
    """Every sample by its name and the values of its labels, in alphabetical order of the labels."""
    families = text_string_to_metric_families(text)
    return {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in families
        for sample in family.samples
    }


@pytest.fixture
def fleet(quick_cli: Cli, broker_url: str) -> Cli:
    """A fleet's URLs; the database's carries a password, though this server asks for none."""
    url = make_url(quick_cli.environment["CAPFLOW_DATABASE_URL"]).set(password=PASSWORD)
    quick_cli.environment |= {
        "CAPFLOW_DATABASE_URL": url.render_as_string(hide_password=False),
        "CAPFLOW_BROKER_URL": broker_url,
        "CAPFLOW_METRICS_PORT": "0",
        "CAPFLOW_METRICS_HOST": "127.0.0.1",
        "CAPFLOW_LOG_FORMAT": "json",
    }
    return quick_cli


@pytest.fixture
def worker(fleet: Cli) -> Iterator[WatchedWorker]:
    log = fleet.folder / "worker.log"
    with fleet.start("celery", "-A", "capflow_tasks", "worker", "-Q", "gpu", "-f", log) as process:
        yield WatchedWorker(process, log)
        process.terminate()
        process.communicate(timeout=60)


def test_a_watched_worker_tells_what_it_does_and_not_what_it_says(
    fleet: Cli, worker: WatchedWorker, eventually: Eventually
) -> None:
    entries = [*entries_with_pictures(fleet.folder, 5), {"id": 5, "image": "gone.png"}]
    plan = write_plan(fleet.folder, entries)

    def is_ready() -> None:
        assert worker.probe("/readyz")[0] == 200

    eventually(is_ready, 60)
    run = fleet.run("capflow-produce", plan, "--output", "out", "--batch-size", 2, "--json")

    assert run.returncode == 1, run.stderr
    _assert_metrics_tell_the_plan(samples_of(httpx.get(worker.url + "/metrics").text))
    assert worker.probe("/healthz") == (200, {"loop_turns": True})
    assert set(worker.probe("/readyz")[1].values()) == {True}
    _assert_the_fleet_is_told(fleet.run("capflow-metrics", "--once").stdout, json.loads(run.stdout)["run"])

    _assert_a_line_per_stage(worker.lines, json.loads(run.stdout)["run"])
    text = worker.log.read_text()
    captions = [record["caption"] for record in read_lines(fleet.folder / "out" / "Rank0_node0_set.jsonl")]
    assert not [caption for caption in captions if caption in text]
    assert "said of" not in text
    assert PASSWORD not in text


def _assert_the_fleet_is_told(text: str, run: str) -> None:
    samples = samples_of(text)
    assert samples["capflow_database_up",] == samples["capflow_broker_up",] == 1
    assert samples["capflow_workers", "alive"] == 1
    assert samples["capflow_runs", "done"] == 1
    assert samples["capflow_run_samples", run, "done"] == 5
    assert samples["capflow_run_samples", run, "failed"] == 1
    assert samples["capflow_run_failed_samples", "media_missing", run] == 1
    assert samples["capflow_queue_messages", "9", "gpu"] == 0


def _assert_a_line_per_stage(lines: list[JsonObject], run: str) -> None:
    stages = [line for line in lines if line.get("event") == "stage"]
    assert Counter(line["stage"] for line in stages) == dict.fromkeys(Stage, 3)
    assert {line["run"] for line in stages} == {run}
    assert sum(line["finished"] for line in stages) == 5
    assert [line["failures"] for line in stages if line["failures"]] == [{"media_missing": 1}]
    for line in stages:
        assert line["prompt_tokens"] > line["cached_tokens"] == 0
        assert line["completion_tokens"] >= line["samples"] - sum(line["failures"].values())
        assert line["seconds"] > 0
        assert {line["shard"], line["batch"], line["samples"]} <= {1, 2, 3}


def _assert_metrics_tell_the_plan(samples: dict[tuple[str, ...], float]) -> None:
    assert samples["capflow_samples_finished_total",] == 5
    for stage in Stage:
        assert samples["capflow_samples_total", stage] == 5
        assert samples["capflow_stages_total", "done", stage] == 3
        assert samples["capflow_stage_duration_seconds_count", stage] == 3
        assert samples["capflow_prompt_tokens_total", stage] > 0
        assert samples["capflow_batches_in_flight", stage] == 0
        assert samples["capflow_requests_in_flight", stage] == 0
    states = {key[2]: value for key, value in samples.items() if key[0] == "capflow_engine_state"}
    assert states == {"up": 1, "dead": 0, "loading": 0}
    assert samples["capflow_lease_age_seconds",] < samples["capflow_lease_duration_seconds",]
    assert samples["capflow_consumer_loop_age_seconds",] < 60
    assert samples["capflow_consumer_connected",] == 1
    assert samples["capflow_draining",] == 0
    assert samples["capflow_last_message_timestamp_seconds",] > 0
    assert samples["capflow_resident_memory_bytes", "worker"] > 2**20


@pytest.fixture
def locked_url(engine: Engine) -> str:
    """The database by way of a role whose password is another one."""
    with engine.begin() as connection:
        connection.exec_driver_sql("DROP ROLE IF EXISTS locked")
        connection.exec_driver_sql("CREATE ROLE locked LOGIN PASSWORD 'another'")
        rules = Path(connection.exec_driver_sql("SHOW hba_file").scalar_one())
        if "locked" not in rules.read_text():
            asked = "local all locked scram-sha-256\nhost all locked all scram-sha-256\n"
            rules.write_text(asked + rules.read_text())
        connection.exec_driver_sql("SELECT pg_reload_conf()")
    url = engine.url.set(username="locked", password=PASSWORD)
    return url.render_as_string(hide_password=False)


@pytest.mark.parametrize("command", ["capflow-db upgrade -v", "celery -A capflow_tasks worker -l DEBUG"])
def test_a_wrong_password_is_told_and_not_repeated(fleet: Cli, locked_url: str, command: str) -> None:
    fleet.environment["CAPFLOW_DATABASE_URL"] = locked_url

    answer = fleet.run(*command.split())

    assert answer.returncode != 0
    assert "password authentication failed" in answer.stderr
    assert PASSWORD not in answer.stdout + answer.stderr
