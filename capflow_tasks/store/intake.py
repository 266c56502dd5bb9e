"""Inserts batches and their samples with two statements, however many there are."""

from __future__ import annotations

import json
from collections.abc import Sequence

import psycopg
from sqlalchemy import Connection, text
from sqlalchemy.exc import OperationalError

from capflow_tasks.records import Failure
from capflow_tasks.store.clauses import storable
from capflow_tasks.store.rows import NewBatch, NewSample
from capflow_tasks.store.states import BatchState, SampleState

# Arrays are faster to send than rows. A batch whose samples have all failed is done at once.
_INSERT_BATCHES = text(f"""
    INSERT INTO batches (shard_id, start_idx, end_idx, next_stage, failed_count, state, finished_at)
    SELECT :shard_id, start_idx, end_idx, first_stage,
           CASE WHEN first_stage IS NULL THEN failed_count ELSE 0 END,
           CASE WHEN first_stage IS NULL THEN '{BatchState.DONE}' ELSE '{BatchState.READY}' END,
           CASE WHEN first_stage IS NULL THEN now() END
    FROM unnest(CAST(:starts AS bigint[]), CAST(:ends AS bigint[]),
                CAST(:first_stages AS text[]), CAST(:failed_counts AS bigint[]))
      AS new(start_idx, end_idx, first_stage, failed_count)
    RETURNING start_idx, id
""")

_COPY_SAMPLES = (
    "COPY samples (shard_id, batch_id, idx, entry, domain, state,"
    " error_stage, error_kind, error_text, attempts, failed_at) FROM STDIN"
)
_JSON = json.JSONEncoder(ensure_ascii=False)
#: Characters that COPY needs escaped.
_ESCAPES = str.maketrans({"\\": "\\\\", "\t": "\\t", "\n": "\\n", "\r": "\\r"})
_NULL = "\\N"
_NO_FAILURE = "\t".join([_NULL, _NULL, _NULL, "0", _NULL])


def insert_batches(connection: Connection, shard_id: int, batches: Sequence[NewBatch]) -> list[int]:
    """Insert the batches without their samples; return their ids, in order."""
    arrays = {
        "starts": [batch.start_idx for batch in batches],
        "ends": [batch.end_idx for batch in batches],
        "first_stages": [batch.first_stage for batch in batches],
        "failed_counts": [batch.failed_count for batch in batches],
    }
    rows = connection.execute(_INSERT_BATCHES, {"shard_id": shard_id, **arrays})
    id_by_start: dict[int, int] = dict(map(tuple, rows))
    return [id_by_start[batch.start_idx] for batch in batches]


def copy_samples(
    connection: Connection, shard_id: int, batches: Sequence[NewBatch], ids: Sequence[int]
) -> None:
    """Insert the samples of these batches by COPY, the fastest way in."""
    lines = [
        _line(f"{shard_id}\t{batch_id}\t", sample)
        for batch, batch_id in zip(batches, ids, strict=True)
        for sample in batch.samples
    ]
    driver = connection.connection.driver_connection
    assert driver is not None
    try:
        with driver.cursor() as cursor, cursor.copy(_COPY_SAMPLES) as copy:
            copy.write("".join(lines))
    except psycopg.OperationalError as error:
        # As SQLAlchemy would raise it, for callers that wait for a server to restart.
        raise OperationalError(_COPY_SAMPLES, None, error) from error


def _line(place: str, sample: NewSample) -> str:
    # JSON has escaped tabs and newlines, so only backslashes need escaping.
    entry = _JSON.encode(sample.entry).replace("\\", "\\\\")
    domain = _NULL if sample.domain is None else sample.domain.translate(_ESCAPES)
    if sample.failure is None:
        return f"{place}{sample.idx}\t{entry}\t{domain}\t{SampleState.PENDING}\t{_NO_FAILURE}\n"
    return f"{place}{sample.idx}\t{entry}\t{domain}\t{SampleState.FAILED}\t{_failure(sample.failure)}\n"


def _failure(failure: Failure) -> str:
    message = storable(failure.message).translate(_ESCAPES)
    # PostgreSQL reads `now` as the time of the transaction.
    return "\t".join([failure.stage, failure.kind, message, "1", "now"])
