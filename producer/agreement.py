"""How far two judges agree about the same captions."""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from capflow_tasks.errors import UserError
from producer.reading import caption_files
from producer.reading.caption_files import Rubrics
from producer.scoring import identity_of


@dataclass(slots=True)
class Agreement:
    """The grades of two judges in one dimension."""

    #: Captions by the first judge's grade and the second's, each 1 to 3.
    pairs: Counter[tuple[int, int]] = field(default_factory=Counter)

    @property
    def captions(self) -> int:
        return self.pairs.total()

    @property
    def exact(self) -> float:
        """The share of captions with the same grade."""
        return sum(count for (one, other), count in self.pairs.items() if one == other) / self.captions

    @property
    def mean_difference(self) -> float:
        """How much higher the second judge grades than the first; negative for lower."""
        return sum((other - one) * count for (one, other), count in self.pairs.items()) / self.captions

    @property
    def kappa(self) -> float | None:
        """Cohen's kappa with quadratic weights (1968): 1 for the same grades, 0 for what chance would give.

        None where each judge gives one grade to all, and both the same.
        """
        ones, others = Counter[int](), Counter[int]()
        for (one, other), count in self.pairs.items():
            ones[one] += count
            others[other] += count
        by_chance = sum(
            (one - other) ** 2 * ones[one] * others[other] / self.captions for one in ones for other in others
        )
        found = sum((one - other) ** 2 * count for (one, other), count in self.pairs.items())
        return 1 - found / by_chance if by_chance else None


@dataclass(slots=True)
class JudgeComparison:
    """Two folders of scored captions."""

    #: By dimension, `overall` among them.
    dimensions: defaultdict[str, Agreement] = field(default_factory=lambda: defaultdict(Agreement))
    #: Captions with valid scores in both folders, and in one of them only.
    captions: int = 0
    only_first: int = 0
    only_second: int = 0


def compare(first: Path, second: Path, rubrics: Rubrics) -> JudgeComparison:
    """Compare the scores of the captions that both folders hold.

    A caption is the same where all but its scores is. Memory holds the scores of one file. Raises UserError
    when a folder holds no caption files, or the two have no scored caption in common.
    """
    found = JudgeComparison()
    files, others = _files(first), _files(second)
    for name in sorted(files.keys() | others.keys()):
        grades = dict(_scored(files[name], rubrics)) if name in files else {}
        other_grades = dict(_scored(others[name], rubrics)) if name in others else {}
        common = grades.keys() & other_grades.keys()
        found.captions += len(common)
        found.only_first += len(grades) - len(common)
        found.only_second += len(other_grades) - len(common)
        for identity in common:
            for dimension in grades[identity].keys() & other_grades[identity].keys():
                pair = grades[identity][dimension], other_grades[identity][dimension]
                found.dimensions[dimension].pairs[pair] += 1
    if not found.captions:
        raise UserError(
            f"{first} and {second} have no scored caption in common; "
            f"score those of {first} with another judge: capflow score {first} --anew -o {second}"
        )
    return found


def _files(folder: Path) -> dict[str, Path]:
    """The caption files, each in its scored version if there is one, by the name of the unscored one."""
    return {path.name.replace(".scored.jsonl", ".jsonl"): path for path in caption_files.find(folder)}


def _scored(path: Path, rubrics: Rubrics) -> Iterator[tuple[str, Mapping[str, int]]]:
    """Identity and grades of each record that has valid scores."""
    for line in caption_files.read_captions(path):
        record = line.record or {}
        scores = caption_files.scores_of(record, rubrics)
        if scores.problem is None:
            yield identity_of(line, record.get("task"), rubrics), scores.grades
