"""Knows which files in a folder are a run's own, so that no run replaces or removes those of others.

Each run has a list in the folder, `.capflow-<digest>.json`: its name, when it began, and its files with their
sizes. It is written before the first model call, so two runs that would write one file meet before they work.
A file that no list names, or whose size has changed, was written by something else. Commands that write files
without a run, such as `capflow filter`, have a list of the same kind.
"""

import hashlib
import json
import os
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

from capflow_tasks.errors import UserError
from capflow_tasks.records import JsonObject
from producer.writing.whole import whole_file

#: The size of a file that is not written yet.
_UNWRITTEN = None
#: The size of a file that is being written, or was when its process died: any.
_ANY = -1


class OwnFiles:
    """The files of one run in one folder."""

    def __init__(self, folder: Path, run: str, begun: datetime | None, *, overwrites: bool = False) -> None:
        """A run is told from others of its name, as in another database, by when it has `begun`, if it has.

        `run` may be a command, which never begins. `overwrites` takes over the files of others.
        """
        self._folder = folder
        self._identity = {"run": run, "begun": begun and begun.isoformat()}
        digest = hashlib.sha256(json.dumps(self._identity).encode()).hexdigest()[:12]
        self._list = folder / f".capflow-{digest}.json"
        self._overwrites = overwrites

    @classmethod
    def of_command(cls, command: str, source: Path, folder: Path, *, overwrites: bool) -> "OwnFiles":
        """Return the files that a command makes of a source, wherever the two lie together."""
        return cls(folder, f"`{command} {os.path.relpath(source, folder)}`", None, overwrites=overwrites)

    def is_own(self, name: str) -> bool:
        """Whether this run may replace the file, or write it anew."""
        return next(self._problems([name], self._sizes()), None) is None

    def check(self, names: Collection[str]) -> None:
        """Raise UserError where one of these files is another's."""
        self._check(names, self._sizes())

    def claim(self, names: Collection[str]) -> None:
        """Note that this run writes these files.

        Raises UserError where one is another's, and ServiceError when the folder cannot be written.
        """
        known = self._sizes()
        self._check(names, known)
        if self._overwrites:
            self._take_over(names)
        self._write({**dict.fromkeys(names, _UNWRITTEN), **known})
        try:
            # A run that claims at the same time may have looked before this list was there.
            self._check(names, self._sizes())
        except UserError:
            self._write(known)
            raise

    @contextmanager
    def writing(self, names: Collection[str]) -> Iterator[None]:
        """Claim these files, and let the block replace or remove them; blocks may be nested."""
        self.claim(names)
        self._write(self._sizes() | dict.fromkeys(names, _ANY))
        yield
        self._write(self._sizes() | {name: self._size(name) for name in names})

    def _check(self, names: Collection[str], known: dict[str, int | None]) -> None:
        for problem in self._problems(names, known):
            raise UserError(f"{problem}; choose another --output, or replace the file with --overwrite")

    def _problems(self, names: Collection[str], known: dict[str, int | None]) -> Iterator[str]:
        """Say of each file that is another's, why."""
        if self._overwrites:
            return
        others = self._claims_of_others()
        for name in names:
            path, size = self._folder / name, self._size(name)
            if name in others:
                yield f"{path}: is a file of {others[name]}"
            elif size is None or known.get(name) in (size, _ANY):
                continue
            elif known.get(name) is None:
                yield f"{path}: was not written by this run"
            else:
                yield f"{path}: has changed since this run wrote it"

    def _take_over(self, names: Collection[str]) -> None:
        """Strike the files from the lists of other runs."""
        for path in self._lists_of_others():
            found = _read(path)
            left = {name: size for name, size in found.get("files", {}).items() if name not in names}
            if len(left) < len(found.get("files", {})):
                _write(path, {**found, "files": left})

    def _claims_of_others(self) -> dict[str, str]:
        """Return the run, or the command, of each file that another one has claimed."""
        claims: dict[str, str] = {}
        for path in self._lists_of_others():
            found = _read(path)
            kind = "run " if found.get("begun") else ""
            claims |= dict.fromkeys(found.get("files", ()), f"{kind}{found.get('run')}")
        return claims

    def _lists_of_others(self) -> list[Path]:
        return [path for path in self._folder.glob(".capflow-*.json") if path != self._list]

    def _sizes(self) -> dict[str, int | None]:
        return dict(_read(self._list).get("files", {}))

    def _size(self, name: str) -> int | None:
        with suppress(FileNotFoundError, NotADirectoryError):
            return (self._folder / name).stat().st_size
        return None

    def _write(self, sizes: dict[str, int | None]) -> None:
        _write(self._list, {**self._identity, "files": sizes})


def _write(path: Path, content: JsonObject) -> None:
    with whole_file(path) as file:
        file.write(json.dumps(content, indent=1).encode() + b"\n")


def _read(path: Path) -> JsonObject:
    """Return a list's content; nothing for one that is not there or was damaged."""
    with suppress(OSError, ValueError):
        found = json.loads(path.read_bytes())
        return found if isinstance(found, dict) else {}
    return {}
