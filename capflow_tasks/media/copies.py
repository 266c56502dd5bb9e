"""Keeps copies of what is fetched in a folder of limited size. Safe for several threads and processes."""

import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from hashlib import sha256
from pathlib import Path
from threading import Lock

#: A copy that is older is fetched again, as what it was made of may have changed.
_FRESH_SECONDS = 86_400
#: A copy that was asked for so lately may still have to be opened, and is kept above the limit.
_IN_USE_SECONDS = 60
#: The folder is measured whenever so much of its limit has been added.
_MEASURED_SHARE = 20


class Copies:
    """Copies by the digest of their key; those that were not used for longest are removed."""

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self._folder, self._max_bytes = folder, max_bytes
        self._lock = Lock()
        #: Bytes added since the folder was measured; at first, what other processes left counts as too much.
        self._added = max_bytes

    def get(self, key: str, write: Callable[[Path], None]) -> Path:
        """Return the copy of this key; `write` makes it at the path that it is given, unless it is there.

        Of several threads and processes that want a copy, one makes it. Raises what `write` raises.
        """
        name = sha256(key.encode("utf-8", "surrogateescape")).hexdigest()
        path = self._folder / name
        if _used(path):
            return path
        (self._folder / "locks").mkdir(parents=True, exist_ok=True)
        with _locked(self._folder / "locks" / name[:3]):
            if not _used(path):
                part = path.with_suffix(".part")
                try:
                    write(part)
                    part.replace(path)
                finally:
                    part.unlink(missing_ok=True)
                self._note(path.stat().st_size)
        return path

    def _note(self, size: int) -> None:
        with self._lock:
            self._added += size
            if self._added * _MEASURED_SHARE > self._max_bytes:
                self._added = 0
                self._shrink()

    def _shrink(self) -> None:
        """Remove the copies that were not used for longest, until the rest leaves room for some more."""
        kept = list[tuple[float, int, str]]()
        with os.scandir(self._folder) as found:
            for each in found:
                with suppress(FileNotFoundError):  # removed by another process
                    if each.is_file():
                        status = each.stat()
                        kept.append((max(status.st_atime, status.st_mtime), status.st_size, each.path))
        excess = sum(size for _, size, _ in kept) - self._max_bytes * (_MEASURED_SHARE - 1) // _MEASURED_SHARE
        for used, size, path in sorted(kept):
            if excess <= 0 or used > time.time() - _IN_USE_SECONDS:
                break
            Path(path).unlink(missing_ok=True)
            excess -= size


def _used(path: Path) -> bool:
    """Note that a copy is used; False where there is no fresh one."""
    with suppress(FileNotFoundError):
        made = path.stat().st_mtime
        if time.time() - made < _FRESH_SECONDS:
            os.utime(path, (time.time(), made))
            return True
    return False


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
