"""Whether the statements about one sample stay fast among millions of others."""

from __future__ import annotations

from collections.abc import Mapping
from time import perf_counter

from capflow_tasks.fleet.embedded import embedded_postgres
from capflow_tasks.store.database import connect, upgrade
from tests.benchmarks.claims import Bench, Measured
from tests.explained import everyday, fill
from tests.stores import Fleet, some_entries

_SAMPLES, _FULL_SAMPLES = 1_000_000, 10_000_000


def measure(bench: Bench) -> Mapping[str, Measured]:
    """Count the statements of a sample's life that scan all samples or results, by PostgreSQL's plans."""
    count = _FULL_SAMPLES if bench.is_full else _SAMPLES
    with embedded_postgres(bench.folder) as url:
        engine = connect(url)
        upgrade(engine)
        fleet = Fleet(engine, some_entries(24))
        fill(fleet, count)
        began = perf_counter()
        found = everyday(fleet)
        seconds = perf_counter() - began
        engine.dispose()
    scans = sum(each.scans("samples", "results") for each in found)
    among = f"none; {len(found)} statements among {count:,} samples and {2 * count:,} results"
    return {"hot_statements_that_scan": Measured(scans, f"{among}, {1000 * seconds:.0f} ms with EXPLAIN")}
