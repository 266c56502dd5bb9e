"""What is scored, what the judge sees of it, and what is written: all of capflow-score but the services."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from threading import Event
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from capflow_tasks.captioning.conversation import Conversation
from capflow_tasks.domains.catalogue import Catalogue, load_catalogue
from capflow_tasks.domains.prompts import instruction_for
from capflow_tasks.errors import BadEntry, UserError
from capflow_tasks.records import Failure, FinishedSample, JsonObject, Modality, PlanShard, Result, Stage
from capflow_tasks.settings import Settings
from capflow_tasks.store.states import Claim, NewSample, PendingSample
from producer import scoring
from producer.reading import caption_files
from producer.reading.caption_files import CaptionLine, Rubrics, read_captions
from producer.scoring import caption_of, sample_of
from producer.summary import ScoreSummary, exit_code
from producer.writing.captions import caption_record
from tests.datasets import draw_picture, read_lines
from tests.stores import a_result

CATALOGUE = load_catalogue()
RUBRICS = Rubrics(CATALOGUE)
IMAGE = (
    "factual_accuracy",
    "information_completeness",
    "reasoning_rigor",
    "core_intent_capture",
    "professionalism",
)
NAME = "Rank0_node0_set.jsonl"

quietly = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def a_record(number: int = 0, **changes: Any) -> JsonObject:
    return {
        "id": number,
        "image": f"{number}.png",
        "task": "Natural",
        "caption": f"Käfer {number}.",
        **changes,
    }


def graded(record: JsonObject, grade: int = 3) -> JsonObject:
    return record | {"scores": dict.fromkeys(IMAGE, grade), "overall": grade}


def a_file(folder: Path, *lines: JsonObject | str, task: str | None = None) -> PlanShard:
    path = folder / NAME
    texts = [line if isinstance(line, str) else json.dumps(line, ensure_ascii=False) for line in lines]
    path.write_text("".join(f"{text}\n" for text in texts), "utf-8")
    return scoring.shard_of(path, folder, task)


def scored_of(file: PlanShard) -> Path:
    return caption_files.scored_beside(Path(file.annotation))


def failed_of(file: PlanShard) -> Path:
    return scored_of(file).with_suffix(".failed.jsonl")


def unscored_lines(file: PlanShard) -> Iterator[tuple[CaptionLine, str]]:
    return scoring.unscored_lines(file, Path(file.root), RUBRICS)


def survey(file: PlanShard) -> PlanShard:
    return scoring.survey(CATALOGUE, Path(file.root), file)


def publish(file: PlanShard, answers: Iterable[FinishedSample]) -> ScoreSummary:
    return scoring.publish(file, Path(file.root), answers, RUBRICS, ScoreSummary("run"))


def sampled(
    record: JsonObject | None, task: str | None = None, catalogue: Catalogue = CATALOGUE
) -> NewSample:
    line = CaptionLine(7, b"", record, None if record is not None else "is not JSON")
    return sample_of(catalogue, scoring.shard_of(Path(NAME), None, task), 6, line, "")


def finished(file: PlanShard, failures: Mapping[int, str] | None = None) -> Iterator[FinishedSample]:
    """As the database gives them back: what has no scores, judged, or failed as named by its line."""
    grades = {**dict.fromkeys(IMAGE, 2), "overall": 2}
    for index, (line, identity) in enumerate(list(unscored_lines(file))):
        reason = (failures or {}).get(line.number)
        entry = sample_of(CATALOGUE, file, index, line, identity).entry
        failure = Failure(Stage.SCORE, "media_missing", reason, False) if reason else None
        result = Result(Stage.SCORE, "judge", "", grades, "m", "w", 1, 1, 1, "stop", 0.1, "worker")
        yield FinishedSample(index, entry, "Natural", 0.8, (result,), failure, 1)


def score(file: PlanShard, failures: Mapping[int, str] | None = None) -> ScoreSummary:
    return publish(file, finished(file, failures))


@pytest.mark.parametrize(
    ("record", "caption"),
    [
        ({"caption": " A dog. "}, "A dog."),
        ({"conversations": [{"from": "gpt", "value": "First."}, {"from": "gpt", "value": "Last."}]}, "Last."),
        ({"caption": "Ours.", "conversations": [{"from": "gpt", "value": "Theirs."}]}, "Ours."),
    ],
)
def test_the_caption_is_the_callers_or_the_last_turn_of_gpt(record: JsonObject, caption: str) -> None:
    assert caption_of(record) == caption


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({}, 'neither "caption" nor a "gpt" turn'),
        ({"conversations": [{"from": "human", "value": "<image>"}, "gpt"]}, 'neither "caption" nor'),
        ({"conversations": [{"from": "gpt"}]}, 'the last "gpt" turn is null'),
        ({"caption": 5}, '"caption" is a number'),
        ({"caption": "\u200b \n", "conversations": [{"from": "gpt", "value": "x"}]}, '"caption" is empty'),
    ],
)
def test_a_record_without_a_caption_says_so(record: JsonObject, reason: str) -> None:
    with pytest.raises(BadEntry, match=reason):
        caption_of(record)


def test_the_judge_sees_what_it_sees_when_the_caption_is_made_here(tmp_path: Path) -> None:
    draw_picture(tmp_path / "0.png", 0)
    made = (
        a_result(Stage.PERCEIVE, "natural", "Six legs."),
        a_result(Stage.SUMMARIZE, "general_summary", "A <|im_end|> beetle."),
    )
    entry = {"id": 0, "image": "0.png"}
    record = caption_record(FinishedSample(0, entry, "Natural", 0.9, made, None, 1))

    def requests(entry: JsonObject, results: tuple[Result, ...]) -> list[Any]:
        claim = Claim(1, Stage.SCORE, 1, 1, "worker", 0, 1, "set", str(tmp_path), Modality.IMAGE, 1, (), 0)
        sample = PendingSample(1, 0, entry, "Natural", results)
        return [call.request for call in Conversation(claim, sample, CATALOGUE, "model").calls()]

    given = sampled(record)

    assert given.domain == "Natural"
    assert requests(given.entry, given.results) == requests(entry, made) != []


def test_a_judge_that_asks_for_reports_gets_them(tmp_path: Path) -> None:
    domain = (
        "name: Pottery\ndescription: pots\nagents:\n  visual_guideline:\n  natural:\n  general_summary:\n"
        "  judge: {sees: [natural], prompt: '$caption $reports $dimensions'}\n"
    )
    (tmp_path / "pottery.yaml").write_text(domain)
    catalogue = load_catalogue(tmp_path)
    record = a_record(
        task="Pottery", reports={"natural": {"kind": "a pot"}, "visual_guideline": "style", "natural@x": 3}
    )

    sample = sampled(record, catalogue=catalogue)

    said = [(result.stage, result.agent, result.text) for result in sample.results]
    assert said == [
        ("summarize", "general_summary", "Käfer 0."),
        ("perceive", "natural", '{"kind": "a pot"}'),
    ]
    judge = catalogue.resolve("Pottery").agents_of(Stage.SCORE)[-1]
    heard = {result.agent: result.text for result in sample.results}
    assert "a pot" in instruction_for(judge, catalogue.resolve("Pottery"), heard)


def test_a_record_without_a_task_is_routed_unless_its_file_or_its_media_tell() -> None:
    untold = {key: value for key, value in a_record().items() if key != "task"}

    assert sampled(untold).domain is None
    assert sampled(untold, task="Natural").domain == "Natural"
    assert sampled(untold | {"task": "chart & math"}, task="Natural").domain == "Structure & Math"
    assert sampled({"video": "a.mp4", "caption": "x"}).domain == "Video & Temporal"


@pytest.mark.parametrize(
    "record",
    [
        None,
        a_record(caption=""),
        {"caption": "x"},
        a_record(task="Cooking"),
        a_record(note="\0"),
        a_record(image=3),
    ],
)
def test_a_line_that_cannot_be_scored_is_a_failed_sample_in_its_place(record: JsonObject | None) -> None:
    sample = sampled(record)

    assert sample.idx == 6
    assert sample.failure is not None
    assert (sample.failure.stage, sample.failure.kind) == (Stage.SCORE, "bad_entry")
    assert sample.failure.message


def test_valid_scores_stay_as_they_are_and_all_others_are_to_be_given(tmp_path: Path) -> None:
    oddly_written = json.dumps(graded(a_record(1)), indent=None, separators=(" ,", ":"))
    file = a_file(
        tmp_path,
        graded(a_record(0), grade=4),
        oddly_written,
        "{broken",
        a_record(3),
        graded(a_record(4)) | {"overall": None},
    )

    found = survey(file)
    grades = score(file, {3: "is not JSON"})

    assert found.sample_count == 4
    assert (grades.known, grades.scored, grades.failed) == (1, 3, 1)
    lines = scored_of(file).read_text("utf-8").splitlines()
    assert lines[1] == oddly_written
    assert [json.loads(line)["id"] for line in lines] == [0, 1, 3, 4]
    assert [json.loads(line)["overall"] for line in lines] == [2, 3, 2, 2]
    assert lines[2] == json.dumps(
        graded(a_record(3), grade=2) | {"errors": [], "expected_scores": None}, ensure_ascii=False
    )
    (failed,) = read_lines(failed_of(file))
    assert failed["line"] == "{broken"
    assert (failed["error"]["line_number"], failed["error"]["message"]) == (3, "is not JSON")
    assert grades.means(["Natural"])["factual_accuracy"] == pytest.approx(9 / 4)


def test_a_domain_that_was_found_is_written_and_one_that_was_given_is_left(tmp_path: Path) -> None:
    file = a_file(tmp_path, {"image": "0.png", "caption": "x", "task": ""}, a_record(1, task="NATURAL"))

    score(file)

    first, second = read_lines(scored_of(file))
    assert list(first) == [
        "image",
        "caption",
        "task",
        "confidence",
        "scores",
        "overall",
        "errors",
        "expected_scores",
    ]
    assert (first["task"], first["confidence"]) == ("Natural", 0.8)
    assert second["task"] == "NATURAL"
    assert "confidence" not in second


def test_what_was_published_is_known_wherever_the_record_stands_by_then(tmp_path: Path) -> None:
    score(a_file(tmp_path, a_record(0), a_record(1), a_record(2)))
    before = read_lines(tmp_path / "Rank0_node0_set.scored.jsonl")
    file = a_file(
        tmp_path,
        a_record(2),
        a_record(1, caption="Another."),
        a_record(0),
        a_record(3),
        a_record(0, task="UI"),
    )

    assert [line.number for line, _ in unscored_lines(file)] == [2, 4, 5]
    score(file)
    after = read_lines(scored_of(file))
    assert [after[0], after[2]] == [before[2], before[0]]


def test_records_that_differ_in_their_task_alone_are_scored_each(tmp_path: Path) -> None:
    file = a_file(tmp_path, a_record(0), a_record(0, task="UI"))
    score(file, {2: "gone"})

    assert [record["task"] for record in read_lines(scored_of(file))] == ["Natural"]
    assert [record["task"] for record in read_lines(failed_of(file))] == ["UI"]
    assert [line.number for line, _ in unscored_lines(file)] == [2]


def test_publishing_again_changes_nothing(tmp_path: Path) -> None:
    file = a_file(tmp_path, a_record(0), a_record(1), a_record(2), "{")
    score(file, {2: "gone", 4: "broken"})
    first = scored_of(file).read_bytes(), failed_of(file).read_bytes()

    grades = score(file, {2: "gone", 4: "broken"})

    assert (scored_of(file).read_bytes(), failed_of(file).read_bytes()) == first
    assert (grades.known, grades.scored, grades.failed) == (2, 0, 2)
    assert grades.failures == [
        f"{file.annotation}:2: media_missing: gone",
        f"{file.annotation}:4: media_missing: broken",
    ]


def test_no_failed_file_is_left_when_nothing_fails_any_more(tmp_path: Path) -> None:
    file = a_file(tmp_path, a_record(0))
    score(file, {1: "gone"})
    assert failed_of(file).exists()

    score(file)

    assert not failed_of(file).exists()
    assert len(read_lines(scored_of(file))) == 1


def test_only_what_is_yet_to_be_scored_makes_another_version(tmp_path: Path) -> None:
    def version(*lines: JsonObject | str) -> str:
        return survey(a_file(tmp_path, *lines)).version

    first = version(a_record(0), graded(a_record(1)))

    assert version(a_record(0), graded(a_record(1), grade=1), "") == first
    assert version(a_record(0, caption="Other."), graded(a_record(1))) != first
    assert version(graded(a_record(1)), a_record(0)) == first


@pytest.mark.parametrize(
    ("lines", "published", "left"),
    [
        ([a_record(0), a_record(5), a_record(2)], [0, 2], "1 line has"),
        ([a_record(0), a_record(1), a_record(2), "{", a_record(4)], [0, 1, 2], "2 lines have"),
        ([a_record(9), a_record(1)], [1], "1 line has"),
        ([a_record(0)], [0], None),
    ],
)
def test_what_changes_meanwhile_is_left_to_the_next_run_and_nothing_else_is(
    tmp_path: Path, lines: list[JsonObject | str], published: list[int], left: str | None
) -> None:
    answers = list(finished(a_file(tmp_path, a_record(0), a_record(1), a_record(2))))
    file = a_file(tmp_path, *lines)

    grades = publish(file, answers)

    remedy = f"{file.annotation}: {left} changed since they were sent; run the command again"
    assert grades.problems == ([remedy] if left else [])
    assert [record["id"] for record in read_lines(scored_of(file))] == published
    assert survey(file).sample_count == len(lines) - len(published)


def test_a_scored_file_takes_the_place_of_the_one_it_was_made_from(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("Rank0_node0_a", "Rank0_node0_a.scored", "Rank0_node0_a.scored.failed", "Rank1_node0_b"):
        (tmp_path / f"{name}.jsonl").touch()
    (tmp_path / "Rank2_node0_moved.scored.jsonl").touch()

    found = [path.name for path in caption_files.find(tmp_path)]

    assert found == ["Rank0_node0_a.scored.jsonl", "Rank1_node0_b.jsonl", "Rank2_node0_moved.scored.jsonl"]
    assert [path.name for path in caption_files.find(tmp_path, unscored=True)] == [
        "Rank0_node0_a.jsonl",
        "Rank1_node0_b.jsonl",
    ]
    assert not caplog.messages

    os.utime(tmp_path / "Rank0_node0_a.jsonl", (2e9, 2e9))

    assert [path.name for path in caption_files.find(tmp_path)] == found
    (warning,) = caplog.messages
    assert "Rank0_node0_a.jsonl has changed since it was scored; run capflow score again" in warning


@pytest.mark.parametrize(
    ("is_complete", "problems", "failed", "code"),
    [(True, [], 0, 0), (True, [], 1, 1), (True, ["changed"], 1, 2), (False, [], 0, 130)],
)
def test_the_exit_code_tells_how_it_ended(
    is_complete: bool, problems: list[str], failed: int, code: int
) -> None:
    assert exit_code(ScoreSummary("run", is_complete, problems, failed=failed)) == code


ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-1, 4) | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda children: (
        st.lists(children, max_size=3)
        | st.dictionaries(st.sampled_from(["from", "value", "natural", "overall", *IMAGE]), children)
    ),
    max_leaves=8,
)
RECORDS = st.dictionaries(
    st.sampled_from(["image", "video", "caption", "conversations", "reports", "task", "scores", "overall"]),
    ANY_JSON
    | st.sampled_from(["a.png", "Natural", [{"from": "gpt", "value": "x"}], dict.fromkeys(IMAGE, 3)]),
)


@quietly
@given(record=RECORDS, task=st.sampled_from([None, "Natural"]))
def test_any_record_becomes_a_sample_with_a_caption_or_with_a_reason(
    record: JsonObject, task: str | None
) -> None:
    sample = sampled(record, task)

    captions = [result.text for result in sample.results if result.stage is Stage.SUMMARIZE]
    assert (sample.failure is None) == bool(captions)
    assert all(caption.strip() for caption in captions)


@quietly
@given(
    contents=st.lists(
        st.binary(max_size=60) | RECORDS.map(lambda record: json.dumps(record).encode()), max_size=5
    )
)
def test_every_line_of_any_file_is_published_once(tmp_path: Path, contents: list[bytes]) -> None:
    file = a_file(tmp_path)
    for leftover in (scored_of(file), failed_of(file)):
        leftover.unlink(missing_ok=True)
    Path(file.annotation).write_bytes(b"\n".join(contents))
    lines = list(read_captions(Path(file.annotation)))
    unusable = {
        line.number: "unusable"
        for line, identity in unscored_lines(file)
        if sample_of(CATALOGUE, file, 0, line, identity).failure is not None
    }

    grades = score(file, unusable)

    assert grades.known + grades.scored + grades.failed == len(lines)
    written = [path.read_bytes().count(b"\n") for path in (scored_of(file), failed_of(file)) if path.exists()]
    assert sum(written) == len(lines)
    again = score(file, unusable)
    assert (again.known, again.scored, again.failed) == (grades.known + grades.scored, 0, grades.failed)


def test_scored_files_of_others_are_never_replaced(tmp_path: Path) -> None:
    file = a_file(tmp_path, graded(a_record()))
    theirs = scored_of(file)
    theirs.write_text("by a script\n")

    def score_folder(*, overwrites: bool = False) -> ScoreSummary:
        run = scoring.ScoreRun(
            tmp_path, Settings(), root=None, plan=None, output=None, processes=1, overwrites=overwrites
        )
        return run.run(Event(), None, 8, None)

    with pytest.raises(UserError, match=f"{theirs.name}: was not written by this run; choose another"):
        score_folder()
    assert theirs.read_text() == "by a script\n"
    assert score_folder(overwrites=True).tally.done == 1
    assert score_folder().tally.done == 1
    assert theirs.read_bytes() == Path(file.annotation).read_bytes()
