"""A real fleet: workers that a supervisor restarts, and the producer, each in its own process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from capflow_tasks.errors import EXIT_USAGE
from capflow_tasks.fleet.embedded import open_log
from capflow_tasks.lifeline import die_with_parent

REPOSITORY = Path(__file__).resolve().parents[2]
_SCRIPTS = Path(sys.executable).parent


class Service:
    """A command that can be started again and again, with one log."""

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        home: Path,
        environment: Mapping[str, str],
        cwd: Path | None = None,
    ) -> None:
        self.name = name
        self._command = command
        self._home = home
        self._environment = environment
        self._cwd = cwd or home
        self._process: subprocess.Popen[bytes] | None = None
        #: Number of starts.
        self.starts = 0
        #: Exit codes of the processes before the current one.
        self.codes: list[int] = []

    def start(self) -> None:
        if self.code is not None:
            self.codes.append(self.code)
        with open_log(self._home, self.name) as log:
            self._process = subprocess.Popen(
                self._command,
                cwd=self._cwd,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                preexec_fn=die_with_parent,
                start_new_session=True,
            )
        self.starts += 1

    def log(self) -> bytes:
        """Return everything it has written."""
        return (self._home / "logs" / f"{self.name}.log").read_bytes()

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def code(self) -> int | None:
        """The exit code, negative for a signal; None while it runs."""
        return self._process.poll() if self._process else None

    def send(self, number: signal.Signals) -> None:
        if self.code is None:
            os.kill(self.pid, number)

    def wait(self, seconds: float) -> int:
        """Wait for the exit code. Raises TimeoutExpired."""
        assert self._process is not None
        return self._process.wait(seconds)

    def end(self, seconds: float = 0) -> None:
        """Send SIGTERM, wait this long, then kill it and all its children."""
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
    """Workers and a producer of one plan; their logs are in `home/logs`."""

    def __init__(self, home: Path, environment: Mapping[str, str], plan: Path, workers: int) -> None:
        self.home = home
        self.output = home / "captions"
        self._environment = {**clean_environment(), **environment}
        self.workers = {f"w{number}": self._worker(f"w{number}") for number in range(1, workers + 1)}
        self.plan = plan
        #: The producer whose exit ends the run.
        self.producer = self._producer("producer")

    def start(self) -> None:
        for service in (*self.workers.values(), self.producer):
            service.start()

    def tend(self) -> None:
        """Restart workers that have exited, as a supervisor does: none whose settings must be fixed first."""
        for worker in self.workers.values():
            if worker.code not in (None, EXIT_USAGE):
                worker.start()

    def add_worker(self, name: str, cwd: Path | None = None, **environment: str) -> Service:
        """Start another worker, in a working directory and with settings of its own."""
        self.workers[name] = self._worker(name, cwd, environment)
        self.workers[name].start()
        return self.workers[name]

    def add_producer(self) -> Service:
        """Start another producer of the plan; its exit ends the run from now on."""
        self.producer = self._producer("producer-2")
        self.producer.start()
        return self.producer

    def start_other(self, plan: Path) -> Service:
        """Start a producer of another plan, for the same output folder."""
        other = self._producer("producer-of-another-plan", plan)
        other.start()
        return other

    def last_words(self) -> str:
        """Return the producer's last line of output."""
        lines = self.producer.log().decode(errors="replace").splitlines()
        return lines[-1] if lines else ""

    def worker_of(self, owner: str) -> Service:
        """Return the process of a lease's owner, such as `w1@host/1a2b3c4d`."""
        return self.workers[owner.partition("@")[0]]

    def end(self) -> None:
        for service in (self.producer, *self.workers.values()):
            service.end()

    def _worker(
        self, name: str, cwd: Path | None = None, environment: Mapping[str, str] | None = None
    ) -> Service:
        command = [sys.executable, "-m", "celery", "-A", "capflow_tasks", "worker", "-Q", "gpu"]
        own = {**self._environment, **(environment or {})}
        return Service(name, [*command, "-n", f"{name}@%h", "-l", "INFO"], self.home, own, cwd)

    def _producer(self, name: str, plan: Path | None = None) -> Service:
        command = [
            str(_SCRIPTS / "capflow"),
            "caption",
            str(plan or self.plan),
            "--output",
            str(self.output),
            "--json",
        ]
        return Service(name, command, self.home, self._environment)


@contextmanager
def running(fleet: Fleet) -> Iterator[Fleet]:
    try:
        fleet.start()
        yield fleet
    finally:
        fleet.end()


def clean_environment() -> dict[str, str]:
    """Return this process's environment without variables that would change a fleet."""
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
    """Return the processes in which vLLM runs this worker's model."""
    return [process for process in _children(pid) if _is_engine_core(process)]


def _is_engine_core(process: psutil.Process) -> bool:
    try:
        return "EngineCore" in process.name() or "EngineCore" in " ".join(process.cmdline())
    except psutil.Error:
        return False
