"""How busy the GPU is and how much of its memory is taken, as nvidia-smi tells; it only looks."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from shutil import which
from threading import Thread
from time import monotonic
from typing import IO

from capflow_tasks.lifeline import die_with_parent

_LOOK_MILLISECONDS = 500
_COMMAND = (
    "nvidia-smi",
    "--id=0",
    "--query-gpu=name,utilization.gpu,memory.used",
    "--format=csv,noheader,nounits",
    f"--loop-ms={_LOOK_MILLISECONDS}",
)


@dataclass(frozen=True, slots=True)
class Look:
    """The card at one moment."""

    at: float
    name: str
    #: Share of the time since the look before in which a kernel ran.
    busy_share: float
    memory_mib: float


@dataclass(slots=True)
class CardWatch:
    """All looks so far; none where there is no card."""

    looks: list[Look] = field(default_factory=list)

    @property
    def name(self) -> str:
        return self.looks[0].name if self.looks else "no GPU"

    def busy_share(self, start: float, end: float) -> float | None:
        """The mean between two moments of the clock that all processes share."""
        found = [look.busy_share for look in self.looks if start <= look.at <= end]
        return sum(found) / len(found) if found else None

    def peak_gib(self) -> float | None:
        return max((look.memory_mib for look in self.looks), default=0.0) / 1024 or None

    def read(self, lines: IO[str]) -> None:
        """Until the lines end; what is no look, as a driver's complaint, is passed over."""
        for line in lines:
            name, *numbers = (word.strip() for word in line.split(","))
            try:
                busy, memory = map(float, numbers)
            except ValueError:
                continue
            self.looks.append(Look(monotonic(), name, busy / 100, memory))


@contextmanager
def watching() -> Iterator[CardWatch]:
    """Looks at the card twice a second, in a thread."""
    found = CardWatch()
    if which(_COMMAND[0]) is None:
        yield found
        return
    with subprocess.Popen(_COMMAND, stdout=subprocess.PIPE, text=True, preexec_fn=die_with_parent) as process:
        assert process.stdout
        thread = Thread(target=found.read, args=(process.stdout,), name="card", daemon=True)
        thread.start()
        try:
            yield found
        finally:
            process.terminate()
            thread.join(5)
