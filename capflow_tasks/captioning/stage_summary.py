"""What one stage of one batch amounted to: what Flower, the log and the metrics tell of it."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from capflow_tasks.observe import metrics
from capflow_tasks.observe.logs import texts_log
from capflow_tasks.records import JsonObject
from capflow_tasks.store.rows import Claim, Outcome
from capflow_tasks.store.states import stage_after

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class StageSummary:
    """A finished stage; tokens are totals over the batch."""

    claim: Claim
    #: Samples worked on; what an earlier try has finished is not among them.
    samples: int
    #: Samples that came to the end of the run's last stage.
    finished: int
    failures: Counter[str]
    domains: Counter[str]
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    seconds: float

    @property
    def done(self) -> int:
        return self.samples - self.failures.total()

    def summary(self) -> JsonObject:
        """For Flower."""
        return {
            "dataset": self.claim.dataset,
            "samples": f"{self.claim.start_idx}-{self.claim.end_idx - 1}",
            "done": self.done,
            "failed": dict(self.failures),
            "domains": dict(self.domains),
            "prompt_tokens": self.prompt_tokens,
            "cached_tokens": self.cached_tokens,
            "completion_tokens": self.completion_tokens,
            "seconds": round(self.seconds, 3),
        }


def report_of(claim: Claim, outcomes: Sequence[Outcome], seconds: float) -> StageSummary:
    """What these outcomes come to."""
    results = [result for outcome in outcomes for result in outcome.results]
    is_last = stage_after(claim.stage, claim.stages) is None
    return StageSummary(
        claim=claim,
        samples=len(outcomes),
        finished=sum(is_last and _is_through(outcome, claim.min_confidence) for outcome in outcomes),
        failures=Counter(outcome.failure.kind for outcome in outcomes if outcome.failure),
        domains=Counter(outcome.route.domain for outcome in outcomes if outcome.route),
        prompt_tokens=sum(result.prompt_tokens for result in results),
        cached_tokens=sum(result.cached_tokens for result in results),
        completion_tokens=sum(result.completion_tokens for result in results),
        seconds=seconds,
    )


def _is_through(outcome: Outcome, min_confidence: float) -> bool:
    """Whether the sample goes on; it does not when it failed or is held."""
    is_held = outcome.route is not None and outcome.route.confidence < min_confidence
    return outcome.failure is None and not is_held


def count_stage(report: StageSummary) -> None:
    """A stage that was finished and written."""
    stage = report.claim.stage
    metrics.end(stage, "done")
    metrics.STAGE_SECONDS.labels(stage).observe(report.seconds)
    metrics.SAMPLES.labels(stage).inc(report.done)
    metrics.SAMPLES_FINISHED.inc(report.finished)
    metrics.PROMPT_TOKENS.labels(stage).inc(report.prompt_tokens)
    metrics.CACHED_TOKENS.labels(stage).inc(report.cached_tokens)
    metrics.COMPLETION_TOKENS.labels(stage).inc(report.completion_tokens)
    for kind, times in report.failures.items():
        metrics.FAILURES.labels(stage, kind).inc(times)


def log_stage(report: StageSummary, outcomes: Sequence[Outcome]) -> None:
    """Log the line of a finished stage; the same facts go along for a log that is JSON."""
    claim = report.claim
    log.info(
        "batch %s %s: %s samples, %s failed%s, %s prompt tokens (%s cached), %s completion tokens, %.3f s",
        claim.batch_id,
        claim.stage,
        report.samples,
        report.failures.total(),
        f" ({', '.join(sorted(report.failures))})" if report.failures else "",
        report.prompt_tokens,
        report.cached_tokens,
        report.completion_tokens,
        report.seconds,
        extra={"facts": _facts(report)},
    )
    for outcome in outcomes if texts_log.isEnabledFor(logging.INFO) else ():
        for result in outcome.results:
            texts_log.info("sample %s %s says: %s", outcome.sample_id, result.agent, result.text)


def _facts(report: StageSummary) -> JsonObject:
    claim = report.claim
    return {
        "event": "stage",
        "run": claim.run,
        "shard": claim.shard_id,
        "batch": claim.batch_id,
        "stage": claim.stage,
        "attempt": claim.attempt,
        "worker": claim.owner,
        "dataset": claim.dataset,
        "first_index": claim.start_idx,
        "samples": report.samples,
        "finished": report.finished,
        "failures": dict(report.failures),
        "prompt_tokens": report.prompt_tokens,
        "cached_tokens": report.cached_tokens,
        "completion_tokens": report.completion_tokens,
        "seconds": round(report.seconds, 3),
    }
