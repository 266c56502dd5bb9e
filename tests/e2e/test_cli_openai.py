"""The real command and worker with a real vLLM server, behind a proxy that misbehaves."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
import vllm
from sqlalchemy import Engine, select

from capflow_tasks.store.tables import AgentResult, Batch, Sample
from tests.checkpoints import NOISE_RULES
from tests.datasets import entries_with_pictures, film_video, read_lines, write_plan
from tests.e2e.conftest import Cli
from tests.e2e.servers import KEY, SERVED, Fault, Proxy, VllmServer

pytestmark = pytest.mark.e2e


@pytest.fixture
def proxy(vllm_server: VllmServer) -> Iterator[Proxy]:
    with Proxy(vllm_server.port).serving() as proxy:
        yield proxy


@pytest.fixture
def server_cli(quick_cli: Cli, proxy: Proxy) -> Cli:
    quick_cli.environment |= {
        "CAPFLOW_ENGINE": "openai",
        "CAPFLOW_MODEL": SERVED,
        "CAPFLOW_OPENAI_BASE_URL": proxy.url,
        "CAPFLOW_OPENAI_API_KEY": KEY,
        "CAPFLOW_MAX_ANSWER_TOKENS": "24",
        "CAPFLOW_GUARD_OFF": NOISE_RULES,
        "CAPFLOW_RETRY_SECONDS": "0.2",
        "CAPFLOW_LOG_LEVEL": "DEBUG",
    }
    return quick_cli


def test_pictures_and_a_video_are_captioned_through_a_server_with_faults(
    server_cli: Cli, proxy: Proxy, engine: Engine
) -> None:
    entries = entries_with_pictures(server_cli.folder, 3)
    film_video(server_cli.folder / "media" / "clip.mp4")
    plan = write_plan(server_cli.folder, [*entries, {"id": 3, "video": "clip.mp4"}])
    proxy.faults.extend([Fault(429, retry_after="1"), Fault(503), Fault(breaks=True), Fault(seconds=1)])

    answer = server_cli.run("capflow", "caption", plan, "--output", "out")

    assert answer.returncode == 0, answer.stderr + server_cli.worker_log[-4000:]
    records = read_lines(server_cli.folder / "out" / "Rank0_node0_set.jsonl")
    assert [record["id"] for record in records] == [0, 1, 2, 3]
    for record in records:
        assert record["caption"]
        assert {record["overall"], *record["scores"].values()} <= {1, 2, 3}
        assert record["model"] == SERVED
        assert (record["revision"], record["engine"]) == (None, f"vllm {vllm.__version__}")
        assert record["sampling"]["max_tokens"] > 0
    assert all(0 < record["confidence"] <= 1 for record in records[:3])
    with engine.connect() as connection:
        results = connection.execute(select(AgentResult)).all()
    assert all(row.prompt_tokens > 100 and row.completion_tokens > 0 and row.seconds > 0 for row in results)
    assert all(row.cached_tokens > 0 for row in results if row.stage == "score")
    assert KEY not in answer.stderr + server_cli.worker_log
    assert "data:image" not in server_cli.worker_log


def test_a_server_that_stays_away_ends_the_run_blameless_and_the_same_command_goes_on(
    server_cli: Cli, proxy: Proxy, engine: Engine
) -> None:
    plan = write_plan(server_cli.folder, entries_with_pictures(server_cli.folder, 2))
    server_cli.environment["CAPFLOW_REQUEST_TIMEOUT_SECONDS"] = "3"
    proxy.poison = ("messages", Fault(502, message=f"nobody home for {KEY}"))

    away = server_cli.run("capflow", "caption", plan, "--output", "out")

    assert away.returncode == 3, away.stderr + server_cli.worker_log[-4000:]
    assert f"{proxy.url}, cannot be used: it has taken no request" in away.stderr
    assert "502: nobody home for ***" in away.stderr
    assert KEY not in away.stderr + server_cli.worker_log
    with engine.connect() as connection:
        assert set(connection.execute(select(Batch.tries)).scalars()) == {0}
        assert set(connection.execute(select(Sample.attempts)).scalars()) == {0}

    proxy.poison = None
    server_cli.environment["CAPFLOW_REQUEST_TIMEOUT_SECONDS"] = "60"
    again = server_cli.run("capflow", "caption", plan, "--output", "out")
    assert again.returncode == 0, again.stderr + server_cli.worker_log[-4000:]


def test_a_server_judges_what_another_engine_has_captioned(server_cli: Cli, engine: Engine) -> None:
    plan = write_plan(server_cli.folder, entries_with_pictures(server_cli.folder, 2))
    server_cli.environment |= {
        "CAPFLOW_ENGINE": "capflow_tasks.testing:build",
        "CAPFLOW_MODEL": "captioner",
        "CAPFLOW_STAGE_QUEUES": json.dumps({"score": "judge"}),
        "CAPFLOW_QUEUE_ENGINES": json.dumps({"judge": "openai"}),
        "CAPFLOW_QUEUE_MODELS": json.dumps({"judge": SERVED}),
    }

    answer = server_cli.run("capflow", "caption", plan, "--output", "out")

    assert answer.returncode == 0, answer.stderr + server_cli.worker_log[-4000:]
    with engine.connect() as connection:
        rows = connection.execute(select(AgentResult.stage, AgentResult.model)).all()
    assert {row.model for row in rows if row.stage == "score"} == {SERVED}
    assert {row.model for row in rows if row.stage != "score"} == {"scripted"}


def test_the_doctor_asks_the_server_for_the_model(server_cli: Cli) -> None:
    server_cli.environment["CAPFLOW_MODEL"] = "other"
    refused = json.loads(server_cli.run("capflow", "doctor", "--json").stdout)

    (finding,) = (each for each in refused["findings"] if each["check"] == "model")
    assert finding["level"] == "fail"
    assert f"set CAPFLOW_MODEL to one of: {SERVED}" in finding["said"]


@pytest.mark.parametrize(
    ("removed", "said"),
    [("CAPFLOW_OPENAI_BASE_URL", "needs CAPFLOW_OPENAI_BASE_URL"), ("CAPFLOW_OPENAI_API_KEY", "401")],
)
def test_a_missing_address_or_key_is_named(server_cli: Cli, removed: str, said: str) -> None:
    plan = write_plan(server_cli.folder, entries_with_pictures(server_cli.folder, 1))
    del server_cli.environment[removed]

    answer = server_cli.run("capflow", "caption", plan)

    assert answer.returncode in (2, 3)
    assert said in answer.stderr
