"""What the workers of a queue must have in common, so that captions do not depend on who wrote them."""

import hashlib
import json
import socket
from collections.abc import Collection
from functools import partial
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from urllib.parse import urlsplit

from capflow_tasks.domains.catalogue import load_workflow
from capflow_tasks.domains.workflows import EXAM
from capflow_tasks.errors import SettingsError
from capflow_tasks.media import ocr
from capflow_tasks.records import JsonObject, Stage, Workflow
from capflow_tasks.settings import Settings
from capflow_tasks.store.claims import Rival

#: Settings that shape answers, or decide which samples fail.
_SHAPING = (
    "language",
    "answer_attempts",
    "guard_off",
    "max_answer_tokens",
    "dtype",
    "quantization",
    "openai_video",
    "openai_body",
    "min_pixels",
    "max_pixels",
    "video_fps",
    "video_max_frames",
    "video_total_pixels",
    "video_window_frames",
    "video_max_windows",
    "max_media_mib",
    "max_source_pixels",
    "max_images",
    "max_videos",
    "remote_media",
)


def traits_of(settings: Settings, queues: Collection[str]) -> JsonObject:
    """Return what a worker must have in common with the others of each of its queues, by queue."""
    shared: JsonObject = {
        "code": _code_digest(),
        "domains": _domains_digest(settings),
        **{f"CAPFLOW_{name.upper()}": _plain(getattr(settings, name)) for name in _SHAPING},
    }
    # Pictures are read where the stage perceive is served.
    read = {settings.queue_of(Stage.PERCEIVE): ocr.version() if settings.ocr_processes else None}
    return {queue: {"model": settings.model_of(queue), "ocr": read.get(queue), **shared} for queue in queues}


def broker_identity(url: str) -> str:
    """Tell this broker from others that use the same database, without its password."""
    parts = urlsplit(url)
    if parts.scheme.endswith("socket"):
        # Another server at the same path is another broker; one that is away is waited for later.
        path = Path(parts.path)
        return f"{socket.gethostname()} {path} {path.stat().st_ctime_ns if path.exists() else 0}"
    host = parts.hostname or "localhost"
    here = f"{socket.gethostname()} " if host in ("localhost", "127.0.0.1", "::1") else ""
    return f"{here}{host}:{parts.port or 6379}{parts.path.rstrip('/') or '/0'}"


def refusal(mine: JsonObject, rival: Rival) -> SettingsError:
    """Say how this worker differs from the one that was there first, and how to change that on purpose."""
    own = mine[rival.queue]
    names = [name for name in {**rival.traits, **own} if rival.traits.get(name) != own.get(name)]
    differences = "; ".join(f"{name} is {own.get(name)}, not {rival.traits.get(name)}" for name in names)
    return SettingsError(
        f"this worker differs from {rival.node}, which was first on queue {rival.queue}: {differences}. "
        "Make them alike; or, to change all, stop the others first (one that died counts for a minute or "
        "two); CAPFLOW_MIXED_WORKERS=1 lets them differ"
    )


def _plain(value: object) -> object:
    return json.loads(json.dumps(value))


def _domains_digest(settings: Settings) -> str:
    load = partial(load_workflow, folder=settings.domains, language=settings.language)
    catalogues = [load(workflow) for workflow in (*Workflow, EXAM)]
    parts = [[each.router.digest, *sorted(domain.digest for domain in each.domains)] for each in catalogues]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:12]


def _code_digest() -> str:
    """Return a digest of the installed package: a version's number says little in a checkout."""
    digest = hashlib.sha256()
    _add_sources(digest, files("capflow_tasks"))
    return digest.hexdigest()[:12]


def _add_sources(digest: "hashlib._Hash", folder: Traversable) -> None:
    for entry in sorted(folder.iterdir(), key=lambda entry: entry.name):
        if entry.is_dir():
            _add_sources(digest, entry)
        elif entry.name.endswith((".py", ".yaml", ".sql")):
            digest.update(entry.name.encode() + entry.read_bytes())
