"""What a process needed of memory at the most."""

from __future__ import annotations

import re
from pathlib import Path


def peak_mib() -> float:
    """Of this process since its program began; `getrusage` would count what its parent held at the fork."""
    (kib,) = re.findall(r"^VmHWM:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
    return int(kib) / 1024
