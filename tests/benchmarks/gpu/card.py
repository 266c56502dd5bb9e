"""How busy the GPU is and how much of its memory is used, as nvidia-smi reports it; changes nothing."""

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

_COMMAND = (
    "nvidia-smi",
    "--id=0",
    "--query-gpu=name,utilization.gpu,memory.used",
    "--format=csv,noheader,nounits",
    "--loop-ms=500",
)


@dataclass(slots=True)
class Card:
    """All readings so far; none where there is no card."""

    name: str = "no GPU"
    #: Clock of all processes; share of the time since the last reading in which a kernel ran; MiB.
    readings: list[tuple[float, float, float]] = field(default_factory=list)

    def busy_share(self, start: float, end: float) -> float | None:
        found = [share for at, share, _ in self.readings if start <= at <= end]
        return sum(found) / len(found) if found else None

    def peak_gib(self) -> float | None:
        return max((mib for _, _, mib in self.readings), default=0.0) / 1024 or None

    def read(self, lines: IO[str]) -> None:
        """Read until the lines end; skip what is no reading, such as a driver's complaint."""
        for line in lines:
            name, *numbers = (word.strip() for word in line.split(","))
            try:
                percent, mib = map(float, numbers)
            except ValueError:
                continue
            self.name = name
            self.readings.append((monotonic(), percent / 100, mib))


@contextmanager
def watched_card() -> Iterator[Card]:
    """Read the card twice a second in a thread."""
    card = Card()
    if which(_COMMAND[0]) is None:
        yield card
        return
    with subprocess.Popen(_COMMAND, stdout=subprocess.PIPE, text=True, preexec_fn=die_with_parent) as process:
        assert process.stdout
        thread = Thread(target=card.read, args=(process.stdout,), name="card", daemon=True)
        thread.start()
        try:
            yield card
        finally:
            process.terminate()
            thread.join(5)
