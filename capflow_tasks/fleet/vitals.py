"""The health of this worker: the answers of its probes and its gauges.

A worker is alive while its consumer loop runs, or while it waits for its broker: a broker that is away must
not end workers. It is ready while its engines are up, messages arrive and its leases are kept.
"""

import json
from collections.abc import Callable
from http import HTTPStatus
from math import nan
from time import monotonic

from prometheus_client import REGISTRY

from capflow_tasks.captioning.stages import Heartbeat
from capflow_tasks.engine.interface import EngineState
from capflow_tasks.fleet.application import is_stopping
from capflow_tasks.observe import metrics, pages
from capflow_tasks.records import JsonObject
from capflow_tasks.settings import Settings

#: Age of the consumer loop's timestamp at which the loop is taken to hang; it is set every few seconds.
LOOP_LIMIT_SECONDS = 60.0


class Vitals:
    """What is known of a worker's health; one per process."""

    def __init__(self) -> None:
        self._engines: dict[str, Callable[[], EngineState]] = {}
        self.heartbeat: Heartbeat | None = None
        #: Whether the worker is connected to its broker, so that its consumer loop must run.
        self.is_connected = False
        self.is_draining = False
        self._looped_at = nan

    def watch_engine(self, model: str, state_now: Callable[[], EngineState]) -> None:
        self._engines[model] = state_now
        metrics.ENGINE_REBUILDS.labels(model)
        for state in EngineState:
            gauge = metrics.ENGINE_STATE.labels(model, state)
            gauge.set_function(lambda state=state: float(state_now() is state))

    def timestamp_loop(self) -> None:
        """Note that the consumer loop runs."""
        self._looped_at = monotonic()

    @property
    def lease_age_seconds(self) -> float:
        """Time since the last heartbeat; NaN while the engines load, when there are no leases."""
        return self.heartbeat.age_seconds if self.heartbeat else nan

    def healthz(self) -> JsonObject:
        """Return the checks of a worker that is alive."""
        return {"loop_turns": not self.is_connected or monotonic() - self._looped_at < LOOP_LIMIT_SECONDS}

    def readyz(self) -> JsonObject:
        """Return the checks of a worker that is ready."""
        states = [state_now() for state_now in self._engines.values()]
        return {
            **self.healthz(),
            "engines_up": bool(states) and all(state is EngineState.UP for state in states),
            "broker_connected": self.is_connected,
            "leases_kept": self.heartbeat is not None and self.heartbeat.is_fresh,
            "not_draining": not self._is_leaving,
        }

    @property
    def _is_leaving(self) -> bool:
        return self.is_draining or is_stopping()

    def serve(self, settings: Settings) -> pages.WebPages | None:
        """Serve metrics and probes if the settings name a port. Raises SettingsError."""
        metrics.LEASE_AGE.set_function(lambda: self.lease_age_seconds)
        metrics.LEASE_DURATION.set(settings.lease_seconds)
        metrics.LOOP_AGE.set_function(lambda: monotonic() - self._looped_at)
        metrics.CONNECTED.set_function(lambda: float(self.is_connected))
        metrics.DRAINING.set_function(lambda: float(self._is_leaving))
        metrics.watch_memory(settings.max_rss_mib)
        metrics.start_at_zero()
        if settings.metrics_port is None:
            return None
        served = {
            "/metrics": pages.metrics_page(REGISTRY),
            "/healthz": lambda: _probe_page(self.healthz()),
            "/readyz": lambda: _probe_page(self.readyz()),
        }
        return pages.WebPages(settings.metrics_host, settings.metrics_port, served)


def _probe_page(checks: JsonObject) -> pages.Page:
    """Answer 200 when every check holds and 503 otherwise, with the checks as JSON."""
    status = HTTPStatus.OK if all(checks.values()) else HTTPStatus.SERVICE_UNAVAILABLE
    return pages.Page(json.dumps(checks).encode() + b"\n", "application/json", status)


#: The health of this process.
vitals = Vitals()
