"""The metrics of a worker, defined once; other modules count here when something happens.

All are in the process's default registry, with vLLM's own (`vllm:...`). vLLM's engine core passes its numbers
to this process, so Prometheus' multiprocess mode is not needed. With several models in one worker, vLLM keeps
the metrics of the model loaded last.
"""

import psutil
from prometheus_client import Counter, Gauge, Histogram, disable_created_metrics

from capflow_tasks.records import GuardOutcome, Rule, Stage

# They double the number of series and no panel uses them.
disable_created_metrics()  # type: ignore[no-untyped-call]

#: Upper ends of the histograms' buckets, seconds.
_STAGE_BUCKETS = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 80, 160, 320, 640, 1280)
_MEDIA_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)

#: How a stage of a batch can end on a worker.
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
SAMPLES = Counter("capflow_samples_total", "Samples that passed a stage.", ["stage"])
SAMPLES_FINISHED = Counter("capflow_samples_finished_total", "Samples that passed their run's last stage.")
FAILURES = Counter(
    "capflow_sample_failures_total", "Failures of samples, one for each failed try.", ["stage", "kind"]
)
PROMPT_TOKENS = Counter("capflow_prompt_tokens_total", "Prompt tokens of written results.", ["stage"])
CACHED_TOKENS = Counter(
    "capflow_cached_prompt_tokens_total", "Prompt tokens found in the prefix cache.", ["stage"]
)
COMPLETION_TOKENS = Counter(
    "capflow_completion_tokens_total", "Completion tokens of written results.", ["stage"]
)
GUARD = Counter(
    "capflow_guard_answers_total",
    "Answers that broke a rule of the guard, by the worst rule and by what became of them.",
    ["rule", "outcome"],
)
REFUSED_TOKENS = Counter(
    "capflow_guard_refused_tokens_total", "Prompt and completion tokens of refused answers.", ["rule"]
)
BATCHES_IN_FLIGHT = Gauge("capflow_batches_in_flight", "Batches that this worker runs.", ["stage"])
REQUESTS_IN_FLIGHT = Gauge(
    "capflow_requests_in_flight", "Model calls that the engine has not answered yet.", ["stage"]
)
MEDIA_SECONDS = Histogram(
    "capflow_media_load_duration_seconds", "Reading one picture or video.", ["kind"], buckets=_MEDIA_BUCKETS
)
ENGINE_STATE = Gauge("capflow_engine_state", "1 for the current state of the engine.", ["model", "state"])
ENGINE_REBUILDS = Counter("capflow_engine_rebuilds_total", "Engines that died and were rebuilt.", ["model"])
LEASE_AGE = Gauge("capflow_lease_age_seconds", "Time since a heartbeat reached the database.")
LEASE_DURATION = Gauge(
    "capflow_lease_duration_seconds", "Age at which a lease runs out and another worker may take the batch."
)
LOOP_AGE = Gauge("capflow_consumer_loop_age_seconds", "Time since the consumer loop last ran.")
LAST_MESSAGE = Gauge("capflow_last_message_timestamp_seconds", "When the last message came, 0 for never.")
CONNECTED = Gauge("capflow_consumer_connected", "1 while the worker is connected to the broker.")
PAUSED = Gauge("capflow_paused", "1 while this worker takes no work because its node is at fault.")
DRAINING = Gauge("capflow_draining", "1 while the worker finishes its batches before it stops.")
MEMORY = Gauge(
    "capflow_resident_memory_bytes", "Memory of the worker, and of its engine core and decoders.", ["of"]
)
MEMORY_LIMIT = Gauge("capflow_memory_limit_bytes", "CAPFLOW_MAX_RSS_MIB in bytes; 0 for no limit.")


def start_at_zero() -> None:
    """Create all series by stage and rule at 0, since Prometheus sees no increase in one that starts at 1."""
    counters = (SAMPLES, PROMPT_TOKENS, CACHED_TOKENS, COMPLETION_TOKENS)
    for stage in Stage:
        for counter in (*counters, STAGE_SECONDS, BATCHES_IN_FLIGHT, REQUESTS_IN_FLIGHT):
            counter.labels(stage)
        for how in STAGE_ENDS:
            STAGES.labels(stage, how)
    for rule in Rule:
        REFUSED_TOKENS.labels(rule)
        for outcome in GuardOutcome:
            GUARD.labels(rule, outcome)


def watch_memory(limit_mib: int | None) -> None:
    worker = psutil.Process()
    MEMORY.labels("worker").set_function(lambda: _resident_bytes(worker))
    MEMORY.labels("children").set_function(lambda: sum(map(_resident_bytes, worker.children(recursive=True))))
    MEMORY_LIMIT.set((limit_mib or 0) * 2**20)


def _resident_bytes(process: psutil.Process) -> int:
    try:
        return process.memory_info().rss
    except psutil.Error:
        # The process has ended.
        return 0
