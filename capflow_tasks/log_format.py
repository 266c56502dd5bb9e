"""How a line of a log is written: without passwords, and as JSON where that is asked for."""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime

from capflow_tasks.records import JsonObject
from capflow_tasks.redaction import redacted


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
