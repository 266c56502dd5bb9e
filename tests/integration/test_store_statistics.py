"""The figures of a run."""

from __future__ import annotations

from dataclasses import replace

import pytest
from sqlalchemy import Engine, text

from capflow_tasks.domains.verifier import VERIFIER
from capflow_tasks.errors import AnswerLoop, BadAnswer, MediaMissing
from capflow_tasks.records import GuardOutcome, JsonObject, RefusedAnswer, Result, Rule, Stage
from capflow_tasks.store.claims import WorkerStore
from capflow_tasks.store.edits import EditStore
from capflow_tasks.store.figures import (
    GradeCount,
    RunState,
    Tokens,
    gpu_seconds,
    grade_histograms,
    span_seconds,
    total_tokens,
    worker_seconds,
)
from capflow_tasks.store.refresh import AnswerStore
from capflow_tasks.store.states import BatchState, NewSample, Outcome, SampleState, Tally
from capflow_tasks.store.statistics import Statistics
from tests.stores import LEASE_SECONDS, Fleet, a_failure, a_result, a_shard, some_entries

pytestmark = pytest.mark.integration

#: Calls of one sample: prompt, cached and completion tokens.
CALLS = {
    Stage.PERCEIVE: (1000, 0, 50),
    Stage.REASON: (1100, 912, 60),
    Stage.SUMMARIZE: (1200, 896, 70),
    Stage.SCORE: (1300, 0, 20),
}


def a_call(stage: Stage, model: str = "model") -> Result:
    prompt, cached, completion = CALLS[stage]
    tokens = {"prompt_tokens": prompt, "cached_tokens": cached, "completion_tokens": completion}
    return replace(a_result(stage), model=model, **tokens)  # type: ignore[arg-type]


def a_judgement(fleet: Fleet, sample_id: int, overall: int, **grades: int) -> Outcome:
    data = {**grades, "overall": overall}
    return Outcome(sample_id, (replace(a_result(Stage.SCORE, "judge"), data=data),))


def through_all(fleet: Fleet, batch_id: int) -> None:
    for stage in CALLS:
        outcomes = [Outcome(sample_id, (a_call(stage),)) for sample_id in fleet.sample_ids(batch_id)]
        assert fleet.finish(fleet.claim(stage, batch_id=batch_id), outcomes)


def finished_ago(engine: Engine, batch_id: int, seconds: float) -> None:
    """As if the batch had finished some time ago."""
    moves = (
        "UPDATE batches SET finished_at = now() - make_interval(secs => :seconds) WHERE id = :id",
        "UPDATE results SET created_at = now() - make_interval(secs => :seconds) "
        "WHERE sample_id IN (SELECT id FROM samples WHERE batch_id = :id)",
    )
    with engine.begin() as connection:
        for statement in moves:
            connection.execute(text(statement), {"id": batch_id, "seconds": seconds})


def test_a_run_goes_from_waiting_to_running_to_done(engine: Engine) -> None:
    fleet = Fleet(engine, some_entries(6), batch_size=3, domain="Natural")
    statistics = Statistics(engine)
    states = [statistics.runs("run")[0].state]
    first, second = fleet.batch_ids
    claim = fleet.claim(Stage.PERCEIVE, batch_id=first)
    states.append(statistics.runs("run")[0].state)
    fleet.finish(claim)
    fleet.finish_all(first, Stage.REASON)
    (half,) = statistics.runs("run")
    fleet.finish_all(second)
    (whole,) = statistics.runs("run")

    assert [*states, half.state, whole.state] == [
        RunState.WAITING,
        RunState.RUNNING,
        RunState.WAITING,
        RunState.DONE,
    ]
    assert (half.shards, half.samples, half.expanded, half.open_batches) == (1, 6, 6, 1)
    assert (half.tally, half.remaining) == (Tally(done=3), 3)
    assert (whole.tally, whole.remaining, whole.stages) == (Tally(done=6), 0, tuple(Stage))


def test_runs_are_found_by_name_and_by_plan_and_a_cut_off_one_is_stopped(engine: Engine) -> None:
    fleet = Fleet(engine, some_entries(2))
    other = fleet.runs.open_run("other", "/other.jsonl", "/out", [Stage.ROUTE])
    fleet.runs.add_shards(other, [a_shard(5)])
    fleet.runs.open_run("empty", "/empty.jsonl", "/out", [Stage.ROUTE])
    statistics = Statistics(engine)

    assert [run.name for run in statistics.runs()] == ["empty", "other", "run"]
    (found,) = statistics.runs("nothing", "/other.jsonl")
    assert (found.id, found.state, found.samples, found.expanded) == (other, RunState.STOPPED, 5, 0)
    assert [run.id for run in statistics.runs("run", "/other.jsonl")] == [other, fleet.run_id]
    assert statistics.runs("nothing", "/nothing.jsonl") == []


def test_samples_are_counted_by_shard_domain_stage_and_state(engine: Engine) -> None:
    fleet = Fleet(engine, some_entries(7), batch_size=3, domain="Natural")
    done, running, _ready = fleet.batch_ids
    through_all(fleet, done)
    failed = a_failure(Stage.PERCEIVE, MediaMissing("gone"))
    lost, *kept = fleet.sample_ids(running)
    outcomes = [Outcome(each, (a_call(Stage.PERCEIVE),)) for each in kept]
    fleet.finish(fleet.claim(Stage.PERCEIVE, batch_id=running), [*outcomes, Outcome(lost, failure=failed)])
    fleet.claim(Stage.REASON, batch_id=running)
    statistics = Statistics(engine)

    (shard,) = statistics.shards(fleet.run_id)
    (domain,) = statistics.domains(fleet.run_id)
    stages = {each.stage: each.by_state for each in statistics.stages(fleet.run_id)}

    assert (shard.samples, shard.in_flight, shard.tally) == (7, 4, Tally(done=3))
    assert (shard.dataset, shard.assign_rank) == ("set", 0)
    assert domain.domain == "Natural"
    assert domain.by_state == {
        SampleState.PENDING: 3,
        SampleState.DONE: 3,
        SampleState.FAILED: 1,
        SampleState.HELD: 0,
    }
    assert stages[Stage.REASON] == {BatchState.READY: 0, BatchState.QUEUED: 0, BatchState.RUNNING: 3}
    assert stages[Stage.PERCEIVE] == {BatchState.READY: 1, BatchState.QUEUED: 0, BatchState.RUNNING: 0}
    assert not any(stages[Stage.SCORE].values())


def test_a_shard_that_was_never_sent_is_counted_too(engine: Engine) -> None:
    fleet = Fleet(engine, some_entries(2), domain="Natural")
    fleet.runs.add_shards(fleet.run_id, [a_shard(9, assign_rank=1, shard_index=1)])

    sent, unsent = Statistics(engine).shards(fleet.run_id)

    assert (sent.in_flight, sent.samples) == (2, 2)
    assert (unsent.in_flight, unsent.samples, unsent.tally, unsent.assign_rank) == (0, 9, Tally(), 1)


def test_tokens_are_summed_by_stage_and_workers_have_their_span(engine: Engine) -> None:
    fleet = Fleet(engine, some_entries(4), batch_size=2, domain="Natural")
    for batch_id in fleet.batch_ids:
        through_all(fleet, batch_id)
    finished_ago(engine, fleet.batch_ids[0], 3600)
    finished_ago(engine, fleet.batch_ids[1], 0)

    usages = Statistics(engine).usage(fleet.run_id)

    assert [(usage.stage, usage.answers, usage.tokens) for usage in usages] == [
        (stage, 4, Tokens(4 * prompt, 4 * cached, 4 * completion))
        for stage, (prompt, cached, completion) in CALLS.items()
    ]
    total = total_tokens(usages)
    assert total.prefix_hit_rate == pytest.approx((912 + 896) / 4600)
    assert total.computed == 4 * (4600 - 912 - 896)
    # Each batch began half a second before its answers were stored; the hour between them was no work.
    assert worker_seconds(usages) == pytest.approx(1.0, abs=0.2)
    assert span_seconds(usages) == pytest.approx(3600.5, abs=0.2)
    assert {(usage.worker, usage.model) for usage in usages} == {("worker", "model")}


def test_the_gpus_of_a_worker_are_known_after_it_is_gone(engine: Engine) -> None:
    fleet = Fleet(engine, some_entries(2), domain="Natural")
    through_all(fleet, fleet.batch_ids[0])
    workers = WorkerStore(engine)
    workers.note_gpus("worker", 4)
    workers.beat("worker", [], 60)
    workers.resign("worker")
    workers.remove_silent(60)

    usages = Statistics(engine).usage(fleet.run_id)

    assert gpu_seconds(usages) == pytest.approx(4 * worker_seconds(usages))


def test_the_least_prompt_has_each_samples_prefix_once_per_model(engine: Engine) -> None:
    fleet = Fleet(engine, some_entries(2), domain="Natural")
    through_all(fleet, fleet.batch_ids[0])

    economy = Statistics(engine).prompt_economy(fleet.run_id)

    assert economy.samples == 2
    assert economy.computed_per_sample == 1000 + (1100 - 912) + (1200 - 896) + 1300
    assert economy.minimum_per_sample == 4600 - 3 * 912


def test_without_a_cached_token_nobody_knows_how_long_the_prefix_is(engine: Engine) -> None:
    fleet = Fleet(engine, some_entries(1), domain="Natural", stages=(Stage.ROUTE, Stage.PERCEIVE))
    (sample_id,) = fleet.sample_ids()
    fleet.finish(fleet.claim(Stage.PERCEIVE), [Outcome(sample_id, (a_call(Stage.PERCEIVE),))])

    economy = Statistics(engine).prompt_economy(fleet.run_id)

    assert (economy.computed_per_sample, economy.minimum_per_sample) == (1000, None)


def test_a_prefix_is_shared_by_the_calls_of_one_model_only(engine: Engine) -> None:
    fleet = Fleet(engine, some_entries(1), domain="Natural")
    for stage in CALLS:
        model = "judge" if stage is Stage.SCORE else "model"
        (sample_id,) = fleet.sample_ids()
        fleet.finish(fleet.claim(stage), [Outcome(sample_id, (a_call(stage, model),))])

    assert Statistics(engine).prompt_economy(fleet.run_id).minimum == 3300 - 2 * 912 + 1300


def test_failures_are_counted_by_kind_the_most_frequent_first(engine: Engine) -> None:
    fleet = Fleet(engine, some_entries(4))
    gone, cut, lost, fine = fleet.sample_ids()
    missing = a_failure(Stage.ROUTE, MediaMissing("no such file: 0.png"))
    unclear = a_failure(Stage.ROUTE, BadAnswer("no letter"))
    failures = {gone: missing, lost: missing, cut: unclear}
    outcomes = [Outcome(each, failure=failure) for each, failure in failures.items()]
    fleet.finish(fleet.claim(Stage.ROUTE), [*outcomes, Outcome(fine, (a_result(Stage.ROUTE),))])

    first, second = Statistics(engine).failures(fleet.run_id)

    assert (first.kind, first.count, first.stages) == ("media_missing", 2, (Stage.ROUTE,))
    assert (first.is_retryable, first.example) == (False, "no such file: 0.png")
    assert (second.kind, second.count, second.is_retryable) == ("bad_answer", 1, True)


def test_captions_with_the_same_grades_are_counted_together(engine: Engine) -> None:
    fleet = Fleet(engine, some_entries(3), domain="Natural", stages=(Stage.SUMMARIZE, Stage.SCORE))
    judged = [
        a_judgement(fleet, sample_id, overall, factual_accuracy=overall, professionalism=3)
        for sample_id, overall in zip(fleet.sample_ids(), (3, 1, 3), strict=True)
    ]
    fleet.finish(fleet.claim(Stage.SCORE), judged)

    grades = Statistics(engine).grades(fleet.run_id)

    assert sorted(grades, key=lambda each: each.overall) == [
        GradeCount("Natural", {"factual_accuracy": 1, "professionalism": 3}, 1, 1),
        GradeCount("Natural", {"factual_accuracy": 3, "professionalism": 3}, 3, 2),
    ]
    assert grade_histograms(grades) == {
        "factual_accuracy": {1: 1, 2: 0, 3: 2},
        "professionalism": {1: 0, 2: 0, 3: 3},
        "overall": {1: 1, 2: 0, 3: 2},
    }


def test_throughput_counts_only_recent_work(engine: Engine) -> None:
    fleet = Fleet(engine, some_entries(5), batch_size=2, domain="Natural")
    for batch_id in fleet.batch_ids:
        through_all(fleet, batch_id)
    for batch_id, seconds in zip(fleet.batch_ids, (7200, 20, 10), strict=True):
        finished_ago(engine, batch_id, seconds)
    statistics = Statistics(engine)

    by_hour = statistics.finished_by_time(fleet.run_id, 3600)
    latest = statistics.throughput(fleet.run_id, 120)

    first, last = min(by_hour), max(by_hour)
    assert (sum(by_hour.values()), by_hour[first]) == (5, 2)
    assert (last - first).total_seconds() in (7200, 3600)
    assert latest.samples == 3
    assert latest.seconds == pytest.approx(20.5, abs=2)
    assert latest.samples_per_second == pytest.approx(3 / latest.seconds)
    assert latest.tokens == Tokens(3 * 4600, 3 * (912 + 896), 3 * 200)


def test_a_run_without_a_sample_has_figures_too(engine: Engine) -> None:
    fleet = Fleet(engine, some_entries(1))
    empty = fleet.runs.open_run("empty", "/empty.jsonl", "/out", [Stage.ROUTE])
    statistics = Statistics(engine)

    questions = (statistics.usage, statistics.failures, statistics.grades)
    assert [question(empty) for question in questions] == [[]] * 3
    assert statistics.finished_by_time(empty) == {}
    assert (statistics.shards(empty), statistics.domains(empty)) == ([], [])
    assert statistics.prompt_economy(empty).minimum_per_sample is None
    assert statistics.throughput(empty, 60).samples_per_second == 0


def test_a_worker_that_is_silent_for_a_lease_is_not_alive(engine: Engine) -> None:
    fleet = Fleet(engine, some_entries(2), domain="Natural")
    workers = WorkerStore(engine)
    for owner in ("celery@a/1", "celery@b/1"):
        workers.beat(owner, [], LEASE_SECONDS)
    fleet.claim(Stage.PERCEIVE, owner="celery@b/1")
    workers.resign("celery@a/1")

    gone, here = Statistics(engine).workers(LEASE_SECONDS)

    assert (gone.node, gone.is_alive, gone.running_batches) == ("celery@a", False, 0)
    assert (here.node, here.is_alive, here.running_batches) == ("celery@b", True, 1)
    assert here.silent_seconds is not None
    assert here.silent_seconds < LEASE_SECONDS


def test_the_guard_is_counted_by_agent_worst_rule_and_outcome_over_all_windows(engine: Engine) -> None:
    fleet = Fleet(engine, some_entries(1), domain="Natural")
    (sample_id,) = fleet.sample_ids()
    tokens = {"prompt_tokens": 100, "cached_tokens": 60, "completion_tokens": 7}
    loop, both = ({"faults": faults, **tokens} for faults in ({"loop": "x"}, {"refusal": "I", "loop": "x"}))
    guards: dict[str, tuple[str, JsonObject | None]] = {
        "video@00:00:00-00:01:00": ("A car.", {"repairs": {"markup": "```"}, "attempts": [loop]}),
        "video@00:01:00-00:02:00": ("A dog.", {"attempts": [both, loop]}),
        "optional": ("", {"attempts": [loop, both]}),
        "clean": ("A cat.", None),
    }
    results = tuple(
        replace(a_result(Stage.PERCEIVE, agent), text=text, guard=guard)
        for agent, (text, guard) in guards.items()
    )
    fleet.finish(fleet.claim(Stage.PERCEIVE), [Outcome(sample_id, results)])

    found = {
        (each.agent, each.rule, each.outcome): (each.answers, each.tokens)
        for each in Statistics(engine).guard(fleet.run_id)
    }

    assert found == {
        ("video", Rule.MARKUP, GuardOutcome.REPAIRED): (1, Tokens()),
        ("video", Rule.LOOP, GuardOutcome.ASKED_AGAIN): (2, Tokens(200, 120, 14)),
        ("video", Rule.REFUSAL, GuardOutcome.ASKED_AGAIN): (1, Tokens(100, 60, 7)),
        ("optional", Rule.LOOP, GuardOutcome.ASKED_AGAIN): (1, Tokens(100, 60, 7)),
        ("optional", Rule.REFUSAL, GuardOutcome.LEFT_OUT): (1, Tokens(100, 60, 7)),
    }


def test_the_refused_answers_of_a_sample_that_failed_count_for_tokens_guard_and_time(engine: Engine) -> None:
    fleet = Fleet(engine, some_entries(1), domain="Natural")
    (sample_id,) = fleet.sample_ids()
    parsed = RefusedAnswer(
        Stage.PERCEIVE,
        "video@a",
        {Rule.LOOP: "x"},
        GuardOutcome.FAILED,
        "model",
        100,
        60,
        7,
        "stop",
        3,
        "worker",
    )
    unparsed = replace(parsed, faults={})
    failure = a_failure(Stage.PERCEIVE, AnswerLoop("on and on"))
    claim = fleet.claim(Stage.PERCEIVE)

    assert fleet.finish(claim, [Outcome(sample_id, failure=failure, refused=(parsed, unparsed))])
    assert not fleet.finish(claim, [Outcome(sample_id, failure=failure, refused=(parsed,))])

    statistics = Statistics(engine)
    (usage,) = statistics.usage(fleet.run_id)
    assert (usage.answers, usage.tokens, usage.seconds) == (0, Tokens(200, 120, 14), 6)
    assert usage.worked_seconds == pytest.approx(3)
    (counted,) = statistics.guard(fleet.run_id)
    assert (counted.agent, counted.rule, counted.outcome, counted.tokens) == (
        "video",
        Rule.LOOP,
        GuardOutcome.FAILED,
        Tokens(100, 60, 7),
    )


@pytest.mark.parametrize("how", ["retry", "edit", "prompts", "media"])
def test_answers_that_are_thrown_away_to_be_asked_again_still_count_for_tokens(
    engine: Engine, how: str
) -> None:
    fleet, store, statistics = (
        Fleet(engine, some_entries(2), domain="Natural"),
        AnswerStore(engine),
        Statistics(engine),
    )
    ids = fleet.sample_ids()
    fleet.finish_all()
    spent = total_tokens(statistics.usage(fleet.run_id))

    if how == "retry":
        fleet.runs.write_again(fleet.run_id, ids[:1])
    elif how == "edit":
        EditStore(engine).correct(fleet.batch_ids[0], {ids[0]: NewSample(0, {}, "Natural")}, Stage.PERCEIVE)
    elif how == "prompts":
        store.forget(fleet.run_id, store.answers(fleet.run_id), {}, {"Natural": Stage.PERCEIVE})
    else:
        store.forget_samples(ids)

    assert fleet.count("results") < 8
    assert total_tokens(statistics.usage(fleet.run_id)) == spent
    assert statistics.guard(fleet.run_id) == []


def test_claims_and_text_that_a_tool_has_read_are_no_prompts_of_the_sample(engine: Engine) -> None:
    fleet = Fleet(engine, some_entries(1), domain="Natural")
    (sample_id,) = fleet.sample_ids()
    for stage in CALLS:
        more: tuple[Result, ...] = ()
        if stage is Stage.PERCEIVE:
            more = (replace(a_result(stage, "recognized_text"), model="rapidocr", prompt_tokens=0),)
        elif stage is Stage.SUMMARIZE:
            more = (replace(a_call(stage), agent=VERIFIER, prompt_tokens=70_000, cached_tokens=60_000),)
        fleet.finish(fleet.claim(stage), [Outcome(sample_id, (a_call(stage), *more))])

    assert Statistics(engine).prompt_economy(fleet.run_id).minimum == 4600 - 3 * 912
