"""Runs a stage of a batch: claim it, ask the engine, write the outcomes. Knows nothing of Celery."""

import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from enum import StrEnum
from functools import partial
from itertools import takewhile
from threading import Lock
from time import monotonic

import tenacity
from sqlalchemy.exc import SQLAlchemyError

from capflow_tasks import outages
from capflow_tasks.captioning import blame
from capflow_tasks.captioning.admission import BatchLimit, EngineRoom, SharedOrAlone
from capflow_tasks.captioning.chains import SampleChains
from capflow_tasks.captioning.conversation import Conversation
from capflow_tasks.captioning.guard import Guard
from capflow_tasks.captioning.heartbeat import Heartbeat
from capflow_tasks.captioning.pause import Pause
from capflow_tasks.captioning.surge import Surge
from capflow_tasks.domains.catalogue import Catalogue
from capflow_tasks.domains.verifier import VERIFIER
from capflow_tasks.engine.interface import Engine
from capflow_tasks.errors import (
    BadAnswer,
    EngineDead,
    FailureSurge,
    NodeFault,
    Quarantined,
    ServiceError,
    WorkflowError,
    WorkflowMissing,
)
from capflow_tasks.media.ocr import TextReader
from capflow_tasks.media.video import Windows
from capflow_tasks.observe import logs, metrics
from capflow_tasks.records import Failure, Stage
from capflow_tasks.settings import Settings
from capflow_tasks.store.claims import BatchStore, NotClaimed
from capflow_tasks.store.states import Claim, Outcome, PendingSample, RetryPolicy, stage_after, stages_from

log = logging.getLogger(__name__)


#: Characters of a failure's message in the text of a pause.
_MESSAGE_LENGTH = 200


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
    #: Samples that neither failed nor are held.
    passed: int
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
    #: Returns a workflow by its name or folder. Raises WorkflowError.
    workflow_of: Callable[[str], Catalogue]
    engines: Mapping[Stage, Engine]
    heartbeat: Heartbeat
    settings: Settings
    windows: Windows | None = None
    #: What answers for agents with a tool, by its name; agents of others are passed over.
    tools: Mapping[str, TextReader] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._retry = RetryPolicy(self.settings.max_attempts, self.settings.retry_seconds)
        self._guard = Guard(self.settings.answer_attempts, frozenset(self.settings.guard_off))
        self._turns = SharedOrAlone()
        #: While this node is at fault.
        self.pause = Pause(self._tell)
        #: By run and stage.
        self._surges: dict[tuple[int, Stage], Surge] = {}
        self._surges_lock = Lock()
        # A worker that lost its leases, as after a long pause, would ask for what another one asks for.
        self._chains = SampleChains(self._ask, may_go_on=lambda: self.heartbeat.is_fresh)
        #: By engine; one without these attributes has no limit.
        self._rooms = {
            id(engine): EngineRoom(
                getattr(engine, "cache_tokens", None), getattr(engine, "max_requests", None)
            )
            for engine in self.engines.values()
        }
        self._limit = BatchLimit(self._rooms.values(), self.settings.concurrency)
        #: Of the newest batch; the producer's default before there is one.
        self._batch_size = 8
        #: Calls the store, again and again while the database is away.
        self._patiently = tenacity.Retrying(
            retry=tenacity.retry_if_exception(outages.is_outage),
            stop=tenacity.stop_after_delay(self.settings.database_seconds),
            wait=tenacity.wait_random_exponential(0.2, max=5),
            before_sleep=_log_outage,
            reraise=True,
        )

    def run(self, batch_id: int, stage: Stage) -> StageSummary | NotClaimed | NotFinished:
        """Run one stage of one batch.

        Raises EngineDead when the engine died, ServiceError when it cannot be rebuilt, and NodeFault, which
        begins a pause, when this node cannot do the work; the batch has been given back by then.
        """
        settings, owner = self.settings, self.heartbeat.owner
        claim = self._patiently(self.store.claim, batch_id, stage, owner, settings.lease_seconds)
        if isinstance(claim, NotClaimed):
            # Another worker has the batch or its run was stopped, unless a copy of the message runs it here.
            if claim is NotClaimed.NOT_FREE and not self.heartbeat.is_beating_for(batch_id):
                self._chains.forget(batch_id)
            return claim
        self._chains.open(batch_id)
        in_flight = metrics.BATCHES_IN_FLIGHT.labels(stage)
        goes_on = False
        with self.heartbeat.beating_for(batch_id), in_flight.track_inprogress():
            try:
                summary = self._run(claim)
                goes_on = isinstance(summary, StageSummary) and summary.passed > 0 and self._stays(claim)
                return summary
            except BaseException as error:
                # A database that stayed away for too long cannot take the batch back either.
                if outages.is_outage(error):
                    raise
                fault = blame.node_fault(error)
                self._give_back(claim, fault or error)
                if fault is None:
                    raise
                raise fault from error
            finally:
                if not goes_on:
                    self._chains.forget(batch_id)

    def batch_limit(self) -> int:
        """Return how many batches may be open, so that the engines are full and keep shared prefixes."""
        limit = self._limit.limit(self._chains.open_batches, self._chains.new_batches, self._batch_size)
        return self.pause.limit(limit)

    def _stays(self, claim: Claim) -> bool:
        """Return whether the batch's next stage is one of this worker."""
        return self.pause.fault is None and stage_after(claim.stage, claim.stages) in self.engines

    def _tell(self, fault: str | None) -> None:
        """Have the database say why this worker pauses, and give others what waits in its own queue."""
        self.heartbeat.tell(fault)
        if fault is None:
            return
        try:
            self.store.release_queued(self.heartbeat.owner)
        except SQLAlchemyError as error:
            # At the next look.
            log.warning("waiting batches are not given back: %s", outages.explained(error))

    def _run(self, claim: Claim) -> StageSummary | NotFinished:
        started = monotonic()
        samples = self._patiently(self.store.pending_samples, claim.batch_id)
        if claim.tries > self.settings.max_tries and len(samples) > 1:
            log.warning("batch %s: split after %s failed tries", claim.batch_id, claim.tries - 1)
            self._patiently(self.store.split, claim)
            metrics.STAGES.labels(claim.stage, "split").inc()
            return NotFinished.SPLIT
        self._batch_size = max(len(samples), 1)
        # A batch whose last try ended with a dead engine or worker may be the cause. It runs alone until its
        # outcomes are written: the next one may be the cause, and end this process.
        with self._turns.hold(alone=True) if claim.tries > 1 else nullcontext():
            outcomes = self._outcomes(claim, samples)
            is_mine = self._write(claim, outcomes)
        if not is_mine:
            log.warning("batch %s: the lease of %s is lost; nothing is written", claim.batch_id, claim.stage)
            metrics.STAGES.labels(claim.stage, "lost").inc()
            return NotFinished.LEASE_LOST
        summary = summarize(claim, outcomes, monotonic() - started)
        self._watch(claim, outcomes, summary)
        count_stage(summary)
        log_stage(summary, outcomes)
        return summary

    def _watch(self, claim: Claim, outcomes: Sequence[Outcome], summary: StageSummary) -> None:
        """End the trial after a pause if the stage went well, and begin a pause in a surge of failures."""
        if summary.passed:
            self.pause.passed()
        failures = [outcome.failure for outcome in outcomes]
        kinds = [
            each.kind if each and each.kind not in claim.accepted_failures else None for each in failures
        ]
        with self._surges_lock:
            surge = self._surges.setdefault((claim.run_id, claim.stage), Surge(self.settings.surge_samples))
            kind = surge.add(kinds)
        if kind in kinds and kind is not None:
            last = next(each.message for each in failures if each and each.kind == kind)
            self.pause.begin(
                FailureSurge(
                    f"most of its latest {self.settings.surge_samples} samples of run {claim.run} failed in "
                    f"{claim.stage} as {kind}, last: {last[:_MESSAGE_LENGTH]}"
                )
            )

    def _outcomes(self, claim: Claim, samples: Sequence[PendingSample]) -> list[Outcome]:
        if claim.tries == 1:
            here = takewhile(self.engines.__contains__, stages_from(claim.stage, claim.stages))
            return self._chains.outcomes(claim, samples, tuple(here))
        self._patiently(self.store.begin_try, claim)
        # What was asked ahead would wait for this turn.
        self._chains.forget(claim.batch_id)
        return self._chains.outcomes(claim, samples, [claim.stage])

    def _ask(self, claim: Claim, sample: PendingSample) -> Outcome:
        """Ask the agents of one stage about one sample."""
        try:
            catalogue = self.workflow_of(claim.workflow)
        except WorkflowError as error:
            raise WorkflowMissing(f"{error}; let every worker see the folder of run {claim.run}") from error
        engine = self.engines[claim.stage]
        conversation = Conversation(
            claim,
            sample,
            catalogue,
            engine.model,
            self.windows,
            self._guard,
            revision=getattr(engine, "revision", None),
            engine=getattr(engine, "version", None),
            tools=self.tools,
        )
        if claim.tries > self.settings.max_tries:
            conversation.fail(Quarantined(f"its engine or worker died in {claim.tries - 1} tries"))
        room, in_flight = self._rooms[id(engine)], metrics.REQUESTS_IN_FLIGHT.labels(claim.stage)
        turn = self._turns.hold(alone=False) if claim.tries == 1 else nullcontext()
        with turn, room.asking():
            started = monotonic()
            while calls := conversation.calls():
                by_tool = [call for call in calls if call.agent.tool]
                found = [self.tools[call.agent.tool].submit(call.request.media) for call in by_tool]
                asked = [call for call in calls if not call.agent.tool]
                in_flight.inc(len(asked))
                try:
                    answers = engine.generate([call.request for call in asked]) if asked else []
                finally:
                    in_flight.dec(len(asked))
                for call, answer in zip(asked, answers, strict=True):
                    conversation.take(call.agent, answer)
                for call, future in zip(by_tool, found, strict=True):
                    conversation.take_found(call.agent, future.result())
            outcome = conversation.outcome()
            # What a tool or many short calls took says nothing about the cache.
            asked_once = [each for each in outcome.results if each.prompt_tokens and each.agent != VERIFIER]
            room.observe(asked_once, monotonic() - started)
        return outcome

    def _write(self, claim: Claim, outcomes: list[Outcome]) -> bool:
        """Write the outcomes; one that PostgreSQL refuses becomes its sample's failure, in place.

        Return False when another worker has the batch.
        """
        stays = self._stays(claim)
        handoff_seconds = self.settings.lease_seconds if stays else self.settings.queue_seconds
        finish = partial(self._patiently, self.store.finish_stage, claim, outcomes)
        try:
            return finish(handoff_seconds, self._retry, stays=stays)
        except (SQLAlchemyError, ValueError) as error:
            if outages.is_outage(error):
                raise
            refusals = [self._patiently(self.store.refusal_of, outcome) for outcome in outcomes]
            if not any(refusals):
                raise
        for position, refusal in enumerate(refusals):
            if refusal is not None:
                failure = Failure(claim.stage, BadAnswer.kind, refusal, BadAnswer.is_retryable)
                outcomes[position] = Outcome(outcomes[position].sample_id, failure=failure)
        return finish(handoff_seconds, self._retry, stays=stays)

    def _give_back(self, claim: Claim, error: BaseException) -> None:
        metrics.STAGES.labels(claim.stage, "given_back").inc()
        if isinstance(error, NodeFault):
            # Paused first, so that the batch does not come back here at once.
            self.pause.begin(error)
            log.info("batch %s: %s goes to another worker: %s", claim.batch_id, claim.stage, error)
            self._patiently(self.store.release, claim, is_blameless=True)
            return
        level = logging.WARNING if isinstance(error, EngineDead) else logging.ERROR
        log.log(level, "batch %s: %s failed and is given back", claim.batch_id, claim.stage, exc_info=error)
        # No sample is to blame for an engine that cannot be rebuilt, or for a database without our tables.
        is_blameless = isinstance(error, ServiceError | SQLAlchemyError)
        wait = self._retry.wait_seconds(claim.tries)
        self._patiently(self.store.release, claim, wait, is_blameless=is_blameless)


def _log_outage(call: tenacity.RetryCallState) -> None:
    error = call.outcome.exception() if call.outcome else None
    if error is not None:
        log.warning("waiting for the database: %s", outages.explained(error))


def summarize(claim: Claim, outcomes: Sequence[Outcome], seconds: float) -> StageSummary:
    results = [result for outcome in outcomes for result in outcome.results]
    passed = [each for each in outcomes if each.failure is None and not claim.holds(each.route)]
    return StageSummary(
        claim=claim,
        samples=len(outcomes),
        passed=len(passed),
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
