"""The application that `celery -A capflow_tasks` finds, for workers and for Flower."""

import os
import sys
from contextlib import suppress

from celery import Celery

from capflow_tasks import settings
from capflow_tasks.errors import WORKER_ERROR_MARK, ServiceError, SettingsError
from capflow_tasks.fleet import application, embedded, worker
from capflow_tasks.observe import logs


def _make() -> Celery:
    # Flower's list of tasks.
    os.environ.setdefault("FLOWER_TASKS_COLUMNS", "name,args,state,result,worker,received,runtime")
    try:
        chosen = settings.read_settings()
        settings.check_environment()
    except SettingsError as error:
        print(f"{WORKER_ERROR_MARK}{error}", file=sys.stderr)
        raise SystemExit(error.exit_code) from None
    url = None
    # `--help` needs no broker; a worker without one says so when it starts.
    with suppress(ServiceError):
        url = embedded.broker_url(chosen)
    app = application.make_app(chosen, url)
    worker.install(app)
    logs.install(chosen)
    return app


app = _make()
