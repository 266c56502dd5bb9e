"""Whether the media of a plan can be read here: every root, and a sample of files."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from itertools import islice
from operator import attrgetter
from pathlib import Path

from capflow_tasks.domains.catalogue import load_catalogue
from capflow_tasks.entries import media_of
from capflow_tasks.errors import PlanError, SampleError
from capflow_tasks.media.paths import check_file, resolve_media
from capflow_tasks.records import Shard
from capflow_tasks.settings import Settings
from producer.doctor.finding import Finding, fail, ok, warn
from producer.reading.annotations import read_entries
from producer.reading.plan import Plan, read_plan

#: Annotation files that are looked into, and entries of each.
_FILES, _ENTRIES = 50, 20


def check_media(plan_file: Path, settings: Settings) -> Iterator[Finding]:
    catalogue = load_catalogue(settings.domains)
    try:
        plan = read_plan(plan_file, lambda task: catalogue.resolve(task).name)
    except PlanError as error:
        problems = str(error).splitlines()
        yield fail(
            "plan", problems[0], f"mend {len(problems)} problems: capflow-produce --dry-run {plan_file}"
        )
        return
    yield ok("plan", f"{len(plan.shards)} shards, {plan.sample_count} samples")
    yield from _roots({shard.root for shard in plan.shards})
    try:
        yield _sample(plan, settings.max_media_mib * 2**20)
    except PlanError as error:
        yield fail("media", str(error), "mend the annotation file")


def _roots(roots: Iterable[str]) -> Iterator[Finding]:
    for root in sorted(roots):
        if os.access(root, os.R_OK | os.X_OK):
            yield ok("media root", root)
        else:
            yield fail("media root", f"{root} may not be read", f"chmod a+rX {root}, or mount it here")


def _sample(plan: Plan, max_bytes: int) -> Finding:
    """The first entries of each annotation file: a mount that is not there shows at once."""
    first = {
        shard.annotation: shard for shard in sorted(plan.shards, key=attrgetter("start_idx"), reverse=True)
    }
    asked = [path for shard in islice(first.values(), _FILES) for path in _media(shard)]
    reasons = [reason for root, path in asked if (reason := _unreadable(root, path, max_bytes))]
    said = f"{len(asked) - len(reasons)} of {len(asked)} sampled files can be read"
    if reasons:
        return warn("media", f"{said}: {reasons[0]}", 'mount the media, or correct "root" in the plan')
    return ok("media", said)


def _media(shard: Shard) -> Iterator[tuple[str, str]]:
    """Root and path of what the first entries name."""
    end = min(shard.end_idx, shard.start_idx + _ENTRIES)
    for entry in read_entries(Path(shard.annotation), shard.start_idx, end):
        try:
            yield from ((shard.root, path) for _, path in media_of(entry.value or {}, shard.modality))
        except SampleError:
            continue


def _unreadable(root: str, path: str, max_bytes: int) -> str | None:
    try:
        file = resolve_media(root, path)
        check_file(file, max_bytes)
        with Path(file).open("rb") as opened:
            opened.read(1)
    except (SampleError, OSError) as error:
        return str(error)
    return None
