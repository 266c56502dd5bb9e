"""What is known of runs: how far, how fast, at what cost, how good. Reads only.

The statements are the files in `queries/`, which psql can run: `psql -v run_id=1 -f usage.sql`. Where batches
can answer a question, they do: a run has eight times fewer batches than samples, and forty times fewer than
results. A question that reads all samples or all results of a run says so.
"""

import json
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import datetime
from functools import cache
from importlib.resources import files
from typing import Any

from sqlalchemy import Engine, TextClause, func, select, text

from capflow_tasks.records import TEXT_READER, GuardOutcome, Rule, Stage
from capflow_tasks.store import figures
from capflow_tasks.store.states import STAGE_ORDER, BatchState, SampleState, Tally
from capflow_tasks.store.tables import Shard, Store


@cache
def query(name: str) -> TextClause:
    """The statement of the file `queries/<name>.sql`."""
    return text((files("capflow_tasks.store") / "queries" / f"{name}.sql").read_text("utf-8"))


class Statistics(Store):
    """Questions about runs. Thread-safe."""

    def runs(
        self, name: str | None = None, plan: str | None = None, run_id: int | None = None
    ) -> list[figures.RunFigures]:
        """All runs, or those of this name, plan or id, the newest first."""
        rows = self._ask("runs", name=name, plan=plan, run_id=run_id)
        return [
            figures.RunFigures(tally=_tally(row), **row | {"stages": _stages(row["stages"])}) for row in rows
        ]

    def shards(self, run_id: int) -> list[figures.ShardFigures]:
        """The run by line of its plan."""
        rows = self._ask("shards", run_id=run_id)
        return [figures.ShardFigures(tally=_tally(row), **row) for row in rows]

    def domains(self, run_id: int, *, with_stages: bool = False) -> list[figures.DomainFigures]:
        """The run by domain, in alphabetical order, samples without a domain last. Reads all samples.

        Reads all results, too, to count `with_stages`.
        """
        by_stage: defaultdict[str | None, dict[Stage, int]] = defaultdict(lambda: dict.fromkeys(Stage, 0))
        for row in self._ask("domain_stages", run_id=run_id) if with_stages else ():
            by_stage[row["domain"]][Stage(row["stage"])] = row["samples"]
        rows = {row["domain"]: row for row in self._ask("domains", run_id=run_id)}
        return [
            figures.DomainFigures(domain, {state: row[state] for state in SampleState}, by_stage[domain])
            for domain, row in rows.items()
        ]

    def stages(self, run_id: int) -> list[figures.StageFigures]:
        """Unfinished samples by their next stage."""
        rows = self._ask("stages", run_id=run_id)
        counts = {(row["next_stage"], row["state"]): row["samples"] for row in rows}
        states = [state for state in BatchState if state is not BatchState.DONE]
        return [
            figures.StageFigures(stage, {state: counts.get((stage, state), 0) for state in states})
            for stage in Stage
        ]

    def usage(self, run_id: int) -> list[figures.Usage]:
        """Answers, tokens and time by stage, model and worker, in this order. Reads all results.

        Tokens and time are those of refused answers, too. No table holds answers that were discarded because
        their worker died or lost its lease.
        """
        found = [
            figures.Usage(tokens=_tokens(row), **row | {"stage": Stage(row["stage"])})
            for row in self._ask("usage", run_id=run_id, text_reader=TEXT_READER)
        ]
        return sorted(found, key=lambda usage: (STAGE_ORDER[usage.stage], usage.model, usage.worker))

    def rates(self, run_id: int, batches: int = 1000) -> figures.Rates:
        """What the captioned samples of the batches that finished last took, by domain."""
        rows, seconds = self._ask("rates", run_id=run_id, batches=batches, text_reader=TEXT_READER), 0.0
        by_domain: defaultdict[tuple[str | None, int], list[figures.Usage]] = defaultdict(list)
        for row in rows:
            seconds = row.pop("fleet_seconds")
            domain = row.pop("domain"), row.pop("samples")
            by_domain[domain].append(
                figures.Usage(tokens=_tokens(row), **row | {"stage": Stage(row["stage"])})
            )
        domains = [figures.DomainRates(*domain, usages) for domain, usages in by_domain.items()]
        return figures.Rates(domains, seconds)

    def prompt_economy(self, run_id: int, batches: int = 1000) -> figures.PromptEconomy:
        """Prompt tokens computed per sample, and the least possible, in the batches that finished last.

        Fewer than the least are computed where samples share media, or their prefix was cached before.
        """
        values = {"run_id": run_id, "batches": batches, "text_reader": TEXT_READER}
        (row,) = self._ask("prompt_economy", **values)
        return figures.PromptEconomy(**row)

    def failures(self, run_id: int) -> list[figures.FailureKind]:
        """Failed samples by kind, the most frequent first. Reads the failed samples only."""
        rows = self._ask("failures", run_id=run_id)
        return [figures.FailureKind(**row | {"stages": _stages(row["stages"])}) for row in rows]

    def grades(self, run_id: int, *, of_first: bool = False) -> list[figures.GradeCount]:
        """Every combination of grades, and how many captions have it. Reads all scores.

        Counts the chosen captions, or instead the first of each sample.

        There are few combinations, so histograms and accepted captions are quick sums over them.
        """
        found = []
        for row in self._ask("grades", run_id=run_id, of_first=of_first):
            dimensions = json.loads(row["grades"])
            overall = dimensions.pop("overall")
            found.append(figures.GradeCount(row["domain"], dimensions, overall, row["count"]))
        return found

    def guard(self, run_id: int) -> list[figures.GuardCount]:
        """Answers that the guard repaired or refused, the most frequent first. Reads all results."""
        return [
            figures.GuardCount(
                row["agent"], Rule(row["rule"]), GuardOutcome(row["outcome"]), row["answers"], _tokens(row)
            )
            for row in self._ask("guard", run_id=run_id)
        ]

    def further_captions(self, run_id: int) -> list[figures.FurtherCaptions]:
        """Captions that were written again, by candidate. Reads all results."""
        rows = self._ask("further_captions", run_id=run_id)
        return [figures.FurtherCaptions(tokens=_tokens(row), **row) for row in rows]

    def text(self, run_id: int) -> figures.TextFigures | None:
        """What was read in pictures, and how far captions agree with it. Reads all results."""
        (row,) = self._ask("text", run_id=run_id, text_reader=TEXT_READER)
        return figures.TextFigures(**row) if row["read"] or row["unread"] else None

    def claims(self, run_id: int) -> figures.ClaimFigures | None:
        """The claims of verified captions, and what it took to ask about them. Reads all results."""
        (row,) = self._ask("claims", run_id=run_id)
        return figures.ClaimFigures(tokens=_tokens(row), **row) if row["captions"] else None

    def confidences(self, run_id: int) -> list[int]:
        """Routed samples by the router's confidence, in ten equal steps from 0 to 1. Reads all samples."""
        counts = {row["step"]: row["samples"] for row in self._ask("confidences", run_id=run_id, steps=10)}
        return [counts.get(step, 0) for step in range(10)]

    def finished_by_time(self, run_id: int, seconds: float = 60) -> dict[datetime, int]:
        """Finished samples by the beginning of the stretch of time, of so many seconds, that they fall into.

        Empty stretches are left out. A reopened batch counts where it finished last.
        """
        rows = self._ask("finished_by_time", run_id=run_id, seconds=float(seconds))
        return {row["begins_at"]: row["samples"] for row in rows}

    def throughput(self, run_id: int, seconds: float = 120) -> figures.Throughput:
        """What was finished within the last seconds."""
        (row,) = self._ask("throughput", run_id=run_id, seconds=float(seconds))
        return figures.Throughput(tokens=_tokens(row), **row)

    def activity(self, run_id: int, lease_seconds: float) -> figures.Activity:
        """What the fleet does for the run at this moment."""
        return figures.Activity(self.stages(run_id), self.throughput(run_id), self.workers(lease_seconds))

    def totals(self, run_id: int) -> figures.Totals:
        """All sums over the run. Reads all batches, samples and results."""
        further = self.further_captions(run_id)
        return figures.Totals(
            shards=self.shards(run_id),
            domains=self.domains(run_id),
            usages=self.usage(run_id),
            economy=self.prompt_economy(run_id),
            grades=self.grades(run_id),
            guard=self.guard(run_id),
            first_grades=self.grades(run_id, of_first=True) if further else (),
            further=further,
            text=self.text(run_id),
            claims=self.claims(run_id),
        )

    def latest_endings(self, run_id: int, since: datetime, samples: int) -> list[figures.Ending]:
        """How the latest samples ended that workers have finished since a time, the latest first."""
        rows = self._ask("latest_endings", run_id=run_id, since=since, samples=samples)
        return [figures.Ending(**row) for row in rows]

    def now(self) -> datetime:
        """The database's time."""
        return self.rows(select(func.now()))[0][0]  # type: ignore[no-any-return]

    def workers(self, lease_seconds: float) -> list[figures.WorkerFigures]:
        """All workers in the table, by name; one that is silent for a lease is dead."""
        return [figures.WorkerFigures(**row) for row in self._ask("workers", lease_seconds=lease_seconds)]

    def _ask(self, file: str, /, **values: Any) -> list[dict[str, Any]]:
        with self.engine.connect() as connection:
            return [row._asdict() for row in connection.execute(query(file), values)]


# Both take their columns out of the row, so that the rest of it fits the figures' fields.
def _tally(row: dict[str, Any]) -> Tally:
    return Tally(row.pop("done"), row.pop("failed"), row.pop("held"))


def _tokens(row: dict[str, Any]) -> figures.Tokens:
    return figures.Tokens(row.pop("prompt"), row.pop("cached"), row.pop("completion"))


def _stages(words: Iterable[str]) -> tuple[Stage, ...]:
    return tuple(sorted(map(Stage, words), key=STAGE_ORDER.__getitem__))


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
        statement = query("captioned").execution_options(yield_per=10_000)
        for annotation, start_idx, end_idx in connection.execute(statement, {"annotations": list(names)}):
            found[names[annotation]].add(start_idx, end_idx)
    return found
