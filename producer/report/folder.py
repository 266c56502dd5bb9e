"""The report as a folder, whole or not at all; what an earlier report left there is replaced."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import mkdtemp

from capflow_tasks.errors import ServiceError, UserError

#: What tells a report from a folder that somebody may miss.
_SIGNS = ("index.html", "static", "data")
_FOR_ALL = 0o755


def check_replaceable(folder: Path) -> None:
    """Raise UserError where something else than a report lies."""
    if folder.is_dir() and all((folder / sign).exists() for sign in _SIGNS):
        return
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise UserError(f"{folder} holds something else than a report; name another folder with -o")


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """A folder to fill, which takes the place of `folder` when the block ends well, and else leaves no trace.

    Raises ServiceError when the disk does not take it.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        aside = Path(mkdtemp(prefix=".capflow-report-", dir=folder.parent))
        try:
            yield aside
            aside.chmod(_FOR_ALL & ~_umask())
            shutil.rmtree(folder, ignore_errors=True)
            aside.replace(folder)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
    except OSError as error:
        reason = error.strerror or error
        raise ServiceError(
            f"{folder}: cannot be written: {reason}; free or mend the disk, then run again"
        ) from error


def _umask() -> int:
    umask = os.umask(0)
    os.umask(umask)
    return umask
