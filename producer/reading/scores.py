"""Which dimensions the captions of each domain are graded in. Knows nothing of grades."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from capflow_tasks.domains.catalogue import Catalogue
from capflow_tasks.entries import shown, type_name
from capflow_tasks.errors import WorkflowError
from capflow_tasks.records import JsonObject, Stage


class Rubrics:
    """The dimensions that the catalogue's judges grade."""

    def __init__(self, catalogue: Catalogue) -> None:
        self._catalogue = catalogue
        self._by_domain = {
            domain.name: frozenset(
                name for judge in domain.agents_of(Stage.SCORE)[-1:] for name in judge.dimensions
            )
            for domain in catalogue.domains
        }
        # Bounded: a file may name a million tasks.
        self._resolved = lru_cache(maxsize=1024)(self._resolve)

    @property
    def dimensions(self) -> frozenset[str]:
        """All that any judge grades."""
        return frozenset().union(*self._by_domain.values())

    def domain_of(self, task: Any) -> str | None:
        """The domain that a record's `task` names; None when it names none that is known."""
        return self._resolved(task) if isinstance(task, str) else None

    def missing(self, domain: str | None, given: Collection[str]) -> list[str]:
        """Dimensions without which the grades are not those of a judge of the domain, or of any."""
        rubrics = [self._by_domain[domain]] if domain else list(self._by_domain.values())
        return min((sorted(rubric.difference(given)) for rubric in rubrics), key=len)

    def _resolve(self, task: str) -> str | None:
        try:
            return self._catalogue.resolve(task).name
        except WorkflowError:
            return None


#: Stands for the domain of records that name none, or none that is known.
NO_DOMAIN = "(none)"

_GRADES = (1, 2, 3)


@dataclass(frozen=True, slots=True)
class Scores:
    """What a judge said of one caption."""

    domain: str
    #: 1 to 3 by dimension.
    dimensions: Mapping[str, int]
    overall: int


@dataclass(frozen=True, slots=True)
class Minimums:
    """The least grades that a caption is kept with, 1 to 3."""

    overall: int
    #: For every dimension that `dimensions` does not name.
    each_dimension: int
    #: By dimension, in place of `each_dimension`.
    dimensions: Mapping[str, int] = field(default_factory=dict)
    #: For the overall grade, by domain, in place of `overall`.
    domains: Mapping[str, int] = field(default_factory=dict)

    def missed(self, scores: Scores) -> dict[str, str]:
        """Why the scores are too low, by dimension; empty when they are not."""
        least = {name: self.dimensions.get(name, self.each_dimension) for name in scores.dimensions}
        least["overall"] = self.domains.get(scores.domain, self.overall)
        grades = {**scores.dimensions, "overall": scores.overall}
        return {
            name: f"{name} is {grade}, below {least[name]}"
            for name, grade in grades.items()
            if grade < least[name]
        }


def scores_of(record: JsonObject, rubrics: Rubrics) -> Scores | str:
    """The record's grades, or why it has none that can be relied on."""
    given = record.get("scores")
    if not isinstance(given, dict) or not given:
        return 'has no "scores"' if given is None else f'"scores" is {type_name(given)} without grades'
    dimensions = {name: grade for name, grade in given.items() if name != "overall"}
    overall: Any = record.get("overall", given.get("overall"))
    for name, grade in [*given.items(), ("overall", overall)]:
        # `type`, because True is an int and 3.0 equals 3.
        if type(grade) is not int or grade not in _GRADES:
            return f"{shown(name)} is {shown(grade)}, not 1, 2 or 3"
    if given.get("overall", overall) != overall:
        return f'"overall" is {overall}, but {given["overall"]} in "scores"'
    domain = rubrics.domain_of(record.get("task"))
    if missing := rubrics.missing(domain, dimensions.keys()):
        return f'"scores" lack {", ".join(missing)}'
    return Scores(domain or NO_DOMAIN, dimensions, overall)
