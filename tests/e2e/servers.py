"""A real vLLM server, and a proxy in front of it that misbehaves as real networks and gateways do."""

from __future__ import annotations

import http.client
import json
import os
import socket
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

from capflow_tasks.lifeline import die_with_parent

#: The key that it asks for.
KEY = "sk-of-the-tests"
#: The name under which the server serves the model.
SERVED = "tiny"
_ENVIRONMENT = {"VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1", "TORCHDYNAMO_DISABLE": "1"}
_STRUCTURED = {"backend": "xgrammar", "disable_any_whitespace": True}
_FLAGS: dict[str, Any] = {
    "served-model-name": SERVED,
    "host": "127.0.0.1",
    "max-model-len": 16384,
    "limit-mm-per-prompt": json.dumps({"image": 64, "video": 1}),
    "structured-outputs-config": json.dumps(_STRUCTURED),
}


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


@dataclass
class VllmServer:
    """vLLM's OpenAI-compatible server on the CPU; it can be killed and started again."""

    model: Path
    log: Path
    port: int = field(default_factory=free_port)
    _process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        flags = {"model": self.model, "port": self.port, "api-key": KEY, **_FLAGS}
        words = [word for flag, value in flags.items() for word in (f"--{flag}", str(value))]
        command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", *words]
        command += ["--enforce-eager", "--enable-prompt-tokens-details", "--trust-request-mm-kwargs"]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                command,
                env={**os.environ, **_ENVIRONMENT},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                preexec_fn=die_with_parent,
            )
        while not self._answers():
            if self._process.poll() is not None:
                raise RuntimeError(f"the server exited: {self.log.read_text()[-4000:]}")
            Event().wait(0.2)

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def _answers(self) -> bool:
        try:
            with urlopen(f"http://127.0.0.1:{self.port}/health", timeout=5) as answer:
                return bool(answer.status == 200)
        except (URLError, OSError):
            return False


@dataclass(frozen=True)
class Fault:
    """What becomes of one request: this answer, or a broken connection, after a wait."""

    status: int | None = None
    retry_after: str | None = None
    message: str = "the proxy says no"
    seconds: float = 0.0
    #: The whole answer, instead of one with `message`.
    body: object = None
    breaks: bool = False


class _Handler(BaseHTTPRequestHandler):
    """Handles one request; a connection has a handler of its own."""

    protocol_version = "HTTP/1.1"
    proxy: Proxy

    def do_GET(self) -> None:
        self._forward(b"")

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        with self.proxy.fault_of(body) as fault:
            if not self._fails(fault):
                self._forward(body)

    def _fails(self, fault: Fault) -> bool:
        """Whether the fault is all that comes of the request."""
        Event().wait(fault.seconds)
        if fault.breaks:
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
        elif fault.status is not None:
            said = {"error": {"message": fault.message}} if fault.body is None else fault.body
            headers = {"Retry-After": fault.retry_after} if fault.retry_after else {}
            self._send(fault.status, json.dumps(said).encode(), headers)
        return fault.breaks or fault.status is not None

    def _forward(self, body: bytes) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self.proxy.target, timeout=120)
        headers = {"Content-Type": "application/json"}
        if key := self.headers["Authorization"]:
            headers["Authorization"] = key
        try:
            connection.request(self.command, self.path, body or None, headers)
            answer = connection.getresponse()
            self._send(answer.status, answer.read(), {})
        except OSError:
            self._send(502, b'{"error": {"message": "no upstream"}}', {})
        finally:
            connection.close()

    def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", **headers}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_request(self, *arguments: object) -> None:
        """Print nothing."""


class Proxy:
    """Forwards requests to a port, except those that meet a fault."""

    def __init__(self, target: int) -> None:
        self.target = target
        #: Faults for the next chat requests, in order; one for each.
        self.faults: deque[Fault] = deque()
        #: A fault for every request whose body contains the text.
        self.poison: tuple[str, Fault] | None = None
        #: The bodies of the chat requests that came.
        self.requests: list[dict[str, Any]] = []
        self.most_at_once = 0
        self._at_once = 0
        self._lock = threading.Lock()
        handler = type("Handler", (_Handler,), {"proxy": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self._server.block_on_close = False

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}/v1"

    @contextmanager
    def serving(self) -> Iterator[Proxy]:
        thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self._server.shutdown()
            self._server.server_close()
            thread.join()

    @contextmanager
    def fault_of(self, body: bytes) -> Iterator[Fault]:
        """Yield what becomes of the request with this body; it is in flight for as long as the block."""
        with self._lock:
            self.requests.append(json.loads(body))
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
            is_poisoned = self.poison is not None and self.poison[0].encode() in body
            fault = self.poison[1] if self.poison and is_poisoned else Fault()
            if self.faults and not is_poisoned:
                fault = self.faults.popleft()
        try:
            yield fault
        finally:
            with self._lock:
                self._at_once -= 1
