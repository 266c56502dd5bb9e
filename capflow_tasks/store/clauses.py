"""Pieces of statements that more than one of the store's modules needs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import fields
from datetime import timedelta
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, Select, func, select

from capflow_tasks.records import Result, Stage
from capflow_tasks.store.rows import Tally
from capflow_tasks.store.states import STAGE_ORDER, BatchState, SampleState
from capflow_tasks.store.tables import AgentResult

_RESULT_COLUMNS = [getattr(AgentResult, field.name) for field in fields(Result)]


def in_seconds(seconds: float) -> ColumnElement[Any]:
    return func.now() + timedelta(seconds=seconds)


def storable(text: str) -> str:
    """The text as PostgreSQL can hold it: without NUL and halves of surrogate pairs."""
    return text.replace("\0", "\N{REPLACEMENT CHARACTER}").encode("utf-8", "replace").decode()


def stages_of(words: Iterable[str]) -> tuple[Stage, ...]:
    return tuple(Stage(word) for word in words)


def unleased() -> dict[str, Any]:
    """Values of a batch that may be sent again at once."""
    return {"state": BatchState.READY, "lease_owner": None, "lease_until": func.now()}


def opened() -> dict[str, Any]:
    """The same for a batch that starts its next stage afresh."""
    return unleased() | {"tries": 0, "finished_at": None}


def earliest_stages(rows: Iterable[Any]) -> dict[int, Stage]:
    """The first stage to repeat, by batch, from rows of (batch id, stage that failed)."""
    earliest: dict[int, Stage] = {}
    for batch_id, stage in rows:
        earliest[batch_id] = min(earliest.get(batch_id, stage), stage, key=STAGE_ORDER.__getitem__)
    return earliest


def results_of(connection: Connection, sample_ids: Sequence[int]) -> defaultdict[int, tuple[Result, ...]]:
    """Everything said about these samples, in workflow order."""
    statement = select(AgentResult.sample_id, *_RESULT_COLUMNS).where(AgentResult.sample_id.in_(sample_ids))
    found: defaultdict[int, tuple[Result, ...]] = defaultdict(tuple)
    rows = connection.execute(statement).all()
    for sample_id, *values in sorted(rows, key=_place):
        found[sample_id] += (Result(*values),)
    return found


def _place(row: Row[*tuple[Any, ...]]) -> tuple[int, int, str]:
    # The windows of one agent have its place, and their names are in the order of time.
    return STAGE_ORDER[row.stage], row.position, row.agent


def tally_of(connection: Connection, counts: Select[*tuple[Any, ...]]) -> Tally:
    """Rows of (sample state, count) as one Tally."""
    by_state: dict[SampleState, int] = dict(map(tuple, connection.execute(counts)))
    return Tally(
        *(by_state.get(state, 0) for state in (SampleState.DONE, SampleState.FAILED, SampleState.HELD))
    )
