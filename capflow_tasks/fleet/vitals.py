"""Whether this worker is well: what its probes answer and its gauges show.

Alive is a worker whose loop turns, or that waits for its broker: a broker that is away must not end workers.
Ready is one that is given work: its engines are up, messages arrive, and its leases are kept.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from http import HTTPStatus
from math import nan
from time import monotonic

from prometheus_client import REGISTRY

from capflow_tasks.captioning.heartbeat import Heartbeat
from capflow_tasks.engine.interface import EngineState
from capflow_tasks.fleet.application import is_stopping
from capflow_tasks.observe import metrics
from capflow_tasks.observe.pages import Page, WebPages, metrics_page
from capflow_tasks.records import JsonObject, Stage
from capflow_tasks.settings import Settings

#: A loop that has not turned for so long hangs. It turns every few seconds.
LOOP_LIMIT_SECONDS = 60.0


class Vitals:
    """What the parts of a worker tell of themselves; one per process."""

    def __init__(self) -> None:
        self._engines: dict[str, Callable[[], EngineState]] = {}
        self._heartbeat: Heartbeat | None = None
        #: Whether the worker has a connection to its broker, and its loop is to turn.
        self.is_connected = False
        self.is_draining = False
        #: Monotonic seconds; no number before the first time.
        self._turned_at = nan

    def watch_engine(self, model: str, state_now: Callable[[], EngineState]) -> None:
        self._engines[model] = state_now
        metrics.ENGINE_REBUILDS.labels(model)
        for state in EngineState:
            metrics.ENGINE_STATE.labels(model, state).set_function(partial(_is_in, state, state_now))

    def watch_heartbeat(self, heartbeat: Heartbeat) -> None:
        self._heartbeat = heartbeat

    def turn(self) -> None:
        """The loop that takes messages has turned."""
        self._turned_at = monotonic()

    @property
    def loop_age_seconds(self) -> float:
        return monotonic() - self._turned_at

    @property
    def lease_age_seconds(self) -> float:
        """No number while the engines load: a worker without leases has none that age."""
        return self._heartbeat.age_seconds if self._heartbeat else nan

    def healthz(self) -> JsonObject:
        """Each thing that must be true of a worker that is not to be ended."""
        return {"loop_turns": not self.is_connected or self.loop_age_seconds < LOOP_LIMIT_SECONDS}

    def readyz(self) -> JsonObject:
        """Each thing that must be true of a worker that is given work."""
        states = [state_now() for state_now in self._engines.values()]
        return {
            **self.healthz(),
            "engines_up": bool(states) and all(state is EngineState.UP for state in states),
            "broker_connected": self.is_connected,
            "leases_kept": self._heartbeat is not None and self._heartbeat.is_fresh,
            "not_draining": not self._is_going,
        }

    @property
    def _is_going(self) -> bool:
        return self.is_draining or is_stopping()

    def serve(self, settings: Settings) -> WebPages | None:
        """Serve metrics and probes, if the settings name a port for them. Raises SettingsError."""
        metrics.LEASE_AGE.set_function(lambda: self.lease_age_seconds)
        metrics.LEASE_DURATION.set(settings.lease_seconds)
        metrics.LOOP_AGE.set_function(lambda: self.loop_age_seconds)
        metrics.CONNECTED.set_function(lambda: float(self.is_connected))
        metrics.DRAINING.set_function(lambda: float(self._is_going))
        metrics.watch_memory(settings.max_rss_mib)
        metrics.begin_at_zero(Stage)
        if settings.metrics_port is None:
            return None
        pages = {
            "/metrics": metrics_page(REGISTRY),
            "/healthz": lambda: probe_page(self.healthz()),
            "/readyz": lambda: probe_page(self.readyz()),
        }
        return WebPages(settings.metrics_host, settings.metrics_port, pages)


def _is_in(state: EngineState, state_now: Callable[[], EngineState]) -> float:
    return float(state_now() is state)


def probe_page(checks: JsonObject) -> Page:
    """200 when every check holds, 503 when one does not; which one is in the body."""
    status = HTTPStatus.OK if all(checks.values()) else HTTPStatus.SERVICE_UNAVAILABLE
    return Page(json.dumps(checks).encode() + b"\n", "application/json", status)


#: This process's.
vitals = Vitals()
