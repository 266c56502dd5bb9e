"""Cuts what is to be captioned into the lines of a split plan, so that every rank gets the same to do.

All that remains is laid end to end and cut where a rank's share is full: no rank gets more than the mean and
one sample, and there are at most `ranks - 1` lines more than ranges. Opens no file.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from math import ceil
from pathlib import Path

from capflow_tasks.records import JsonObject, Modality
from producer.planning.metafile import Dataset


@dataclass(frozen=True, slots=True)
class Work:
    """What is left to do of one dataset."""

    dataset: Dataset
    #: The dataset's annotation file, or the sample drawn from it; absolute.
    annotation: str
    #: Entries in that file.
    total: int
    #: Indexes that are not captioned yet, in order.
    remaining: Sequence[range]
    #: The first number that no earlier plan has used for a shard of the dataset.
    first_shard_index: int = 0
    #: Keys to add to the plan's lines.
    notes: JsonObject = field(default_factory=dict)

    @property
    def remain(self) -> int:
        return sum(map(len, self.remaining))


@dataclass(frozen=True, slots=True)
class _Piece:
    """A range of one dataset's samples for one rank."""

    work: Work
    indexes: range
    rank: int


def plan_lines(works: Sequence[Work], ranks: int, weights: Mapping[Modality, Fraction]) -> list[JsonObject]:
    """The lines of the plan, by rank. `weights` says what a sample of each modality costs."""
    pieces = list(_pieces(works, ranks, weights))
    lines_of = Counter(piece.work.dataset.name for piece in pieces)
    given: Counter[str] = Counter()
    lines = []
    for piece in pieces:
        name, first = piece.work.dataset.name, piece.work.first_shard_index
        lines.append(_line(piece, first + given[name], first + lines_of[name]))
        given[name] += 1
    return lines


def _pieces(works: Sequence[Work], ranks: int, weights: Mapping[Modality, Fraction]) -> Iterator[_Piece]:
    share = sum((work.remain * weights[work.dataset.modality] for work in works), Fraction()) / ranks
    laid = Fraction()
    for work in works:
        weight = weights[work.dataset.modality]
        for span in work.remaining:
            start = span.start
            while start < span.stop:
                rank = int(laid / share)
                # A sample belongs to the rank in whose share it begins.
                until_full = ceil(((rank + 1) * share - laid) / weight)
                stop = min(span.stop, start + until_full)
                yield _Piece(work, range(start, stop), rank)
                laid += (stop - start) * weight
                start = stop


def _line(piece: _Piece, shard_index: int, num_shards: int) -> JsonObject:
    work, dataset = piece.work, piece.work.dataset
    line = {
        "data_name": dataset.name,
        "json_url": work.annotation,
        "root": dataset.root,
        "task": dataset.task or "",
        "modality": dataset.modality.value,
        "total": work.total,
        "processed": work.total - work.remain,
        "remain": work.remain,
        "shard_index": shard_index,
        "num_shards": num_shards,
        "start_idx": piece.indexes.start,
        "end_idx": piece.indexes.stop,
        "anno_file_key": Path(work.annotation).name,
        "assign_rank": piece.rank,
    }
    extra = dataset.extra | work.notes
    return line | {key: value for key, value in extra.items() if key not in line}
