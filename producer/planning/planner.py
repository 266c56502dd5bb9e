"""Turn a metafile into a split plan: count, draw samples, leave out what is captioned, share out, write.

Everything is checked before anything is written. A plan can only name ranges of a file, so a sample of a
dataset's entries is copied to a file of its own.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from itertools import compress
from math import ceil
from pathlib import Path
from random import Random

from capflow_tasks.entries import shown
from capflow_tasks.errors import PlanError
from capflow_tasks.records import JsonObject, Modality
from capflow_tasks.store.statistics import Coverage, coverage_of
from producer.parallel import Progress, call_all
from producer.planning.metafile import Dataset
from producer.reading.annotations import AnnotationFile
from producer.reading.plan import is_split_plan
from producer.services import reading
from producer.writing.whole import whole_file, write_lines


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
    #: Entries of the dataset's annotation file.
    length: int = 0
    #: Chooses the entries of the sample; None when nothing is drawn.
    seed: int | None = None

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
    check: Callable[[Sequence[Dataset], Sequence[int]], list[str]] | None = None,
) -> Planned:
    """Write the plan and its samples, unless nothing remains. Raises PlanError with one problem per line.

    `coverage` returns what is captioned of these annotation files, by real path; None plans all samples.
    `check` tries some entries of the datasets of these lengths, and returns what looks wrong.
    """
    lengths = _lengths(datasets, order, progress)
    works = [_work(dataset, length, order) for dataset, length in zip(datasets, lengths, strict=True)]
    warnings = [text for pair in zip(datasets, lengths, strict=True) for text in _warnings_for(*pair)]
    if not any(work.total for work in works):
        raise PlanError('no entry to plan: every dataset is empty or has "sample_count" 0; fix the metafile')
    if check is not None:
        warnings += check(datasets, lengths)
    if coverage is not None:
        works = _without_captioned(works, coverage([os.path.realpath(work.annotation) for work in works]))
        warnings += [
            f"dataset {shown(work.dataset.name)}: what remains lies in {len(work.remaining)} ranges, each of "
            "which becomes a caption file; capflow retry captions failed samples within their run"
            for work in works
            if len(work.remaining) > 1000
        ]
    lines = plan_lines(works, order.ranks, order.weights)
    if lines and order.output.exists() and order.output.stat().st_size and not is_split_plan(order.output):
        raise PlanError(
            f"{order.output}: is no split plan and stays as it is; name another file with --output"
        )
    if lines:
        sampled = [work for work in works if work.seed is not None]
        call_all(_write_sample, sampled, order.processes, lambda done, total: None)
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
    names = {file: file for file in files}
    with reading(url) as engine:
        return coverage_of(engine, lambda annotation: names.get(os.path.realpath(annotation)))


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
    sampled = {} if work.seed is None else {"sampled_from": dataset.annotation, "sample_seed": work.seed}
    return line | {key: value for key, value in (dataset.extra | sampled).items() if key not in line}


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
    found: dict[str, int | str]
    if order.trusts_lengths:
        remedy = 'lacks "length"; add it, or plan without --trust-lengths'
        found = {each.annotation: remedy if each.length is None else each.length for each in datasets}
    else:
        # The largest first, so that it is not the last one still being read.
        uncounted = [each.annotation for each in datasets if not each.is_counted]
        files = sorted(uncounted, key=lambda file: -Path(file).stat().st_size)
        found = dict(zip(files, call_all(_count, files, order.processes, progress), strict=True))
        found |= {each.annotation: each.length or 0 for each in datasets if each.is_counted}
    lengths = [found[each.annotation] for each in datasets]
    pairs = zip(datasets, lengths, strict=True)
    problems = [f"dataset {shown(each.name)}: {length}" for each, length in pairs if isinstance(length, str)]
    if problems:
        raise PlanError("\n".join(problems))
    return [int(length) for length in lengths]


def _count(annotation: str) -> int | str:
    """Return the number of entries, or why they cannot be counted."""
    try:
        return sum(1 for _ in AnnotationFile(Path(annotation)))
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
    if count is None or not 0 < count < length:
        total = 0 if count == 0 else length
        return Work(dataset, dataset.annotation, total, [range(total)])
    # The name follows from what is drawn and how, so that a later plan finds the same sample again.
    identity = [dataset.name, os.path.realpath(dataset.annotation), length, order.seed]
    digest = hashlib.sha256(repr(identity).encode("utf-8", "surrogateescape")).hexdigest()[:8]
    file = order.samples / f"{Path(dataset.annotation).stem[:50]}.{count}.{digest}.jsonl"
    return Work(dataset, str(file), count, [range(count)], length=length, seed=order.seed)


def _write_sample(work: Work) -> None:
    """Write the sample as JSONL, in the order of the dataset. Raises PlanError when entries are missing."""
    entries = AnnotationFile(Path(work.dataset.annotation))
    with whole_file(Path(work.annotation)) as file:
        written = 0
        for element in compress(entries, _draw(work)):
            # ASCII, so that half of a surrogate pair is written and refused by the reader of the sample.
            text = json.dumps(element) if entries.is_list else element
            if not text.startswith("{") or text == "{":
                # Not an entry: a string fails alone wherever it stands.
                text = json.dumps(text[:200])
            file.write(text.encode("utf-8", "surrogateescape") + b"\n")
            written += 1
        if written < work.total:
            raise PlanError(
                f'{work.dataset.annotation}: has {entries.index} entries, but "length" is {work.length}; '
                'fix "length", or plan without --trust-lengths'
            )


def _draw(work: Work) -> Iterator[bool]:
    """Yield whether each entry belongs to the sample; every set of `work.total` is equally likely."""
    draw = Random(f"{work.seed}:{work.dataset.name}").random
    wanted = work.total
    for left in range(work.length, 0, -1):
        is_drawn = draw() * left < wanted
        wanted -= is_drawn
        yield is_drawn


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
