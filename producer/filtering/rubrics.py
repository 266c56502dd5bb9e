"""Which dimensions the captions of each domain are graded in. Knows nothing of grades."""

from __future__ import annotations

from collections.abc import Collection
from functools import lru_cache
from typing import Any

from capflow_tasks.domains.catalogue import Catalogue
from capflow_tasks.errors import WorkflowError
from capflow_tasks.records import Stage


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
