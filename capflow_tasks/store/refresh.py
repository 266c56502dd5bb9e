"""Finds what was answered to other prompts, by another model or about other media, and forgets it.

What is forgotten is asked for again.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import sqlalchemy as sa

from capflow_tasks.records import JsonObject, Stage
from capflow_tasks.store.figures import Tokens
from capflow_tasks.store.states import STAGE_ORDER, SampleState
from capflow_tasks.store.statistics import query
from capflow_tasks.store.tables import Batch, Sample, Shard, Store, is_among, opened

#: Samples read at a time.
_PAGE = 5000


@dataclass(frozen=True, slots=True)
class Answers:
    """Answers of one agent in finished samples of one domain, by the same prompt and model."""

    domain: str
    stage: Stage
    agent: str
    model: str
    #: Which weights of that name, as in `engine/revision.py`; None where it is not known.
    revision: str | None
    #: Of the agent's prompt and all that shapes it, as in `Agent.digest`.
    digest: str
    answers: int
    #: What they cost.
    tokens: Tokens


@dataclass(frozen=True, slots=True)
class Stamped:
    """A finished sample, and the state of its media when they were answered about."""

    sample_id: int
    entry: JsonObject
    #: As `media.paths.stamp_of` gives it.
    stamp: str


class AnswerStore(Store):
    """The answers of a run."""

    def answers(
        self,
        run_id: int,
        newest: int | None = None,
        shard_id: int | None = None,
        sample_ids: Sequence[int] | None = None,
    ) -> list[Answers]:
        """Return the answers of all finished samples, or of some: the last of each shard, or these."""
        values = {"run_id": run_id, "newest": newest, "shard_id": shard_id, "sample_ids": sample_ids}
        with self.engine.connect() as connection:
            rows = connection.execute(query("answers"), values).mappings().all()
        return [
            Answers(
                **{name: row[name] for name in ("domain", "agent", "model", "revision", "digest", "answers")},
                stage=Stage(row["stage"]),
                tokens=Tokens(row["prompt"], row["cached"], row["completion"]),
            )
            for row in rows
        ]

    def stamped(self, shard_id: int) -> Iterator[list[Stamped]]:
        """Yield the finished samples of the shard whose media are known, a page at a time."""
        known = sa.select(Sample.id, Sample.entry, Sample.media_stamp, Sample.idx).order_by(Sample.idx)
        known = known.where(Sample.shard_id == shard_id, Sample.state == SampleState.DONE)
        known = known.where(Sample.media_stamp.is_not(None)).limit(_PAGE)
        page = self.rows(known)
        while page:
            yield [Stamped(row.id, row.entry, row.media_stamp) for row in page]
            page = self.rows(known.where(Sample.idx > page[-1].idx))

    def forget_samples(self, sample_ids: Collection[int]) -> int:
        """Forget all answers about these samples; return how many are open again.

        Batches that a worker has are left to finish.
        """
        with self.engine.begin() as connection:
            rows = connection.execute(query("forget_samples"), {"sample_ids": list(sample_ids)}).all()
            stages = {
                (row.batch_id, Stage(stage))
                for row in rows
                for stage in (*row.stages, row.next_stage)
                if stage is not None
            }
            _open_batches(connection, stages)
        return len(rows)

    def forget(
        self,
        run_id: int,
        stale: Sequence[Answers],
        readers: Mapping[str, Mapping[str, Sequence[str]]],
        first_stages: Mapping[str, Stage],
    ) -> int:
        """Forget these answers and those that depend on them; return how many samples are open again.

        `readers` has by domain and agent those that read its answer, directly or not; `first_stages` the
        stage at which a domain's samples go on. Batches that still run are left to finish.
        """
        pairs = [
            (domain, agent, reader)
            for domain, by_agent in readers.items()
            for agent, names in by_agent.items()
            for reader in names
        ]
        values: dict[str, list[str | None]] = {
            "domains": [each.domain for each in stale],
            "agents": [each.agent for each in stale],
            "models": [each.model for each in stale],
            "revisions": [each.revision for each in stale],
            "digests": [each.digest for each in stale],
            "read_domains": [domain for domain, _, _ in pairs],
            "read_agents": [agent for _, agent, _ in pairs],
            "readers": [reader for _, _, reader in pairs],
        }
        shards = [row.id for row in self.rows(sa.select(Shard.id).where(Shard.run_id == run_id))]
        return sum(self._forget_in(shard_id, values, first_stages) for shard_id in shards)

    def _forget_in(
        self, shard_id: int, values: Mapping[str, Sequence[str | None]], first: Mapping[str, Stage]
    ) -> int:
        with self.engine.begin() as connection:
            rows = connection.execute(query("forget_answers"), {**values, "shard_id": shard_id}).all()
            stages = {
                (row.batch_id, Stage.ROUTE if row.is_routed_again else first[row.domain]) for row in rows
            }
            _open_batches(connection, stages)
        return len(rows)


def _open_batches(connection: sa.Connection, stages: Collection[tuple[int, Stage]]) -> None:
    """Open batches at the earliest of the stages that each is paired with; who had one writes nothing."""
    # the earliest comes last
    by_batch = dict(sorted(stages, key=lambda pair: STAGE_ORDER[pair[1]], reverse=True))
    for stage in set(by_batch.values()):
        of_stage = [batch_id for batch_id, each in by_batch.items() if each is stage]
        reopens = sa.update(Batch).where(is_among(Batch.id, of_stage))
        connection.execute(reopens.values(next_stage=stage, attempt=Batch.attempt + 1, **opened()))
