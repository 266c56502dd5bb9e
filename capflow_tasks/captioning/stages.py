"""What a stage does with a batch: claim it, ask the engine, write what came of it.

The five Celery tasks are doorbells around `StageRunner.run`, which a test can call as well.
Knows nothing of Celery, nor of what kind of engine answers.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from time import monotonic
from typing import ParamSpec, TypeVar

from sqlalchemy.exc import OperationalError
from tenacity import (
    Retrying,
    before_sleep_log,
    retry_if_exception_type,
    stop_after_delay,
    wait_random_exponential,
)

from capflow_tasks.captioning.admission import Capacity, Gate
from capflow_tasks.captioning.conversation import Conversation
from capflow_tasks.captioning.heartbeat import Heartbeat
from capflow_tasks.captioning.stage_summary import count_stage, log_stage, report_of
from capflow_tasks.domains.catalogue import Catalogue
from capflow_tasks.engine.interface import Engine, cache_tokens_of
from capflow_tasks.errors import EngineDead, Quarantined, ServiceError
from capflow_tasks.media.video import Windows
from capflow_tasks.observe import metrics
from capflow_tasks.records import JsonObject, Stage
from capflow_tasks.store.claims import BatchStore, NotClaimed
from capflow_tasks.store.rows import Claim, Outcome, PendingSample, RetryPolicy
from capflow_tasks.store.states import stage_after

log = logging.getLogger(__name__)

P = ParamSpec("P")
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Patience:
    """How long things may take, seconds, and how often they are tried."""

    lease_seconds: float
    #: How long a message may wait in a shared queue.
    queue_seconds: float
    #: How long a finished stage waits for the database to come back.
    database_seconds: float
    retry: RetryPolicy
    #: Tries of one batch that may end in a dead engine or worker before it is split.
    max_tries: int


class StageRunner:
    """Runs stages of batches; one per worker, used by all its threads."""

    def __init__(
        self,
        store: BatchStore,
        catalogue: Catalogue,
        engines: Mapping[Stage, Engine],
        heartbeat: Heartbeat,
        owner: str,
        patience: Patience,
        windows: Windows | None = None,
    ) -> None:
        self._store = store
        self._catalogue = catalogue
        self._engines = engines
        self._heartbeat = heartbeat
        self._owner = owner
        self._patience = patience
        self._windows = windows
        self._gate = Gate()
        #: One per engine.
        self._capacities = {id(engine): Capacity(cache_tokens_of(engine)) for engine in engines.values()}

    def run(self, batch_id: int, stage: Stage) -> JsonObject | NotClaimed:
        """Run one stage of one batch and return its summary, or why that is not this caller's to do.

        Raises EngineDead when the engine died; the batch has been given back by then.
        """
        claim = self._patiently(self._store.claim, batch_id, stage, self._owner, self._patience.lease_seconds)
        if isinstance(claim, NotClaimed):
            return claim
        in_flight = metrics.BATCHES_IN_FLIGHT.labels(stage)
        with self._heartbeat.beating_for(batch_id), in_flight.track_inprogress():
            return self._run(claim)

    def most_batches(self, slots: int) -> int:
        """How many of the slots may be used, so that the engines keep the prefixes of all open batches."""
        return min(capacity.batches(slots) for capacity in self._capacities.values())

    def _run(self, claim: Claim) -> JsonObject | NotClaimed:
        started = monotonic()
        samples = self._patiently(self._store.pending_samples, claim.batch_id)
        if claim.tries > self._patience.max_tries and len(samples) > 1:
            log.warning("batch %s: tried %s times in vain, split", claim.batch_id, claim.tries - 1)
            self._store.split(claim)
            metrics.end(claim.stage, "split")
            return NotClaimed.TAKEN
        try:
            outcomes = self._outcomes(claim, samples)
        except BaseException as error:
            self._give_back(claim, error)
            raise
        stays = stage_after(claim.stage, claim.stages) in self._engines
        is_written = self._patiently(
            self._store.finish_stage,
            claim,
            outcomes,
            self._patience.lease_seconds if stays else self._patience.queue_seconds,
            self._patience.retry,
            stays=stays,
        )
        if not is_written:
            log.warning("batch %s: the lease of %s went to another worker", claim.batch_id, claim.stage)
            metrics.end(claim.stage, "lost")
            return NotClaimed.TAKEN
        capacity = self._capacities[id(self._engines[claim.stage])]
        capacity.observe(outcome.results for outcome in outcomes)
        report = report_of(claim, outcomes, monotonic() - started)
        count_stage(report)
        log_stage(report, outcomes)
        return report.summary()

    def _outcomes(self, claim: Claim, samples: Sequence[PendingSample]) -> list[Outcome]:
        engine = self._engines[claim.stage]
        conversations = [
            Conversation(claim, sample, self._catalogue, engine.model, self._windows) for sample in samples
        ]
        if claim.tries > self._patience.max_tries:
            for conversation in conversations:
                conversation.fail(Quarantined(f"it ended its engine or worker in {claim.tries - 1} tries"))
        # A batch whose last try ended in a dead engine or worker may be the cause: it runs alone.
        with self._gate.together() if claim.tries == 1 else self._gate.alone():
            if claim.tries > 1:
                self._patiently(self._store.begin_try, claim)
            while calls := [call for each in conversations for call in each.calls()]:
                with metrics.requests_in_flight(claim.stage, len(calls)):
                    answers = engine.generate([call.request for call in calls])
                for call, answer in zip(calls, answers, strict=True):
                    call.conversation.take(call.agent, answer)
        return [each.outcome() for each in conversations]

    def _give_back(self, claim: Claim, error: BaseException) -> None:
        level = logging.WARNING if isinstance(error, EngineDead) else logging.ERROR
        log.log(level, "batch %s: %s failed, given back", claim.batch_id, claim.stage, exc_info=error)
        metrics.end(claim.stage, "given_back")
        wait = self._patience.retry.first_wait_seconds * 2 ** (claim.tries - 1)
        # An engine that cannot be had is nobody's fault among the samples.
        is_blameless = isinstance(error, ServiceError)
        self._patiently(self._store.release, claim, wait, is_blameless=is_blameless)

    def _patiently(self, call: Callable[P, R], *arguments: P.args, **options: P.kwargs) -> R:
        """Call the store, again and again while the database is away, for as long as set."""
        retrying = Retrying(
            retry=retry_if_exception_type(OperationalError),
            stop=stop_after_delay(self._patience.database_seconds),
            wait=wait_random_exponential(0.2, max=5),
            before_sleep=before_sleep_log(log, logging.WARNING),
            reraise=True,
        )
        return retrying(call, *arguments, **options)
