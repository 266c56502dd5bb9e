"""Jobs for child processes, in a module whose import costs nothing."""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path
from signal import raise_signal

from capflow_tasks.errors import MediaTooLarge


def end_at_first(mark: Path, number: int) -> str:
    if not mark.exists():
        mark.touch()
        raise_signal(number)
    return "read"


def hang(mark: Path | None = None) -> None:
    if mark:
        mark.write_text(str(os.getpid()))
    threading.Event().wait()


def refuse() -> None:
    raise MediaTooLarge("a.mp4 is too large.")


def stumble() -> None:
    raise ZeroDivisionError("in a codec")


def modules() -> set[str]:
    return {name.partition(".")[0] for name in sys.modules}
