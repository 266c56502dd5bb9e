"""The faults, one function each: wait for the right moment, inject the fault, note which batches it hit."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Callable
from contextlib import AbstractContextManager
from threading import Event

from redis import Redis
from sqlalchemy import select

from capflow_tasks.errors import EXIT_RESTART, EXIT_USAGE
from capflow_tasks.records import Stage
from capflow_tasks.store.states import BatchState, SampleState
from capflow_tasks.store.tables import Sample
from tests import refusals
from tests.chaos.fleet import engine_cores
from tests.chaos.scene import OpenBatch, Scene

#: What a scenario does to a working fleet.
Fault = Callable[[Scene], None]

#: Longer than the fleet's lease in these scenarios.
_OUTAGE_SECONDS = 7
_DRAIN_SECONDS = 45
#: Several leases.
_REFUSAL_SECONDS = 15
_ABSENCE_SECONDS = 20


def kill_worker_in(stage: Stage) -> Fault:
    """Return a fault that SIGKILLs a worker while it runs this stage."""

    def kill(scene: Scene) -> None:
        batch = scene.until(lambda: _running(scene, stage), f"a worker ran {stage}")
        _kill_owner(scene, batch)

    return kill


def kill_in_every_stage(scene: Scene) -> None:
    for stage in Stage:
        kill_worker_in(stage)(scene)


def kill_while_captions_are_written_again(scene: Scene) -> None:
    """SIGKILL a worker six times while it writes or grades a further caption of a sample."""
    for _ in range(6):
        batch = scene.until(lambda: _writing_again(scene), "a worker wrote a caption again")
        _kill_owner(scene, batch)


def _writing_again(scene: Scene) -> OpenBatch | None:
    further = select(Sample.batch_id).where(Sample.state == SampleState.PENDING, Sample.candidate > 1)
    with scene.engine.connect() as connection:
        ids = set(connection.execute(further).scalars())
    held = [batch for batch in scene.held() if batch.id in ids]
    return scene.random.choice(held) if held else None


def terminate_worker(scene: Scene) -> None:
    """SIGTERM a worker: it must finish or give back what it has, and exit with 0."""
    batch = scene.until(lambda: _running(scene), "a worker ran anything")
    scene.struck([each for each in scene.open_batches() if each.owner == batch.owner], needs_all=True)
    _terminate(scene, batch)


def terminate_worker_without_redis(scene: Scene) -> None:
    """SIGTERM a worker while Redis is away, as when a cluster is taken down in the wrong order."""
    batch = scene.until(lambda: _running(scene), "a worker ran anything")
    scene.struck([each for each in scene.open_batches() if each.owner == batch.owner], needs_all=True)
    scene.redis.kill()
    Event().wait(scene.random.uniform(0, 1))
    _terminate(scene, batch)
    scene.redis.start()


def outgrow_memory(scene: Scene) -> None:
    """Wait until leaking workers have exited by themselves at their memory limit, for a restart."""
    scene.until(lambda: _restarts(scene), "a worker exceeded its memory limit")
    scene.faults += _restarts(scene)


def _restarts(scene: Scene) -> int:
    return sum(worker.codes.count(EXIT_RESTART) for worker in scene.fleet.workers.values())


def kill_engine_core(scene: Scene) -> None:
    """SIGKILL the process in which vLLM runs the model."""
    batch = scene.until(lambda: _running(scene), "a worker ran anything", 240)
    scene.struck([each for each in scene.held() if each.owner == batch.owner], needs_all=True)
    cores = engine_cores(scene.fleet.worker_of(batch.owner or "").pid)
    if not cores:
        scene.complaints.append("no engine core was found")
    for core in cores:
        core.kill()


def flush_redis(scene: Scene) -> None:
    scene.until(lambda: _running(scene), "a worker ran anything")
    scene.struck(_queued(scene))
    scene.redis.client.flushall()


def restart_redis(scene: Scene) -> None:
    scene.until(lambda: _running(scene), "a worker ran anything")
    scene.struck(_queued(scene))
    scene.redis.kill()
    Event().wait(scene.random.uniform(0, 3))
    scene.redis.start()


def restart_postgres(scene: Scene) -> None:
    scene.until(lambda: _running(scene), "a worker ran anything")
    scene.struck(scene.held())
    scene.postgres.restart()


def take_postgres_away(scene: Scene) -> None:
    """Stop PostgreSQL for longer than a lease lasts."""
    scene.until(lambda: _running(scene), "a worker ran anything")
    scene.struck(scene.held())
    scene.postgres.stop()
    Event().wait(_OUTAGE_SECONDS)
    scene.postgres.start()


def make_servers_read_only(scene: Scene) -> None:
    """Have PostgreSQL and Redis refuse writes, as in the middle of a failover."""
    _refuse(scene, refusals.read_only_database, refusals.replica)


def fill_servers(scene: Scene) -> None:
    """Take every connection of PostgreSQL and all memory of Redis."""
    _refuse(scene, refusals.no_connections, refusals.no_memory)


def _refuse(
    scene: Scene,
    refuse_database: Callable[[str], AbstractContextManager[None]],
    refuse_broker: Callable[[Redis], AbstractContextManager[None]],
) -> None:
    scene.until(lambda: _running(scene), "a worker ran anything")
    scene.struck(scene.held())
    url = scene.engine.url.render_as_string(hide_password=False)
    starts = [worker.starts for worker in scene.fleet.workers.values()]
    with refuse_database(url), refuse_broker(scene.redis.client):
        Event().wait(_REFUSAL_SECONDS)
    scene.fleet.tend()
    if starts != [worker.starts for worker in scene.fleet.workers.values()]:
        scene.complaints.append("a worker exited because a server refused")


def take_media_away(scene: Scene) -> None:
    """Have the folder of the media vanish for a while, as a mount that is lost."""
    scene.until(lambda: _running(scene), "a worker ran anything")
    scene.struck(scene.held())
    media, away = scene.fleet.home / "media", scene.fleet.home / "away"
    media.rename(away)
    Event().wait(_ABSENCE_SECONDS)
    away.rename(media)


def add_worker_without_media(scene: Scene) -> None:
    """Start a worker on a node that lacks the mount: what the root leads to depends on the process."""
    scene.until(lambda: _running(scene), "a worker ran anything")
    home, blind = scene.fleet.home, scene.fleet.home / "blind"
    blind.mkdir()
    (home / "media").rename(home / "mounted")
    (home / "media").symlink_to("/proc/self/cwd/mounted")
    worker = scene.fleet.add_worker("blind", blind)
    scene.struck(scene.open_batches())
    scene.until(lambda: b"takes no work: the media root" in worker.log() or None, "the worker paused")


def add_worker_with_other_domains(scene: Scene) -> None:
    """Start a worker whose domain files differ; it must be refused."""
    scene.until(lambda: _running(scene), "a worker ran anything")
    domains = scene.fleet.home / "other-domains"
    domains.mkdir()
    (domains / "_defaults.yaml").write_text("system: You look at pictures.\n")
    worker = scene.fleet.add_worker("other", CAPFLOW_DOMAINS=str(domains))
    scene.struck(scene.open_batches())
    code = scene.until(lambda: worker.code, "the worker was refused")
    if code != EXIT_USAGE or b"domains is " not in worker.log():
        scene.complaints.append(f"a worker with other domains exited with code {code}")


def edit_plan(scene: Scene) -> None:
    """Edit the plan and caption it again while a producer still runs it; that one must end."""
    scene.until(lambda: _running(scene), "a worker ran anything")
    scene.struck(scene.open_batches())
    plan, first = scene.fleet.plan, scene.fleet.producer
    plan.write_text(json.dumps(json.loads(plan.read_text()) | {"assign_rank": 1}) + "\n")
    scene.fleet.add_producer()
    code = scene.until(lambda: first.code, "the first producer ended")
    if code != EXIT_USAGE:
        scene.complaints.append(f"the producer of the old plan exited with code {code}")


def caption_another_plan_into_the_folder(scene: Scene) -> None:
    """Caption another plan that would write the same files; it must be refused."""
    scene.until(lambda: _running(scene), "a worker ran anything")
    scene.struck(scene.open_batches())
    plan = scene.fleet.home / "another.jsonl"
    plan.write_text(json.dumps(json.loads(scene.fleet.plan.read_text()) | {"start_idx": 1}) + "\n")
    other = scene.fleet.start_other(plan)
    code = scene.until(lambda: other.code, "the other producer was refused")
    if code != EXIT_USAGE or b"is a file of run" not in other.log():
        scene.complaints.append(f"the producer of another plan exited with code {code}")


def kill_producer(scene: Scene) -> None:
    """SIGKILL the producer and start it again a moment later."""
    scene.until(lambda: _running(scene), "a worker ran anything")
    scene.struck(scene.open_batches())
    scene.fleet.producer.end()
    Event().wait(scene.random.uniform(0, 1))
    scene.fleet.producer.start()


def kill_producer_early(scene: Scene) -> None:
    """SIGKILL the producer three times while it inserts."""
    for _ in range(3):
        Event().wait(scene.random.uniform(0, 0.3))
        kill_producer(scene)


def second_producer_takes_over(scene: Scene) -> None:
    """Start a second producer of the plan, then kill the first."""
    first = scene.fleet.producer
    second = scene.fleet.add_producer()
    scene.until(lambda: b"samples" in second.log() or None, "the second producer showed progress", 30)
    scene.struck(scene.open_batches())
    first.end()


def deliver_everything_twice(scene: Scene) -> None:
    """Copy each waiting or delivered message under a new delivery tag, as long as the run lasts."""
    copied: set[str] = set()

    def copy() -> None:
        for message in scene.redis.messages() + scene.redis.delivered():
            if message.task and message.task not in copied:
                copied.add(message.task)
                scene.redis.put_copy(message)
                scene.faults += 1

    scene.meanwhile = copy


def random_faults(count: int) -> Fault:
    """Return a fault that injects `count` faults at random times, most of them kills."""
    choices: dict[Fault, int] = {
        _kill_any_worker: 10,
        kill_producer: 3,
        flush_redis: 2,
        restart_redis: 1,
        restart_postgres: 1,
        terminate_worker: 2,
    }

    def strike(scene: Scene) -> None:
        for _ in range(count):
            (fault,) = scene.random.choices(list(choices), list(choices.values()))
            fault(scene)
            Event().wait(scene.random.uniform(0, 1.5))

    return strike


def each_fault_once(scene: Scene) -> None:
    """Inject every fault in random order, each when the fleet has recovered from the last one."""
    faults = [
        kill_worker_in(scene.random.choice(list(Stage))),
        terminate_worker,
        flush_redis,
        restart_redis,
        restart_postgres,
        kill_producer,
    ]
    scene.random.shuffle(faults)
    for fault in faults:
        fault(scene)
        scene.until_recovered()


def nothing(scene: Scene) -> None:
    """Do nothing; the poison is fault enough."""


def _terminate(scene: Scene, batch: OpenBatch) -> None:
    worker = scene.fleet.worker_of(batch.owner or "")
    worker.send(signal.SIGTERM)
    try:
        code = worker.wait(_DRAIN_SECONDS)
    except subprocess.TimeoutExpired:
        scene.complaints.append(f"{worker.name} had not exited {_DRAIN_SECONDS} s after SIGTERM")
        worker.send(signal.SIGKILL)
        worker.wait(10)
        scene.dead.add(batch.owner or "")
        return
    if code:
        scene.complaints.append(f"{worker.name} exited with code {code} after SIGTERM")
    left = [each.id for each in scene.open_batches() if each.owner == batch.owner]
    if left:
        scene.complaints.append(f"{worker.name} exited with the leases of batches {left}")


def _kill_any_worker(scene: Scene) -> None:
    batches = scene.until(lambda: scene.held(), "a worker ran anything")
    _kill_owner(scene, scene.random.choice(batches))


def _kill_owner(scene: Scene, batch: OpenBatch) -> None:
    """SIGKILL the worker that has this batch; all its batches must run again elsewhere."""
    owner = batch.owner or ""
    scene.fleet.worker_of(owner).send(signal.SIGKILL)
    scene.dead.add(owner)
    scene.struck([each for each in scene.open_batches() if each.owner == owner], needs_all=True)


def _running(scene: Scene, stage: Stage | None = None) -> OpenBatch | None:
    held = [batch for batch in scene.held() if stage is None or batch.next_stage == stage]
    return scene.random.choice(held) if held else None


def _queued(scene: Scene) -> list[OpenBatch]:
    return [batch for batch in scene.open_batches() if batch.state == BatchState.QUEUED]
