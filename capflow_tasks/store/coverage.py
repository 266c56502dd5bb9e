"""What is captioned already, over all runs, for who plans the rest. Reads only."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Engine,
    Select,
    and_,
    any_,
    func,
    literal,
    not_,
    or_,
    select,
    union_all,
)

from capflow_tasks.records import Stage
from capflow_tasks.store.states import BatchState, SampleState
from capflow_tasks.store.tables import AgentResult, Batch, Run, Sample, Shard

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
        """Take in a range that begins no earlier than those before it; two runs may share samples."""
        last = self.captioned[-1] if self.captioned else None
        if last is None or start_idx > last.stop:
            self.captioned.append(range(start_idx, end_idx))
        elif end_idx > last.stop:
            self.captioned[-1] = range(last.start, end_idx)


def coverage_of(engine: Engine, name_of: Callable[[str], str | None]) -> dict[str, Coverage]:
    """What is captioned, by the names that the caller has for annotation files.

    `name_of` gets an annotation file's path as the runs have it; None for one that nobody asks about.
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
        _add_captioned(connection, names, found)
    return found


def _add_captioned(connection: Connection, names: dict[str, str], found: dict[str, Coverage]) -> None:
    spans = union_all(_whole_batches(list(names)), _single_samples(list(names))).subquery()
    ordered = select(spans).order_by(spans.c.start_idx).execution_options(yield_per=_PAGE)
    for annotation, start_idx, end_idx in connection.execute(ordered):
        found[names[annotation]].add(start_idx, end_idx)


def _whole_batches(annotations: Sequence[str]) -> Select[*tuple[Any, ...]]:
    """Batches of which every sample has its caption: most of them, and eight times fewer than samples."""
    return _of_files(select(Shard.annotation, Batch.start_idx, Batch.end_idx), annotations).where(
        _is_captioned()
    )


def _single_samples(annotations: Sequence[str]) -> Select[*tuple[Any, ...]]:
    """Captioned samples of all other batches."""
    samples = select(Shard.annotation, Sample.idx.label("start_idx"), (Sample.idx + 1).label("end_idx"))
    caption = select(literal(1)).where(
        AgentResult.sample_id == Sample.id, AgentResult.stage == Stage.SUMMARIZE
    )
    return (
        _of_files(samples, annotations)
        .join(Sample, Sample.batch_id == Batch.id)
        .where(not_(_is_captioned()), Sample.state == SampleState.DONE, caption.exists())
    )


def _of_files(statement: Select[*tuple[Any, ...]], annotations: Sequence[str]) -> Select[*tuple[Any, ...]]:
    return (
        statement.select_from(Batch)
        .join(Shard, Shard.id == Batch.shard_id)
        .join(Run, Run.id == Shard.run_id)
        .where(Shard.annotation.in_(annotations))
    )


def _is_captioned() -> ColumnElement[bool]:
    """The batch came to its end behind the summarize stage, with all its samples.

    Never NULL, so that its negation finds the rest.
    """
    return and_(
        Batch.state == BatchState.DONE,
        Batch.done_count == Batch.end_idx - Batch.start_idx,
        or_(Batch.next_stage.is_(None), func.coalesce(Batch.next_stage == Stage.SCORE, False)),
        literal(Stage.SUMMARIZE.value) == any_(Run.stages),
    )
