"""From a metafile to a split plan: count, draw samples, leave out what is captioned, share out, write.

Nothing is written before everything that can be wrong has been looked at. Knows nothing of the command line
or of SQL.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import partial
from pathlib import Path

from capflow_tasks.entries import shown
from capflow_tasks.errors import PlanError
from capflow_tasks.records import JsonObject, Modality
from producer.parallel import Progress, call_all
from producer.planning.balance import Work, plan_lines
from producer.planning.entry_count import count_entries
from producer.planning.metafile import Dataset
from producer.planning.remaining import Coverage, doubts_of_rest, without_captioned
from producer.planning.sampling import Draw, write_sample
from producer.writing.captions import write_lines


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
