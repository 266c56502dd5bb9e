"""How a worker stops: nothing new is taken, what it holds is finished, and at a deadline given back.

Celery's own warm shutdown leaves what waits in the worker's direct queue; this finishes it first.
"""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Callable
from threading import Timer
from time import monotonic
from typing import Any

from celery import bootsteps
from celery.utils.nodenames import worker_direct
from celery.worker import state as worker_state

from capflow_tasks.errors import EXIT_OK
from capflow_tasks.fleet.vitals import vitals

log = logging.getLogger(__name__)

#: Between two looks at what is left, seconds.
_POLL_SECONDS = 0.2

#: After the deadline, for Celery's own shutdown.
_EXIT_GRACE_SECONDS = 15.0


_give_back: list[Callable[[], None]] = []


def give_back_with(call: Callable[[], None]) -> None:
    """What a worker calls that ends with threads still at work."""
    _give_back.append(call)


class DrainStep(bootsteps.StartStopStep):
    """On the first SIGTERM: leave the shared queues, empty the own one, then shut down as Celery does."""

    requires = ("celery.worker.consumer.tasks:Tasks",)

    def __init__(self, consumer: Any, **options: Any) -> None:
        super().__init__(consumer, **options)
        self._consumer = consumer
        self._celery_handler: Callable[..., Any] | None = None
        self._deadline: float | None = None

    def start(self, consumer: Any) -> None:
        # Called again after each reconnection to the broker.
        if self._celery_handler is None:
            self._celery_handler = signal.getsignal(signal.SIGTERM)  # type: ignore[assignment]
            signal.signal(signal.SIGTERM, self._on_sigterm)

    def _on_sigterm(self, number: int, frame: Any) -> None:
        if self._deadline is not None:
            self._shut_down()
            return
        seconds = self._consumer.app.conf.capflow_drain_seconds
        self._deadline = monotonic() + seconds
        vitals.is_draining = True
        # The hub does not turn while the broker is away.
        _call_after(seconds, self._shut_down)
        # Nor does a thread that publishes come to its end then.
        _call_after(seconds + _EXIT_GRACE_SECONDS, _end)
        self._consumer.hub.call_soon(self._begin)

    def _begin(self) -> None:
        own = worker_direct(self._consumer.hostname).name
        for queue in [name for name in self._consumer.app.amqp.queues.consume_from if name != own]:
            self._consumer.cancel_task_queue(queue)
        self._poll()

    def _poll(self) -> None:
        own = worker_direct(self._consumer.hostname).name
        waiting = self._consumer.task_consumer.channel._size(own)
        running = len(worker_state.reserved_requests)
        if (waiting or running) and monotonic() < (self._deadline or 0):
            self._consumer.hub.call_later(_POLL_SECONDS, self._poll)
            return
        log.info("drained: %s batches waiting and %s running are left", waiting, running)
        self._shut_down()

    def _shut_down(self) -> None:
        if self._celery_handler is not None:
            self._celery_handler(signal.SIGTERM, None)


def _end() -> None:
    """End the process now; PostgreSQL learns of it, as far as it can be reached."""
    log.warning("not drained in time: what is left is given back")
    for call in _give_back:
        call()
    os._exit(EXIT_OK)


def _call_after(seconds: float, call: Callable[..., Any], *arguments: Any) -> None:
    timer = Timer(seconds, call, arguments)
    timer.daemon = True
    timer.start()
