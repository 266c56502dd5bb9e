"""Whether twice the workers do twice the work, where the engine and not the machine sets the pace."""

from __future__ import annotations

from collections.abc import Mapping

from tests.benchmarks.claims import Bench, Measured
from tests.benchmarks.fleet import fleet, write_plan
from tests.chaos import engine as engines
from tests.datasets import draw_picture

#: Worker counts, each measured with the workers of the one before and some more.
_COUNTS = (1, 4, 8)
#: Slow enough that the largest fleet leaves cores idle: what is measured is waiting, not computing.
_LATENCY_SECONDS = 1.0
_BATCHES_AT_A_TIME, _BATCH = 2, 8
_ROUNDS = 4
_ENVIRONMENT = {
    "CAPFLOW_ENGINE": "tests.chaos.engine:build",
    "CAPFLOW_CONCURRENCY": str(_BATCHES_AT_A_TIME),
    "CAPFLOW_LOG_LEVEL": "WARNING",
    engines.LATENCY: str(_LATENCY_SECONDS),
    engines.POISON: "none",
}


def measure(bench: Bench) -> Mapping[str, Measured]:
    """The lowest efficiency of any count of workers, next to as many times one worker's rate."""
    draw_picture(bench.folder / "media" / "a.png", 1)
    rates: dict[int, float] = {}
    with fleet(bench.folder, _ENVIRONMENT) as running:
        for count in _COUNTS:
            running.add_workers(count - len(running.workers))
            entries = [{"image": "a.png"} for _ in range(count * _BATCHES_AT_A_TIME * _BATCH * _ROUNDS)]
            plan = write_plan(
                bench.folder / f"w{count}.jsonl", entries, bench.folder / "media", task="Natural"
            )
            rates[count] = running.run(plan, "--batch-size", str(_BATCH)).samples_per_second
    shown = ", ".join(f"{count}: {rate:.2f}" for count, rate in rates.items())
    lowest = min(rate / count / rates[1] for count, rate in rates.items() if count > 1)
    return {
        "scaling_efficiency": Measured(
            lowest, f"one worker, times their number; samples/s by workers {shown}"
        )
    }
