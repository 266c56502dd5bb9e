"""Finds what was answered to other prompts or by another model, and forgets it, to be asked for again."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import sqlalchemy as sa

from capflow_tasks.records import Stage
from capflow_tasks.store.figures import Tokens
from capflow_tasks.store.states import STAGE_ORDER
from capflow_tasks.store.statistics import query
from capflow_tasks.store.tables import Batch, Shard, Store, is_among, opened


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


class AnswerStore(Store):
    """The answers of a run."""

    def answers(self, run_id: int, newest: int | None = None) -> list[Answers]:
        """Return the answers of all finished samples, or of the last so many of each shard."""
        with self.engine.connect() as connection:
            rows = connection.execute(query("answers"), {"run_id": run_id, "newest": newest}).mappings().all()
        return [
            Answers(
                **{name: row[name] for name in ("domain", "agent", "model", "revision", "digest", "answers")},
                stage=Stage(row["stage"]),
                tokens=Tokens(row["prompt"], row["cached"], row["completion"]),
            )
            for row in rows
        ]

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
            # a batch starts at the earliest stage of its samples, which comes last
            stages = [
                (row.batch_id, Stage.ROUTE if row.is_routed_again else first[row.domain]) for row in rows
            ]
            stages.sort(key=lambda pair: STAGE_ORDER[pair[1]], reverse=True)
            by_batch = dict(stages)
            for stage in set(by_batch.values()):
                of_stage = [batch_id for batch_id, each in by_batch.items() if each is stage]
                reopens = sa.update(Batch).where(is_among(Batch.id, of_stage))
                connection.execute(reopens.values(next_stage=stage, **opened()))
        return len(rows)
