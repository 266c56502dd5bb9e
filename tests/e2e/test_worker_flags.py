"""Flags of `celery worker` that Capflow's workers have no use for."""

from __future__ import annotations

import pytest

from tests.e2e.conftest import Cli

pytestmark = pytest.mark.e2e


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--autoscale", "4,1"], "CAPFLOW_CONCURRENCY"),
        (["-c", "2"], "--concurrency has no use here: set CAPFLOW_CONCURRENCY"),
        (["-P", "solo"], "--pool has no use here"),
        (["--max-tasks-per-child", "5"], "CAPFLOW_MAX_RSS_MIB"),
        (["--max-memory-per-child", "5"], "CAPFLOW_MAX_RSS_MIB"),
        (["--time-limit", "5"], "CAPFLOW_REQUEST_TIMEOUT_SECONDS"),
        (["--soft-time-limit", "5"], "CAPFLOW_REQUEST_TIMEOUT_SECONDS"),
    ],
)
def test_a_flag_that_a_worker_cannot_honour_is_refused_in_one_sentence(
    cli: Cli, flags: list[str], named: str
) -> None:
    answer = cli.run("celery", "-A", "capflow_tasks", "worker", "-Q", "gpu", *flags)

    assert answer.returncode == 2, answer.stderr
    (sentence,) = (line for line in answer.stderr.splitlines() if line.startswith("capflow worker: error: "))
    assert named in sentence
    assert "Traceback" not in answer.stderr
