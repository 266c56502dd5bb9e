"""Read the scores of a caption record, and compare them with minimums."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from capflow_tasks.captioning.answers import is_grade
from capflow_tasks.domains.catalogue import Catalogue
from capflow_tasks.entries import shown, type_name
from capflow_tasks.errors import WorkflowError
from capflow_tasks.records import JsonObject, Stage

#: The domain of records that name none, or none that is known.
NO_DOMAIN = "(none)"


class Rubrics:
    """The dimensions that the judge of each domain grades."""

    def __init__(self, catalogue: Catalogue) -> None:
        self._catalogue = catalogue
        self._by_domain = {
            domain.name: frozenset(
                name for judge in domain.agents_of(Stage.SCORE)[-1:] for name in judge.dimensions
            )
            for domain in catalogue.domains
        }
        #: All dimensions that any judge grades.
        self.dimensions = frozenset().union(*self._by_domain.values())
        # Bounded: a file may name a million tasks.
        self._resolved = lru_cache(maxsize=1024)(self._resolve)

    def domain_of(self, task: Any) -> str | None:
        """Return the domain that a record's `task` names; None when no domain has that name."""
        return self._resolved(task) if isinstance(task, str) else None

    def missing(self, domain: str | None, given: Collection[str]) -> list[str]:
        """Return the domain's dimensions that are not given; without a domain, the fewest of any domain."""
        rubrics = [self._by_domain[domain]] if domain else self._by_domain.values()
        return min((sorted(rubric.difference(given)) for rubric in rubrics), key=len)

    def _resolve(self, task: str) -> str | None:
        try:
            return self._catalogue.resolve(task).name
        except WorkflowError:
            return None


@dataclass(frozen=True, slots=True)
class Scores:
    """The grades of one caption."""

    domain: str
    #: 1 to 3 by dimension.
    dimensions: Mapping[str, int]
    overall: int


@dataclass(frozen=True, slots=True)
class Minimums:
    """The lowest grades with which a caption is kept, 1 to 3."""

    overall: int
    #: For every dimension that `dimensions` does not name.
    each_dimension: int
    #: By dimension, instead of `each_dimension`.
    dimensions: Mapping[str, int] = field(default_factory=dict)
    #: For the overall grade, by domain, instead of `overall`.
    domains: Mapping[str, int] = field(default_factory=dict)

    def missed(self, scores: Scores) -> dict[str, str]:
        """Return why each grade that is too low is rejected, by dimension."""
        minimums = {name: self.dimensions.get(name, self.each_dimension) for name in scores.dimensions}
        minimums["overall"] = self.domains.get(scores.domain, self.overall)
        grades = {**scores.dimensions, "overall": scores.overall}
        return {
            name: f"{name} is {grade}, below {minimums[name]}"
            for name, grade in grades.items()
            if grade < minimums[name]
        }


def scores_of(record: JsonObject, rubrics: Rubrics) -> Scores | str:
    """Return the record's scores, or the reason why they are missing or invalid."""
    given = record.get("scores")
    if not isinstance(given, dict) or not given:
        return 'has no "scores"' if given is None else f'"scores" is {type_name(given)} without grades'
    overall: Any = record.get("overall", given.get("overall"))
    for name, grade in [*given.items(), ("overall", overall)]:
        if not is_grade(grade):
            return f"{shown(name)} is {shown(grade)}, not 1, 2 or 3"
    if given.get("overall", overall) != overall:
        return f'"overall" is {overall}, but {given["overall"]} in "scores"'
    dimensions = {name: grade for name, grade in given.items() if name != "overall"}
    domain = rubrics.domain_of(record.get("task"))
    if missing := rubrics.missing(domain, dimensions):
        return f'"scores" lack {", ".join(missing)}'
    return Scores(domain or NO_DOMAIN, dimensions, overall)
