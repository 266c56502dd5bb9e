"""Fetches remote media, by fsspec, into copies on disk: https, S3, Google Cloud Storage, Hugging Face.

Only what CAPFLOW_REMOTE_MEDIA names is fetched, also where a server redirects. A host may have a private
address only if that, or its network, is named itself. This is checked when the address is connected to, so
that no name leads there by resolving to another address later.
"""

import errno
import ipaddress
import logging
import os
import re
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, BinaryIO, cast
from urllib.parse import unquote, urlsplit

from tenacity import (
    Retrying,
    retry_if_exception_type,
    stop_after_attempt,
    stop_after_delay,
    stop_any,
    wait_random_exponential,
)

from capflow_tasks import errors
from capflow_tasks.media.copies import Copies
from capflow_tasks.settings import read_settings

#: What reads the addresses that begin so, and the package that it needs beside fsspec.
_PACKAGES = {"http": "aiohttp", "https": "aiohttp", "s3": "s3fs", "gs": "gcsfs", "hf": "huggingface_hub"}
_PORTS = {"http": 80, "https": 443}
_URL = re.compile(r"([a-z][a-z0-9+.-]*)://|data:", re.IGNORECASE)
#: Bytes that are read at a time of a part of a file.
_CHUNK = 1 << 23
#: Tries of a fetch that fails in passing, and the longest wait between two, seconds.
_TRIES, _LONGEST_WAIT = 3, 8
_CONNECT_SECONDS = 10
#: A server's answers after which another try may help.
_PASSING = {408, 425, 429}


def is_remote(path: str) -> bool:
    """Whether a path or root begins as a URL does."""
    return _URL.match(path) is not None


def url_below(root: str, relative: str) -> str:
    """Return the URL of a medium: `relative` itself, or below a remote root. Raises SampleError.

    Nothing is fetched; whether it may be is checked.
    """
    if not is_remote(relative):
        if relative.startswith("/"):
            raise errors.MediaOutsideRoot(f"The media path {relative!r:.200} leads out of {root}.")
        relative = f"{root.rstrip('/')}/{relative}"
    check_allowed(relative)
    return relative


def check_allowed(url: str) -> None:
    """Refuse a URL that CAPFLOW_REMOTE_MEDIA does not allow. Raises SampleError."""
    allowed = _allowed(read_settings().remote_media)
    scheme = url.partition("://")[0].lower()
    if not allowed.places or scheme not in _PACKAGES:
        off = "is off: let CAPFLOW_REMOTE_MEDIA name its host or bucket on every worker, or"
        said = off if scheme in _PACKAGES else "of this kind is not fetched:"
        raise errors.MediaUnsupported(
            f"Remote media {said} copy {url:.200} below the root and give its path."
        )
    try:
        place = _Place.of(url)
    except ValueError as error:
        raise errors.BadEntry(f"{url:.200} is no sound URL: {error}.") from error
    if ".." in unquote(place.path).split("/"):
        raise errors.MediaOutsideRoot(f'{url:.200} leads up by ".."; write the URL without it.')
    if not any(place.is_in(each) for each in allowed.places):
        raise errors.MediaForbidden(
            f"CAPFLOW_REMOTE_MEDIA does not allow {url:.200}: add {place.scheme}://{place.host} to it on "
            "every worker, or copy the file below the root."
        )


def local_copy(url: str, start: int = 0, end: int | None = None) -> str:
    """Return the path of a copy of a remote file, or of its bytes from `start` to `end`.

    Raises SampleError. Of a failure that may pass after some tries, the cause is an OSError; its `errno` is
    EHOSTUNREACH when nothing answered at all.
    """
    check_allowed(url)
    settings = read_settings()
    copies = _copies(str(settings.home), settings.remote_cache_mib)
    key = url if end is None else f"{url} {start} {end}"
    write = partial(_fetch_with_retries, url, start, end)
    return str(copies.get(key, write))


def open_remote(url: str, block_bytes: int = 1 << 20) -> BinaryIO:
    """Open a remote file, which is read ahead by blocks, for reading and seeking. Raises SampleError."""
    check_allowed(url)
    with named_errors(url):
        opened = _filesystem(url).open(url, "rb", block_size=block_bytes, cache_type="readahead")
        return cast(BinaryIO, opened)


def find_remote(url: str) -> Iterator[tuple[str, str]]:
    """Yield (path below the URL, what changes when the file does) of all files, sorted.

    Raises SampleError.
    """
    check_allowed(url)
    with named_errors(url):
        filesystem = _filesystem(url)
        top = filesystem._strip_protocol(url).rstrip("/")
        found = filesystem.find(top, detail=True)
        for name in sorted(found):
            yield name.removeprefix(top).lstrip("/"), _version(found[name])


def _is_named_in_full(url: str) -> bool:
    place = _Place.of(url)
    rules = _allowed(read_settings().remote_media).places
    return any(place.is_in(rule) for rule in rules if not rule.host.startswith("*"))


def version_of(url: str) -> str:
    """Return what changes when the file does; "" when that is not known. Raises SampleError."""
    check_allowed(url)
    with named_errors(url):
        return _version(_filesystem(url).info(url))


def is_away(url: str) -> bool:
    """Whether nothing answers where the file should be."""
    try:
        check_allowed(url)
        with named_errors(url):
            _filesystem(url).info(url)
    except errors.MediaUnreadable as error:
        return isinstance(error.__cause__, OSError) and error.__cause__.errno == errno.EHOSTUNREACH
    except errors.SampleError:
        return False
    return False


def _version(details: dict[str, Any]) -> str:
    names = ("ETag", "etag", "Last-Modified", "LastModified", "updated", "blob_id")
    return " ".join(str(details[name]) for name in names if details.get(name) is not None)


@dataclass(frozen=True, slots=True)
class _Place:
    """Where something is: a scheme, a host with its port or a bucket, and a path."""

    scheme: str
    #: Of a rule, it may begin with `*.`.
    host: str
    path: str

    @classmethod
    def of(cls, url: str) -> "_Place":
        parts = urlsplit(url)
        if "@" in parts.netloc:
            raise ValueError("it holds a user or password; give credentials to the workers instead")
        if parts.scheme not in _PORTS:  # a bucket, whose name may not be a host's
            return cls(parts.scheme, parts.netloc, parts.path.rstrip("/"))
        port = f":{parts.port}" if parts.port not in (None, _PORTS[parts.scheme]) else ""
        return cls(parts.scheme, f"{(parts.hostname or '').rstrip('.')}{port}", parts.path.rstrip("/"))

    def is_in(self, rule: "_Place") -> bool:
        return (
            self.scheme == rule.scheme
            and fnmatchcase(self.host, rule.host)
            and (not rule.path or f"{self.path}/".startswith(f"{rule.path}/"))
        )


@dataclass(frozen=True, slots=True)
class _Allowed:
    places: tuple[_Place, ...]
    #: Private ones that hosts may be in.
    networks: tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, ...]


@lru_cache(maxsize=8)
def _allowed(setting: str | None) -> _Allowed:
    words = (setting or "").split()
    places = tuple(_Place.of(word) for word in words if is_remote(word))
    return _Allowed(places, tuple(ipaddress.ip_network(word) for word in words if not is_remote(word)))


@lru_cache(maxsize=8)
def _copies(home: str, max_mib: int) -> Copies:
    return Copies(Path(home) / "remote", max_mib << 20)


def _fetch_with_retries(url: str, start: int, end: int | None, path: Path) -> None:
    seconds = read_settings().media_timeout_seconds
    retrying = Retrying(
        stop=stop_any(stop_after_attempt(_TRIES), stop_after_delay(seconds)),
        wait=wait_random_exponential(0.5, _LONGEST_WAIT),
        retry=retry_if_exception_type(errors.MediaUnreadable),
        reraise=True,
    )
    retrying(_fetch, url, start, end, path, time.monotonic() + seconds)


def _fetch(url: str, start: int, end: int | None, path: Path, deadline: float) -> None:
    filesystem = _filesystem(url)
    with named_errors(url):
        if end is None:
            filesystem.get_file(url, str(path), callback=_limits(url, deadline))
            return
        _check_size(url, end - start)
        with path.open("wb") as output:
            for at in range(start, end, _CHUNK):
                size = min(_CHUNK, end - at)
                content = _read_part(filesystem, url, at, size)
                if len(content) != size:
                    raise errors.MediaMissing(f"{url} has changed: it ends before byte {end:,}; plan again.")
                output.write(content)
                _check_time(url, deadline)


def _read_part(filesystem: Any, url: str, start: int, size: int) -> bytes:
    if urlsplit(url).scheme not in _PORTS:
        return bytes(filesystem.cat_file(url, start=start, end=start + size))
    # stops at the end of the part, where a server sends the whole file; the size need not be asked for
    with filesystem.open(url, "rb", size=start + size, cache_type="none") as file:
        file.seek(start)
        return bytes(file.read(size))


def _limits(url: str, deadline: float) -> Any:
    """Return what fsspec tells of its progress, and what ends a fetch that is too large or too slow."""
    from fsspec.callbacks import Callback

    class Limits(Callback):
        def set_size(self, size: int | None) -> None:
            _check_size(url, size or 0)

        def relative_update(self, inc: int = 1) -> None:
            self.value += inc
            _check_size(url, self.value)
            _check_time(url, deadline)

    return Limits()


def _check_size(url: str, size: int) -> None:
    if size > (limit := read_settings().max_media_mib) << 20:
        raise errors.MediaTooLarge(
            f"{url} has {size:,} bytes or more; the limit is {limit} MiB (CAPFLOW_MAX_MEDIA_MIB)."
        )


def _check_time(url: str, deadline: float) -> None:
    if time.monotonic() > deadline:
        raise errors.MediaUnreadable(f"{url} was not fetched within CAPFLOW_MEDIA_TIMEOUT_SECONDS.")


def _filesystem(url: str) -> Any:
    """Return what reads such URLs. Raises MediaUnsupported."""
    scheme = urlsplit(url).scheme
    try:
        return _shared_filesystem(scheme, os.getpid(), read_settings().media_timeout_seconds)
    except ImportError as error:
        needed = f"fsspec and {_PACKAGES[scheme]}: pip install '.[remote]' on every worker"
        raise errors.MediaUnsupported(f"{url:.200} needs {needed}.") from error


@lru_cache(maxsize=16)
def _shared_filesystem(scheme: str, process: int, seconds: float) -> Any:
    """Return the one of this process; fsspec itself keeps one, with its connections, for each thread."""
    import fsspec

    logging.getLogger("gcsfs").setLevel(logging.CRITICAL)  # it logs tracebacks of what it raises, too
    options = _http_options(seconds) if scheme in _PORTS else _OPTIONS.get(scheme, {})
    return fsspec.filesystem(scheme, **options, use_listings_cache=False, skip_instance_cache=True)


def forget_connections() -> None:
    """Let the next fetch read credentials and endpoints anew."""
    _shared_filesystem.cache_clear()


#: s3fs tries again by itself, so botocore need not.
_OPTIONS: dict[str, dict[str, Any]] = {"s3": {"config_kwargs": {"retries": {"total_max_attempts": 1}}}}


def _http_options(seconds: float) -> dict[str, Any]:
    import aiohttp

    timeout = aiohttp.ClientTimeout(total=seconds, sock_connect=_CONNECT_SECONDS, sock_read=seconds)
    # not compressed, so that sizes are those of the file
    options = {"headers": {"Accept-Encoding": "identity"}, "client_kwargs": {"timeout": timeout}}
    return {**options, "get_client": _guarded_session}


async def _guarded_session(**options: Any) -> Any:
    """Return a session whose every request, redirects as well, and every connection is checked."""
    import aiohttp

    async def checked(request: Any, send: Callable[[Any], Any]) -> Any:
        check_allowed(str(request.url))
        return await send(request)

    connector = aiohttp.TCPConnector(socket_factory=_socket_to_allowed)
    return aiohttp.ClientSession(connector=connector, middlewares=(checked,), **options)


def _socket_to_allowed(found: Any) -> socket.socket:
    """Return a socket for an address that a name was resolved to, unless it is private and not named."""
    family, kind, protocol, _, (host, *_) = found
    address = ipaddress.ip_address(host.partition("%")[0])
    address = getattr(address, "ipv4_mapped", None) or address
    is_public = address.is_global and not address.is_multicast
    named = _allowed(read_settings().remote_media).networks
    if not is_public and not any(address in network for network in named):
        raise errors.MediaForbidden(
            f"The host has the private address {address}; if that is meant, add it to CAPFLOW_REMOTE_MEDIA."
        )
    return socket.socket(family, kind, protocol)


#: What aiohttp, botocore and httpx call that nothing answered.
_UNANSWERED = {
    *("ClientConnectorError", "ClientConnectorDNSError", "ConnectionTimeoutError"),
    *("EndpointConnectionError", "ConnectTimeoutError", "ConnectError", "ConnectTimeout"),
}
#: What is wrong with this node.
_NODE_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE)
#: What botocore and google-auth call that there are no credentials.
_NO_CREDENTIALS = {"NoCredentialsError", "PartialCredentialsError", "DefaultCredentialsError"}


@contextmanager
def named_errors(url: str) -> Iterator[None]:
    """Turn what fsspec and the libraries below it raise into a SampleError that says whose fault it is."""
    try:
        yield
    except errors.CapflowError:
        raise
    except Exception as error:  # each library has its own kinds
        chain = list(_chain(error))
        for each in chain:
            if isinstance(each, errors.SampleError):
                raise type(each)(str(each)) from None
        raise _named(url, error, chain) from _cause(url, error, chain)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__


def _named(url: str, error: Exception, chain: Sequence[BaseException]) -> errors.SampleError:
    status = _status(chain)
    if status in (404, 410):
        return errors.MediaMissing(f"{url} does not exist: the server says {status}.")
    names = {type(each).__name__ for each in chain}
    is_refused = status is not None and 400 <= status < 500 and status not in _PASSING
    if is_refused or names & _NO_CREDENTIALS:
        said = f"The server refuses {url} with {status}" if status else f"{url} needs credentials: {error}"
        remedy = "give each worker credentials that may read it, or correct the URL"
        return errors.MediaForbidden(f"{said}; {remedy}.")
    if isinstance(error, ValueError) and "range requests" in str(error):
        return errors.MediaUnsupported(f"The server of {url} sends no parts of a file; copy it to a disk.")
    said = f"the server says {status}" if status else f"{type(error).__name__} {error}".strip(" .")
    return errors.MediaUnreadable(f"{url} could not be fetched: {said:.300}.")


def _status(chain: Iterable[BaseException]) -> int | None:
    """Return the server's answer that the errors are about."""
    found = map(_status_of, chain)
    return next((each for each in found if isinstance(each, int) and 300 <= each < 600), None)


def _status_of(error: BaseException) -> Any:
    answer = getattr(error, "response", None)
    if isinstance(answer, dict):  # botocore
        return answer.get("ResponseMetadata", {}).get("HTTPStatusCode")
    if type(error).__name__ == "HttpError":  # gcsfs
        return getattr(error, "code", None)
    if error.__cause__ is None and isinstance(error, FileNotFoundError | PermissionError):
        return 404 if isinstance(error, FileNotFoundError) else 403
    return getattr(answer, "status_code", getattr(error, "status", None))  # httpx, aiohttp


def _cause(url: str, error: Exception, chain: Sequence[BaseException]) -> Exception:
    """Return what `captioning.blame` decides by: this node's error, that nothing answers, or the error."""
    for each in chain:
        if isinstance(each, OSError) and each.errno in _NODE_ERRORS:
            return each
    is_unanswered = not _UNANSWERED.isdisjoint(type(each).__name__ for each in chain)
    # of many hosts, one that is gone is a matter of its own samples
    if is_unanswered and _status(chain) is None and _is_named_in_full(url):
        return OSError(errno.EHOSTUNREACH, "nothing answers")
    return error
