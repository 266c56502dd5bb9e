"""Writes what a stage made of its samples: results, routes and failures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

from sqlalchemy import Connection, bindparam, func, update
from sqlalchemy.dialects.postgresql import insert as upsert

from capflow_tasks.state import SampleState
from capflow_tasks.store.clauses import storable
from capflow_tasks.store.rows import Claim, Outcome
from capflow_tasks.store.tables import AgentResult, Sample, Table


def write_outcomes(connection: Connection, claim: Claim, outcomes: Sequence[Outcome]) -> None:
    """Write them all; the caller holds the claim and the transaction."""
    insert_results(connection, outcomes)
    _set_routes(connection, outcomes, claim.min_confidence)
    _set_failures(connection, outcomes, claim.owner)


def insert_results(connection: Connection, outcomes: Sequence[Outcome]) -> None:
    """Write the results among them; one that is there already stays as it is."""
    rows = [
        {"sample_id": outcome.sample_id, **asdict(result), "text": storable(result.text)}
        for outcome in outcomes
        for result in outcome.results
    ]
    if rows:
        connection.execute(upsert(AgentResult).on_conflict_do_nothing(), rows)


def _set_routes(connection: Connection, outcomes: Sequence[Outcome], min_confidence: float) -> None:
    rows = [
        {
            "sample": outcome.sample_id,
            "domain": outcome.route.domain,
            "confidence": outcome.route.confidence,
            "state": SampleState.HELD if outcome.route.confidence < min_confidence else SampleState.PENDING,
        }
        for outcome in outcomes
        if outcome.route
    ]
    if rows:
        table = Table.metadata.tables[Sample.__tablename__]
        connection.execute(update(table).where(table.c.id == bindparam("sample")), rows)


def _set_failures(connection: Connection, outcomes: Sequence[Outcome], owner: str) -> None:
    for outcome in outcomes:
        if failure := outcome.failure:
            connection.execute(
                update(Sample)
                .where(Sample.id == outcome.sample_id)
                .values(
                    state=SampleState.FAILED,
                    error_stage=failure.stage,
                    error_kind=failure.kind,
                    error_text=storable(failure.message),
                    is_retryable=failure.is_retryable,
                    attempts=Sample.attempts + 1,
                    failed_by=owner,
                    failed_at=func.now(),
                )
            )
