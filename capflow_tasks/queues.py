"""Celery's routing: which queue a message goes to, and what goes first.

The rest of a chain goes back to the worker that has the samples' prefix in its cache (its direct
queue), ahead of new work. On Redis priority 0 is the highest; it is the last stage's.

Where a plan's ranks are pinned, each rank has queues of its own: `gpu.rank4` beside `gpu`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from celery.app.amqp import AMQP, Queues
from celery.utils.nodenames import worker_direct
from celery.worker import state as worker_state
from kombu import Queue

from capflow_tasks.records import Stage

#: Later stages first, so that few samples are open at a time and their prefixes stay cached.
PRIORITIES = {Stage.ROUTE: 9, Stage.PERCEIVE: 6, Stage.REASON: 4, Stage.SUMMARIZE: 2, Stage.SCORE: 0}
PRIORITY_STEPS = sorted(PRIORITIES.values())

#: Message header with the rank that its batch is pinned to.
RANK_HEADER = "capflow_rank"

_RANKED = re.compile(r"(?P<shared>.+)\.rank\d+")

_STAGES_BY_TASK = {f"capflow.{stage}": stage for stage in Stage}


def task_name(stage: Stage) -> str:
    return f"capflow.{stage}"


def queue_of_rank(queue: str, rank: int) -> str:
    return f"{queue}.rank{rank}"


def shared_queue(queue: str) -> str:
    """The queue that all ranks share: `gpu` for `gpu.rank4`, and for itself."""
    match = _RANKED.fullmatch(queue)
    return match["shared"] if match else queue


class FleetQueues(Queues):
    """Celery's queues: those declared and the ranks of each; a mistyped -Q stays an error."""

    def __missing__(self, name: str) -> Queue:
        if shared_queue(name) not in self:
            raise KeyError(name)
        queue = self[name] = self.new_missing(name)
        return queue


class FleetAMQP(AMQP):
    queues_cls = FleetQueues


class StageRouter:
    """Celery's `task_routes`: asked for every message, in the process that publishes it."""

    def __init__(self, queue_by_stage: Mapping[Stage, str]) -> None:
        self._queue_by_stage = queue_by_stage
        self._node: str | None = None
        self._served: frozenset[str] = frozenset()

    def become_worker(self, node: str, served: frozenset[str]) -> None:
        """From now on keep at this node what belongs to the queues it serves."""
        self._node, self._served = node, served

    def __call__(
        self, name: str, args: Any, kwargs: Any, options: Mapping[str, Any], *_: Any, **__: Any
    ) -> dict[str, Any] | None:
        stage = _STAGES_BY_TASK.get(name)
        if stage is None:
            return None
        queue = self._queue_by_stage[stage]
        rank = (options.get("headers") or {}).get(RANK_HEADER)
        if rank is not None:
            queue = queue_of_rank(queue, rank)
        if self._node and queue in self._served and not is_stopping():
            return {"queue": worker_direct(self._node), "priority": PRIORITIES[stage]}
        return {"queue": queue, "priority": PRIORITIES[stage]}


def is_stopping() -> bool:
    """Whether this worker has been told to stop; nothing may be sent to its own queue any more."""
    return worker_state.should_stop is not None or worker_state.should_terminate is not None
