"""Drives the real commands as a user does, and finds the processes that they leave behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest
from selenium import webdriver

from deploy.browser import NoBrowser, chromium
from tests.checkpoints import tiny_checkpoint
from tests.e2e.servers import VllmServer

REPOSITORY = Path(__file__).resolve().parents[2]
SCRIPTS = Path(sys.executable).parent
#: Every process that a test starts has it, and hands it on to those that it starts.
_MARK = "TEST_STARTED_BY"


@dataclass
class Cli:
    """The commands, with a home and an environment of their own."""

    folder: Path
    environment: dict[str, str] = field(default_factory=dict)
    mark: str = field(default_factory=lambda: uuid.uuid4().hex)

    @property
    def home(self) -> Path:
        return self.folder / "home"

    @property
    def worker_log(self) -> str:
        path = self.home / "logs" / "worker.log"
        return path.read_text() if path.exists() else ""

    def start(self, command: str, *arguments: object) -> subprocess.Popen[str]:
        """In a process group of its own, so that Ctrl-C can be typed at all of it."""
        return subprocess.Popen(
            [str(SCRIPTS / command), *map(str, arguments)],
            cwd=self.folder,
            env=self._environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            preexec_fn=_hear_ctrl_c,
        )

    def run(self, command: str, *arguments: object) -> subprocess.CompletedProcess[str]:
        with self.start(command, *arguments) as process:
            try:
                output, errors = process.communicate(timeout=400)
            except BaseException:
                os.killpg(process.pid, signal.SIGKILL)
                raise
        return subprocess.CompletedProcess(process.args, process.returncode, output, errors)

    def processes(self) -> list[psutil.Process]:
        """What was started from here and has not ended."""
        return [process for process in psutil.process_iter() if self._is_ours(process)]

    def _is_ours(self, process: psutil.Process) -> bool:
        try:
            return process.environ().get(_MARK) == self.mark and process.status() != psutil.STATUS_ZOMBIE
        except psutil.Error:
            return False

    def _environment(self) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("CAPFLOW_")}
        ours = {
            "CAPFLOW_HOME": str(self.home),
            "CAPFLOW_ENGINE": "capflow_tasks.testing:build",
            # it takes seconds a picture
            "CAPFLOW_OCR_PROCESSES": "0",
            "PYTHONPATH": str(REPOSITORY),
            "COLUMNS": "160",
            # one worker, on a machine with several GPUs too
            "CUDA_VISIBLE_DEVICES": "0",
            _MARK: self.mark,
        }
        return kept | ours | self.environment


def _hear_ctrl_c() -> None:
    """As at a terminal; what runs in the background ignores it, and hands that on to all it starts."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.fixture
def folder() -> Iterator[Path]:
    """Not below pytest's own folder: PostgreSQL runs as another user than root, who may not look in there."""
    with tempfile.TemporaryDirectory(prefix="capflow-e2e-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


@pytest.fixture
def cli(folder: Path) -> Iterator[Cli]:
    """Commands that start PostgreSQL, Redis and a worker of their own; ended hard when a test fails."""
    cli = Cli(folder)
    yield cli
    for process in cli.processes():
        process.kill()


@pytest.fixture(scope="session")
def tiny_model() -> Path:
    """The demo's checkpoint of random weights."""
    return tiny_checkpoint()


@pytest.fixture(scope="session")
def vllm_server(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[VllmServer]:
    """A server of the demo's checkpoint, for all tests that need one."""
    server = VllmServer(tiny_model, tmp_path_factory.mktemp("server") / "log")
    server.start()
    yield server
    server.kill()


@pytest.fixture
def quick_cli(cli: Cli, database_url: str) -> Cli:
    """The same with a database that is there already, which saves the seconds of making one."""
    cli.environment["CAPFLOW_DATABASE_URL"] = database_url
    return cli


@pytest.fixture(scope="session")
def browser() -> Iterator[webdriver.Chrome]:
    """One Chromium for all tests; each says what size it wants."""
    try:
        with chromium() as started:
            yield started
    except NoBrowser as error:
        pytest.fail(str(error), pytrace=False)
