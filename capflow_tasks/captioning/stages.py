"""Runs a stage of a batch: claim it, ask the engine, write the outcomes. Knows nothing of Celery."""

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from time import monotonic

import tenacity
from sqlalchemy.exc import OperationalError

from capflow_tasks.captioning.admission import BatchLimit, SharedOrAlone
from capflow_tasks.captioning.conversation import Conversation
from capflow_tasks.captioning.guard import Guard
from capflow_tasks.captioning.heartbeat import Heartbeat
from capflow_tasks.domains.catalogue import Catalogue
from capflow_tasks.engine.interface import Engine
from capflow_tasks.errors import EngineDead, Quarantined, ServiceError
from capflow_tasks.media.video import Windows
from capflow_tasks.observe import logs, metrics
from capflow_tasks.records import Stage
from capflow_tasks.settings import Settings
from capflow_tasks.store.claims import BatchStore, NotClaimed
from capflow_tasks.store.states import Claim, Outcome, PendingSample, RetryPolicy, stage_after

log = logging.getLogger(__name__)


class NotFinished(StrEnum):
    """Why a claimed stage was not finished; the chain of its message ends."""

    #: The batch was tried too often and is two batches now.
    SPLIT = "split"
    #: Another worker has the batch, or its run was deleted; nothing was written.
    LEASE_LOST = "lease lost"


@dataclass(frozen=True, slots=True)
class StageSummary:
    """A finished stage of a batch; tokens are totals."""

    claim: Claim
    #: Samples that this try worked on.
    samples: int
    #: Samples that passed the last stage of the run.
    finished: int
    #: Failed samples by kind.
    failures: Counter[str]
    #: Routed samples by domain.
    domains: Counter[str]
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    seconds: float

    @property
    def done(self) -> int:
        return self.samples - self.failures.total()

    def __str__(self) -> str:
        """Format for Flower, whose list cuts off the end."""
        counts = [f"{self.done} done", *(f"{count} {kind}" for kind, count in self.failures.items())]
        domains = [f"{name} {count}" for name, count in self.domains.items()]
        tokens = f"{self.prompt_tokens} + {self.completion_tokens} tokens, {self.cached_tokens} cached"
        return "; ".join(filter(None, (", ".join(counts), ", ".join(domains), tokens)))


@dataclass(eq=False)
class StageRunner:
    """Runs stages of batches; one per worker, shared by its threads."""

    store: BatchStore
    catalogue: Catalogue
    engines: Mapping[Stage, Engine]
    heartbeat: Heartbeat
    settings: Settings
    windows: Windows | None = None

    def __post_init__(self) -> None:
        self._retry = RetryPolicy(self.settings.max_attempts, self.settings.retry_seconds)
        self._guard = Guard(self.settings.answer_attempts, frozenset(self.settings.guard_off))
        self._turns = SharedOrAlone()
        #: One per engine; one without `cache_tokens` has no limit.
        self._limits = {
            id(engine): BatchLimit(getattr(engine, "cache_tokens", None)) for engine in self.engines.values()
        }
        #: Calls the store, again and again while the database is away.
        self._patiently = tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(OperationalError),
            stop=tenacity.stop_after_delay(self.settings.database_seconds),
            wait=tenacity.wait_random_exponential(0.2, max=5),
            before_sleep=tenacity.before_sleep_log(log, logging.WARNING),
            reraise=True,
        )

    def run(self, batch_id: int, stage: Stage) -> StageSummary | NotClaimed | NotFinished:
        """Run one stage of one batch.

        Raises EngineDead when the engine died and ServiceError when it cannot be rebuilt; the batch has been
        given back by then.
        """
        settings, owner = self.settings, self.heartbeat.owner
        claim = self._patiently(self.store.claim, batch_id, stage, owner, settings.lease_seconds)
        if isinstance(claim, NotClaimed):
            return claim
        in_flight = metrics.BATCHES_IN_FLIGHT.labels(stage)
        with self.heartbeat.beating_for(batch_id), in_flight.track_inprogress():
            return self._run(claim)

    def batch_limit(self) -> int:
        """Return how many batches may run, so that the engines keep the prefixes of all open samples."""
        return min(each.limit(self.settings.concurrency) for each in self._limits.values())

    def _run(self, claim: Claim) -> StageSummary | NotFinished:
        started = monotonic()
        samples = self._patiently(self.store.pending_samples, claim.batch_id)
        if claim.tries > self.settings.max_tries and len(samples) > 1:
            log.warning("batch %s: split after %s failed tries", claim.batch_id, claim.tries - 1)
            self.store.split(claim)
            metrics.STAGES.labels(claim.stage, "split").inc()
            return NotFinished.SPLIT
        try:
            outcomes = self._outcomes(claim, samples)
        except BaseException as error:
            self._give_back(claim, error)
            raise
        stays = stage_after(claim.stage, claim.stages) in self.engines
        handoff_seconds = self.settings.lease_seconds if stays else self.settings.queue_seconds
        is_mine = self._patiently(
            self.store.finish_stage, claim, outcomes, handoff_seconds, self._retry, stays=stays
        )
        if not is_mine:
            log.warning("batch %s: the lease of %s is lost; nothing is written", claim.batch_id, claim.stage)
            metrics.STAGES.labels(claim.stage, "lost").inc()
            return NotFinished.LEASE_LOST
        self._limits[id(self.engines[claim.stage])].observe(outcome.results for outcome in outcomes)
        summary = summarize(claim, outcomes, monotonic() - started)
        count_stage(summary)
        log_stage(summary, outcomes)
        return summary

    def _outcomes(self, claim: Claim, samples: Sequence[PendingSample]) -> list[Outcome]:
        engine = self.engines[claim.stage]
        conversations = [
            Conversation(claim, sample, self.catalogue, engine.model, self.windows, self._guard)
            for sample in samples
        ]
        if claim.tries > self.settings.max_tries:
            for conversation in conversations:
                conversation.fail(Quarantined(f"its engine or worker died in {claim.tries - 1} tries"))
        # A batch whose last try ended with a dead engine or worker may be the cause, so it runs alone.
        with self._turns.hold(alone=claim.tries > 1):
            if claim.tries > 1:
                self._patiently(self.store.begin_try, claim)
            in_flight = metrics.REQUESTS_IN_FLIGHT.labels(claim.stage)
            while calls := [call for each in conversations for call in each.calls()]:
                in_flight.inc(len(calls))
                try:
                    answers = engine.generate([call.request for call in calls])
                finally:
                    in_flight.dec(len(calls))
                for call, answer in zip(calls, answers, strict=True):
                    call.conversation.take(call.agent, answer)
        return [each.outcome() for each in conversations]

    def _give_back(self, claim: Claim, error: BaseException) -> None:
        level = logging.WARNING if isinstance(error, EngineDead) else logging.ERROR
        log.log(level, "batch %s: %s failed and is given back", claim.batch_id, claim.stage, exc_info=error)
        metrics.STAGES.labels(claim.stage, "given_back").inc()
        # No sample is to blame for an engine that cannot be rebuilt.
        is_blameless = isinstance(error, ServiceError)
        wait = self._retry.wait_seconds(claim.tries)
        self._patiently(self.store.release, claim, wait, is_blameless=is_blameless)


def summarize(claim: Claim, outcomes: Sequence[Outcome], seconds: float) -> StageSummary:
    results = [result for outcome in outcomes for result in outcome.results]
    passed = [each for each in outcomes if each.failure is None and not claim.holds(each.route)]
    return StageSummary(
        claim=claim,
        samples=len(outcomes),
        finished=len(passed) if stage_after(claim.stage, claim.stages) is None else 0,
        failures=Counter(outcome.failure.kind for outcome in outcomes if outcome.failure),
        domains=Counter(outcome.route.domain for outcome in outcomes if outcome.route),
        prompt_tokens=sum(result.prompt_tokens for result in results),
        cached_tokens=sum(result.cached_tokens for result in results),
        completion_tokens=sum(result.completion_tokens for result in results),
        seconds=seconds,
    )


def count_stage(summary: StageSummary) -> None:
    """Add a finished stage to the metrics."""
    stage = summary.claim.stage
    metrics.STAGES.labels(stage, "done").inc()
    metrics.STAGE_SECONDS.labels(stage).observe(summary.seconds)
    metrics.SAMPLES.labels(stage).inc(summary.done)
    metrics.SAMPLES_FINISHED.inc(summary.finished)
    metrics.PROMPT_TOKENS.labels(stage).inc(summary.prompt_tokens)
    metrics.CACHED_TOKENS.labels(stage).inc(summary.cached_tokens)
    metrics.COMPLETION_TOKENS.labels(stage).inc(summary.completion_tokens)
    for kind, times in summary.failures.items():
        metrics.FAILURES.labels(stage, kind).inc(times)


def log_stage(summary: StageSummary, outcomes: Sequence[Outcome]) -> None:
    """Log a finished stage, and the model's answers if CAPFLOW_LOG_TEXT asks for them."""
    claim = summary.claim
    # The keys of a JSON log line.
    facts = {
        "event": "stage",
        "run": claim.run,
        "shard": claim.shard_id,
        "batch": claim.batch_id,
        "stage": claim.stage,
        "attempt": claim.attempt,
        "worker": claim.owner,
        "dataset": claim.dataset,
        "first_index": claim.start_idx,
        "samples": summary.samples,
        "finished": summary.finished,
        "failures": dict(summary.failures),
        "prompt_tokens": summary.prompt_tokens,
        "cached_tokens": summary.cached_tokens,
        "completion_tokens": summary.completion_tokens,
        "seconds": round(summary.seconds, 3),
    }
    samples = f"{summary.samples} sample{'' if summary.samples == 1 else 's'}"
    kinds = f" ({', '.join(sorted(summary.failures))})" if summary.failures else ""
    log.info(
        f"batch {claim.batch_id} {claim.stage}: {samples}, {summary.failures.total()} failed{kinds}, "
        f"{summary.prompt_tokens} prompt tokens ({summary.cached_tokens} cached), "
        f"{summary.completion_tokens} completion tokens, {summary.seconds:.3f} s",
        extra={"facts": facts},
    )
    if logs.texts_log.isEnabledFor(logging.INFO):
        for outcome in outcomes:
            for result in outcome.results:
                logs.texts_log.info("sample %s %s says: %s", outcome.sample_id, result.agent, result.text)
