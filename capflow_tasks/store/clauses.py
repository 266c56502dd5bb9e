"""Parts of statements that several modules of the store use."""

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
    """Replace NUL and halves of surrogate pairs, which PostgreSQL cannot store."""
    return text.replace("\0", "\N{REPLACEMENT CHARACTER}").encode("utf-8", "replace").decode()


def stages_of(words: Iterable[str]) -> tuple[Stage, ...]:
    return tuple(Stage(word) for word in words)


def unleased(wait_seconds: float = 0) -> dict[str, Any]:
    """Values of a batch that may be sent again after a wait."""
    return {"state": BatchState.READY, "lease_owner": None, "lease_until": in_seconds(wait_seconds)}


def opened(wait_seconds: float = 0) -> dict[str, Any]:
    """Values of a batch that may be sent again after a wait, with all its tries."""
    return unleased(wait_seconds) | {"tries": 0, "finished_at": None}


def results_of(connection: Connection, sample_ids: Sequence[int]) -> defaultdict[int, tuple[Result, ...]]:
    """Return the results of these samples, in workflow order."""
    statement = select(AgentResult.sample_id, *_RESULT_COLUMNS).where(AgentResult.sample_id.in_(sample_ids))
    found: defaultdict[int, tuple[Result, ...]] = defaultdict(tuple)
    rows = connection.execute(statement).all()
    for sample_id, *values in sorted(rows, key=_place):
        found[sample_id] += (Result(*values),)
    return found


def _place(row: Row[*tuple[Any, ...]]) -> tuple[int, int, str]:
    # The windows of one agent share its position; their names sort by time.
    return STAGE_ORDER[row.stage], row.position, row.agent


def tally_of(connection: Connection, counts: Select[*tuple[Any, ...]]) -> Tally:
    """Sum rows of (sample state, count) into a Tally."""
    by_state: dict[SampleState, int] = dict(map(tuple, connection.execute(counts)))
    return Tally(
        *(by_state.get(state, 0) for state in (SampleState.DONE, SampleState.FAILED, SampleState.HELD))
    )
