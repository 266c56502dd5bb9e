"""The Celery tasks, one per stage."""

from __future__ import annotations

from celery import Task, shared_task
from celery.exceptions import Ignore

from capflow_tasks.captioning.stages import StageSummary
from capflow_tasks.errors import EXIT_SERVICE, CapflowError, ServiceError
from capflow_tasks.fleet.application import task_name
from capflow_tasks.fleet.worker import follow_batch_limit, restart_when_too_big, runner, stop_worker
from capflow_tasks.observe import metrics
from capflow_tasks.records import Stage
from capflow_tasks.store.claims import NotClaimed


def _make_task(stage: Stage) -> Task[[int], str]:
    @shared_task(name=task_name(stage))
    def run(batch_id: int) -> str:
        return _run_stage(batch_id, stage)

    return run


TASKS = [_make_task(stage) for stage in Stage]


def _run_stage(batch_id: int, stage: Stage) -> str:
    """Run the stage and return what Flower shows; end the chain when another message has the batch."""
    metrics.LAST_MESSAGE.set_to_current_time()
    try:
        result = runner().run(batch_id, stage)
    except ServiceError:
        # Without database or engine every further message would fail too: leave them to other workers.
        stop_worker(EXIT_SERVICE)
        raise
    except BaseException as error:
        # A MemoryError or SystemExit would occupy the pool's thread for good.
        raise CapflowError(f"batch {batch_id}: {stage} failed: {error!r}") from error
    follow_batch_limit()
    restart_when_too_big()
    if isinstance(result, StageSummary):
        return str(result)
    if result is NotClaimed.PASSED:
        return "done before"
    raise Ignore
