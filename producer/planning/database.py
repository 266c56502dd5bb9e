"""Asks the database what is captioned already."""

from __future__ import annotations

import os
from collections.abc import Sequence

from capflow_tasks.store.coverage import coverage_of
from producer.database import reading
from producer.planning.remaining import Captioned


def captioned_in(url: str, files: Sequence[str]) -> dict[str, Captioned]:
    """What any run has captioned of these annotation files, given and answered by real path."""
    asked = frozenset(files)

    def name_of(annotation: str) -> str | None:
        file = os.path.realpath(annotation)
        return file if file in asked else None

    with reading(url) as engine:
        covered = coverage_of(engine, name_of)
    return {file: Captioned(found.captioned, found.next_shard_index) for file, found in covered.items()}
