"""Looks at a run while it goes on: says which workers take no work, and pauses it when too much fails."""

import logging
import shlex
from collections import Counter
from collections.abc import Collection, Sequence
from time import monotonic

from sqlalchemy import Engine

from capflow_tasks.captioning.surge import is_rare, most_common_failure
from capflow_tasks.records import Stage
from capflow_tasks.settings import Settings
from capflow_tasks.store.figures import Ending, RunFigures, WorkerFigures
from capflow_tasks.store.runs import RunStore
from capflow_tasks.store.statistics import Statistics

log = logging.getLogger(__name__)

#: Characters of a failure's reason in the sentence with which a run pauses.
_REASON_LENGTH = 200


class Watch:
    """One run and its workers, looked at again and again."""

    def __init__(self, engine: Engine, run_id: int, settings: Settings) -> None:
        self._statistics = Statistics(engine)
        self._runs = RunStore(engine)
        self._run_id = run_id
        self._settings = settings
        #: What ended before does not count: its cause may be gone.
        self._since = self._statistics.now()
        #: What has been said of each worker that takes no work.
        self._said: dict[str, str] = {}
        #: Since when more than one live worker has had a name, by name.
        self._shared_since: dict[str, float] = {}
        self._warned: set[str] = set()

    def look(self) -> None:
        """Log which workers have begun to take no work or take some again; pause the run in a surge."""
        workers = self._statistics.workers(self._settings.lease_seconds)
        alive = [each for each in workers if each.is_alive]
        self._look_at_names(alive)
        paused = {each.owner: each.fault for each in alive if each.fault}
        for worker in alive:
            self._tell(worker, paused.get(worker.owner))
        if paused.keys() - self._said.keys() and len(paused) == len(alive):
            log.warning("no worker takes work; the run goes on by itself when one can")
        self._said = paused
        # While others work, what a worker that has paused failed is that worker's, and not the run's.
        apart = paused.keys() if len(paused) < len(alive) else ()
        if reason := self._surge(apart):
            self._runs.stop(self._run_id, reason)

    def _look_at_names(self, alive: Sequence[WorkerFigures]) -> None:
        """Warn of workers that share a name for longer than one that was killed and started again."""
        counts = Counter(each.node for each in alive)
        shared = {node for node, count in counts.items() if count > 1}
        now = monotonic()
        self._shared_since = {node: self._shared_since.get(node, now) for node in shared}
        lasting = {node for node in shared if now - self._shared_since[node] > self._settings.lease_seconds}
        for node in sorted(lasting - self._warned):
            log.warning(
                "%s workers are named %s, and take each other's messages; start each with a name of its own: "
                "celery -A capflow_tasks worker -Q gpu -n NAME@%%h",
                counts[node],
                node,
            )
        self._warned |= lasting

    def _tell(self, worker: WorkerFigures, fault: str | None) -> None:
        before = self._said.get(worker.owner)
        if fault is not None and fault != before:
            log.warning("worker %s takes no work: %s", worker.node, fault)
        elif before is not None and fault is None:
            log.info("worker %s takes work again", worker.node)

    def _surge(self, apart: Collection[str]) -> str | None:
        """Return why the run is to pause; None when it goes on."""
        count = self._settings.surge_samples
        endings = self._statistics.latest_endings(self._run_id, self._since, count) if count else []
        endings = [each for each in endings if each.worker not in apart]
        kind = most_common_failure([each.kind for each in endings])
        if len(endings) < count or kind is None:
            return None
        failed = [each for each in endings if each.kind == kind]
        (run,) = self._statistics.runs(run_id=self._run_id)
        total = sum(each.count for each in self._statistics.failures(run.id) if each.kind == kind)
        if not is_rare(total - len(failed), run.tally.total - count):
            return None
        return _sentence(run, failed, count)


def _sentence(run: RunFigures, failed: Sequence[Ending], count: int) -> str:
    kind, reason = failed[0].kind, (failed[0].reason or "")[:_REASON_LENGTH].rstrip(".")
    by_node = Counter((each.worker or "").partition("/")[0] for each in failed)
    nodes = ", ".join(f"{node} {failures}" for node, failures in by_node.most_common(3))
    said = (
        f"{len(failed)} of the latest {count} samples failed as {kind} ({nodes}), few before; for example: "
        f"{reason}. Once the cause is gone"
    )
    if Stage.SCORE in run.stages and Stage.SUMMARIZE not in run.stages:
        return (
            f"{said}, the same command tries them again and goes on; if they are right to fail, set "
            "CAPFLOW_SURGE_SAMPLES=0"
        )
    name = shlex.quote(run.name)
    return (
        f"{said}, `capflow retry {name} --kind {kind}` tries them again and goes on; if they are right to "
        f"fail, `capflow resume {name}` goes on"
    )
