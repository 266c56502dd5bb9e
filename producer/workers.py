"""The worker processes that a command starts itself, where no fleet has any."""

import logging
import os
import subprocess
import sys
from collections.abc import Collection
from time import monotonic

from capflow_tasks.engine.devices import visible_devices
from capflow_tasks.errors import WORKER_ERROR_MARK, ServiceError, UserError
from capflow_tasks.fleet import application, embedded
from capflow_tasks.lifeline import die_with_parent
from capflow_tasks.settings import Settings
from producer import services
from producer.console import counted

log = logging.getLogger(__name__)

#: A worker that exits sooner than this has failed to start.
_START_SECONDS = 120
_MAX_FAILED_STARTS = 3
#: For the worker's engine to shut down, on top of the worker's own deadline.
_STOP_GRACE_SECONDS = 20


class EmbeddedWorker:
    """A worker process for an embedded broker, started again when it exits by itself.

    It takes the batches that are for all, and those that are pinned to these ranks.
    """

    def __init__(self, fleet: services.Fleet, ranks: Collection[int], number: int, gpus: str | None) -> None:
        queues = fleet.settings.queues
        pinned = [application.queue_of_rank(queue, rank) for queue in queues for rank in sorted(ranks)]
        self._queues = ",".join([*queues, *pinned])
        self._fleet = fleet
        #: From 0, among the workers of this process.
        self._number = number
        self._name = f"worker-{number}" if number else "worker"
        #: For CUDA_VISIBLE_DEVICES; None leaves that as it is.
        self._gpus = gpus
        self.log_path = fleet.settings.home / "logs" / f"{self._name}.log"
        self._process: subprocess.Popen[bytes] | None = None
        self._started_at = 0.0
        self._failed_starts = 0

    def check(self) -> None:
        """Start the worker unless it runs. Raises ServiceError when starting it again would not help."""
        if self._process is None:
            self._start()
            return
        code = self._process.poll()
        if code is None:
            return
        if code in (UserError.exit_code, ServiceError.exit_code) and (reason := self._reason()):
            raise ServiceError(reason)
        has_failed = monotonic() - self._started_at < _START_SECONDS
        self._failed_starts = self._failed_starts + 1 if has_failed else 0
        if self._failed_starts >= _MAX_FAILED_STARTS:
            raise ServiceError(
                f"the worker failed to start {self._failed_starts} times in a row; see {self.log_path}"
            )
        log.warning("the worker exited with code %s and is started again; see %s", code, self.log_path)
        self._start()

    def terminate(self) -> None:
        """Ask the worker to finish the stages that it runs and exit."""
        if self._process is not None:
            self._process.terminate()

    def wait(self) -> None:
        """Wait for the worker's exit; kill it at the deadline."""
        if self._process is None:
            return
        deadline_seconds = self._fleet.settings.drain_seconds + _STOP_GRACE_SECONDS
        try:
            self._process.wait(deadline_seconds)
        except subprocess.TimeoutExpired:
            log.warning("killing the worker, which did not stop in %g s; nothing is lost", deadline_seconds)
        finally:
            self._process.kill()
            self._process.wait()

    def _start(self) -> None:
        settings, urls = self._fleet.settings, self._fleet.services
        command = [sys.executable, "-m", "celery", "-A", "capflow_tasks", "worker", "-Q", self._queues]
        suffix = f"-{self._number}" if self._number else ""
        command += ["-n", f"embedded-{os.getpid()}{suffix}@%h", "-l", settings.log_level]
        ours = {"CAPFLOW_DATABASE_URL": urls.database_url, "CAPFLOW_BROKER_URL": urls.broker_url}
        # `capflow eval` has arms with models of their own.
        ours["CAPFLOW_MODEL"] = settings.model
        if self._gpus is not None:
            ours["CUDA_VISIBLE_DEVICES"] = self._gpus
        if settings.metrics_port:
            ours["CAPFLOW_METRICS_PORT"] = str(settings.metrics_port + self._number)
        with embedded.open_log(settings.home, self._name) as output:
            self._log_start = output.tell()
            self._process = subprocess.Popen(
                command,
                env={**os.environ, **ours},
                stdout=output,
                stderr=output,
                stdin=subprocess.DEVNULL,
                preexec_fn=die_with_parent,
                # Ctrl-C goes to the producer alone, which then stops the worker.
                start_new_session=True,
            )
        self._started_at = monotonic()

    def _reason(self) -> str | None:
        """Read from its log why this start of the worker gave up; None if it does not say."""
        with self.log_path.open(encoding="utf-8", errors="replace") as lines:
            lines.seek(self._log_start)
            reasons = [line for line in lines if line.startswith(WORKER_ERROR_MARK)]
        return reasons[-1].removeprefix(WORKER_ERROR_MARK).strip() if reasons else None


class EmbeddedWorkers:
    """The worker processes for an embedded broker: as many as this machine's GPUs allow, at least one.

    Where settings name a broker, the fleet has workers of its own, and none is started here.
    """

    def __init__(self, fleet: services.Fleet, ranks: Collection[int] = ()) -> None:
        self._workers: list[EmbeddedWorker] = []
        self._settings = fleet.settings
        if fleet.settings.broker_url is not None:
            return
        for number, gpus in enumerate(_gpu_groups(fleet.settings)):
            self._workers.append(EmbeddedWorker(fleet, ranks, number, gpus))

    def awaited(self, alive: int) -> str:
        """Say what a run waits for that has so many live workers and runs nothing."""
        settings = self._settings
        if self._workers:
            loads = [queue for queue in settings.queues if settings.engine_of(queue) == "vllm"]
            models = ", ".join(dict.fromkeys(map(settings.model_of, loads)))
            return (
                f"{f'loading {models}' if models else 'starting a worker'} (log {self._workers[0].log_path})"
            )
        if alive:
            return f"waiting for {counted(alive, 'worker')} of the fleet to take a batch"
        queues = ",".join(settings.queues)
        return f"no worker listens to {queues}: celery -A capflow_tasks worker -Q {queues}"

    def check(self) -> None:
        """Start each worker unless it runs. Raises ServiceError when starting one again would not help."""
        for worker in self._workers:
            worker.check()

    def close(self) -> None:
        """Let the workers finish the stages that they run; kill them at the deadline."""
        for worker in self._workers:
            worker.terminate()
        for worker in self._workers:
            worker.wait()


def _gpu_groups(settings: Settings) -> list[str | None]:
    """Return the GPUs of each worker that fits here, as CUDA_VISIBLE_DEVICES names them."""
    size = settings.tensor_parallel_size
    uses_gpus = any(settings.engine_of(queue) != "openai" for queue in settings.queues)
    devices = visible_devices() if uses_gpus else []
    count = len(devices) // size
    if count < 2:
        return [None]
    left = f"; GPUs left over: {len(devices) % size}" if len(devices) % size else ""
    each = "1 GPU" if size == 1 else f"{size} GPUs"
    log.info("%s GPUs found: starting %s workers with %s each%s", len(devices), count, each, left)
    ids = [device.id for device in devices]
    return [",".join(ids[start : start + size]) for start in range(0, count * size, size)]
