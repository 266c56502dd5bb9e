"""The NVIDIA GPUs that processes started here may use, as nvidia-smi lists them. Imports no torch."""

import os
import subprocess
from dataclasses import dataclass

_QUERY = "--query-gpu=index,uuid,name,memory.total,memory.used,driver_version"
_VISIBLE = "CUDA_VISIBLE_DEVICES"


@dataclass(frozen=True, slots=True)
class Device:
    """One GPU."""

    #: As CUDA_VISIBLE_DEVICES names it.
    id: str
    name: str
    memory_mib: int
    used_mib: int
    driver: str

    def __str__(self) -> str:
        return f"{self.name}, {self.memory_mib} MiB, {self.used_mib} MiB used, driver {self.driver}"


def visible_devices() -> list[Device]:
    """List the GPUs that CUDA_VISIBLE_DEVICES allows, in its order; none without nvidia-smi."""
    command = ["nvidia-smi", _QUERY, "--format=csv,noheader,nounits"]
    try:
        listed = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    rows = [[field.strip() for field in line.split(",")] for line in listed.splitlines() if line.strip()]
    every = {
        uuid: Device(index, name, _mib(total), _mib(used), driver)
        for index, uuid, name, total, used, driver in (row for row in rows if len(row) == 6)
    }
    allowed = os.environ.get(_VISIBLE)
    if allowed is None:
        return list(every.values())
    wanted = [name.strip() for name in allowed.split(",") if name.strip()]
    return [
        Device(name, device.name, device.memory_mib, device.used_mib, device.driver)
        for name in wanted
        for uuid, device in every.items()
        if name == device.id or (name.startswith("GPU-") and uuid.startswith(name))
    ]


def _mib(text: str) -> int:
    """Read a number of MiB; cards that share the host's memory say [N/A]."""
    return int(text) if text.isdecimal() else 0
