"""Turn a metafile into a split plan: count, draw samples, leave out what is captioned, share out, write.

Everything is checked before anything is written.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from math import ceil
from pathlib import Path

from capflow_tasks.entries import shown
from capflow_tasks.errors import PlanError
from capflow_tasks.records import JsonObject, Modality
from capflow_tasks.store.coverage import Coverage, coverage_of
from producer.parallel import Progress, call_all
from producer.planning.metafile import Dataset
from producer.planning.sampling import Sample, write_sample
from producer.reading.annotations import count_entries
from producer.services import reading
from producer.writing.whole import write_lines

#: A plan with more ranges of one dataset than this becomes too many small files.
_MANY_RANGES = 1000


@dataclass(frozen=True, slots=True)
class PlanOrder:
    """The options of `capflow plan`."""

    #: The plan to write, absolute.
    output: Path
    ranks: int
    #: Cost of one video, in pictures.
    video_weight: Fraction
    #: Folder of the samples that are drawn, absolute.
    samples: Path
    #: Chooses the samples that are drawn.
    seed: int
    #: Use the metafile's `length` as the number of entries instead of counting them.
    trusts_lengths: bool
    #: Annotation files read at a time.
    processes: int

    @property
    def weights(self) -> dict[Modality, Fraction]:
        return {Modality.IMAGE: Fraction(1), Modality.VIDEO: self.video_weight}


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
    #: What has to be drawn before `annotation` can be read.
    sample: Sample | None = None

    @property
    def remain(self) -> int:
        return sum(map(len, self.remaining))


@dataclass(frozen=True, slots=True)
class Planned:
    """A plan that was written, or is not needed because nothing remains."""

    lines: Sequence[JsonObject]
    #: By rank: its number, its samples, and their cost in pictures.
    ranks: Sequence[JsonObject]
    datasets: int
    #: Samples to use, captioned ones included.
    total: int
    #: Samples that are captioned already.
    processed: int
    warnings: list[str] = field(default_factory=list)

    @property
    def remain(self) -> int:
        return self.total - self.processed


def make_plan(
    datasets: Sequence[Dataset],
    order: PlanOrder,
    progress: Progress,
    coverage: Callable[[Sequence[str]], Mapping[str, Coverage]] | None = None,
) -> Planned:
    """Write the plan and its samples, unless nothing remains. Raises PlanError with one problem per line.

    `coverage` returns what is captioned of these annotation files, by real path; None plans all samples.
    """
    lengths = _lengths(datasets, order, progress)
    works = [_work(dataset, length, order) for dataset, length in zip(datasets, lengths, strict=True)]
    warnings = [text for pair in zip(datasets, lengths, strict=True) for text in _warnings_for(*pair)]
    if not any(work.total for work in works):
        raise PlanError('no entry to plan: every dataset is empty or has "sample_count" 0; fix the metafile')
    if coverage is not None:
        works = _without_captioned(works, coverage([os.path.realpath(work.annotation) for work in works]))
        warnings += [
            f"dataset {shown(work.dataset.name)}: what remains lies in {len(work.remaining)} ranges, each of "
            "which becomes a caption file; capflow retry captions failed samples within their run"
            for work in works
            if len(work.remaining) > _MANY_RANGES
        ]
    lines = plan_lines(works, order.ranks, order.weights)
    if lines:
        samples = [work.sample for work in works if work.sample is not None]
        call_all(write_sample, samples, order.processes, lambda done, total: None)
        write_lines(order.output, lines)
    return Planned(
        lines=lines,
        ranks=_shares(lines, order),
        datasets=len(datasets),
        total=sum(work.total for work in works),
        processed=sum(work.total - work.remain for work in works),
        warnings=warnings,
    )


def captioned_in(url: str, files: Sequence[str]) -> dict[str, Coverage]:
    """Return what any run has captioned of these annotation files, by real path."""
    wanted = frozenset(files)

    def name_of(annotation: str) -> str | None:
        file = os.path.realpath(annotation)
        return file if file in wanted else None

    with reading(url) as engine:
        return coverage_of(engine, name_of)


def plan_lines(works: Sequence[Work], ranks: int, weights: Mapping[Modality, Fraction]) -> list[JsonObject]:
    """Return the lines of the plan, by rank. `weights` is the cost of a sample of each modality."""
    share = sum((work.remain * weights[work.dataset.modality] for work in works), Fraction()) / ranks
    placed = Fraction()
    lines: list[JsonObject] = []
    for work in works:
        weight, first = weights[work.dataset.modality], work.first_shard_index
        pieces = list(_pieces(work, placed / weight, share / weight))
        placed += work.remain * weight
        for number, (rank, indexes) in enumerate(pieces, start=first):
            lines.append(_line(work, rank, indexes, number, first + len(pieces)))
    return lines


def _pieces(work: Work, placed: Fraction, share: Fraction) -> Iterator[tuple[int, range]]:
    """Yield ranks and their indexes. `placed` and `share` are in samples of this dataset."""
    for span in work.remaining:
        start = span.start
        while start < span.stop:
            rank = int(placed / share)
            # A sample belongs to the rank in whose share it begins.
            stop = min(span.stop, start + ceil((rank + 1) * share - placed))
            yield rank, range(start, stop)
            placed += stop - start
            start = stop


def _line(work: Work, rank: int, indexes: range, shard_index: int, num_shards: int) -> JsonObject:
    dataset = work.dataset
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
        "start_idx": indexes.start,
        "end_idx": indexes.stop,
        "anno_file_key": Path(work.annotation).name,
        "assign_rank": rank,
    }
    extra = dict(dataset.extra)
    if work.sample is not None:
        extra |= {"sampled_from": dataset.annotation, "sample_seed": work.sample.seed}
    return line | {key: value for key, value in extra.items() if key not in line}


def _without_captioned(works: Sequence[Work], covered: Mapping[str, Coverage]) -> list[Work]:
    rest = []
    for work in works:
        found = covered.get(os.path.realpath(work.annotation), Coverage())
        remaining, start = [], 0
        for span in [*found.captioned, range(work.total, work.total)]:
            stop = min(span.start, work.total)
            remaining += [range(start, stop)] if start < stop else []
            start = max(start, span.stop)
        rest.append(replace(work, remaining=remaining, first_shard_index=found.next_shard_index))
    return rest


def _lengths(datasets: Sequence[Dataset], order: PlanOrder, progress: Progress) -> list[int]:
    """Return the number of entries of each dataset's annotation file."""
    if order.trusts_lengths:
        remedy = 'lacks "length"; add it, or plan without --trust-lengths'
        found: dict[str, int | str] = {
            dataset.annotation: remedy if dataset.length is None else dataset.length for dataset in datasets
        }
    else:
        # The largest first, so that it is not the last one still being read.
        files = sorted(
            (dataset.annotation for dataset in datasets), key=lambda file: -Path(file).stat().st_size
        )
        found = dict(zip(files, call_all(_count, files, order.processes, progress), strict=True))
    lengths = [found[dataset.annotation] for dataset in datasets]
    problems = [
        f"dataset {shown(dataset.name)}: {length}"
        for dataset, length in zip(datasets, lengths, strict=True)
        if isinstance(length, str)
    ]
    if problems:
        raise PlanError("\n".join(problems))
    return [int(length) for length in lengths]


def _count(annotation: str) -> int | str:
    """Return the number of entries, or why they cannot be counted."""
    try:
        return count_entries(Path(annotation))
    except PlanError as error:
        return str(error)


def _warnings_for(dataset: Dataset, length: int) -> Iterator[str]:
    where, held = f"dataset {shown(dataset.name)}", f"{dataset.annotation} has {length} entries"
    if dataset.length not in (None, length):
        yield f'{where}: "length" is {dataset.length}, but {held}'
    if dataset.sample_count is not None and dataset.sample_count > length:
        yield f'{where}: "sample_count" is {dataset.sample_count}, but {held}; all are taken'
    if length == 0 or dataset.sample_count == 0:
        yield f"{where}: no entry is taken"


def _work(dataset: Dataset, length: int, order: PlanOrder) -> Work:
    count = dataset.sample_count
    if count is not None and 0 < count < length:
        sample = Sample(
            dataset.name, Path(dataset.annotation), length, count, seed=order.seed, folder=order.samples
        )
        return Work(dataset, str(sample.file), count, [range(count)], sample=sample)
    total = 0 if count == 0 else length
    return Work(dataset, dataset.annotation, total, [range(total)])


def _shares(lines: Sequence[JsonObject], order: PlanOrder) -> list[JsonObject]:
    samples, costs = [0] * order.ranks, [Fraction()] * order.ranks
    for line in lines:
        count = line["end_idx"] - line["start_idx"]
        samples[line["assign_rank"]] += count
        costs[line["assign_rank"]] += count * order.weights[Modality(line["modality"])]
    return [
        {"rank": rank, "samples": count, "cost": float(cost)}
        for rank, (count, cost) in enumerate(zip(samples, costs, strict=True))
    ]
