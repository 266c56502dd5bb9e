"""The application that `celery -A capflow_tasks` finds, for workers and for Flower."""

from __future__ import annotations

import os
import sys

from celery import Celery

from capflow_tasks.errors import WORKER_ERROR_MARK, SettingsError
from capflow_tasks.fleet.application import make_app
from capflow_tasks.fleet.embedded import find_broker
from capflow_tasks.fleet.worker import install
from capflow_tasks.observe import logs
from capflow_tasks.settings import read_settings

#: What Flower's list of tasks shows unless it is told otherwise: stage, samples, what came of them, where.
_FLOWER_COLUMNS = "name,args,state,result,worker,received,runtime"


def _make() -> Celery:
    os.environ.setdefault("FLOWER_TASKS_COLUMNS", _FLOWER_COLUMNS)
    try:
        settings = read_settings()
    except SettingsError as error:
        print(f"{WORKER_ERROR_MARK}{error}", file=sys.stderr)
        raise SystemExit(error.exit_code) from None
    app = make_app(settings, find_broker(settings))
    install(app)
    logs.install(settings)
    return app


app = _make()
