"""What Flower, the metrics and the log show of a finished stage."""

from __future__ import annotations

import logging
import logging.config

import pytest
from prometheus_client import REGISTRY

from capflow_tasks.captioning.stages import StageSummary, count_stage, log_stage, summarize
from capflow_tasks.errors import MediaMissing
from capflow_tasks.observe.logs import log_texts
from capflow_tasks.records import Failure, Modality, Result, Stage
from capflow_tasks.store.states import Claim, Outcome, Route

FAILURE = Failure(Stage.ROUTE, MediaMissing.kind, "no such file", is_retryable=False)


def a_claim(stage: Stage, stages: tuple[Stage, ...] = tuple(Stage)) -> Claim:
    return Claim(
        batch_id=3,
        stage=stage,
        attempt=1,
        tries=1,
        owner="worker",
        start_idx=8,
        end_idx=12,
        dataset="set",
        root="/data",
        modality=Modality.IMAGE,
        run_id=1,
        stages=stages,
        min_confidence=0.5,
    )


def a_result(stage: Stage) -> Result:
    return Result(stage, "agent", "a red fox", None, "model", "digest", 100, 75, 9, "stop", 0.5, "worker")


def outcomes(stage: Stage) -> list[Outcome]:
    """One that is sure, one that is not, one that failed."""
    results = (a_result(stage),)
    return [
        Outcome(1, results, Route("Natural", 0.9)),
        Outcome(2, results, Route("Natural", 0.4)),
        Outcome(3, failure=FAILURE),
    ]


def a_summary(stages: tuple[Stage, ...] = (Stage.ROUTE,)) -> StageSummary:
    return summarize(a_claim(Stage.ROUTE, stages), outcomes(Stage.ROUTE), 1.5)


def test_only_what_the_last_stage_lets_through_is_finished() -> None:
    assert a_summary((Stage.ROUTE,)).finished == 1
    assert a_summary(tuple(Stage)).finished == 0


def test_flower_shows_totals() -> None:
    assert str(a_summary()) == "2 done, 1 media_missing; Natural 2; 200 + 18 tokens, 150 cached"


def test_metrics_grow_by_what_a_stage_did() -> None:
    def counted() -> list[float]:
        names = ("samples", "prompt_tokens", "cached_prompt_tokens", "completion_tokens")
        stage = {"stage": "route"}
        counts = [REGISTRY.get_sample_value(f"capflow_{name}_total", stage) for name in names]
        failed = {"stage": "route", "kind": "media_missing"}
        counts.append(REGISTRY.get_sample_value("capflow_sample_failures_total", failed))
        counts.append(REGISTRY.get_sample_value("capflow_samples_finished_total"))
        counts.append(REGISTRY.get_sample_value("capflow_stage_duration_seconds_sum", stage))
        return [count or 0 for count in counts]

    before = counted()
    count_stage(a_summary())

    assert [after - earlier for after, earlier in zip(counted(), before, strict=True)] == [
        2, 200, 150, 18, 1, 1, 1.5,
    ]  # fmt: skip


def test_what_the_model_says_is_logged_only_when_asked_for(
    caplog: pytest.LogCaptureFixture, request: pytest.FixtureRequest
) -> None:
    request.addfinalizer(lambda: log_texts(False))
    caplog.set_level(logging.INFO, "capflow_tasks")
    # As vLLM does when it is imported.
    logging.config.dictConfig({"version": 1, "disable_existing_loggers": False})

    log_stage(a_summary(), outcomes(Stage.ROUTE))
    (line,) = caplog.messages
    assert line.startswith(
        "batch 3 route: 3 samples, 1 failed (media_missing), 200 prompt tokens (150 cached)"
    )

    log_texts(True)
    log_stage(a_summary(), outcomes(Stage.ROUTE))
    assert caplog.messages[2:] == ["sample 1 agent says: a red fox", "sample 2 agent says: a red fox"]
