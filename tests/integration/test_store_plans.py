"""That what a sample costs the database does not grow with how many there are."""

from __future__ import annotations

import pytest
from sqlalchemy import Engine, text

from capflow_tasks.records import Stage
from capflow_tasks.store.statistics import Statistics
from tests.explained import everyday, explained, fill
from tests.stores import LEASE_SECONDS, Fleet, some_entries

pytestmark = pytest.mark.integration


def test_no_statement_of_a_samples_life_reads_all_samples_or_results(engine: Engine) -> None:
    fleet = Fleet(engine, some_entries(24))
    fill(fleet, 50_000)

    found = everyday(fleet)

    assert [each.statement for each in found if each.scans("samples", "results")] == []
    assert {"ix_samples_batch_id", "pk_results"} <= {node.index for each in found for node in each.nodes}


@pytest.mark.parametrize("stage", [Stage.PERCEIVE, Stage.SCORE])
def test_a_stage_takes_as_many_statements_for_many_samples_as_for_one(engine: Engine, stage: Stage) -> None:
    fleet = Fleet(engine, some_entries(17), batch_size=16, domain="Natural", stages=(stage,))

    counts = []
    for batch_id in fleet.batch_ids:
        with explained(engine) as found:
            assert fleet.finish(fleet.claim(stage, batch_id=batch_id))
        counts.append(len(found))

    assert counts[0] == counts[1] < 14


def test_a_scan_would_be_seen(engine: Engine) -> None:
    with explained(engine) as found, engine.connect() as connection:
        connection.execute(text("SELECT count(*) FROM samples WHERE attempts > 1"))

    assert [each.scans("samples") for each in found] == [True]


def test_what_progress_asks_again_and_again_reads_no_table_of_samples_whole(engine: Engine) -> None:
    fleet = Fleet(engine, some_entries(24))
    fill(fleet, 50_000)
    with engine.begin() as connection:
        connection.execute(text("UPDATE batches SET finished_at = finished_at - interval '1 day'"))
    statistics = Statistics(engine)

    with explained(engine) as found:
        statistics.runs(run_id=fleet.run_id)
        statistics.activity(fleet.run_id, LEASE_SECONDS)
        statistics.failures(fleet.run_id)
        statistics.prompt_economy(fleet.run_id, batches=10)

    assert [each.statement for each in found if each.scans("samples", "results")] == []
