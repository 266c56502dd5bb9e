"""What a producer shows of its progress."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

import pytest

from capflow_tasks.records import Stage
from capflow_tasks.store.figures import Activity, StageFigures, Throughput, Tokens, WorkerFigures
from capflow_tasks.store.states import BatchState, Tally
from producer import console
from producer.console import progress

RUNNING = {Stage.ROUTE: 8, Stage.REASON: 16}
WORKER = WorkerFigures("celery@a/1", "celery@a", datetime.now(UTC), 0.5, is_alive=True, running_batches=1)


@dataclass
class Fleet:
    """Says what the fleet does, and counts how often it is asked."""

    asked: int = 0

    def __call__(self) -> Activity:
        self.asked += 1
        stages = [
            StageFigures(stage, dict.fromkeys(BatchState, 0) | {BatchState.RUNNING: RUNNING.get(stage, 0)})
            for stage in Stage
        ]
        return Activity(stages, Throughput(10, 20, Tokens(40_000, 30_000, 3000)), [WORKER] * 4)


def test_a_line_shows_throughput_eta_stages_tokens_and_workers(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(console, "_LINE_SECONDS", 0)
    with progress(1000, Fleet()) as shown:
        shown.show(Tally(), False)
        shown.show(Tally(done=95, failed=5), True)

    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.splitlines() == [
        "0/1000 samples, 0 failed, waiting for a worker (the first one loads its model)",
        "100/1000 samples, 5 failed, 2.0 samples/s, ETA 7 min 30 s; 8 in route, 16 in reason; 4.3k tokens/s, "
        "75.0% of prompts cached; 4 workers",
    ]


def test_the_fleet_is_asked_when_work_begins_and_ends_and_seldom_between(
    capsys: pytest.CaptureFixture[str],
) -> None:
    fleet = Fleet()
    with progress(100, fleet) as shown:
        for _ in range(5):
            shown.show(Tally(), False)
        before = fleet.asked
        for done in range(1, 100):
            shown.show(Tally(done=done), True)
        during = fleet.asked
        for _ in range(5):
            shown.show(Tally(done=100), False)

    assert (before, during, fleet.asked) == (0, 1, 2)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("100/100 samples, 0 failed, 2.0 samples/s, ETA 0 s; ")


def test_a_run_that_is_done_already_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    fleet = Fleet()
    with progress(2, fleet) as shown:
        shown.show(Tally(done=2), False)

    assert capsys.readouterr().err == "2/2 samples, 0 failed, nothing left to do\n"
    assert fleet.asked == 0


def test_a_terminal_gets_a_bar_with_the_same_words(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "140")
    with progress(1000, Fleet()) as shown:
        shown.show(Tally(done=95, failed=5), True)

    screen = capsys.readouterr().err
    assert "5 failed, 2.0 samples/s, ETA 7 min 30 s" in screen
    assert "8 in route, 16 in reason; 4.3k tokens/s, 75.0% of prompts cached; 4 workers" in screen
