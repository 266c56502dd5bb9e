"""What a producer shows of its progress."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

import pytest

from capflow_tasks.records import Stage
from capflow_tasks.store.figures import Activity, StageFigures, Throughput, Tokens, WorkerFigures
from capflow_tasks.store.states import BatchState, Tally
from producer import console
from producer.console import RunProgress, progress

RUNNING = {Stage.ROUTE: 8, Stage.REASON: 16}
WORKER = WorkerFigures("celery@a/1", "celery@a", datetime.now(UTC), 0.5, is_alive=True, running_batches=1)


@dataclass
class Fleet:
    """Says what the fleet does, and counts how often it is asked."""

    asked: int = 0
    workers: int = 4

    def __call__(self) -> Activity:
        self.asked += 1
        stages = [
            StageFigures(stage, dict.fromkeys(BatchState, 0) | {BatchState.RUNNING: RUNNING.get(stage, 0)})
            for stage in Stage
        ]
        return Activity(stages, Throughput(10, 20, Tokens(40_000, 30_000, 3000)), [WORKER] * self.workers)


def awaited(alive: int) -> str:
    return f"loading a model for {alive} workers (log worker.log)"


def test_a_line_shows_throughput_eta_stages_tokens_and_workers(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(console, "_LINE_SECONDS", 0)
    with progress(1000, Fleet(), awaited) as shown:
        shown.show(Tally(), False)
        shown.show(Tally(done=95, failed=5), True)

    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.splitlines() == [
        "0/1000 samples, 0 failed, loading a model for 4 workers (log worker.log)",
        "100/1000 samples, 5 failed, 2.0 samples/s, ETA 7 min 30 s; 8 in route, 16 in reason; 4.3k tokens/s, "
        "75.0% of prompts cached; 4 workers",
    ]


def test_a_line_is_not_said_twice(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(console, "_LINE_SECONDS", 0)
    with progress(1000, Fleet(), awaited) as shown:
        for done in (0, 0, 5, 5):
            shown.show(Tally(done=done), done > 0)

    assert len(capsys.readouterr().err.splitlines()) == 2


def test_a_run_without_workers_has_no_eta(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(console, "_LINE_SECONDS", 0)
    with progress(1000, Fleet(workers=0), awaited) as shown:
        shown.show(Tally(done=10), True)

    (line,) = capsys.readouterr().err.splitlines()
    assert line == "10/1000 samples, 0 failed, loading a model for 0 workers (log worker.log)"


def test_the_fleet_is_asked_seldom_and_at_the_end(capsys: pytest.CaptureFixture[str]) -> None:
    fleet = Fleet()
    with progress(100, fleet, awaited) as shown:
        for done in range(100):
            shown.show(Tally(done=done), True)
        during = fleet.asked
        for _ in range(5):
            shown.show(Tally(done=100), False)

    assert fleet.asked == during + 1 <= 3
    assert (
        capsys.readouterr()
        .err.splitlines()[-1]
        .startswith("100/100 samples, 0 failed, 2.0 samples/s, ETA 0 s")
    )


def test_a_run_that_is_done_already_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    fleet = Fleet()
    with progress(2, fleet, awaited) as shown:
        shown.show(Tally(done=2), False)

    assert capsys.readouterr().err == "2/2 samples, 0 failed, nothing left to do\n"
    assert fleet.asked == 0


def test_samples_that_have_passed_a_stage_move_the_bar() -> None:
    run = RunProgress(100, Fleet(), awaited)
    assert run.share(Tally(done=10)) == 10

    run.update(Tally(done=10), has_begun=True)

    # Of 24 samples in flight 8 wait for the first of five stages, and 16 for the third.
    assert run.share(Tally(done=10)) == pytest.approx(10 + 16 * 2 / 5)


def test_a_terminal_gets_a_bar_with_the_same_words(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "140")
    with progress(1000, Fleet(), awaited) as shown:
        shown.show(Tally(done=95, failed=5), True)

    screen = capsys.readouterr().err
    assert "100/1000, 5 failed" in screen
    assert "2.0 samples/s, ETA 7 min 30 s" in screen
    assert "8 in route, 16 in reason; 4.3k tokens/s, 75.0% of prompts cached; 4 workers" in screen
