"""Inserting new samples: awkward contents, and a server that goes away."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import Engine, event, text
from sqlalchemy.exc import OperationalError

from capflow_tasks.records import Failure, Stage
from capflow_tasks.store.states import NewBatch, NewSample, SampleState
from tests.stores import Fleet, a_shard, some_entries

pytestmark = pytest.mark.integration

AWKWARD = {
    "image": "a\\b\t.png",
    "text": 'line\nbreak\r "quoted" \\N \\. \u00e9 \U0001f600 \u2028',
    "\\.": None,
    "z": 1,
    "a": [0.1, {}],
}


def test_entries_and_reasons_come_out_as_they_went_in(engine: Engine) -> None:
    fleet = Fleet(engine, [AWKWARD])
    reason = "tab\there, line\nbreak, \\N, half a pair \ud83d"
    (row,) = fleet.runs.add_shards(fleet.run_id, [a_shard(1, dataset="bad")])
    bad = NewSample(0, AWKWARD, None, Failure(Stage.ROUTE, "bad_entry", reason, is_retryable=False))

    fleet.runs.expand(row.id, 0, [NewBatch(None, [bad])])

    (pending,) = fleet.batches.pending_samples(fleet.batch_ids[0])
    assert list(pending.entry.items()) == list(AWKWARD.items())
    (failed,) = fleet.views.finished_samples(row.id, SampleState.FAILED)
    assert list(failed.entry.items()) == list(AWKWARD.items())
    assert failed.failure is not None
    assert failed.failure.message == reason.replace("\ud83d", "?")


def test_a_server_that_goes_away_in_the_middle_is_reported_and_nothing_is_half_done(
    engine: Engine,
) -> None:
    fleet = Fleet(engine, some_entries(1))
    (row,) = fleet.runs.add_shards(fleet.run_id, [a_shard(1, dataset="late")])
    batches = [NewBatch(Stage.ROUTE, [NewSample(0, {"image": "a.png"}, None)])]

    def end_connection(connection: Any, cursor: Any, statement: str, *_: Any) -> None:
        if "INSERT INTO batches" in statement:
            pid = cursor.connection.info.backend_pid
            with engine.connect() as other:
                other.execute(text("SELECT pg_terminate_backend(:pid, 5000)"), {"pid": pid})

    event.listen(engine, "after_cursor_execute", end_connection)
    with pytest.raises(OperationalError):
        fleet.runs.expand(row.id, 0, batches)
    event.remove(engine, "after_cursor_execute", end_connection)

    assert fleet.count("samples") == 1
    assert len(fleet.runs.expand(row.id, 0, batches) or []) == 1
