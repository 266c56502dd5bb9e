"""A real S3 server on loopback, with faults that a test injects."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Thread
from typing import Any

from werkzeug.serving import make_server

#: What the environment of a client must hold beside the server's address.
CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "testing",
    "AWS_SECRET_ACCESS_KEY": "testing",
    "AWS_DEFAULT_REGION": "us-east-1",
}


@dataclass
class S3Server:
    """A server; `faults` are answered in place of what GETs of a path ask for, one by one."""

    url: str = ""
    faults: dict[str, list[str]] = field(default_factory=dict)
    #: Method and path of each request.
    asked: list[tuple[str, str]] = field(default_factory=list)

    @property
    def environment(self) -> dict[str, str]:
        return CREDENTIALS | {"AWS_ENDPOINT_URL": self.url}

    def put(self, bucket: str, files: dict[str, bytes]) -> None:
        """Make a bucket that holds the files."""
        import boto3

        client = boto3.client("s3", endpoint_url=self.url, **_as_arguments())
        client.create_bucket(Bucket=bucket)
        for name, content in files.items():
            client.put_object(Bucket=bucket, Key=name, Body=content)
        client.close()


def _as_arguments() -> dict[str, str]:
    return {
        "aws_access_key_id": CREDENTIALS["AWS_ACCESS_KEY_ID"],
        "aws_secret_access_key": CREDENTIALS["AWS_SECRET_ACCESS_KEY"],
        "region_name": CREDENTIALS["AWS_DEFAULT_REGION"],
    }


@contextmanager
def s3_server() -> Iterator[S3Server]:
    """Start moto's server with the faults before it."""
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    s3, moto = S3Server(), DomainDispatcherApplication(create_backend_app)

    def application(environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        method, path = environ["REQUEST_METHOD"], environ["PATH_INFO"]
        s3.asked.append((method, path))
        if method == "GET" and (faults := s3.faults.get(path)):
            code = faults.pop(0)
            start(code, [("Content-Type", "application/xml")])
            name = {"403": "AccessDenied", "503": "SlowDown"}.get(code[:3], "InternalError")
            return [f"<Error><Code>{name}</Code><Message>{code}</Message></Error>".encode()]
        answered: Iterable[bytes] = moto(environ, start)
        return answered

    server = make_server("127.0.0.1", 0, application, threaded=True)
    s3.url = f"http://127.0.0.1:{server.server_port}"
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield s3
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
