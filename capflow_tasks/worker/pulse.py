"""Tells whether the loop turns that takes messages: it is on it, a few seconds apart, that this ticks."""

from __future__ import annotations

from typing import Any

from celery import bootsteps

from capflow_tasks.worker.vitals import vitals

_TICK_SECONDS = 2.0


class PulseStep(bootsteps.StartStopStep):
    """Starts with each connection to the broker and stops with it."""

    requires = ("celery.worker.consumer.tasks:Tasks",)

    def start(self, consumer: Any) -> None:
        vitals.turn()
        vitals.is_connected = True
        self._timer = consumer.timer.call_repeatedly(_TICK_SECONDS, vitals.turn)

    def stop(self, consumer: Any) -> None:
        vitals.is_connected = False
        self._timer.cancel()

    shutdown = stop
