"""Has a worker's log written as the settings ask, by Celery's hands and by vLLM's."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path
from typing import Any

from celery import signals

from capflow_tasks.log_format import RedactingFormatter, json_formatter
from capflow_tasks.redaction import print_redacted
from capflow_tasks.settings import Settings
from capflow_tasks.stage_report import log_texts

#: Celery's own two lines per batch and stage, which say less than ours.
_CHATTER = ("celery.worker.strategy", "celery.app.trace")

_VLLM_AS_JSON = Path(__file__).with_name("vllm_logging.json")


def install(settings: Settings) -> None:
    """Takes effect when Celery sets its log up, and when vLLM is imported."""
    is_json = settings.log_format == "json"

    def adapt(logger: logging.Logger, loglevel: int, **_: Any) -> None:
        for handler in logger.handlers:
            plain = RedactingFormatter(handler.formatter or logging.Formatter())
            handler.setFormatter(json_formatter() if is_json else plain)
        for name in _CHATTER if loglevel > logging.DEBUG else ():
            logging.getLogger(name).setLevel(logging.WARNING)

    signals.after_setup_logger.connect(adapt, weak=False)
    signals.after_setup_task_logger.connect(adapt, weak=False)
    # Ours is CAPFLOW_LOG_LEVEL's; Celery's -l, by default WARNING, is for all else.
    logging.getLogger("capflow_tasks").setLevel(settings.log_level)
    log_texts(settings.log_text)
    sys.excepthook = print_redacted
    if is_json:
        os.environ.setdefault("VLLM_LOGGING_CONFIG_PATH", str(_VLLM_AS_JSON))
