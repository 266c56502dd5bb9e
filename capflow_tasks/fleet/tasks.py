"""The five doorbells. What a stage does is in `stages`."""

from __future__ import annotations

from celery import shared_task
from celery.exceptions import Ignore

from capflow_tasks.errors import EXIT_SERVICE, CapflowError, ServiceError
from capflow_tasks.fleet.worker import end_when_too_big, follow_capacity, runner, stop_worker
from capflow_tasks.observe import metrics
from capflow_tasks.records import JsonObject, Stage
from capflow_tasks.store.claims import NotClaimed


@shared_task(name="capflow.route")
def route(batch_id: int) -> str:
    return _ring(batch_id, Stage.ROUTE)


@shared_task(name="capflow.perceive")
def perceive(batch_id: int) -> str:
    return _ring(batch_id, Stage.PERCEIVE)


@shared_task(name="capflow.reason")
def reason(batch_id: int) -> str:
    return _ring(batch_id, Stage.REASON)


@shared_task(name="capflow.summarize")
def summarize(batch_id: int) -> str:
    return _ring(batch_id, Stage.SUMMARIZE)


@shared_task(name="capflow.score")
def score(batch_id: int) -> str:
    return _ring(batch_id, Stage.SCORE)


def _ring(batch_id: int, stage: Stage) -> str:
    """Run the stage; its chain goes on unless another one has the batch."""
    metrics.LAST_MESSAGE.set_to_current_time()
    try:
        made = runner().run(batch_id, stage)
    except ServiceError:
        # Without database or engine every further message would fail too: leave them to other workers.
        stop_worker(EXIT_SERVICE)
        raise
    except BaseException as error:
        # A MemoryError or SystemExit would keep the pool's slot for good.
        raise CapflowError(f"batch {batch_id}: {stage} failed: {error!r}") from error
    follow_capacity()
    end_when_too_big()
    if made is NotClaimed.TAKEN:
        raise Ignore
    return "done before" if made is NotClaimed.PASSED else sentence(made)


def sentence(made: JsonObject) -> str:
    """What a stage amounted to, as Flower shows it: what matters first, for its list cuts the rest off."""
    counts = [f"{made['done']} done", *(f"{count} {kind}" for kind, count in made["failed"].items())]
    domains = [f"{name} {count}" for name, count in made["domains"].items()]
    tokens = f"{made['prompt_tokens']} + {made['completion_tokens']} tokens, {made['cached_tokens']} cached"
    return "; ".join(filter(None, (", ".join(counts), ", ".join(domains), tokens)))
