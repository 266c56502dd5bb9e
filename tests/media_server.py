"""An HTTP server of media with faults that a test injects."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Event, Thread

#: Answers one request in place of the file.
Fault = Callable[["Handler", bytes], None]


class Handler(BaseHTTPRequestHandler):
    """Serves files, and ranges of them, as a plain server does."""

    protocol_version = "HTTP/1.1"
    media: MediaServer

    def do_GET(self) -> None:
        self.media.asked.append(self.path)
        content = self.media.files.get(self.path)
        if faults := self.media.faults.get(self.path):
            faults.pop(0)(self, content or b"")
        elif content is None:
            answer(self, 404)
        elif found := re.match(r"bytes=(\d+)-(\d+)$", self.headers.get("Range", "")):
            answer(self, 206, content[int(found[1]) : int(found[2]) + 1])
        else:
            answer(self, 200, content)

    def log_message(self, *_: object) -> None:
        """Stay silent."""


def answer(handler: Handler, status: int, content: bytes = b"", **headers: str) -> None:
    handler.send_response(status)
    for name, value in ({"Content-Length": str(len(content))} | headers).items():
        handler.send_header(name, value)
    handler.end_headers()
    handler.wfile.write(content)


def status(code: int) -> Fault:
    return lambda handler, _: answer(handler, code)


def redirect(location: str) -> Fault:
    return lambda handler, _: answer(handler, 302, Location=location)


def cut_off(handler: Handler, content: bytes) -> None:
    """Promise the whole file, send half of it, and hang up."""
    handler.send_response(200)
    handler.send_header("Content-Length", str(len(content)))
    handler.end_headers()
    handler.wfile.write(content[: len(content) // 2])
    handler.close_connection = True


def without_length(handler: Handler, content: bytes) -> None:
    handler.send_response(200)
    handler.send_header("Connection", "close")
    handler.end_headers()
    handler.wfile.write(content)
    handler.close_connection = True


def whole_file(handler: Handler, content: bytes) -> None:
    """Pay no regard to ranges."""
    answer(handler, 200, content)


@dataclass
class MediaServer:
    """What is served at `url`, what goes wrong, and what was asked for."""

    url: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    #: By path, consumed one by one.
    faults: dict[str, list[Fault]] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    #: Set when the server ends.
    ended: Event = field(default_factory=Event)

    def stall(self, handler: Handler, content: bytes) -> None:
        """Send the head of the answer, and then nothing."""
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(content)))
        handler.end_headers()
        handler.wfile.flush()
        self.ended.wait(60)
        handler.close_connection = True


@contextmanager
def media_server() -> Iterator[MediaServer]:
    media = MediaServer()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (Handler,), {"media": media}))
    media.url = f"http://127.0.0.1:{server.server_port}"
    thread = Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield media
    finally:
        media.ended.set()
        server.shutdown()
        thread.join()
        server.server_close()
