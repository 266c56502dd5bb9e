"""Takes passwords out of what people read."""

from __future__ import annotations

import json
import logging
import os
import sys
from datetime import UTC, datetime
from pathlib import Path
from traceback import format_exception
from types import TracebackType
from typing import Any

from celery import signals

from capflow_tasks.errors import redacted
from capflow_tasks.records import JsonObject
from capflow_tasks.settings import Settings

#: What the model says; silent unless `log_texts` has been called. By its level, since whoever configures
#: logging from a dictionary, as vLLM does, enables every logger that is disabled.
texts_log = logging.getLogger("capflow_tasks.texts")
_SILENT = logging.CRITICAL + 1
texts_log.setLevel(_SILENT)


def log_texts(is_wanted: bool) -> None:
    """Whether what the model says is written to the log."""
    texts_log.setLevel(logging.INFO if is_wanted else _SILENT)


def print_redacted(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """What `sys.excepthook` does, without the passwords."""
    print(redacted("".join(format_exception(kind, error, trace))), end="", file=sys.stderr)


class RedactingFormatter(logging.Formatter):
    """Formats as another formatter does, tracebacks included, and takes the passwords out."""

    def __init__(self, inner: logging.Formatter) -> None:
        super().__init__()
        self._inner = inner

    def format(self, record: logging.LogRecord) -> str:
        return redacted(self._inner.format(record))


class JsonFormatter(logging.Formatter):
    """One JSON object per record: what was logged, and the record's `facts` as keys of their own."""

    def format(self, record: logging.LogRecord) -> str:
        line: JsonObject = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "facts", {}),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)


def json_formatter() -> logging.Formatter:
    """What `vllm_logging.json` names, so that the engine's processes log as the worker does."""
    return RedactingFormatter(JsonFormatter())


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
