"""What is captioned already, over all runs, so that a plan can hold the rest. Reads only."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from sqlalchemy import Engine, func, select

from capflow_tasks.store.statistics import query
from capflow_tasks.store.tables import Shard

#: Rows read at a time.
_PAGE = 10_000


@dataclass(slots=True)
class Coverage:
    """What the database holds of one annotation file."""

    #: Indexes of captioned samples: in order, none touching the next.
    captioned: list[range] = field(default_factory=list)
    #: The first number that no shard of the file has.
    next_shard_index: int = 0

    def add(self, start_idx: int, end_idx: int) -> None:
        """Add a range that begins no earlier than those before it; two runs may share samples."""
        last = self.captioned[-1] if self.captioned else None
        if last is None or start_idx > last.stop:
            self.captioned.append(range(start_idx, end_idx))
        elif end_idx > last.stop:
            self.captioned[-1] = range(last.start, end_idx)


def coverage_of(engine: Engine, name_of: Callable[[str], str | None]) -> dict[str, Coverage]:
    """What is captioned, by the caller's names for annotation files.

    `name_of` gets an annotation file's path as the runs have it; it returns None for a file to leave out.
    """
    numbers = select(Shard.annotation, func.max(Shard.shard_index) + 1).group_by(Shard.annotation)
    found: dict[str, Coverage] = {}
    names: dict[str, str] = {}
    with engine.connect() as connection:
        for annotation, number in connection.execute(numbers):
            if (name := name_of(annotation)) is not None:
                names[annotation] = name
                known = found.setdefault(name, Coverage())
                known.next_shard_index = max(known.next_shard_index, number)
        statement = query("captioned").execution_options(yield_per=_PAGE)
        for annotation, start_idx, end_idx in connection.execute(statement, {"annotations": list(names)}):
            found[names[annotation]].add(start_idx, end_idx)
    return found
