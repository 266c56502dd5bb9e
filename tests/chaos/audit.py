"""Compare database, journal and caption files, to count what was lost, repeated or doubled."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from sqlalchemy import Engine, func, select

from capflow_tasks.records import Stage
from capflow_tasks.store.states import SampleState
from capflow_tasks.store.tables import AgentResult, Sample
from tests.chaos.engine import Call
from tests.datasets import read_lines

#: A result's time is the start of its transaction; others see it at most this much later.
_COMMIT_SECONDS = 0.1


@dataclass(frozen=True, slots=True)
class Verdict:
    """One row of the final table."""

    scenario: str
    seed: int
    samples: int
    faults: int = 0
    lost: int = 0
    #: Model calls that began after their answer was in the database.
    repeated: int = 0
    duplicates: int = 0
    #: Messages that no worker will ever take.
    stranded: int = 0
    #: The longest time from a fault until the batches it hit had moved on.
    recovery_seconds: float | None = None
    seconds: float = 0.0
    #: Everything else that is wrong, one sentence each.
    complaints: Sequence[str] = field(default_factory=tuple)

    @property
    def is_clean(self) -> bool:
        return not (self.lost or self.repeated or self.duplicates or self.stranded or self.complaints)


def count_lost(engine: Engine, samples: int, poisoned: Collection[int]) -> int:
    """Count samples that ended wrongly: healthy ones without all stages, poisoned ones not quarantined."""
    stages = (
        select(AgentResult.sample_id, func.count(AgentResult.stage.distinct()).label("stages"))
        .group_by(AgentResult.sample_id)
        .subquery()
    )
    statement = select(Sample.idx, Sample.state, Sample.error_kind, stages.c.stages).outerjoin(
        stages, stages.c.sample_id == Sample.id
    )
    with engine.connect() as connection:
        rows = connection.execute(statement).all()
    done = {row.idx for row in rows if row.state == SampleState.DONE and row.stages == len(Stage)}
    quarantined = {row.idx for row in rows if row.error_kind == "quarantined"}
    return len(set(range(samples)) - set(poisoned) - done) + len(set(poisoned) - quarantined)


def describe_lost(engine: Engine) -> list[str]:
    """Count the samples that are not done, by state and failure."""
    statement = (
        select(Sample.state, Sample.error_stage, Sample.error_kind, func.count())
        .where(Sample.state != SampleState.DONE)
        .group_by(Sample.state, Sample.error_stage, Sample.error_kind)
    )
    with engine.connect() as connection:
        return [
            f"{count} {state} {stage or ''} {kind or ''}".strip()
            for state, stage, kind, count in connection.execute(statement)
        ]


def describe_candidates(engine: Engine, most: int) -> list[str]:
    """Name the samples that have other captions than they should: graded, in a row, the best chosen."""
    graded = (
        select(Sample.idx, Sample.candidate, AgentResult.candidate.label("number"), AgentResult.data)
        .join(Sample, Sample.id == AgentResult.sample_id)
        .where(AgentResult.stage == Stage.SCORE)
        .order_by(AgentResult.candidate)
    )
    chosen: dict[int, int] = {}
    overalls: defaultdict[int, list[int]] = defaultdict(list)
    found = []
    with engine.connect() as connection:
        for row in connection.execute(graded):
            chosen[row.idx] = row.candidate
            overalls[row.idx].append(row.data["overall"])
            if row.number != len(overalls[row.idx]):
                found.append(f"sample {row.idx} has a gap before candidate {row.number}")
    for idx, grades in overalls.items():
        # The first good caption ends it; of bad ones there are as many as may be.
        expected = grades.index(3) + 1 if 3 in grades else most
        if len(grades) != expected or grades[chosen[idx] - 1] != max(grades):
            found.append(f"sample {idx} has captions graded {grades}, and has chosen the {chosen[idx]}.")
    return found if any(len(grades) > 1 for grades in overalls.values()) else ["no caption was written again"]


def count_repeated(engine: Engine, calls: Sequence[Call]) -> int:
    """Count calls that began after their answer had been committed."""
    committed = _committed(engine)
    said = {(_name(call.path), call.kind): call.said.strip() for call in calls if call.said is not None}
    repeated = 0
    for call in calls:
        name = _name(call.path)
        key = call.kind if call.kind == "route" else said.get((name, call.kind), "")
        at = committed.get((name, key))
        repeated += bool(call.started and at and call.started > at + _COMMIT_SECONDS)
    return repeated


def _name(path: str) -> str:
    """Name a sample by its picture: what its folder is called may differ between nodes."""
    return Path(path).name


def _committed(engine: Engine) -> dict[tuple[str, str], float]:
    """Return when each answer was written, by media and text, or by stage for the router's letters.

    Of two agents with the same answer about a sample the later counts, so that nothing counts as repeated
    wrongly.
    """
    statement = (
        select(AgentResult.stage, AgentResult.text, AgentResult.created_at, Sample.entry)
        .join(Sample, Sample.id == AgentResult.sample_id)
        .order_by(AgentResult.created_at)
    )
    with engine.connect() as connection:
        rows = connection.execute(statement).all()
    return {
        (
            _name(row.entry["image"]),
            row.stage.value if row.stage is Stage.ROUTE else row.text,
        ): row.created_at.timestamp()
        for row in rows
    }


def count_duplicates(engine: Engine, output: Path) -> int:
    """Count results that exist twice, and caption lines that exist twice or not at all."""
    key = (AgentResult.sample_id, AgentResult.candidate, AgentResult.stage, AgentResult.agent)
    twice = select(func.count(AgentResult.sample_id)).group_by(*key).having(func.count() > 1)
    done = select(Sample.idx).where(Sample.state == SampleState.DONE)
    with engine.connect() as connection:
        rows = len(connection.execute(twice).all())
        expected = set(connection.execute(done).scalars())
    lines = Counter(
        record["id"]
        for path in output.glob("Rank*.jsonl")
        if not path.name.endswith(".failed.jsonl")
        for record in read_lines(path)
    )
    return rows + lines.total() - len(lines) + len(expected ^ lines.keys())
