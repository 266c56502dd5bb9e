"""Every claim, its goal and its study; a study's module is imported when it runs."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module

from tests.benchmarks.claims import Bench, Goal, Measured, Study


def at_least(number: float) -> Goal:
    return Goal(number)


def at_most(number: float) -> Goal:
    return Goal(number, is_ceiling=True)


def _study(module: str, function: str, **goals: Goal) -> Study:
    def measure(bench: Bench) -> Mapping[str, Measured]:
        found: Mapping[str, Measured] = getattr(import_module(f"tests.benchmarks.{module}"), function)(bench)
        return found

    return Study(goals, measure)


STUDIES = (
    _study(
        "captioning",
        "measure",
        fleet_over_bare=at_least(0.97),
        computed_over_minimum_prompt_tokens=at_most(1.1),
        engine_busy_share=at_least(0.95),
        over_static_batches=at_least(1),
        over_openai_client=at_least(0.98),
        over_ray_data=at_least(1),
        worker_start_over_bare=at_most(1.2),
    ),
    _study(
        "barrier",
        "measure",
        requests_in_flight_share=at_least(0.9),
        waiting_fleet_over_bare=at_least(0.97),
    ),
    _study("startup", "measure", help_over_interpreter=at_most(12)),
    _study("decoding", "measure", decode_over_fetch_video=at_least(1)),
    _study("containers", "measure", tar_over_folder=at_least(0.9), parquet_over_folder=at_least(0.9)),
    _study(
        "expansion",
        "measure",
        producer_over_copy=at_least(0.3),
        producer_peak_mib=at_most(300),
    ),
    _study("first_task", "measure", first_task_over_interpreter=at_most(50)),
    _study("in_flight", "measure", producer_cpu_many_over_few=at_most(1.5)),
    _study("queries", "measure", hot_statements_that_scan=at_most(0)),
    _study("orchestration", "measure", orchestration_samples_per_second=Goal()),
    _study("scaling", "measure", scaling_efficiency=at_least(0.95)),
)
