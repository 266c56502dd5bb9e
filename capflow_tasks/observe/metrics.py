"""Every metric of a worker, named once; the rest of the code calls what is here where things happen.

All live in this process's default registry. vLLM puts its own (`vllm:...`) there too: its engine core hands
its numbers to this process, so that Prometheus' multiprocess mode is not needed. With several models in one
worker, vLLM keeps the metrics of the one that was loaded last.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import psutil
from prometheus_client import Counter, Gauge, Histogram, disable_created_metrics

from capflow_tasks.records import Stage

# They would double the series and nobody asks for them.
disable_created_metrics()  # type: ignore[no-untyped-call]

#: Upper ends of the histograms' buckets, seconds.
_STAGE_BUCKETS = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 80, 160, 320, 640, 1280)
_MEDIA_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)

#: How a stage of a batch may end on a worker.
STAGE_ENDS = ("done", "given_back", "split", "lost")

STAGES = Counter(
    "capflow_stages_total", "Stages of batches, by how they ended on this worker.", ["stage", "end"]
)
STAGE_SECONDS = Histogram(
    "capflow_stage_duration_seconds",
    "From a stage's claim until its results are written.",
    ["stage"],
    buckets=_STAGE_BUCKETS,
)
SAMPLES = Counter("capflow_samples_total", "Samples that a stage was done with, without failure.", ["stage"])
SAMPLES_FINISHED = Counter(
    "capflow_samples_finished_total", "Samples that came to the end of their run's last stage."
)
FAILURES = Counter(
    "capflow_sample_failures_total",
    "Failures of samples; one that may pass is tried again and may be counted again.",
    ["stage", "kind"],
)
PROMPT_TOKENS = Counter(
    "capflow_prompt_tokens_total", "Prompt tokens of results that were written.", ["stage"]
)
CACHED_TOKENS = Counter(
    "capflow_cached_prompt_tokens_total", "Those of them that the prefix cache spared.", ["stage"]
)
COMPLETION_TOKENS = Counter(
    "capflow_completion_tokens_total", "Completion tokens of results that were written.", ["stage"]
)
BATCHES_IN_FLIGHT = Gauge("capflow_batches_in_flight", "Batches that this worker runs now.", ["stage"])
REQUESTS_IN_FLIGHT = Gauge(
    "capflow_requests_in_flight", "Model calls handed to the engine and not answered yet.", ["stage"]
)
MEDIA_SECONDS = Histogram(
    "capflow_media_load_duration_seconds",
    "Reading and decoding one picture or video.",
    ["kind"],
    buckets=_MEDIA_BUCKETS,
)
ENGINE_STATE = Gauge("capflow_engine_state", "1 for the state that the engine is in.", ["model", "state"])
ENGINE_REBUILDS = Counter("capflow_engine_rebuilds_total", "Engines that died and were rebuilt.", ["model"])
LEASE_AGE = Gauge("capflow_lease_age_seconds", "Since a heartbeat last reached the database.")
LEASE_DURATION = Gauge(
    "capflow_lease_duration_seconds", "Age at which another worker may take this one's batches."
)
LOOP_AGE = Gauge("capflow_consumer_loop_age_seconds", "Since the loop that takes messages last turned.")
LAST_MESSAGE = Gauge(
    "capflow_last_message_timestamp_seconds", "When this worker last began with a message, 0 for never."
)
CONNECTED = Gauge("capflow_consumer_connected", "1 while the worker takes messages from the broker.")
DRAINING = Gauge("capflow_draining", "1 once the worker was told to stop and finishes what it has.")
MEMORY = Gauge(
    "capflow_resident_memory_bytes",
    "Resident memory of this process, and of its children: engine core and decoders.",
    ["of"],
)
MEMORY_LIMIT = Gauge(
    "capflow_memory_limit_bytes", "CAPFLOW_MAX_RSS_MIB in bytes: this process ends beyond it; 0 for no limit."
)


def end(stage: Stage, how: str) -> None:
    """A stage that ended so; one of STAGE_ENDS."""
    STAGES.labels(stage, how).inc()


@contextmanager
def requests_in_flight(stage: Stage, number: int) -> Iterator[None]:
    gauge = REQUESTS_IN_FLIGHT.labels(stage)
    gauge.inc(number)
    try:
        yield
    finally:
        gauge.dec(number)


def begin_at_zero(stages: Iterable[Stage]) -> None:
    """Show what these stages will count before there is any: what begins at 1 looks like no increase."""
    counters = (SAMPLES, PROMPT_TOKENS, CACHED_TOKENS, COMPLETION_TOKENS)
    for stage in stages:
        for counter in (*counters, STAGE_SECONDS, BATCHES_IN_FLIGHT, REQUESTS_IN_FLIGHT):
            counter.labels(stage)
        for how in STAGE_ENDS:
            STAGES.labels(stage, how)


def watch_memory(limit_mib: int | None) -> None:
    MEMORY.labels("worker").set_function(lambda: psutil.Process().memory_info().rss)
    MEMORY.labels("children").set_function(_children_bytes)
    MEMORY_LIMIT.set((limit_mib or 0) * 2**20)


def _children_bytes() -> int:
    return sum(map(_resident_bytes, psutil.Process().children(recursive=True)))


def _resident_bytes(process: psutil.Process) -> int:
    try:
        return process.memory_info().rss
    except psutil.Error:
        # It ended while we looked.
        return 0
