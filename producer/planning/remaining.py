"""Leaves out of a plan what is captioned already. Knows nothing of the database that says so."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from capflow_tasks.entries import shown
from producer.planning.balance import Work

#: Ranges of one dataset beyond which a plan becomes too many small files.
_MANY_RANGES = 1000


@dataclass(frozen=True, slots=True)
class Captioned:
    """What is captioned already of one annotation file."""

    #: In order, none touching the next.
    indexes: Sequence[range] = ()
    #: The first number that no shard of an earlier plan has.
    next_shard_index: int = 0


#: Says what is captioned of these annotation files, given and answered by real path.
Coverage = Callable[[Sequence[str]], Mapping[str, Captioned]]


def without_captioned(works: Sequence[Work], coverage: Coverage) -> list[Work]:
    files = [os.path.realpath(work.annotation) for work in works]
    covered = coverage(files)
    captioned = [covered.get(file, Captioned()) for file in files]
    return [
        replace(
            work,
            remaining=list(_gaps(done.indexes, work.total)),
            first_shard_index=done.next_shard_index,
        )
        for work, done in zip(works, captioned, strict=True)
    ]


def _gaps(captioned: Sequence[range], total: int) -> Iterator[range]:
    """What of [0, total) no range holds; the ranges come in order."""
    start = 0
    for span in captioned:
        if start < min(span.start, total):
            yield range(start, min(span.start, total))
        start = max(start, span.stop)
    if start < total:
        yield range(start, total)


def doubts_of_rest(work: Work) -> Iterator[str]:
    if len(work.remaining) > _MANY_RANGES:
        yield (
            f"dataset {shown(work.dataset.name)}: what remains lies in {len(work.remaining)} ranges, "
            "each of which becomes a caption file; capflow-retry captions failed samples within their run"
        )
