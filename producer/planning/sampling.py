"""Draw a sample of an annotation file's entries into a file of its own, because a plan can only name ranges.

The same seed, dataset and file give the same sample, in the order of the file. Memory stays flat.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import compress
from pathlib import Path
from random import Random

from capflow_tasks.errors import PlanError
from producer.reading.annotations import AnnotationFile
from producer.writing.whole import whole_file


@dataclass(frozen=True, slots=True)
class Sample:
    """Entries to be drawn from an annotation file."""

    dataset: str
    annotation: Path
    #: Entries to draw from: the first of the file.
    total: int
    #: Entries to draw.
    count: int
    seed: int
    #: Folder of the samples, absolute.
    folder: Path

    @property
    def file(self) -> Path:
        """Path of the sample's file, which follows from what is drawn and how."""
        identity = [self.dataset, os.path.realpath(self.annotation), self.total, self.seed]
        digest = hashlib.sha256(repr(identity).encode("utf-8", "surrogateescape")).hexdigest()[:8]
        return self.folder / f"{self.annotation.stem[:50]}.{self.count}.{digest}.jsonl"

    def draw(self) -> Iterator[bool]:
        """Yield whether each entry belongs to the sample; every set of `count` entries is equally likely."""
        draw = Random(f"{self.seed}:{self.dataset}").random
        wanted = self.count
        for left in range(self.total, 0, -1):
            is_drawn = draw() * left < wanted
            wanted -= is_drawn
            yield is_drawn


def write_sample(sample: Sample) -> None:
    """Write the sample as JSONL; its file appears whole. Raises PlanError when entries are missing."""
    entries = AnnotationFile(sample.annotation)
    with whole_file(sample.file) as file:
        written = 0
        for element in compress(entries, sample.draw()):
            file.write(_as_line(element, entries.is_list))
            written += 1
        if written < sample.count:
            raise PlanError(
                f'{sample.annotation}: has {entries.index} entries, but "length" is {sample.total}; '
                'fix "length", or plan without --trust-lengths'
            )


def _as_line(element: object, is_decoded: bool) -> bytes:
    # ASCII, so that half of a surrogate pair is written and refused by the reader of the sample.
    text = json.dumps(element) if is_decoded else str(element)
    if not text.startswith("{") or text == "{":
        # Not an entry: a string fails alone wherever it stands.
        text = json.dumps(text[:200])
    return text.encode("utf-8", "surrogateescape") + b"\n"
