"""How long a big plan takes from the start of the command to the first message in Redis."""

from __future__ import annotations

from collections.abc import Mapping
from threading import Event
from time import monotonic

from tests.benchmarks.claims import Bench, Measured
from tests.benchmarks.expansion import write_repeating_plan
from tests.benchmarks.fleet import fleet
from tests.benchmarks.startup import interpreter, interpreter_seconds

_SAMPLES, _SHARDS = 10_000_000, 1_000
_POLL_SECONDS = 0.005
_PATIENCE_SECONDS = 120.0


def measure(bench: Bench) -> Mapping[str, Measured]:
    """Start the real command with servers and no worker; all shards are hard links to one file."""
    plan = write_repeating_plan(bench.folder / "first.jsonl", _SAMPLES // _SHARDS, _SHARDS)
    with fleet(bench.folder, {}) as running:
        started = monotonic()
        producer = running.start_producer(plan)
        try:
            while not running.messages():
                if monotonic() - started > _PATIENCE_SECONDS or producer.code is not None:
                    raise TimeoutError(f"no message: {producer.log().decode()[-500:]}")
                Event().wait(_POLL_SECONDS)
            seconds = monotonic() - started
        finally:
            producer.end()
    bare = interpreter_seconds()
    baseline = f"{interpreter(bare)}; ours: {seconds:.2f} s for {_SAMPLES:,} samples in {_SHARDS:,} shards"
    return {"first_task_over_interpreter": Measured(seconds / bare, baseline)}
