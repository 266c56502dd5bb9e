"""When a worker is alive and when it is ready, and how its probes answer."""

from __future__ import annotations

from collections.abc import Iterator
from math import isnan

import httpx
import pytest
from prometheus_client import CollectorRegistry, Gauge

from capflow_tasks.captioning.heartbeat import Heartbeat
from capflow_tasks.engine.interface import EngineState
from capflow_tasks.errors import SettingsError
from capflow_tasks.fleet import worker as module
from capflow_tasks.fleet.worker import Vitals
from capflow_tasks.observe.pages import WebPages, metrics_page, plain_page
from capflow_tasks.settings import Settings


class OnceBeaten(Heartbeat):
    """A heartbeat of an age that the test sets."""

    age = 1.0

    def __init__(self) -> None:
        super().__init__(None, "worker", lease_seconds=45)  # type: ignore[arg-type]

    @property
    def age_seconds(self) -> float:
        return self.age


@pytest.fixture
def ready() -> Vitals:
    """A worker that is ready."""
    vitals = Vitals()
    vitals.watch_engine("model", lambda: EngineState.UP)
    vitals.heartbeat = OnceBeaten()
    vitals.is_connected = True
    vitals.timestamp_loop()
    return vitals


def failing(vitals: Vitals) -> list[str]:
    return [name for name, holds in vitals.readyz().items() if not holds]


def test_a_worker_that_has_all_it_needs_is_ready(ready: Vitals) -> None:
    assert failing(ready) == []


@pytest.mark.parametrize("state", [EngineState.LOADING, EngineState.DEAD])
def test_one_engine_that_is_not_up_is_enough(ready: Vitals, state: EngineState) -> None:
    ready.watch_engine("judge", lambda: state)

    assert failing(ready) == ["engines_up"]
    assert all(ready.healthz().values())


def test_a_worker_without_its_broker_is_alive_and_not_ready(ready: Vitals) -> None:
    ready.is_connected = False

    assert failing(ready) == ["broker_connected"]


def test_a_loop_that_stands_still_is_the_end_of_a_worker(
    ready: Vitals, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LOOP_LIMIT_SECONDS", 0.0)

    assert failing(ready) == ["loop_turns"]
    assert not all(ready.healthz().values())


def test_leases_that_ran_out_and_a_drain_are_reported(ready: Vitals, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(OnceBeaten, "age", 46.0)
    ready.is_draining = True

    assert failing(ready) == ["leases_kept", "not_draining"]


def test_a_worker_that_has_only_begun_is_alive() -> None:
    vitals = Vitals()

    assert all(vitals.healthz().values())
    assert failing(vitals) == ["engines_up", "broker_connected", "leases_kept"]
    assert isnan(vitals.lease_age_seconds)


@pytest.fixture
def served(ready: Vitals) -> Iterator[WebPages]:
    pages = ready.serve(Settings(metrics_port=0, metrics_host="127.0.0.1"))
    assert pages is not None
    yield pages
    pages.stop()


def test_probes_answer_with_a_status_and_with_what_is_wrong(served: WebPages, ready: Vitals) -> None:
    url = f"http://127.0.0.1:{served.port}"

    assert httpx.get(url + "/readyz").status_code == 200
    ready.is_draining = True
    answer = httpx.get(url + "/readyz")
    assert (answer.status_code, answer.json()["not_draining"]) == (503, False)
    assert httpx.get(url + "/healthz").status_code == 200
    assert httpx.get(url + "/").status_code == 404
    assert "capflow_draining 1.0" in httpx.get(url + "/metrics").text


def test_a_scraper_that_prefers_openmetrics_gets_vllms_names_as_they_are() -> None:
    registry = CollectorRegistry()
    Gauge("vllm:requests", "As vLLM names its own.", registry=registry)
    pages = WebPages("127.0.0.1", 0, {"/metrics": metrics_page(registry)})

    accepted = {"Accept": "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5"}
    answer = httpx.get(f"http://127.0.0.1:{pages.port}/metrics", headers=accepted)
    pages.stop()

    assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")
    assert "vllm:requests 0.0" in answer.text


def test_no_port_serves_nothing() -> None:
    assert Vitals().serve(Settings(metrics_port=None)) is None


def test_a_port_that_is_taken_is_an_error_with_the_remedy(served: WebPages) -> None:
    with pytest.raises(SettingsError, match=r"port \d+ of 127\.0\.0\.1 .* a port of its own"):
        WebPages("127.0.0.1", served.port, {"/": lambda: plain_page("")})
