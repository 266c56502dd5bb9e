"""A real fleet: workers that a supervisor starts again, and the producer, each a process of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from capflow_tasks.fleet.embedded import open_log
from capflow_tasks.lifeline import die_with_parent

REPOSITORY = Path(__file__).resolve().parents[2]
_SCRIPTS = Path(sys.executable).parent


class Service:
    """One command that is started again when it ends, until it is told to stop."""

    def __init__(self, name: str, command: Sequence[str], home: Path, environment: Mapping[str, str]) -> None:
        self.name = name
        self._command = command
        self._home = home
        self._environment = environment
        self._process: subprocess.Popen[bytes] | None = None
        #: Starts so far.
        self.starts = 0
        #: Exit codes of those that have ended and been started again.
        self.codes: list[int] = []

    def start(self) -> None:
        if self.code is not None:
            self.codes.append(self.code)
        with open_log(self._home, self.name) as log:
            self._process = subprocess.Popen(
                self._command,
                cwd=self._home,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                preexec_fn=die_with_parent,
                start_new_session=True,
            )
        self.starts += 1

    def log(self) -> bytes:
        """All that it wrote."""
        return (self._home / "logs" / f"{self.name}.log").read_bytes()

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def code(self) -> int | None:
        """The exit code, None while it runs; negative is a signal."""
        return self._process.poll() if self._process else None

    def send(self, number: signal.Signals) -> None:
        if self.code is None:
            os.kill(self.pid, number)

    def wait(self, seconds: float) -> int:
        """The exit code. Raises TimeoutExpired."""
        assert self._process is not None
        return self._process.wait(seconds)

    def end(self, seconds: float = 0) -> None:
        """Tell it to stop, wait for so long, then end it and all that it started."""
        if self._process is None:
            return
        children = _children(self.pid)
        if seconds and self.code is None:
            self.send(signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                self.wait(seconds)
        for process in (*children, *_children(self.pid)):
            _kill(process)
        self._process.kill()
        self._process.wait(10)


class Fleet:
    """Two or more workers and one producer of one plan, with what they log in `home/logs`."""

    def __init__(self, home: Path, environment: Mapping[str, str], plan: Path, workers: int) -> None:
        self.home = home
        self.output = home / "captions"
        self._environment = {**clean_environment(), **environment}
        self.workers = {f"w{number}": self._worker(f"w{number}") for number in range(1, workers + 1)}
        self._plan = plan
        #: The one whose end is the run's.
        self.producer = self._producer("producer")

    def start(self) -> None:
        for service in (*self.workers.values(), self.producer):
            service.start()

    def tend(self) -> None:
        """What a supervisor of the workers does."""
        for worker in self.workers.values():
            if worker.code is not None:
                worker.start()

    def add_producer(self) -> Service:
        """Start another one of the same plan, whose end is the run's from now on."""
        self.producer = self._producer("producer-2")
        self.producer.start()
        return self.producer

    def last_words(self) -> str:
        """The last line that the producer wrote."""
        lines = self.producer.log().decode(errors="replace").splitlines()
        return lines[-1] if lines else ""

    def worker_of(self, owner: str) -> Service:
        """The process that a lease's owner, `w1@host/1a2b3c4d`, is."""
        return self.workers[owner.partition("@")[0]]

    def end(self) -> None:
        for service in (self.producer, *self.workers.values()):
            service.end()

    def _worker(self, name: str) -> Service:
        command = [sys.executable, "-m", "celery", "-A", "capflow_tasks", "worker", "-Q", "gpu"]
        return Service(name, [*command, "-n", f"{name}@%h", "-l", "INFO"], self.home, self._environment)

    def _producer(self, name: str) -> Service:
        command = [str(_SCRIPTS / "capflow-produce"), str(self._plan), "--output", str(self.output), "--json"]
        return Service(name, command, self.home, self._environment)


@contextmanager
def running(fleet: Fleet) -> Iterator[Fleet]:
    try:
        fleet.start()
        yield fleet
    finally:
        fleet.end()


def clean_environment() -> dict[str, str]:
    """Ours without what would change a fleet."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("CAPFLOW_", "CHAOS_"))}
    return kept | {"PYTHONPATH": str(REPOSITORY), "COLUMNS": "160"}


def _children(pid: int) -> list[psutil.Process]:
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.Error:
        return []


def _kill(process: psutil.Process) -> None:
    with suppress(psutil.Error):
        process.kill()


def engine_cores(pid: int) -> list[psutil.Process]:
    """The processes in which vLLM runs the model of this worker."""
    return [process for process in _children(pid) if _is_engine_core(process)]


def _is_engine_core(process: psutil.Process) -> bool:
    try:
        return "EngineCore" in process.name() or "EngineCore" in " ".join(process.cmdline())
    except psutil.Error:
        return False
