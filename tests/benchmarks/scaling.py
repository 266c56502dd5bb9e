"""Whether twice the workers do twice the work when engines, not the machine, set the pace."""

from __future__ import annotations

from collections.abc import Mapping

from tests.benchmarks.claims import Bench, Measured
from tests.benchmarks.fleet import fleet, write_plan
from tests.chaos import engine as engines
from tests.datasets import draw_picture

#: Worker counts; each adds workers to the one before.
_COUNTS, _FULL_COUNTS = (1, 8), (1, 2, 4, 8, 16, 32)
#: Slow enough that the largest fleet leaves cores idle, so that waiting is measured, not computing.
_LATENCY_SECONDS, _FULL_LATENCY_SECONDS = 2.0, 4.0
_BATCHES_AT_A_TIME, _BATCH = 2, 8
_ROUNDS = 3
_ENVIRONMENT = {
    "CAPFLOW_ENGINE": "tests.chaos.engine:build",
    "CAPFLOW_CONCURRENCY": str(_BATCHES_AT_A_TIME),
    "CAPFLOW_LOG_LEVEL": "WARNING",
    engines.POISON: "none",
}


def measure(bench: Bench) -> Mapping[str, Measured]:
    """Return the lowest rate of any count of workers, over that many times one worker's rate."""
    draw_picture(bench.folder / "media" / "a.png", 1)
    rates: dict[int, float] = {}
    counts = _FULL_COUNTS if bench.is_full else _COUNTS
    latency = _FULL_LATENCY_SECONDS if bench.is_full else _LATENCY_SECONDS
    with fleet(bench.folder, {**_ENVIRONMENT, engines.LATENCY: str(latency)}) as running:
        for count in counts:
            running.add_workers(count - len(running.workers))
            slots = count * _BATCHES_AT_A_TIME
            entries = [{"image": "a.png"} for _ in range(slots * _BATCH * _ROUNDS)]
            plan = write_plan(
                bench.folder / f"w{count}.jsonl", entries, bench.folder / "media", task="Natural"
            )
            stretch = running.run(plan, "--batch-size", str(_BATCH), slots=slots)
            rates[count] = stretch.steady.samples_per_second
    shown = ", ".join(f"{count}: {rate:.2f}" for count, rate in rates.items())
    lowest = min(rate / count / rates[1] for count, rate in rates.items() if count > 1)
    return {
        "scaling_efficiency": Measured(
            lowest, f"one worker, times their number; samples/s by workers {shown}"
        )
    }
