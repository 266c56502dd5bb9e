"""Where a long video is cut."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as some

from capflow_tasks.errors import MediaCorrupt, MediaUnreadable, SampleError
from capflow_tasks.media.player import VideoFacts
from capflow_tasks.media.video import WindowRule, Windows
from capflow_tasks.records import MediaLimits, Span


def facts(seconds: float, fps: float = 25.0) -> VideoFacts:
    return VideoFacts(max(1, round(seconds * fps)), 0.0, seconds, 640, 480)


def cut(seconds: float, fps: float = 25.0, **rule: float) -> list[str]:
    return [str(span) for span in WindowRule(**rule).cut(facts(seconds, fps))]  # type: ignore[arg-type]


def test_windows_hold_256_frames_taken_twice_a_second() -> None:
    assert cut(300) == ["00:00:00-00:02:08", "00:02:08-00:05:00"]
    assert cut(320) == ["00:00:00-00:02:08", "00:02:08-00:04:16", "00:04:16-00:05:20"]
    assert cut(320.25)[-1] == "00:04:16-00:05:20.250"


@pytest.mark.parametrize("seconds", [0.04, 1.9, 12, 128, 191.4])
def test_a_short_video_has_no_windows(seconds: float) -> None:
    assert cut(seconds) == []


def test_a_remainder_of_half_a_window_stands_alone() -> None:
    assert len(cut(192)) == 2


def test_an_hour_has_28_windows() -> None:
    spans = cut(3600)
    assert len(spans) == 28
    assert spans[-1] == "00:57:36-01:00:00"


def test_more_windows_than_allowed_are_made_longer_instead() -> None:
    spans = WindowRule(max_windows=4).cut(facts(3600))
    assert [span.end - span.start for span in spans] == [900.0] * 4
    assert len(WindowRule().cut(facts(100 * 3600))) <= 64


def test_a_video_with_fewer_frames_than_are_wanted_is_cut_by_those_it_has() -> None:
    # a time lapse: 256 frames are 512 s of it
    assert cut(1024, fps=0.5) == ["00:00:00-00:08:32", "00:08:32-00:17:04"]


def test_a_domain_has_its_own_windows() -> None:
    limits = MediaLimits(fps=1, window_frames=10, max_windows=3)
    assert WindowRule().limited(limits) == WindowRule(1, 10, 3)
    assert WindowRule(max_windows=7).limited(MediaLimits(fps=4)) == WindowRule(4, 256, 7)


@given(some.floats(0.001, 400_000), some.floats(0.01, 240), some.floats(0.01, 1000), some.integers(4, 600))
def test_windows_follow_each_other_from_beginning_to_end_and_none_shares_its_name(
    seconds: float, fps: float, sampled: float, size: int
) -> None:
    spans = WindowRule(sampled, size).cut(facts(seconds, fps))
    assert len({str(span) for span in spans}) == len(spans) <= 64
    if spans:
        assert spans[0].start == 0
        assert spans[-1].end == pytest.approx(seconds, abs=6e-4)
        assert all(span.start < span.end for span in spans)
        assert [span.end for span in spans[:-1]] == [span.start for span in spans[1:]]


def failing(error: SampleError) -> Windows:
    def measure(path: str) -> VideoFacts:
        raise error

    return Windows(WindowRule(), measure)


def test_what_is_wrong_with_a_file_is_left_to_be_said_where_it_is_loaded() -> None:
    assert failing(MediaCorrupt()).of("a.mp4", MediaLimits()) == ()


def test_a_long_video_is_never_taken_for_a_short_one_because_the_disk_failed() -> None:
    with pytest.raises(MediaUnreadable):
        failing(MediaUnreadable()).of("a.mp4", MediaLimits())


def test_spans_are_named_by_the_clock() -> None:
    assert str(Span(0, 59.9996)) == "00:00:00-00:01:00"
    assert str(Span(3661.5, 360_000)) == "01:01:01.500-100:00:00"
