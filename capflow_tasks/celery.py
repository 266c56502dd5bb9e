"""The application that `celery -A capflow_tasks` finds, for workers and for Flower."""

from __future__ import annotations

import sys

from celery import Celery

from capflow_tasks.application import find_broker, make_app
from capflow_tasks.errors import WORKER_ERROR_MARK, SettingsError
from capflow_tasks.settings import read_settings
from capflow_tasks.worker import install


def _make() -> Celery:
    try:
        settings = read_settings()
    except SettingsError as error:
        print(f"{WORKER_ERROR_MARK}{error}", file=sys.stderr)
        raise SystemExit(error.exit_code) from None
    app = make_app(settings, find_broker(settings))
    install(app)
    return app


app = _make()
