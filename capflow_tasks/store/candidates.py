"""Several captions of one sample, its candidates: which is the best, and whether to go on with it.

Each candidate has answers of its own in the stages summarize and score; those of earlier stages are shared.
"""

from collections.abc import Mapping, Sequence
from itertools import compress
from operator import not_
from statistics import fmean

import sqlalchemy as sa

from capflow_tasks.records import Result, Stage
from capflow_tasks.store import tables
from capflow_tasks.store.states import CandidatePolicy, Claim, RetryPolicy, SampleState
from capflow_tasks.store.statistics import query
from capflow_tasks.store.tables import FORGOTTEN, AgentResult, Refused, Run, Sample

#: The stages in which each candidate has answers of its own.
STAGES = (Stage.SUMMARIZE, Stage.SCORE)


def split_results(results: Sequence[Result], candidate: int) -> tuple[tuple[Result, ...], tuple[Result, ...]]:
    """Return the results that belong to this candidate, and those of the other ones."""
    own = [each.candidate == candidate or each.stage not in STAGES for each in results]
    return tuple(compress(results, own)), tuple(compress(results, map(not_, own)))


def by_candidate(results: Sequence[Result]) -> dict[int, list[Result]]:
    """Return the captions and their grades by candidate, in order."""
    numbers = sorted({each.candidate for each in results if each.stage is Stage.SUMMARIZE})
    return {
        number: [each for each in results if each.stage in STAGES and each.candidate == number]
        for number in numbers
    }


def best_of(candidates: Mapping[int, Sequence[Result]]) -> int:
    """Return the number of the best: by grades, then expected grades, then the fewest repairs of the guard.

    Of equals it is the first.
    """
    return max(candidates, key=lambda number: _merit(candidates[number]))


def overall_of(results: Sequence[Result]) -> int:
    """Return the overall grade by the last judge; 0 where none has graded."""
    grades = _last_grades(results)
    return int(grades.data["overall"]) if grades and grades.data else 0


def _merit(results: Sequence[Result]) -> tuple[float, ...]:
    judgement = _last_grades(results)
    grades = (judgement and judgement.data) or {"overall": 0}
    own = [grade for name, grade in grades.items() if name != "overall"] or [0]
    expected = (judgement and judgement.expected) or {"overall": fmean(own)}
    repairs = sum(len((each.guard or {}).get("repairs", ())) for each in results)
    return overall_of(results), sum(own), expected["overall"], -repairs


def _last_grades(results: Sequence[Result]) -> Result | None:
    judgements = [each for each in results if each.stage is Stage.SCORE and each.data]
    return judgements[-1] if judgements else None


def settle(connection: sa.Connection, claim: Claim, retry: RetryPolicy) -> dict[int, Stage]:
    """Choose the best caption of each sample that has passed the last stage.

    Return those that go on, by the stage at which: `score` for another candidate without its grades, else
    `summarize` for another candidate. A sample whose further candidate failed for good is done with an
    earlier one. Reads no result of samples that can have one candidate only.
    """
    policy = _policy_now(connection, claim.run_id)
    has_failed = sa.and_(Sample.state == SampleState.FAILED, Sample.candidate > 1, ~will_retry(retry))
    unsettled = sa.select(Sample.id, Sample.state, Sample.candidate).where(
        Sample.batch_id == claim.batch_id, sa.or_(Sample.state == SampleState.PENDING, has_failed)
    )
    if policy.most == 1:
        further = sa.exists().where(AgentResult.sample_id == Sample.id, AgentResult.candidate > 1)
        unsettled = unsettled.where(sa.or_(Sample.candidate > 1, further))
    if not (samples := connection.execute(unsettled).all()):
        return {}
    ids = [sample.id for sample in samples]
    results, refused = tables.results_of(connection, ids), _refused_tokens(connection, ids)
    following, going_on = dict[int, int](), dict[int, Stage]()
    for sample in samples:
        if not (written := by_candidate(results[sample.id])):
            continue
        number = best_of(written)
        tokens = refused.get(sample.id, 0) + sum(map(_tokens, results[sample.id]))
        if Stage.SCORE in claim.stages and (ungraded := _ungraded_after(sample.candidate, written)):
            number, going_on[sample.id] = ungraded, Stage.SCORE
        elif sample.state is SampleState.PENDING and _is_wanting(written, sample.candidate, tokens, policy):
            number, going_on[sample.id] = max(sample.candidate, *written) + 1, Stage.SUMMARIZE
        if (sample.state, sample.candidate) != (SampleState.PENDING, number):
            following[sample.id] = number
    _set_candidates(connection, following)
    return going_on


def reopen(connection: sa.Connection, run_id: int, policy: CandidatePolicy) -> int:
    """Open finished samples below the bar for another caption; return how many.

    Batches that a worker has are left to finish.
    """
    values = {"most": policy.most, "min_overall": policy.min_overall, "token_budget": policy.token_budget}
    return connection.execute(query("reopen_wanting"), {"run_id": run_id, **values}).rowcount


def will_retry(retry: RetryPolicy) -> sa.ColumnElement[bool]:
    """The sample, if it has failed, is tried again by itself."""
    return sa.and_(Sample.is_retryable, Sample.attempts < retry.max_attempts)


def _policy_now(connection: sa.Connection, run_id: int) -> CandidatePolicy:
    """Return the run's policy, which may have changed since the claim.

    The lock lets a change that is on its way come first; a later one finds the samples of this transaction.
    """
    run = sa.select(Run.candidates, Run.min_overall, Run.token_budget).where(Run.id == run_id)
    return CandidatePolicy(*connection.execute(run.with_for_update(read=True, key_share=True)).one())


def _is_wanting(
    written: Mapping[int, Sequence[Result]], candidate: int, tokens: int, policy: CandidatePolicy
) -> bool:
    """Return whether the best caption is below the bar, and the sample may have another one."""
    may_have_more = max(candidate, *written) < policy.most
    has_budget = policy.token_budget is None or tokens < policy.token_budget
    return may_have_more and has_budget and 0 < overall_of(written[best_of(written)]) < policy.min_overall


def _ungraded_after(candidate: int, written: Mapping[int, Sequence[Result]]) -> int | None:
    """Return the next candidate that lacks grades which another one has, as when a judge is asked again."""
    judges = {
        number: {each.agent for each in results if each.stage is Stage.SCORE}
        for number, results in written.items()
    }
    known = set[str]().union(*judges.values())
    return next((number for number in written if number > candidate and judges[number] != known), None)


def _tokens(result: Result) -> int:
    return result.prompt_tokens + result.completion_tokens


def _refused_tokens(connection: sa.Connection, sample_ids: Sequence[int]) -> dict[int, int]:
    """Return by sample what answers took that were refused, and not counted with a later result."""
    spent = sa.func.sum(Refused.prompt_tokens + Refused.completion_tokens)
    are_refused = (Refused.sample_id.in_(sample_ids), Refused.outcome != FORGOTTEN)
    spent_by = sa.select(Refused.sample_id, spent).where(*are_refused).group_by(Refused.sample_id)
    rows = connection.execute(spent_by).all()
    return {sample_id: int(tokens) for sample_id, tokens in rows}


def _set_candidates(connection: sa.Connection, candidates: Mapping[int, int]) -> None:
    """Note each sample's candidate: the chosen one, or the one to be written."""
    rows = [{"sample": sample_id, "number": number} for sample_id, number in candidates.items()]
    if rows:
        table = tables.Table.metadata.tables[Sample.__tablename__]
        notes = sa.update(table).where(table.c.id == sa.bindparam("sample"))
        values = {"candidate": sa.bindparam("number"), "state": SampleState.PENDING}
        connection.execute(notes.values(**values), rows)
