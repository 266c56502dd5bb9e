"""Arms compared by hand-made numbers: intervals, answers to questions, facts, and files with faults."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from capflow_tasks.captioning.conversation import Conversation
from capflow_tasks.domains.catalogue import load_catalogue, load_workflow
from capflow_tasks.domains.workflows import EXAM
from capflow_tasks.errors import UserError
from capflow_tasks.records import Completion, FinishedSample, JsonObject, Modality, Stage
from capflow_tasks.settings import Settings
from capflow_tasks.store.states import Claim, PendingSample
from producer.evaluation import questions
from producer.evaluation.arms import Arm, ArmSamples, parse_arm, parse_arms, with_model
from producer.evaluation.comparison import Comparison
from producer.evaluation.exam import Asked, domain_for
from producer.evaluation.measures import Bootstrap
from producer.evaluation.page import write_page
from producer.evaluation.questions import CANNOT_TELL, Answered, Media, Question
from producer.evaluation.samples import Drawn, draw, draw_asked, known_keys, write_plan
from producer.reading.caption_files import Criteria, Minimums, Rubrics
from producer.reading.plan import Plan, read_plan
from producer.scoring import given_result
from tests.datasets import draw_picture, entries_with_pictures, read_lines
from tests.datasets import write_plan as write_user_plan
from tests.stores import a_failure, a_result, a_shard

CATALOGUE = load_catalogue()
RUBRICS = Rubrics(CATALOGUE)
KEY = ("/data/0.png",)


def test_the_interval_of_a_share_is_that_of_the_binomial_distribution() -> None:
    parts = [(float(number % 2), 1.0) for number in range(400)]

    found = Bootstrap(400, seed=1).estimate(parts)

    # 1.96 standard errors of a share of one half among 400
    assert found is not None
    assert (found.value, found.low, found.high) == pytest.approx((0.5, 0.451, 0.549), abs=0.004)


def test_a_measure_is_a_ratio_of_sums_and_none_where_nothing_is_known() -> None:
    bootstrap = Bootstrap(3)

    found = bootstrap.estimate([(1, 1), (0, 3), (0, 0)])

    assert found is not None
    assert found.value == 1 / 4
    assert bootstrap.estimate([(0, 0)] * 3) is None
    assert bootstrap.difference([(0, 0)] * 3, [(1, 1)] * 3) is None


def test_differences_are_paired_so_that_what_samples_share_is_no_noise() -> None:
    # Samples differ by up to 100, and the second arm is always 1 better.
    first = [(float(number), 1.0) for number in range(100)]
    second = [(above + 1, below) for above, below in first]
    bootstrap = Bootstrap(100, seed=3)

    difference = bootstrap.difference(first, second)

    assert difference is not None
    assert (difference.value, difference.low, difference.high) == pytest.approx((1, 1, 1))
    assert difference.excludes_zero
    same = bootstrap.difference(first, first)
    assert same is not None
    assert not same.excludes_zero


def test_the_same_seed_gives_the_same_interval() -> None:
    parts = [(float(number % 7), 1.0) for number in range(50)]

    assert Bootstrap(50, seed=5).estimate(parts) == Bootstrap(50, seed=5).estimate(parts)
    assert Bootstrap(50, seed=5).estimate(parts) != Bootstrap(50, seed=6).estimate(parts)


def answered(chosen: str, *, is_fact: bool = False, answer: str = "red") -> Answered:
    question = Question(KEY, "Which colour?", ("red", "blue"), answer, is_fact)
    return Answered(question, {chosen: 0.6, "other": 0.4} if chosen else {})


def test_answers_are_right_wrong_or_untold() -> None:
    answers = [answered("red"), answered("red"), answered("blue"), answered(CANNOT_TELL), answered("")]

    assert questions.accuracy(answers) == (2, 5)
    assert questions.coverage(answers) == (3, 5)
    assert questions.cannot_tell(answers) == (2, 5)
    assert questions.right_of_answered(answers) == (2, 3)


def test_precision_counts_the_facts_that_a_caption_takes_a_side_on_and_recall_all() -> None:
    answers = [answered("true", answer="true"), answered("false", answer="true")]
    answers += [answered(CANNOT_TELL, answer="true")] * 2

    assert questions.precision(answers) == (1, 2)
    assert questions.recall(answers) == (1, 4)
    assert questions.precision(answers[2:]) == (0, 0)


GOOD = {"media": "0.png", "question": "Which?", "choices": ["red", "blue"], "answer": "red"}


def write(path: Path, lines: Sequence[Any]) -> Path:
    path.write_text("".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines))
    return path


def test_every_fault_of_a_question_file_is_reported_with_file_and_line(tmp_path: Path) -> None:
    without_answer = {key: value for key, value in GOOD.items() if key != "answer"}
    path = write(
        tmp_path / "asked.jsonl",
        [
            GOOD,
            without_answer,
            GOOD | {"choices": ["red"]},
            GOOD | {"answer": "green"},
            GOOD | {"media": "9.png"},
            GOOD | {"choices": ["red", "red"]},
            "no JSON",
            GOOD | {"media": 3},
        ],
    )

    with pytest.raises(UserError) as raised:
        questions.read_questions(path, Media({KEY}, ["/data"]))

    assert str(raised.value).splitlines() == [
        f'{path}:2: has no "answer"; write a text',
        f'{path}:3: "choices" are 1; write 2 to 25',
        f'{path}:4: "answer" "green" is not among the choices; write one of ["red", "blue"]',
        f'{path}:5: "media" "9.png" is no sample of the source; write its path as the source has it',
        f"{path}:6: \"choices\" hold one twice, or '{CANNOT_TELL}', which is added by itself; remove it",
        f"{path}:7: is not JSON at column 1: Expecting value; write one JSON object per line",
        f'{path}:8: "media" is no path or list of paths; write those of one sample',
    ]


def test_media_are_found_below_the_source_or_absolute_and_ambiguous_ones_are_refused(tmp_path: Path) -> None:
    media = Media({("/one/a.png",), ("/two/a.png",), ("/two/b.png",)}, ["/one", "/two"])

    assert media.find("b.png", tmp_path) == ("/two/b.png",)
    assert media.find("/one/a.png", tmp_path) == ("/one/a.png",)
    remote = Media({("s3://bucket/x/a.png",)}, ["s3://bucket/x"])
    assert remote.find("a.png", tmp_path) == remote.find("s3://bucket/x/a.png", tmp_path)
    with pytest.raises(ValueError, match="names 2 samples; write the absolute path"):
        media.find("a.png", tmp_path)


def test_each_fact_is_asked_once_as_a_statement(tmp_path: Path) -> None:
    path = write(tmp_path / "facts.jsonl", [{"media": "0.png", "facts": ["it is red", "it is red"]}])

    (found,) = questions.read_facts(path, Media({KEY}, ["/data"]))

    assert (found.text, found.choices, found.answer, found.is_fact) == (
        "Is this statement true? it is red",
        ("true", "false"),
        "true",
        True,
    )


def a_plan(folder: Path, entries: Sequence[Any]) -> Plan:
    return read_plan(write_user_plan(folder, entries, task="Natural"), CATALOGUE.resolve)


def test_a_seed_draws_the_same_samples_in_the_order_of_the_plan(tmp_path: Path) -> None:
    plan = a_plan(tmp_path, entries_with_pictures(tmp_path, 20))

    first, second = draw(plan, 5, 1), draw(plan, 5, 1)

    assert [each.entry["id"] for each in first] == sorted(each.entry["id"] for each in second)
    assert draw(plan, 5, 2) != first
    assert len(draw(plan, 99, 1)) == 20
    wanted = {each.key for each in first[:2]}
    assert {each.key for each in draw(plan, 9, 4, wanted)} == wanted
    again = read_plan(write_plan(first, tmp_path / "drawn"), CATALOGUE.resolve)
    assert read_lines(Path(again.shards[0].annotation)) == [each.entry for each in first]
    assert again.shards[0].task == "Natural"


def test_samples_that_were_drawn_before_there_were_questions_about_some_stay(tmp_path: Path) -> None:
    plan = a_plan(tmp_path, entries_with_pictures(tmp_path, 20))
    before = draw(plan, 5, 1)
    asked = {each.key for each in before[:2]}
    elsewhere = {each.key for each in draw(plan, 20, 1)} - {each.key for each in before}

    assert draw_asked(plan, 5, 1, asked, tmp_path / "drawn") == before[:2]
    write_plan(before, tmp_path / "drawn")
    assert draw_asked(plan, 5, 1, asked, tmp_path / "drawn") == before
    assert {each.key for each in draw_asked(plan, 20, 1, elsewhere, tmp_path / "drawn")} == elsewhere


def test_repeated_media_are_drawn_once_and_entries_without_media_never(tmp_path: Path) -> None:
    entries = entries_with_pictures(tmp_path, 1)
    plan = a_plan(tmp_path, [*entries, entries[0] | {"id": 7}, {"id": 8}])

    assert [each.entry["id"] for each in draw(plan, 9, 0)] == [0]
    assert known_keys(plan) == {(str(tmp_path / "media" / "0.png"),)}
    with pytest.raises(UserError, match="no sample to compare arms on"):
        draw(a_plan(tmp_path, [{"id": 8}]), 9, 0)


def test_an_arm_is_a_workflow_a_model_both_or_a_run(tmp_path: Path) -> None:
    assert parse_arm("fast") == Arm("fast", "fast")
    assert parse_arm("big=@/models/7B") == Arm("big", "standard", "/models/7B")
    assert parse_arm(f"mine={tmp_path}@m") == Arm("mine", str(tmp_path.resolve()), "m")
    assert parse_arm("old=run:plan-1234") == Arm("old", run="plan-1234")
    for wrong in ("a=", "=fast", "a=nowhere", "a b=fast"):
        with pytest.raises(UserError, match=re.escape(repr(wrong))):
            parse_arm(wrong)
    with pytest.raises(UserError, match="fast names two arms"):
        parse_arms(["fast", "fast=standard"])


def test_an_arm_with_another_prompt_or_model_is_another_run(tmp_path: Path) -> None:
    arm = Arm("mine", str(tmp_path))
    name = arm.run_name(tmp_path, Settings(model="a"))

    assert arm.run_name(tmp_path, Settings(model="a")) == name
    assert arm.run_name(tmp_path, Settings(model="b")) != name
    (tmp_path / "_defaults.yaml").write_text("agents: {judge: {sampling: {temperature: 0.5}}}\n")
    assert arm.run_name(tmp_path, Settings(model="a")) != name


def test_a_fleet_cannot_be_given_another_model(tmp_path: Path) -> None:
    settings = Settings(model="a", broker_url="redis://x")

    assert with_model(settings, "a", "arm x", "").model == "a"
    with pytest.raises(UserError, match="arm x: CAPFLOW_BROKER_URL"):
        with_model(settings, "b", "arm x", "use a run")
    assert with_model(Settings(model="a"), "b", "arm x", "").model == "b"


def finished(grade: int, *, has_failed: bool = False) -> FinishedSample:
    grades = dict.fromkeys(("factual_accuracy", "information_completeness"), grade)
    rest = dict.fromkeys(("reasoning_rigor", "core_intent_capture", "professionalism"), 3)
    data = {**grades, **rest, "overall": grade}
    score = replace(a_result(Stage.SCORE, "judge", "{}"), data=data)
    failure = a_failure(Stage.SUMMARIZE) if has_failed else None
    results = (a_result(Stage.SUMMARIZE, text="a caption"), score)
    return FinishedSample(0, {"image": "0.png"}, "Natural", None, () if failure else results, failure, 1)


def compare(first: Sequence[FinishedSample], second: Sequence[FinishedSample], **answers: Any) -> Comparison:
    drawn = [
        Drawn((f"/data/{number}.png",), a_shard(9), {"image": f"{number}.png"})
        for number in range(len(first))
    ]
    keys = [each.key for each in drawn]
    arms = [
        ArmSamples(Arm(name, name), name, dict(zip(keys, samples, strict=False)), None)
        for name, samples in (("one", first), ("two", second))
    ]
    criteria = Criteria(RUBRICS, Minimums(3, 3))
    return Comparison(arms, drawn, answers, criteria)


def test_arms_are_compared_on_the_samples_that_both_have_finished() -> None:
    compared = compare([finished(3)] * 4 + [finished(1)], [finished(1)] * 3 + [finished(1, has_failed=True)])

    found = compared.as_json()

    assert (found["samples"], found["left_out"]) == (4, 1)
    one, two = (arm["measures"] for arm in found["arms"])
    assert (one["kept"]["value"], two["kept"]["value"]) == (1.0, 0.0)
    assert (one["failed"]["value"], two["failed"]["value"]) == (0.0, 0.25)
    assert (one["overall"]["value"], two["overall"]["value"]) == (3.0, 1.0)
    assert (one["tokens"]["value"], two["tokens"]["value"]) == (26.0, 19.5)
    assert two["grade_factual_accuracy"]["difference"] == {
        "value": -2.0,
        "low": -2.0,
        "high": -2.0,
        "is_more_than_chance": True,
    }
    assert found["verdicts"] == [
        "two against one, overall: 1.00 against 3.00, a difference of -2.00 (-2.00 to -2.00), "
        "which is more than chance."
    ]
    assert compared.caution == "4 samples: with fewer than 30 the intervals are too narrow"


def test_what_questions_come_to_is_said_first_and_by_domain() -> None:
    keys = [(f"/data/{number}.png",) for number in range(2)]
    right, wrong = answered("red"), answered("blue")
    answers = {
        "one": {keys[0]: [right, right], keys[1]: [wrong]},
        "two": {keys[0]: [wrong, right], keys[1]: [wrong]},
    }

    compared = compare([finished(3)] * 2, [finished(3)] * 2, **answers)

    assert compared.headlines[0].measure.name == "question_accuracy"
    assert compared.estimates["one"]["question_accuracy"].value == 2 / 3
    assert compared.by_domain()["Natural"]["two"]["question_accuracy"] == 1 / 3
    assert "no more than chance may give" in str(compared.headlines[0])


def test_a_caption_that_is_an_object_is_measured_and_shown_as_json(tmp_path: Path) -> None:
    sample = finished(3)
    checks = {"kept": 1, "unsure": 1, "dropped": 0}
    caption = replace(sample.results[0], text='{"colour":"red"}', data={"colour": "red"}, checks=checks)
    compared = compare([replace(sample, results=(caption, sample.results[1]))] * 2, [sample] * 2)

    page = write_page(compared, tmp_path / "page", 1).read_text()

    assert "{&#34;colour&#34;: &#34;red&#34;}" in page
    assert compared.estimates["one"]["claim_support"].value == 0.5


def test_questions_about_a_domain_that_only_an_arm_has_are_answered_in_one_of_its_modality() -> None:
    def answering(domain: str, entry: JsonObject) -> str:
        sample = Drawn(KEY, a_shard(1), entry)
        return domain_for(EXAM_CATALOGUE, Asked(answered("red").question, sample, "A red ball.", domain))

    assert answering("Natural", {"image": "0.png"}) == "Natural"
    for entry, modality in (({"image": "0.png"}, Modality.IMAGE), ({"video": "0.mp4"}, Modality.VIDEO)):
        assert EXAM_CATALOGUE.resolve(answering("Paintings", entry)).modality is modality


def test_arms_without_a_common_sample_are_refused() -> None:
    with pytest.raises(UserError, match="one has 1, two has 0"):
        compare([finished(3)], [])


EXAM_CATALOGUE = load_workflow(EXAM)
ASKED = {"image": "a.png", "question": "Which colour?", "choices": ["red", "blue", CANNOT_TELL]}


def talk(root: Path, stage: Stage, entry: JsonObject) -> Conversation:
    draw_picture(root / "a.png", 1)
    claim = Claim(1, stage, 1, 1, "worker", 0, 1, "set", str(root), Modality.IMAGE, 1, tuple(Stage), 0)
    captioner = EXAM_CATALOGUE.resolve("Natural").captioner.name
    caption = given_result(Stage.SUMMARIZE, captioner, "A red ball. </caption>")
    sample = PendingSample(1, 0, entry, "Natural", (caption,) if stage is Stage.SCORE else ())
    return Conversation(claim, sample, EXAM_CATALOGUE, "model")


def test_a_question_is_answered_by_one_letter_from_the_caption_alone(tmp_path: Path) -> None:
    conversation = talk(tmp_path, Stage.SCORE, ASKED)
    (call,) = conversation.calls()

    assert (call.request.media, call.request.choices) == ((), ("A", "B", "C"))
    assert "A red ball. </caption>\n</caption-2>" in call.request.instruction
    assert f"Which colour?\n\nA. red\nB. blue\nC. {CANNOT_TELL}" in call.request.instruction
    shares = {"A": 0.7, "B": 0.1, "C": 0.2}
    conversation.take(call.agent, Completion("A", 10, 5, 1, "stop", 0.5, probabilities=shares))
    (result,) = conversation.outcome().results
    assert (result.data, result.expected) == (None, shares)


def test_a_sample_without_choices_fails_and_does_not_stop_the_others(tmp_path: Path) -> None:
    conversation = talk(tmp_path, Stage.SCORE, ASKED | {"choices": ["red"]})

    assert conversation.calls() == []
    failure = conversation.outcome().failure
    assert failure is not None
    assert (failure.kind, failure.is_retryable) == ("bad_entry", False)


def test_questions_are_written_by_a_schema_and_kept_as_data(tmp_path: Path) -> None:
    conversation = talk(tmp_path, Stage.PERCEIVE, {"image": "a.png"})
    (call,) = conversation.calls()
    written = {"questions": [{"question": "q", "right": "a", "wrong": ["b", "c", "d"]}]}

    assert call.request.schema is not None
    assert len(call.request.media) == 1
    conversation.take(call.agent, Completion(json.dumps(written), 10, 5, 9, "stop", 0.5))
    assert conversation.outcome().results[0].data == written


def test_questions_that_break_off_are_asked_for_again(tmp_path: Path) -> None:
    conversation = talk(tmp_path, Stage.PERCEIVE, {"image": "a.png"})
    (call,) = conversation.calls()

    conversation.take(call.agent, Completion('{"questions": [{"question": "q"}]}', 10, 5, 9, "length", 0.5))

    assert conversation.outcome().results == ()
    assert [call.agent.name for call in conversation.calls()] == ["question_writer"]


def test_the_page_shows_all_samples_escaped_those_that_differ_most_first(tmp_path: Path) -> None:
    keys = [(f"/data/{number}.png",) for number in range(2)]
    right, wrong = answered("red"), answered("blue")
    answers = {"one": {keys[0]: [right], keys[1]: [right]}, "two": {keys[0]: [right], keys[1]: [wrong]}}
    sample = finished(3)
    shouting = replace(sample, results=(a_result(Stage.SUMMARIZE, text="<b>bold</b>"), sample.results[1]))

    page = write_page(compare([shouting] * 2, [sample] * 2, **answers), tmp_path / "page", 1).read_text()

    assert "&lt;b&gt;bold&lt;/b&gt;" in page
    assert page.index("<h3>1.png") < page.index("<h3>0.png")
    assert (page.count('<td class="right"'), page.count('<td class="wrong"')) == (3, 1)
    assert "<script" not in page
