"""Statements that sum over results: what was spent, and what the judges said."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from sqlalchemy import Select, Text, cast, func, or_, select
from sqlalchemy.dialects.postgresql import distinct_on

from capflow_tasks.records import Stage
from capflow_tasks.store.states import BatchState
from capflow_tasks.store.tables import AgentResult, Batch, Sample, Shard

_TOKENS = tuple(
    func.coalesce(func.sum(count), 0)
    for count in (AgentResult.prompt_tokens, AgentResult.cached_tokens, AgentResult.completion_tokens)
)
#: When the request of a result was handed to the engine.
_BEGAN_AT = AgentResult.created_at - func.make_interval(0, 0, 0, 0, 0, 0, AgentResult.seconds)

Statement = Select[*tuple[Any, ...]]


def shards_of(run_id: int) -> Any:
    return select(Shard.id).where(Shard.run_id == run_id)


def usage_by_worker(run_id: int) -> Statement:
    """Stage, model, worker, count, three sums of tokens, seconds, first beginning, last end."""
    columns = (AgentResult.stage, AgentResult.model, AgentResult.worker)
    times = (func.sum(AgentResult.seconds), func.min(_BEGAN_AT), func.max(AgentResult.created_at))
    return (
        select(*columns, func.count(), *_TOKENS, *times)
        .join(Sample, Sample.id == AgentResult.sample_id)
        .where(Sample.shard_id.in_(shards_of(run_id)))
        .group_by(*columns)
    )


def latest_tokens(run_id: int, seconds: float) -> Statement:
    """The seconds since work began, no more than these, and three sums of the tokens stored since then."""
    since = func.now() - timedelta(seconds=seconds)
    is_near = or_(Batch.state != BatchState.DONE, Batch.finished_at > since)
    batches = select(Batch.id).where(Batch.shard_id.in_(shards_of(run_id)), is_near)
    spent = func.extract("epoch", func.now() - func.greatest(since, func.min(_BEGAN_AT)))
    return (
        select(func.coalesce(spent, seconds), *_TOKENS)
        .join(Sample, Sample.id == AgentResult.sample_id)
        .where(Sample.batch_id.in_(batches), AgentResult.created_at > since)
    )


def economy_of_latest(run_id: int, batches: int) -> Statement:
    """Samples, their prompt tokens, those computed, and the least possible, in the batches finished last.

    How long the prefix is that the calls of a sample share (system line and media), no table says. Taken for
    it is the most that any call of the sample with that model found cached: short by a block of the cache at
    the most (16 tokens), and 0 where the cache is off. The least possible is that prefix once, and of each
    call what comes behind it. An agent that gets no media is counted as if it did.
    """
    latest = (
        select(Batch.id)
        .where(Batch.shard_id.in_(shards_of(run_id)), Batch.state == BatchState.DONE)
        .order_by(Batch.finished_at.desc())
        .limit(batches)
    )
    prompt, cached = AgentResult.prompt_tokens, AgentResult.cached_tokens
    sample = (AgentResult.sample_id, AgentResult.model)
    calls = (
        select(AgentResult.sample_id, prompt, cached)
        .add_columns(func.max(cached).over(partition_by=sample).label("shared"))
        .add_columns(func.row_number().over(partition_by=sample).label("number"))
        .join(Sample, Sample.id == AgentResult.sample_id)
        .where(Sample.batch_id.in_(latest))
        .subquery()
        .c
    )
    own = func.sum(calls.prompt_tokens - func.least(calls.prompt_tokens, calls.shared))
    shared_once = func.sum(calls.shared).filter(calls.number == 1)
    return select(
        func.count(calls.sample_id.distinct()),
        func.coalesce(func.sum(calls.prompt_tokens), 0),
        func.coalesce(func.sum(calls.prompt_tokens - calls.cached_tokens), 0),
        func.coalesce(own + shared_once, 0),
    )


def grades_by_domain(run_id: int) -> Statement:
    """Domain, a judge's whole answer as JSON text, and how many samples have just these."""
    judgements = (
        select(Sample.domain, cast(AgentResult.data, Text).label("grades"))
        .join(Sample, Sample.id == AgentResult.sample_id)
        .where(Sample.shard_id.in_(shards_of(run_id)))
        .where(AgentResult.stage == Stage.SCORE, func.json_typeof(AgentResult.data) == "object")
        # The last judge's word is the one that the caption files have.
        .ext(distinct_on(AgentResult.sample_id))
        .order_by(AgentResult.sample_id, AgentResult.position.desc(), AgentResult.agent.desc())
        .subquery()
        .c
    )
    columns = (judgements.domain, judgements.grades)
    return select(*columns, func.count()).group_by(*columns)
