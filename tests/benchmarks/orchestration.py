"""How much everything around the engine carries, with a scripted engine that answers at once."""

from __future__ import annotations

from collections.abc import Mapping

from tests.benchmarks.claims import Bench, Measured
from tests.benchmarks.fleet import fleet, write_plan
from tests.datasets import draw_picture

_SAMPLES = 1_500
_ENVIRONMENT = {"CAPFLOW_ENGINE": "capflow_tasks.testing:build", "CAPFLOW_LOG_LEVEL": "WARNING"}


def measure(bench: Bench) -> Mapping[str, Measured]:
    """Measure samples per second of one worker, and the CPU per sample by kind of process."""
    draw_picture(bench.folder / "media" / "a.png", 1)
    entries = [{"id": number, "image": "a.png"} for number in range(_SAMPLES)]
    plan = write_plan(bench.folder / "orchestration.jsonl", entries, bench.folder / "media", task="Natural")
    with fleet(bench.folder, _ENVIRONMENT) as running:
        running.add_workers(1)
        stretch = running.run(plan)
    spent = ", ".join(f"{kind} {each:.1f}" for kind, each in stretch.cpu_milliseconds_per_sample.items())
    return {
        "orchestration_samples_per_second": Measured(
            stretch.steady.samples_per_second, f"none; CPU milliseconds per sample: {spent}"
        )
    }
