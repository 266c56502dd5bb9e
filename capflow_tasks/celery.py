"""The application that `celery -A capflow_tasks` finds, for workers and for Flower."""

import os
import sys
from contextlib import suppress

from celery import Celery

from capflow_tasks.errors import WORKER_ERROR_MARK, ServiceError, SettingsError
from capflow_tasks.fleet.application import make_app
from capflow_tasks.fleet.embedded import broker_url
from capflow_tasks.fleet.worker import install
from capflow_tasks.observe import logs
from capflow_tasks.settings import check_environment, read_settings

#: Columns of Flower's list of tasks, unless FLOWER_TASKS_COLUMNS is set.
_FLOWER_COLUMNS = "name,args,state,result,worker,received,runtime"


def _make() -> Celery:
    os.environ.setdefault("FLOWER_TASKS_COLUMNS", _FLOWER_COLUMNS)
    try:
        settings = read_settings()
        check_environment()
    except SettingsError as error:
        print(f"{WORKER_ERROR_MARK}{error}", file=sys.stderr)
        raise SystemExit(error.exit_code) from None
    url = None
    # `--help` needs no broker; a worker without one says so when it starts.
    with suppress(ServiceError):
        url = broker_url(settings)
    app = make_app(settings, url)
    install(app)
    logs.install(settings)
    return app


app = _make()
