"""How many messages wait in which queue, and whether anybody takes them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator

from celery.utils.nodenames import worker_direct

from producer.broker import QueueLengths
from producer.doctor.finding import Finding, ok, warn

_DIRECT = worker_direct("").name


def check_queues(
    lengths: QueueLengths | None, declared: Collection[str], consumed: Collection[str]
) -> Iterator[Finding]:
    """`consumed` are the queues that living workers take messages from."""
    if lengths is None:
        yield warn("queues", "cannot be looked at", "give the user the rights in deploy/redis/users.acl")
        return
    waiting = Counter(dict.fromkeys(declared, 0))
    for (queue, _), length in lengths.by_queue.items():
        waiting[queue] += length
    for queue, length in sorted(waiting.items()):
        yield _queue(queue, length, queue in consumed)


def _queue(queue: str, length: int, is_consumed: bool) -> Finding:
    said = f"{queue}: {length} waiting"
    if is_consumed or not length:
        return ok("queue", said)
    if queue.endswith(_DIRECT):
        remedy = "start that worker again, or capflow-produce --reconcile: its batches go to others"
    else:
        remedy = f"celery -A capflow_tasks worker -Q {queue}"
    return warn("queue", f"{said}, and nobody takes them", remedy)
