"""From a metafile to a split plan: count, draw samples, leave out what is captioned, share out, write.

Nothing is written before everything that can be wrong has been looked at. Knows nothing of the command line
or of SQL.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import partial
from math import ceil
from pathlib import Path

from capflow_tasks.entries import shown
from capflow_tasks.errors import PlanError
from capflow_tasks.records import JsonObject, Modality
from capflow_tasks.store.statistics import coverage_of
from producer.parallel import Progress, call_all
from producer.planning.metafile import Dataset
from producer.planning.sampling import Draw, write_sample
from producer.reading.annotations import count_entries
from producer.services import reading
from producer.writing.whole import write_lines


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


def captioned_in(url: str, files: Sequence[str]) -> dict[str, Captioned]:
    """What any run has captioned of these annotation files, given and answered by real path."""
    asked = frozenset(files)

    def name_of(annotation: str) -> str | None:
        file = os.path.realpath(annotation)
        return file if file in asked else None

    with reading(url) as engine:
        covered = coverage_of(engine, name_of)
    return {file: Captioned(found.captioned, found.next_shard_index) for file, found in covered.items()}


@dataclass(frozen=True, slots=True)
class PlanOrder:
    """What is asked for on the command line."""

    #: The plan to write, absolute.
    output: Path
    ranks: int
    #: What one video costs, in pictures.
    video_weight: Fraction
    #: Folder of the samples that are drawn, absolute.
    samples: Path
    #: Of the samples that are drawn.
    seed: int
    #: Take the metafile's `length` for the number of entries instead of counting them.
    trusts_lengths: bool
    #: Annotation files read at a time.
    processes: int

    @property
    def weights(self) -> dict[Modality, Fraction]:
        return {Modality.IMAGE: Fraction(1), Modality.VIDEO: self.video_weight}


@dataclass(frozen=True, slots=True)
class Share:
    """What one rank gets."""

    samples: int
    #: In pictures.
    cost: float


@dataclass(frozen=True, slots=True)
class Planned:
    """What came of it."""

    lines: Sequence[JsonObject]
    #: By rank.
    shares: Sequence[Share]
    datasets: int
    #: Samples to use, captioned ones included.
    total: int
    #: Samples that are captioned already.
    processed: int
    warnings: list[str] = field(default_factory=list)

    @property
    def remain(self) -> int:
        return self.total - self.processed


@dataclass(frozen=True, slots=True)
class _Counted:
    dataset: Dataset
    #: Entries of its annotation file.
    length: int

    @property
    def is_sampled(self) -> bool:
        wanted = self.dataset.sample_count
        return wanted is not None and 0 < wanted < self.length

    def draw(self, seed: int) -> Draw:
        dataset = self.dataset
        return Draw(dataset.name, Path(dataset.annotation), self.length, dataset.sample_count or 0, seed)

    def doubts(self) -> Iterator[str]:
        dataset, where = self.dataset, f"dataset {shown(self.dataset.name)}"
        held = f"{dataset.annotation} has {self.length} entries"
        if dataset.length not in (None, self.length):
            yield f'{where}: "length" is {dataset.length}, but {held}'
        if dataset.sample_count is not None and dataset.sample_count > self.length:
            yield f'{where}: "sample_count" is {dataset.sample_count}, but {held}; all are taken'
        if self.length == 0 or dataset.sample_count == 0:
            yield f"{where}: no entry is taken"


def make_plan(
    datasets: Sequence[Dataset], order: PlanOrder, progress: Progress, coverage: Coverage | None = None
) -> Planned:
    """Write the plan and the samples it takes; no plan when nothing remains.

    PlanError holds every problem there is, one per line.
    """
    counted = _counted(datasets, order, progress)
    warnings = [doubt for each in counted for doubt in each.doubts()]
    works = [_work(each, order) for each in counted]
    if not any(work.total for work in works):
        raise PlanError('no entry to plan: every dataset is empty or has "sample_count" 0; mend the metafile')
    if coverage is not None:
        works = without_captioned(works, coverage)
        warnings += [doubt for work in works for doubt in doubts_of_rest(work)]
    lines = plan_lines(works, order.ranks, order.weights)
    if lines:
        draws = [each.draw(order.seed) for each in counted if each.is_sampled]
        call_all(partial(_draw_into, order.samples), draws, order.processes, lambda done, total: None)
        write_lines(order.output, lines)
    return Planned(
        lines=lines,
        shares=_shares(lines, order),
        datasets=len(datasets),
        total=sum(work.total for work in works),
        processed=sum(work.total - work.remain for work in works),
        warnings=warnings,
    )


def _counted(datasets: Sequence[Dataset], order: PlanOrder, progress: Progress) -> list[_Counted]:
    if order.trusts_lengths:
        lacking = [shown(dataset.name) for dataset in datasets if dataset.length is None]
        if lacking:
            remedy = 'lacks "length"; add it, or plan without --trust-lengths'
            raise PlanError("\n".join(f"dataset {name}: {remedy}" for name in lacking))
        return [_Counted(dataset, dataset.length or 0) for dataset in datasets]
    # The largest first, so that no process is left alone with it at the end.
    files = sorted((dataset.annotation for dataset in datasets), key=lambda file: -Path(file).stat().st_size)
    found = dict(zip(files, call_all(_count, files, order.processes, progress), strict=True))
    problems = [
        f"dataset {shown(dataset.name)}: {problem}"
        for dataset in datasets
        if isinstance(problem := found[dataset.annotation], str)
    ]
    if problems:
        raise PlanError("\n".join(problems))
    return [_Counted(dataset, int(found[dataset.annotation])) for dataset in datasets]


def _count(annotation: str) -> int | str:
    """The number of entries, or why they cannot be counted."""
    try:
        return count_entries(Path(annotation))
    except PlanError as error:
        return str(error)


def _work(counted: _Counted, order: PlanOrder) -> Work:
    dataset = counted.dataset
    if not counted.is_sampled:
        total = 0 if dataset.sample_count == 0 else counted.length
        return Work(dataset, dataset.annotation, total, [range(total)])
    draw = counted.draw(order.seed)
    notes = {"sampled_from": dataset.annotation, "sample_seed": order.seed}
    file = str(draw.file_in(order.samples))
    return Work(dataset, file, draw.count, [range(draw.count)], notes=notes)


def _draw_into(folder: Path, draw: Draw) -> None:
    write_sample(draw, draw.file_in(folder))


def _shares(lines: Sequence[JsonObject], order: PlanOrder) -> list[Share]:
    samples = [0] * order.ranks
    costs = [Fraction()] * order.ranks
    for line in lines:
        count = line["end_idx"] - line["start_idx"]
        samples[line["assign_rank"]] += count
        costs[line["assign_rank"]] += count * order.weights[Modality(line["modality"])]
    return [Share(count, float(cost)) for count, cost in zip(samples, costs, strict=True)]
