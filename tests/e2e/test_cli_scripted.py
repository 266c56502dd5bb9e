"""The real commands, worker, PostgreSQL and Redis; only the model is scripted."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from sqlalchemy import Engine, select

from capflow_tasks.records import Stage
from capflow_tasks.store.runs import RunStore
from capflow_tasks.store.states import BatchState
from capflow_tasks.store.statistics import Statistics
from capflow_tasks.store.tables import Batch
from tests.conftest import Eventually
from tests.datasets import entries_with_pictures, read_lines, write_plan
from tests.e2e import engines
from tests.e2e.conftest import Cli

pytestmark = pytest.mark.e2e

CAPTIONS = "Rank0_node0_set.jsonl"
FAILED = "Rank0_node0_set.failed.jsonl"
FILLED_KEYS = [
    *("task", "confidence", "caption", "reports", "scores", "overall", "errors", "expected_scores"),
    *("model", "revision", "engine", "sampling", "workflow", "finish_reason", "guard"),
]


def one_sentence(answer: subprocess.CompletedProcess[str]) -> str:
    """What a command says when it gives up: one line, no traceback; lines of progress may precede it."""
    (line,) = (line for line in answer.stderr.splitlines() if not re.match(r"\d+/\d+ samples", line))
    assert line.startswith("capflow-produce: error: ")
    return line


def record_requests(cli: Cli) -> Path:
    cli.environment |= {
        "CAPFLOW_ENGINE": "tests.e2e.engines:build",
        engines.REQUESTS: str(cli.folder / "requests"),
    }
    return cli.folder / "requests"


def hold_judges(cli: Cli) -> Path:
    """A file whose appearance lets the judges speak."""
    cli.environment[engines.JUDGES_MAY_SPEAK] = str(cli.folder / "speak")
    return cli.folder / "speak"


def requests_by_name(path: Path) -> Counter[str]:
    return Counter(path.read_text().splitlines()) if path.exists() else Counter()


def test_a_machine_with_several_gpus_gets_as_many_workers_as_fit(cli: Cli, eventually: Eventually) -> None:
    cards = "".join(f"{i}, GPU-{i}, NVIDIA A800, 81920, 4, 580.1\\n" for i in range(5))
    script = cli.folder / "nvidia-smi"
    script.write_text(f"#!/bin/sh\nprintf '{cards}'\n")
    script.chmod(0o755)
    cli.environment |= {
        "PATH": f"{cli.folder}:{os.environ['PATH']}",
        "CUDA_VISIBLE_DEVICES": "0,1,2,3,4",
        "CAPFLOW_TENSOR_PARALLEL_SIZE": "2",
    }
    plan = write_plan(cli.folder, entries_with_pictures(cli.folder, 2))
    record_requests(cli)
    speak = hold_judges(cli)

    producer = cli.start("capflow", "caption", plan, "--output", "out")
    eventually(lambda: _assert_gpus_held(cli, {"0,1", "2,3"}))
    speak.touch()
    _, said = producer.communicate(timeout=120)

    assert producer.returncode == 0, said
    assert "5 GPUs found: starting 2 workers with 2 GPUs each; GPUs left over: 1" in said
    assert len(read_lines(cli.folder / "out" / CAPTIONS)) == 2
    eventually(lambda: _assert_nothing_runs(cli))


def _assert_gpus_held(cli: Cli, expected: set[str]) -> None:
    held = set()
    for process in cli.processes():
        with suppress(psutil.NoSuchProcess):  # it may end before it is asked
            held.add(process.environ().get("CUDA_VISIBLE_DEVICES", ""))
    assert held - {"0,1,2,3,4"} == expected


def test_a_plan_becomes_caption_files_and_is_not_worked_on_twice(cli: Cli, eventually: Eventually) -> None:
    entries = entries_with_pictures(cli.folder, 4)
    entries[1] |= {
        "task": "chart & math",
        "conversations": [{"from": "human", "value": "<image>\nWhat is it?"}],
    }
    entries[2]["source"] = {"licence": "CC0", "größe": [64, 48]}
    shutil.copy(cli.folder / "media" / "3.png", cli.folder / "media" / "clip.mp4")
    entries[3] = {"id": 3, "video": "clip.mp4"}
    plan = write_plan(cli.folder, entries)

    first = cli.run("capflow-produce", plan, "--output", "out", "--batch-size", 2, "--json")

    assert first.returncode == 0, first.stderr
    assert json.loads(first.stdout) | {"seconds": 0} == {
        "run": json.loads(first.stdout)["run"],
        "complete": True,
        "pause": None,
        "problems": [],
        "done": 4,
        "failed": 0,
        "held": 0,
        "skipped": 0,
        "seconds": 0,
        "domains": json.loads(first.stdout)["domains"],
        "confidences": [0] * 9 + [2],
        "files": [{"path": str(cli.folder / "out" / CAPTIONS), "samples": 4}],
    }
    assert [path.name for path in (cli.folder / "out").glob("[!.]*")] == [CAPTIONS]
    records = read_lines(cli.folder / "out" / CAPTIONS)
    assert [record["id"] for record in records] == [0, 1, 2, 3]
    assert list(records[0]) == ["id", "image", *FILLED_KEYS, "conversations"]
    assert list(records[2])[:3] == ["id", "image", "source"]
    assert records[2]["source"] == entries[2]["source"]
    assert [record["task"] for record in records[1::2]] == ["Structure & Math", "Video & Temporal"]
    assert [record["confidence"] for record in records] == [0.9, None, 0.9, None]
    assert set(records[0]["scores"]) == {
        "factual_accuracy",
        "information_completeness",
        "reasoning_rigor",
        "core_intent_capture",
        "professionalism",
    }
    assert set(records[3]["scores"]) == {
        "temporal_factual_accuracy",
        "event_detail_coverage",
        "temporal_causal_logic",
        "core_intent_capture",
        "professionalism",
    }
    for record in records:
        assert {record["overall"], *record["scores"].values()} <= {1, 2, 3}
        assert record["conversations"][-1] == {"from": "gpt", "value": record["caption"]}
    assert records[1]["source_conversations"] == entries[1]["conversations"]
    eventually(lambda: _assert_nothing_runs(cli))

    log = cli.worker_log
    again = cli.run("capflow-produce", plan, "--output", "again")

    assert again.returncode == 0, again.stderr
    assert cli.worker_log == log
    assert (cli.folder / "again" / CAPTIONS).read_bytes() == (cli.folder / "out" / CAPTIONS).read_bytes()
    eventually(lambda: _assert_nothing_runs(cli))


def test_a_run_of_more_batches_than_its_window_is_finished(quick_cli: Cli) -> None:
    plan = write_plan(quick_cli.folder, entries_with_pictures(quick_cli.folder, 6))

    run = quick_cli.run("capflow", "caption", plan, "-o", "out", "--batch-size", 1, "--window", 2, "--json")

    assert run.returncode == 0, run.stderr
    assert json.loads(run.stdout)["done"] == 6


def test_entries_without_media_are_passed_over_where_that_is_asked_for(quick_cli: Cli) -> None:
    entries = [*entries_with_pictures(quick_cli.folder, 2), {"id": 2, "conversations": []}]
    plan = write_plan(quick_cli.folder, entries)

    failed = quick_cli.run("capflow", "caption", plan, "-o", "out")
    skipped = quick_cli.run("capflow", "caption", plan, "-o", "out", "--skip-text-only", "--json")
    shown = quick_cli.run("capflow", "retry", plan)

    assert failed.returncode == 1, failed.stderr
    assert "--skip-text-only" in read_lines(quick_cli.folder / "out" / FAILED)[0]["error"]["message"]
    assert skipped.returncode == 0, skipped.stderr
    summary = json.loads(skipped.stdout)
    assert (summary["done"], summary["failed"], summary["skipped"]) == (2, 1, 1)
    assert shown.returncode == 0, shown.stderr
    assert "1 entry is text only and skipped; the .failed.jsonl files list them" in shown.stdout
    assert [record["error"]["kind"] for record in read_lines(quick_cli.folder / "out" / FAILED)] == [
        "text_only"
    ]


def test_failed_samples_are_listed_with_their_reasons_and_the_others_are_captioned(quick_cli: Cli) -> None:
    entries: list[Any] = entries_with_pictures(quick_cli.folder, 3)
    entries += [
        {"id": 3},
        {"id": 4, "image": "gone.png"},
        {"id": 5, "image": "../../etc/passwd"},
        "no object",
    ]
    plan = write_plan(quick_cli.folder, entries)

    answer = quick_cli.run("capflow-produce", plan, "--output", "out")

    assert answer.returncode == 1, answer.stderr
    assert [record["id"] for record in read_lines(quick_cli.folder / "out" / CAPTIONS)] == [0, 1, 2]
    failed = read_lines(quick_cli.folder / "out" / FAILED)
    kinds = [record["error"]["kind"] for record in failed]
    assert kinds == ["text_only", "media_missing", "media_outside_root", "bad_entry"]
    for kind in kinds:
        assert kind in answer.stdout
    assert "Traceback" not in answer.stderr


def test_an_annotation_file_that_breaks_off_costs_only_what_it_does_not_hold(quick_cli: Cli) -> None:
    plan = write_plan(quick_cli.folder, entries_with_pictures(quick_cli.folder, 3), end_idx=5)

    answer = quick_cli.run("capflow-produce", plan, "--output", "out")

    assert answer.returncode == 2
    assert 'has 3 entries, but the plan takes 0 up to 5; set "end_idx" to 3' in answer.stderr
    assert len(read_lines(quick_cli.folder / "out" / CAPTIONS)) == 3
    assert "Traceback" not in answer.stderr


def test_every_bad_plan_line_is_named_before_anything_starts(cli: Cli) -> None:
    plan = write_plan(cli.folder, entries_with_pictures(cli.folder, 2))
    good = json.loads(plan.read_text())
    lines = [
        "{no json}",
        json.dumps({key: value for key, value in good.items() if key != "root"}),
        json.dumps(good | {"start_idx": 2, "end_idx": 1}),
        json.dumps(good | {"json_url": "gone.json"}),
    ]
    plan.write_text("\n".join([*lines, plan.read_text()]))

    answer = cli.run("capflow-produce", plan)

    assert answer.returncode == 2
    errors = answer.stderr.splitlines()
    assert [line.partition(": ")[0] for line in errors] == ["capflow-produce"] * 4
    assert [f"{plan.name}:{number}:" in line for number, line in enumerate(errors, start=1)] == [True] * 4
    for reason, line in zip(["JSON", '"root"', "before", "gone.json"], errors, strict=True):
        assert reason in line
    assert not cli.home.exists()


def test_a_dry_run_counts_and_starts_nothing(cli: Cli) -> None:
    plan = write_plan(cli.folder, entries_with_pictures(cli.folder, 2))

    answer = cli.run("capflow-produce", plan, "--dry-run")

    assert answer.returncode == 0
    assert "1 shard, 2 samples" in answer.stdout
    assert not cli.home.exists()


def test_a_dry_run_tells_of_samples_with_too_many_pictures(cli: Cli) -> None:
    entries = entries_with_pictures(cli.folder, 6)
    several = {"id": 9, "images": [entry["image"] for entry in entries]}
    plan = write_plan(cli.folder, [*entries, several])

    refused = cli.run("capflow-produce", plan, "--dry-run")
    assert refused.returncode == 2
    assert "1 sample has more than 4 pictures and would fail; set CAPFLOW_MAX_IMAGES=6" in refused.stderr

    cli.environment |= {"CAPFLOW_MAX_IMAGES": "6"}
    assert cli.run("capflow-produce", plan, "--dry-run").returncode == 0


@pytest.mark.parametrize(
    ("variable", "value", "code", "named"),
    [
        ("CAPFLOW_DATABASE_URL", "postgresql://nobody:secret@127.0.0.1:1/capflow", 3, "CAPFLOW_DATABASE_URL"),
        ("CAPFLOW_DATABASE_URL", "mysql://127.0.0.1/capflow", 2, "CAPFLOW_DATABASE_URL"),
        ("CAPFLOW_DATABASE_URL", "postgresql://nobody:secret@host:port/capflow", 2, "CAPFLOW_DATABASE_URL"),
        ("CAPFLOW_BROKER_URL", "carrier-pigeon://loft", 2, "CAPFLOW_BROKER_URL"),
        ("CAPFLOW_MAX_NUM_SEQS", "none", 2, "CAPFLOW_MAX_NUM_SEQS"),
        ("CAPFLOW_ENGINE_ARGS", "{", 2, "CAPFLOW_ENGINE_ARGS"),
        ("CAPFLOW_DOMAINS", "gone", 2, "gone"),
    ],
)
def test_a_setting_that_is_no_use_is_one_sentence(
    cli: Cli, variable: str, value: str, code: int, named: str
) -> None:
    plan = write_plan(cli.folder, entries_with_pictures(cli.folder, 1))
    cli.environment[variable] = value

    answer = cli.run("capflow-produce", plan)

    assert answer.returncode == code, answer.stderr
    assert named in one_sentence(answer)
    assert "secret" not in answer.stderr


@pytest.mark.parametrize("broker", ["redis://127.0.0.1:1/0", "redis+socket:///tmp/no-such-socket"])
def test_an_unreachable_broker_is_one_sentence(quick_cli: Cli, broker: str) -> None:
    plan = write_plan(quick_cli.folder, entries_with_pictures(quick_cli.folder, 1))
    quick_cli.environment["CAPFLOW_BROKER_URL"] = broker

    answer = quick_cli.run("capflow-produce", plan)

    assert answer.returncode == 3, answer.stderr
    assert "CAPFLOW_BROKER_URL" in one_sentence(answer)


def test_a_database_that_refuses_is_one_sentence(cli: Cli, postgres_url: str) -> None:
    plan = write_plan(cli.folder, entries_with_pictures(cli.folder, 1))
    cli.environment["CAPFLOW_DATABASE_URL"] = postgres_url.replace("/postgres?", "/gone?")

    answer = cli.run("capflow-produce", plan)

    assert answer.returncode == 3, answer.stderr
    assert 'database "gone" does not exist' in one_sentence(answer)


def test_a_traceback_is_for_those_who_ask(cli: Cli) -> None:
    plan = write_plan(cli.folder, entries_with_pictures(cli.folder, 1), end_idx=-1)

    assert "Traceback" not in cli.run("capflow-produce", plan).stderr
    assert "Traceback" in cli.run("capflow-produce", "-v", plan).stderr


def test_a_wrong_model_name_is_one_sentence(quick_cli: Cli, eventually: Eventually) -> None:
    plan = write_plan(quick_cli.folder, entries_with_pictures(quick_cli.folder, 1))
    quick_cli.environment |= {
        "CAPFLOW_ENGINE": "vllm",
        "CAPFLOW_MODEL": str(quick_cli.folder / "no-such-model"),
        "HF_HUB_OFFLINE": "1",
    }

    answer = quick_cli.run("capflow-produce", plan)

    assert answer.returncode == 3, answer.stderr
    assert "no-such-model" in one_sentence(answer)
    assert "CAPFLOW_MODEL" in one_sentence(answer)
    eventually(lambda: _assert_nothing_runs(quick_cli))


def test_ctrl_c_finishes_what_runs_and_the_next_run_goes_on(quick_cli: Cli, eventually: Eventually) -> None:
    entries = entries_with_pictures(quick_cli.folder, 6)
    plan = write_plan(quick_cli.folder, entries)
    requests, gate = record_requests(quick_cli), hold_judges(quick_cli)
    options = ["--output", "out", "--batch-size", 2, "--window", 2]

    with quick_cli.start("capflow-produce", plan, *options) as process:
        eventually(lambda: _assert_judges_wait(requests), 60)
        os.killpg(process.pid, signal.SIGINT)
        gate.touch()
        _, errors = process.communicate(timeout=60)

    assert process.returncode == 130, errors
    assert "goes on from here" in errors
    assert "Traceback" not in errors
    eventually(lambda: _assert_nothing_runs(quick_cli))
    assert not list((quick_cli.folder / "out").glob("Rank*"))

    answer = quick_cli.run("capflow-produce", plan, *options)

    assert answer.returncode == 0, answer.stderr
    assert [record["id"] for record in read_lines(quick_cli.folder / "out" / CAPTIONS)] == list(range(6))
    assert set(requests_by_name(requests).values()) == {1}


def test_a_stopped_run_ends_its_producer_and_the_same_command_goes_on(
    quick_cli: Cli, engine: Engine, eventually: Eventually
) -> None:
    plan = write_plan(quick_cli.folder, entries_with_pictures(quick_cli.folder, 6))
    requests, gate = record_requests(quick_cli), hold_judges(quick_cli)
    options = ["--run", "halted", "--output", "out", "--batch-size", 2, "--window", 2]

    with quick_cli.start("capflow-produce", plan, *options) as process:
        eventually(lambda: _assert_judges_wait(requests), 60)
        eventually(lambda: _assert_scores_are_claimed(engine), 60)
        (run,) = Statistics(engine).runs("halted")
        RunStore(engine).stop(run.id)
        gate.touch()
        _, errors = process.communicate(timeout=60)

    assert process.returncode == 130, errors
    assert "run halted was stopped; the same command goes on from here" in errors
    answer = quick_cli.run("capflow-produce", plan, *options)

    assert answer.returncode == 0, answer.stderr
    assert len(read_lines(quick_cli.folder / "out" / CAPTIONS)) == 6
    assert set(requests_by_name(requests).values()) == {1}


def test_a_producer_killed_hard_loses_and_repeats_nothing_that_was_finished(
    cli: Cli, eventually: Eventually
) -> None:
    entries = entries_with_pictures(cli.folder, 6)
    plan = write_plan(cli.folder, entries)
    requests, gate = record_requests(cli), hold_judges(cli)
    cli.environment["CAPFLOW_LEASE_SECONDS"] = "2"
    options = ["--output", "out", "--batch-size", 2, "--window", 2]

    with cli.start("capflow-produce", plan, *options) as process:
        eventually(lambda: _assert_judges_wait(requests), 60)
        eventually(lambda: _assert_captions_are_written(cli))
        process.kill()
        process.communicate(timeout=60)
    gate.touch()
    answer = cli.run("capflow-produce", plan, *options)

    assert answer.returncode == 0, answer.stderr
    assert [record["id"] for record in read_lines(cli.folder / "out" / CAPTIONS)] == list(range(6))
    repeated = {name for name, times in requests_by_name(requests).items() if times > 1}
    assert all(name.startswith("score ") for name in repeated)
    eventually(lambda: _assert_nothing_runs(cli), 30)


def test_workers_of_others_are_used_when_urls_are_set(
    quick_cli: Cli, broker_url: str, eventually: Eventually
) -> None:
    plan = write_plan(quick_cli.folder, entries_with_pictures(quick_cli.folder, 5))
    quick_cli.environment["CAPFLOW_BROKER_URL"] = broker_url

    with quick_cli.start("celery", "-A", "capflow_tasks", "worker", "-Q", "gpu") as worker:
        answer = quick_cli.run("capflow-produce", plan, "--output", "out", "--batch-size", 2)
        worker.terminate()
        output, errors = worker.communicate(timeout=60)

    assert answer.returncode == 0, answer.stderr
    assert len(read_lines(quick_cli.folder / "out" / CAPTIONS)) == 5
    assert worker.returncode == 0, output + errors
    assert not quick_cli.worker_log
    eventually(lambda: _assert_nothing_runs(quick_cli))


@pytest.mark.parametrize(("cache", "has_room"), [("small", False), ("large", True)])
def test_a_worker_takes_as_many_samples_as_the_engines_cache_holds(
    quick_cli: Cli, cache: str, has_room: bool
) -> None:
    plan = write_plan(quick_cli.folder, entries_with_pictures(quick_cli.folder, 48))
    requests = record_requests(quick_cli)
    quick_cli.environment |= {
        "CAPFLOW_ENGINE": f"tests.e2e.engines:build_{cache}_cache",
        "CAPFLOW_CONCURRENCY": "4",
    }

    answer = quick_cli.run("capflow-produce", plan, "--output", "out", "--batch-size", 4)

    assert answer.returncode == 0, answer.stderr
    at_a_time = [int(line) for line in requests.read_text().splitlines()]
    # What was taken before the first sample told what it costs runs to its end beside others.
    learnt = at_a_time[len(at_a_time) // 2 :]
    assert (max(learnt) > 10) is has_room


def _assert_judges_wait(requests: Path) -> None:
    """Two batches of two have come to the stage that is held up."""
    assert sum(name.startswith("score ") for name in requests_by_name(requests)) == 4


def _assert_scores_are_claimed(engine: Engine) -> None:
    """What was asked ahead is written, up to the stage that is held up."""
    states = select(Batch.next_stage, Batch.state).where(
        Batch.state.in_([BatchState.QUEUED, BatchState.RUNNING])
    )
    with engine.connect() as connection:
        assert {tuple(row) for row in connection.execute(states)} == {(Stage.SCORE, BatchState.RUNNING)}


def _assert_captions_are_written(cli: Cli) -> None:
    assert cli.worker_log.count(" summarize: 2 samples") == 2


def _assert_nothing_runs(cli: Cli) -> None:
    assert cli.processes() == []
