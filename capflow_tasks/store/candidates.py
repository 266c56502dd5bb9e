"""Several captions of one sample, its candidates: which is the best, and whether to ask for another one.

Each candidate has answers of its own in the stages summarize and score; those of earlier stages are shared.
"""

from collections.abc import Mapping, Sequence
from itertools import compress
from operator import not_
from statistics import fmean

import sqlalchemy as sa

from capflow_tasks.records import Result, Stage
from capflow_tasks.store import tables
from capflow_tasks.store.states import CandidatePolicy, RetryPolicy, SampleState
from capflow_tasks.store.tables import Sample

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


def settle(connection: sa.Connection, batch_id: int, policy: CandidatePolicy, retry: RetryPolicy) -> set[int]:
    """Choose the best caption of each sample that has passed the last stage; return those to write again.

    A sample whose further candidate failed for good is done with an earlier one. Reads no result of samples
    that can have one candidate only.
    """
    has_failed = sa.and_(Sample.state == SampleState.FAILED, Sample.candidate > 1, ~will_retry(retry))
    unsettled = sa.select(Sample.id, Sample.state, Sample.candidate).where(
        Sample.batch_id == batch_id, sa.or_(Sample.state == SampleState.PENDING, has_failed)
    )
    if policy.most == 1:
        unsettled = unsettled.where(Sample.candidate > 1)
    if not (samples := connection.execute(unsettled).all()):
        return set()
    results = tables.results_of(connection, [sample.id for sample in samples])
    following, again = {}, set()
    for sample in samples:
        if not (written := by_candidate(results[sample.id])):
            continue
        best, last = best_of(written), max(sample.candidate, *written)
        may_have_more = sample.state is SampleState.PENDING and last < policy.most
        if may_have_more and _is_wanting(written[best], results[sample.id], policy):
            again.add(sample.id)
        number = last + 1 if sample.id in again else best
        if (sample.state, sample.candidate) != (SampleState.PENDING, number):
            following[sample.id] = number
    _set_candidates(connection, following)
    return again


def will_retry(retry: RetryPolicy) -> sa.ColumnElement[bool]:
    """The sample, if it has failed, is tried again by itself."""
    return sa.and_(Sample.is_retryable, Sample.attempts < retry.max_attempts)


def _is_wanting(best: Sequence[Result], results: Sequence[Result], policy: CandidatePolicy) -> bool:
    """Return whether the best caption is below the bar, and the sample has tokens left."""
    tokens = sum(each.prompt_tokens + each.completion_tokens for each in results)
    has_budget = policy.token_budget is None or tokens < policy.token_budget
    return 0 < overall_of(best) < policy.min_overall and has_budget


def _set_candidates(connection: sa.Connection, candidates: Mapping[int, int]) -> None:
    """Note each sample's candidate: the chosen one, or the one to be written."""
    rows = [{"sample": sample_id, "number": number} for sample_id, number in candidates.items()]
    if rows:
        table = tables.Table.metadata.tables[Sample.__tablename__]
        notes = sa.update(table).where(table.c.id == sa.bindparam("sample"))
        values = {"candidate": sa.bindparam("number"), "state": SampleState.PENDING}
        connection.execute(notes.values(**values), rows)
