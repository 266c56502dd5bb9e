"""Log formats, and passwords in logs."""

from __future__ import annotations

import json
import logging
import sys

import pytest

from capflow_tasks.errors import redacted
from capflow_tasks.observe.logs import JsonFormatter, RedactingFormatter


def a_record(message: str, error: Exception | None = None, **extra: object) -> logging.LogRecord:
    caught = None
    if error is not None:
        try:
            raise error
        except Exception:
            caught = sys.exc_info()
    record = logging.LogRecord("capflow_tasks.try", logging.INFO, __file__, 1, message, (), caught)
    record.__dict__.update(extra)
    return record


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("at postgresql://capflow:s3cret@db:5432/capflow.", "at postgresql://capflow:***@db:5432/capflow."),
        ("redis://:s3cret@redis:6379/0", "redis://:***@redis:6379/0"),
        ("postgresql://capflow:s3@cr/et@db/capflow", "postgresql://capflow:***@db/capflow"),
        ("{'url': 'redis://:a@r/0', 'mail': 'me@home'}", "{'url': 'redis://:***@r/0', 'mail': 'me@home'}"),
        ("http://localhost:9400/metrics of me@home", "http://localhost:9400/metrics of me@home"),
    ],
)
def test_a_urls_password_is_hidden_and_nothing_else(text: str, shown: str) -> None:
    assert redacted(text) == shown


def test_a_traceback_hides_passwords_too() -> None:
    record = a_record("no database", ConnectionError("postgresql://capflow:s3cret@db/capflow is away"))

    plain = RedactingFormatter(logging.Formatter("%(message)s")).format(record)

    assert "ConnectionError: postgresql://capflow:***@db/capflow is away" in plain
    assert "s3cret" not in plain + JsonFormatter().format(record)


def test_a_json_line_holds_the_record_and_its_facts() -> None:
    line = json.loads(JsonFormatter().format(a_record("größer\nals", facts={"batch": 7, "seconds": 0.5})))

    assert line.pop("time").endswith("+00:00")
    assert line == {
        "level": "INFO",
        "logger": "capflow_tasks.try",
        "message": "größer\nals",
        "batch": 7,
        "seconds": 0.5,
    }
