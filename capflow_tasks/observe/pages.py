"""Serves pages such as metrics and probes over HTTP, in threads of its own."""

import http.server
import logging
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from socketserver import ThreadingTCPServer
from threading import Thread
from typing import Any
from urllib.parse import urlsplit

from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4, CollectorRegistry, generate_latest

from capflow_tasks.errors import SettingsError

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Page:
    """An HTTP response."""

    body: bytes
    content_type: str
    status: http.HTTPStatus = http.HTTPStatus.OK


MakePage = Callable[[], Page]


def plain_page(text: str) -> Page:
    return Page(text.encode(), "text/plain; charset=utf-8")


def metrics_page(registry: CollectorRegistry) -> MakePage:
    """Make the page of the registry's metrics.

    In plain text: in OpenMetrics, which newer scrapers prefer, the client would turn `vllm:` into `vllm_`.
    """
    return lambda: Page(generate_latest(registry), CONTENT_TYPE_PLAIN_0_0_4)


class WebPages(ThreadingTCPServer):
    """A server that runs from its construction until it is stopped.

    Not an HTTPServer, which asks DNS for this host's name, for seconds at times.
    """

    allow_reuse_address = True
    daemon_threads = True

    def __init__(self, host: str, port: int, pages: Mapping[str, MakePage]) -> None:
        """Serve `pages` by path; port 0 takes any free port. Raises SettingsError when the port is taken."""
        self.pages = pages
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            super().__init__((host, port), _Handler)
        except OSError as error:
            raise SettingsError(
                f"port {port} of {host} cannot be served: {error.strerror or error}; "
                "give each process on a host a port of its own, or 0 for any free one"
            ) from error
        self.port: int = self.server_address[1]
        Thread(target=self.serve_forever, name="pages", daemon=True).start()
        facts = {"event": "serving", "port": self.port}
        log.info("%s on port %s of %s", ", ".join(pages), self.port, host, extra={"facts": facts})

    def stop(self) -> None:
        self.shutdown()
        self.server_close()

    def handle_error(self, *_: Any) -> None:
        # A client that disconnects early is not an error.
        log.debug("a page was not served", exc_info=True)


class _Handler(http.server.BaseHTTPRequestHandler):
    server: WebPages
    server_version, sys_version = "capflow", ""
    #: For a client that connects and sends nothing, seconds.
    timeout = 10

    def do_GET(self) -> None:
        make = self.server.pages.get(urlsplit(self.path).path)
        text = f"not found; the pages are {' '.join(self.server.pages)}\n"
        page = make() if make else Page(text.encode(), "text/plain", http.HTTPStatus.NOT_FOUND)
        self.send_response(page.status)
        self.send_header("Content-Type", page.content_type)
        self.send_header("Content-Length", str(len(page.body)))
        self.end_headers()
        self.wfile.write(page.body)

    def log_message(self, *_: Any) -> None:
        """Log nothing: one line per probe would hide all others."""
