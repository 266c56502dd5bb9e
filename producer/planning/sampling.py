"""Draws a sample of an annotation file's entries into a file of its own, because a plan can only name ranges.

The same seed, dataset and file give the same sample, in the order of the file. Memory stays flat.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import compress, count
from pathlib import Path
from random import Random

from capflow_tasks.errors import PlanError
from producer.reading.annotations import entry_texts
from producer.writing.whole import whole_file

#: Longest part of an annotation file's name that a sample's name begins with, in characters.
_STEM_CHARACTERS = 50


@dataclass(frozen=True, slots=True)
class Draw:
    """A sample to be drawn."""

    dataset: str
    annotation: Path
    #: Entries to draw from: the first so many of the file.
    total: int
    #: Entries to draw.
    count: int
    seed: int

    def file_in(self, folder: Path) -> Path:
        """Where the sample is kept: a name that no other sample has, and that this one has every time."""
        identity = [self.dataset, os.path.realpath(self.annotation), self.total, self.seed]
        digest = hashlib.sha256(repr(identity).encode("utf-8", "surrogateescape")).hexdigest()[:8]
        return folder / f"{self.annotation.stem[:_STEM_CHARACTERS]}.{self.count}.{digest}.jsonl"

    def chosen(self) -> Iterator[bool]:
        """Whether each entry belongs to the sample, in order; every set of `count` is equally likely."""
        draw = Random(f"{self.seed}:{self.dataset}").random
        wanted = self.count
        for left in range(self.total, 0, -1):
            is_chosen = draw() * left < wanted
            wanted -= is_chosen
            yield is_chosen


def write_sample(draw: Draw, path: Path) -> None:
    """Write the sample as JSONL; the file appears whole. PlanError when there are fewer entries than said."""
    seen = count()
    texts = (text for text, _ in zip(entry_texts(draw.annotation), seen, strict=False))
    with whole_file(path) as file:
        written = 0
        for text in compress(texts, draw.chosen()):
            file.write(text.encode("utf-8", "surrogateescape") + b"\n")
            written += 1
        if written < draw.count:
            raise PlanError(
                f'{draw.annotation}: has {next(seen)} entries, but "length" is {draw.total}; '
                'mend "length", or plan without --trust-lengths'
            )
