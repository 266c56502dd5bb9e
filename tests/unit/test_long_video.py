"""One sample that is a long video, through all stages: who is asked about which part, and who hears what."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from capflow_tasks.captioning.conversation import Call, Conversation
from capflow_tasks.domains.catalogue import Catalogue, load_catalogue
from capflow_tasks.errors import MediaCorrupt, MediaUnreadable, SampleError
from capflow_tasks.media import player
from capflow_tasks.media.budget import MediaBudget
from capflow_tasks.media.player import VideoFacts
from capflow_tasks.media.video import VideoReader, Windows
from capflow_tasks.records import Completion, Modality, Result, Stage
from capflow_tasks.store.states import Claim, PendingSample
from capflow_tasks.testing import ScriptedEngine

CLAIM = Claim(
    batch_id=1,
    stage=Stage.PERCEIVE,
    attempt=1,
    tries=1,
    owner="worker",
    start_idx=0,
    end_idx=1,
    dataset="films",
    root="",
    modality=Modality.VIDEO,
    run_id=1,
    stages=tuple(Stage),
    min_confidence=0,
)
REPORTS = ["video@00:00:00-00:02:08", "video@00:02:08-00:04:16", "video@00:04:16-00:05:20"]


class Opened:
    """Measures every file as one of so many seconds, or fails; counts."""

    play = staticmethod(player.play)

    def __init__(self, seconds: float = 0, error: SampleError | None = None) -> None:
        self.seconds, self.error, self.paths = seconds, error, list[str]()

    def measure(self, path: str, budget: MediaBudget) -> VideoFacts:
        self.paths.append(path)
        if self.error:
            raise self.error
        return VideoFacts(round(self.seconds * 25), 0.0, self.seconds, 640, 480)


Begin = Callable[..., Conversation]


@pytest.fixture(scope="module")
def catalogue() -> Catalogue:
    return load_catalogue(None)


@pytest.fixture
def begin(tmp_path: Path, catalogue: Catalogue) -> Begin:
    (tmp_path / "film.mp4").touch()
    (tmp_path / "poster.png").touch()

    def begin(
        reader: VideoReader,
        stage: Stage = Stage.PERCEIVE,
        results: tuple[Result, ...] = (),
        entry: dict[str, object] | None = None,
        workflow: Catalogue = catalogue,
    ) -> Conversation:
        sample = PendingSample(7, 0, entry or {"video": "film.mp4"}, "Video & Temporal", results)
        claim = replace(CLAIM, stage=stage, root=str(tmp_path))
        return Conversation(claim, sample, workflow, "scripted", Windows(MediaBudget(), reader))

    return begin


def by_name(calls: list[Call]) -> dict[str, Call]:
    return {call.agent.name: call for call in calls}


def answer_all(conversation: Conversation) -> tuple[Result, ...]:
    engine = ScriptedEngine()
    while calls := conversation.calls():
        for call, answer in zip(calls, engine.generate([call.request for call in calls]), strict=True):
            conversation.take(call.agent, answer)
    outcome = conversation.outcome()
    assert outcome.failure is None
    return outcome.results


def test_each_window_is_asked_about_by_itself_and_the_overview_about_the_whole(begin: Begin) -> None:
    calls = by_name(begin(Opened(320)).calls())
    assert list(calls) == ["video_guideline", *REPORTS]
    assert calls["video_guideline"].request.media[0].span is None
    for name in REPORTS:
        (ref,) = calls[name].request.media
        assert f"video@{ref.span}" == name
    instruction = calls[REPORTS[1]].request.instruction
    assert "part 2 of 3 of a longer video, from 00:02:08 to 00:04:16 of 00:05:20" in instruction
    assert {call.agent.digest for name, call in calls.items() if name in REPORTS} == {
        calls[REPORTS[0]].agent.digest
    }


def test_a_short_video_is_one_window_under_the_agents_own_name(begin: Begin) -> None:
    calls = by_name(begin(Opened(60)).calls())
    assert list(calls) == ["video_guideline", "video"]
    assert calls["video"].request.media == calls["video_guideline"].request.media
    assert "What you see is the whole video." in calls["video"].request.instruction


def test_a_file_is_looked_at_once_and_only_where_it_is_cut(begin: Begin) -> None:
    opened = Opened(320)
    results = answer_all(begin(opened))
    assert len(opened.paths) == 1
    for stage in (Stage.REASON, Stage.SUMMARIZE, Stage.SCORE):
        results += answer_all(begin(opened, stage, results))
    assert len(opened.paths) == 1


def test_only_the_windows_that_are_missing_are_asked_about_again(begin: Begin) -> None:
    results = answer_all(begin(Opened(320)))
    kept = tuple(result for result in results if result.agent != REPORTS[1])
    assert list(by_name(begin(Opened(320), results=kept).calls())) == [REPORTS[1]]
    assert begin(Opened(320), results=results).calls() == []


def test_what_was_said_of_the_whole_before_windows_were_made_smaller_is_kept(begin: Begin) -> None:
    results = answer_all(begin(Opened(60)))
    assert begin(Opened(320), results=results).calls() == []


@pytest.mark.parametrize("stage", [Stage.REASON, Stage.SUMMARIZE])
def test_later_agents_read_all_windows_in_the_order_of_time_with_their_times(
    begin: Begin, stage: Stage
) -> None:
    results = answer_all(begin(Opened(320)))
    (call,) = begin(Opened(320), stage, tuple(reversed(results))).calls()
    instruction = call.request.instruction
    places = [instruction.index(f'<report from="video" time="{name[6:]}">') for name in REPORTS]
    assert places == sorted(places)
    said = {result.agent: result.text for result in results}
    assert all(f"{said[name]}\n</report>" in instruction for name in REPORTS)
    assert call.request.media[0].span is None


def test_hours_beyond_99_come_last(begin: Begin) -> None:
    names = ["video@100:00:00-101:00:00", "video@99:00:00-100:00:00", "video@00:00:02-00:00:02.500"]
    first = answer_all(begin(Opened(60)))[0]
    results = tuple(replace(first, agent=name) for name in names)
    (call,) = begin(Opened(60), Stage.REASON, results).calls()
    places = [call.request.instruction.index(f'time="{name[6:]}"') for name in reversed(names)]
    assert places == sorted(places)


def test_other_media_of_the_sample_go_along_with_every_window(begin: Begin) -> None:
    calls = begin(Opened(320), entry={"video": "film.mp4", "image": "poster.png"}).calls()
    assert len(calls) == 4
    for call in calls:
        assert [ref.kind for ref in call.request.media] == [Modality.VIDEO, Modality.IMAGE]
        assert call.request.media[1].span is None


def test_a_damaged_video_is_left_to_the_engine_to_tell(begin: Begin) -> None:
    assert list(by_name(begin(Opened(error=MediaCorrupt())).calls())) == ["video_guideline", "video"]


def test_a_disk_that_fails_fails_the_sample_for_another_try(begin: Begin) -> None:
    conversation = begin(Opened(error=MediaUnreadable()))
    assert conversation.calls() == []
    failure = conversation.outcome().failure
    assert failure is not None
    assert (failure.kind, failure.is_retryable) == ("media_unreadable", True)


def test_one_window_that_fails_keeps_the_others(begin: Begin) -> None:
    conversation = begin(Opened(320))
    *good, bad = conversation.calls()
    for call in good:
        conversation.take(call.agent, Completion("Seen.", 9, 0, 1, "stop", 0.1))
    conversation.take(bad.agent, MediaCorrupt("film.mp4 crashed the decoder (SIGSEGV)."))
    outcome = conversation.outcome()
    assert outcome.failure is not None
    assert [result.agent for result in outcome.results] == ["video_guideline", *REPORTS[:2]]


@pytest.fixture
def two_stages(tmp_path: Path) -> Catalogue:
    """The overlay that docs/how-to/caption-videos.md shows."""
    text = (Path(__file__).parents[2] / "docs" / "how-to" / "caption-videos.md").read_text("utf-8")
    overlay = next(block for block in text.split("```yaml\n")[1:] if "video_summary_refined" in block)
    folder = tmp_path / "domains"
    folder.mkdir()
    (folder / "video.yaml").write_text(overlay.partition("```")[0])
    return load_catalogue(folder)


def test_with_two_stages_the_refiner_sees_the_video_and_the_first_caption_and_has_the_last_word(
    begin: Begin, two_stages: Catalogue
) -> None:
    conversation = begin(Opened(60), Stage.SUMMARIZE, workflow=two_stages)
    (first,) = conversation.calls()
    conversation.take(first.agent, Completion("A first caption.", 9, 0, 1, "stop", 0.1))
    (second,) = conversation.calls()
    assert second.agent is two_stages.for_video().captioner
    assert second.request.media == first.request.media
    assert "A first caption." in second.request.instruction
    conversation.take(second.agent, Completion("A better caption.", 9, 0, 1, "stop", 0.1))
    results = conversation.outcome().results
    # as they come out of the database, by name
    assert sorted(result.agent for result in results)[-1] == second.agent.name
    (judge,) = begin(Opened(60), Stage.SCORE, results, workflow=two_stages).calls()
    assert "A better caption." in judge.request.instruction
    assert "A first caption." not in judge.request.instruction
