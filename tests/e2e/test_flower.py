"""Flower beside a real worker: what an operator sees of a run."""

from __future__ import annotations

import re
import socket
from typing import Any

import httpx
import pytest
from selenium import webdriver

from capflow_tasks.records import Stage
from deploy.browser import emulate_screen
from tests.conftest import Eventually
from tests.datasets import entries_with_pictures, write_plan
from tests.e2e.conftest import Cli

pytestmark = pytest.mark.e2e


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_flower_tells_stage_samples_domains_tokens_and_worker(
    quick_cli: Cli, broker_url: str, browser: webdriver.Chrome, eventually: Eventually
) -> None:
    plan = write_plan(quick_cli.folder, entries_with_pictures(quick_cli.folder, 4))
    quick_cli.environment |= {"CAPFLOW_BROKER_URL": broker_url, "FLOWER_UNAUTHENTICATED_API": "true"}
    address = f"http://127.0.0.1:{free_port()}"
    flower = ("-A", "capflow_tasks", "flower", f"--port={address.rpartition(':')[2]}")
    worker = ("-A", "capflow_tasks", "worker", "-Q", "gpu", "-n", "gpu0@%h")

    def tasks() -> list[dict[str, Any]]:
        return list(httpx.get(f"{address}/api/tasks").json().values())

    def assert_flower_answers() -> None:
        try:
            assert httpx.get(f"{address}/api/tasks").is_success
        except httpx.TransportError as error:
            raise AssertionError from error

    def assert_all_stages_succeeded() -> None:
        states = [(task["name"], task["state"]) for task in tasks()]
        assert sorted(states) == sorted((f"capflow.{stage}", "SUCCESS") for stage in Stage for _ in "12")

    with quick_cli.start("celery", *flower) as dashboard, quick_cli.start("celery", *worker) as gpu:
        try:
            eventually(assert_flower_answers, 60)
            answer = quick_cli.run("capflow-produce", plan, "--output", "out", "--batch-size", 2)
            assert answer.returncode == 0, answer.stderr
            eventually(assert_all_stages_succeeded, 30)

            route = next(
                task for task in tasks() if task["name"] == "capflow.route" and "[0-1]" in task["args"]
            )
            assert route["args"] == "set[0-1]"
            assert route["kwargs"].startswith("run set.plan-")
            assert ", batch " in route["kwargs"]
            assert route["worker"] == f"gpu0@{socket.gethostname()}"
            assert re.fullmatch(r"'2 done; Code & Programming 2; \d+ \+ 2 tokens, 0 cached'", route["result"])

            emulate_screen(browser, 1500, 900)
            browser.get(f"{address}/tasks")
            eventually(lambda: _assert_shows(browser, "#tasks-table", "set[2-3]", "capflow.score", "SUCCESS"))
            browser.get(f"{address}/workers")
            eventually(lambda: _assert_shows(browser, "#workers-table", f"gpu0@{socket.gethostname()}"))
        finally:
            for process in (dashboard, gpu):
                process.terminate()
                process.communicate(timeout=60)


def _assert_shows(browser: webdriver.Chrome, table: str, *texts: str) -> None:
    script = "return document.querySelector(arguments[0])?.textContent ?? ''"
    shown = browser.execute_script(script, table)
    assert [text for text in texts if text not in shown] == []
