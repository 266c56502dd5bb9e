"""Log formats: passwords redacted, as text or as JSON."""

import json
import logging
import os
import sys
import traceback
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from celery import signals

from capflow_tasks.errors import redacted
from capflow_tasks.settings import Settings

#: Answers of the model. Off by its level, since vLLM enables loggers that are merely disabled.
texts_log = logging.getLogger("capflow_tasks.texts")
texts_log.setLevel(logging.CRITICAL + 1)


def log_texts(is_wanted: bool) -> None:
    """Log the model's answers, or do not."""
    texts_log.setLevel(logging.INFO if is_wanted else logging.CRITICAL + 1)


def print_redacted(*exception: Any) -> None:
    """Print a traceback as `sys.excepthook` does, passwords redacted."""
    print(redacted("".join(traceback.format_exception(*exception))), end="", file=sys.stderr)


class RedactingFormatter(logging.Formatter):
    """Formats by another formatter and redacts passwords, in tracebacks too."""

    def __init__(self, inner: logging.Formatter) -> None:
        super().__init__()
        self._inner = inner

    def format(self, record: logging.LogRecord) -> str:
        return redacted(self._inner.format(record))


class JsonFormatter(logging.Formatter):
    """Formats a record as one JSON object, with the record's `facts` as keys; passwords are redacted.

    `vllm_logging.json` names it, so that vLLM's processes log as the worker does.
    """

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "facts", {}),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return redacted(json.dumps(line, ensure_ascii=False, default=str))


def install(settings: Settings) -> None:
    """Format logs by the settings once Celery sets up logging and vLLM is imported."""
    is_json = settings.log_format == "json"

    def adapt(logger: logging.Logger, loglevel: int, **_: Any) -> None:
        for handler in logger.handlers:
            plain = RedactingFormatter(handler.formatter or logging.Formatter())
            handler.setFormatter(JsonFormatter() if is_json else plain)
        if loglevel > logging.DEBUG:
            # They write two lines per stage, which say less than ours.
            for name in ("celery.worker.strategy", "celery.app.trace"):
                logging.getLogger(name).setLevel(logging.WARNING)

    signals.after_setup_logger.connect(adapt, weak=False)
    signals.after_setup_task_logger.connect(adapt, weak=False)
    # CAPFLOW_LOG_LEVEL is for our loggers; Celery's -l, WARNING by default, is for all others.
    logging.getLogger("capflow_tasks").setLevel(settings.log_level)
    log_texts(settings.log_text)
    sys.excepthook = print_redacted
    if is_json:
        config = Path(__file__).with_name("vllm_logging.json")
        os.environ.setdefault("VLLM_LOGGING_CONFIG_PATH", str(config))
