"""The scenarios, and how one is played: start a fleet, inject faults, audit the result."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from threading import Event
from time import monotonic

from redis.exceptions import RedisError

from capflow_tasks.errors import EXIT_RESTART, EXIT_USAGE
from capflow_tasks.records import Stage
from capflow_tasks.settings import Settings
from capflow_tasks.store.database import connect
from tests.chaos import engine as engines
from tests.chaos import faults
from tests.chaos.audit import (
    Verdict,
    count_duplicates,
    count_lost,
    count_repeated,
    describe_candidates,
    describe_lost,
)
from tests.chaos.fleet import Fleet, running
from tests.chaos.scene import RunOver, Scene
from tests.chaos.services import Postgres, Redis, running_redis
from tests.checkpoints import NOISE_RULES, tiny_checkpoint
from tests.datasets import entries_with_pictures, write_plan

#: The fleet notices faults ten times as fast as with the defaults.
_QUICK = {
    "CAPFLOW_ENGINE": "tests.chaos.engine:build",
    "CAPFLOW_LEASE_SECONDS": "3",
    "CAPFLOW_RETRY_SECONDS": "0.2",
    "CAPFLOW_DRAIN_SECONDS": "15",
    "CAPFLOW_DATABASE_SECONDS": "60",
    "CAPFLOW_CONCURRENCY": "3",
    "CAPFLOW_WINDOW": "16",
}
_VLLM = {
    "CAPFLOW_ENGINE": "tests.chaos.engine:build_vllm",
    "CAPFLOW_MAX_MODEL_LEN": "16384",
    "CAPFLOW_MAX_ANSWER_TOKENS": "48",
    "CAPFLOW_GUARD_OFF": NOISE_RULES,
    "HF_HUB_OFFLINE": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "TORCHDYNAMO_DISABLE": "1",
}
_DEFAULT_LEASE = str(Settings.model_fields["lease_seconds"].default)
#: A batch of a killed worker must run again within this time, whatever the lease.
_RECOVERY_SECONDS = 90
#: How long messages may take to disappear once the run is over.
_SETTLE_SECONDS = 10
_STOP_SECONDS = 45


#: Captions of one sample in the scenario `candidates`.
_CANDIDATES = 3


@dataclass(frozen=True, slots=True)
class Scenario:
    fault: faults.Fault
    #: Time that the scripted engine takes for one request, seconds.
    latency_seconds: float = 0.2
    #: Share of the requested samples.
    share: float = 1.0
    workers: int = 2
    #: Index of a sample that must be quarantined.
    poisoned: int | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    timeout_seconds: float = 180
    has_real_model: bool = False


def _poison(victim: str, **changes: str) -> Scenario:
    return Scenario(
        faults.nothing, poisoned=13, environment={engines.VICTIM: victim, **changes}, timeout_seconds=300
    )


SCENARIOS: Mapping[str, Scenario] = {
    **{f"kill-in-{stage}": Scenario(faults.kill_worker_in(stage)) for stage in Stage},
    "sigterm": Scenario(faults.terminate_worker),
    "sigterm-without-redis": Scenario(faults.terminate_worker_without_redis),
    "engine-core": Scenario(
        faults.kill_engine_core,
        share=0.1,
        workers=1,
        environment=_VLLM,
        timeout_seconds=400,
        has_real_model=True,
    ),
    "default-lease": Scenario(
        faults.kill_worker_in(Stage.PERCEIVE), environment={"CAPFLOW_LEASE_SECONDS": _DEFAULT_LEASE}
    ),
    "memory-limit": Scenario(
        faults.outgrow_memory, environment={engines.LEAK: "2", "CAPFLOW_MAX_RSS_MIB": "220"}
    ),
    "flushall": Scenario(faults.flush_redis),
    "redis-restart": Scenario(faults.restart_redis),
    "postgres-restart": Scenario(faults.restart_postgres),
    "postgres-away": Scenario(faults.take_postgres_away),
    "servers-read-only": Scenario(faults.make_servers_read_only),
    "servers-full": Scenario(faults.fill_servers),
    "media-away": Scenario(faults.take_media_away),
    "node-without-media": Scenario(faults.add_worker_without_media, 0.8, share=2),
    "node-with-other-domains": Scenario(faults.add_worker_with_other_domains, 0.8, share=2),
    "edited-plan": Scenario(faults.edit_plan, share=2),
    "two-plans": Scenario(faults.caption_another_plan_into_the_folder, share=2),
    "producer": Scenario(faults.kill_producer_early),
    "second-producer": Scenario(faults.second_producer_takes_over, environment={"CAPFLOW_WINDOW": "4"}),
    "poison-engine": _poison("engine"),
    "poison-worker": _poison("worker"),
    "poison-crowd": _poison("worker", CAPFLOW_CONCURRENCY="8"),
    "duplicates": Scenario(faults.deliver_everything_twice),
    "candidates": Scenario(
        faults.kill_while_captions_are_written_again,
        environment={engines.STRICT: "1", "CAPFLOW_CANDIDATES": str(_CANDIDATES), "CAPFLOW_WINDOW": "4"},
    ),
    "random": Scenario(faults.random_faults(40), share=4, latency_seconds=0.4, timeout_seconds=900),
    # Few in-flight batches, so that every stage has some until the last fault.
    "medley": Scenario(
        faults.each_fault_once, latency_seconds=0.6, share=2, environment={"CAPFLOW_WINDOW": "4"}
    ),
}
#: The scenarios of the short form.
SHORT = ("medley", "poison-engine", "duplicates", "candidates")
SHORT_SAMPLES = 96


def play(name: str, seed: int, samples: int, postgres: Postgres, folder: Path) -> Verdict:
    """Play a scenario in this folder, which must be empty."""
    scenario = SCENARIOS[name]
    samples = max(round(samples * scenario.share), 16)
    plan = write_plan(folder, entries_with_pictures(folder, samples))
    poison = "" if scenario.poisoned is None else f"{scenario.poisoned}.png"
    url, journal = postgres.new_database(), folder / "journal.jsonl"
    with running_redis(folder) as redis:
        environment = {
            **_QUICK,
            **scenario.environment,
            "CAPFLOW_HOME": str(folder),
            "CAPFLOW_OCR_PROCESSES": "0",
            "CAPFLOW_DATABASE_URL": url,
            "CAPFLOW_BROKER_URL": redis.url,
            engines.JOURNAL: str(journal),
            engines.LATENCY: str(scenario.latency_seconds),
            engines.POISON: poison,
        }
        if scenario.has_real_model:
            environment["CAPFLOW_MODEL"] = str(tiny_checkpoint())
        engine = connect(url)
        with running(Fleet(folder, environment, plan, scenario.workers)) as fleet:
            scene = Scene(fleet, redis, postgres, engine, Random(seed))
            started = monotonic()
            _strike(scene, scenario)
            seconds = monotonic() - started
            stranded = _settle(scene)
        if max(scene.recoveries, default=0) > _RECOVERY_SECONDS:
            scene.complaints.append(f"the fleet took more than {_RECOVERY_SECONDS} s to recover")
        poisoned = [] if scenario.poisoned is None else [scenario.poisoned]
        lost = count_lost(engine, samples, poisoned)
        calls = engines.read_journal(journal)
        verdict = Verdict(
            scenario=name,
            seed=seed,
            samples=samples,
            faults=scene.faults + _deaths(calls, poison),
            lost=lost,
            repeated=count_repeated(engine, calls),
            duplicates=count_duplicates(engine, fleet.output),
            stranded=stranded,
            recovery_seconds=max(scene.recoveries, default=None),
            seconds=seconds,
            complaints=(
                *scene.complaints,
                *(describe_lost(engine) if lost else ()),
                *(describe_candidates(engine, _CANDIDATES) if engines.STRICT in scenario.environment else ()),
            ),
        )
        engine.dispose()
    return verdict


def _strike(scene: Scene, scenario: Scenario) -> None:
    try:
        scenario.fault(scene)
        code = scene.until_over(scenario.timeout_seconds)
    except (RunOver, TimeoutError) as error:
        scene.complaints.append(str(error))
        return
    expected = 0 if scenario.poisoned is None else 1
    if code != expected:
        scene.complaints.append(f"the producer exited with code {code}: {scene.fleet.last_words()}")


def _settle(scene: Scene) -> int:
    """Stop the workers as an operator does; return how many messages no worker has taken."""
    scene.meanwhile = lambda: None
    deadline = monotonic() + _SETTLE_SECONDS
    while monotonic() < deadline and _waiting(scene.redis):
        scene.poll(lambda: None)
        Event().wait(0.05)
    stranded = _waiting(scene.redis)
    for worker in scene.fleet.workers.values():
        worker.end(_STOP_SECONDS)
        # A worker that was refused has said so in its scenario.
        if worker.code not in (0, EXIT_RESTART, EXIT_USAGE):
            scene.complaints.append(f"{worker.name} exited with code {worker.code} at the end")
    return stranded


def _deaths(calls: Sequence[engines.Call], poison: str) -> int:
    """Count the calls about the poison."""
    return sum(bool(poison) and Path(call.path).name == poison for call in calls)


def _waiting(redis: Redis) -> int:
    try:
        return len(redis.messages())
    except RedisError:
        return 0
