"""Where a long video is cut."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as some

from capflow_tasks.errors import MediaCorrupt, MediaUnreadable, SampleError
from capflow_tasks.media.budget import MediaBudget
from capflow_tasks.media.player import VideoFacts
from capflow_tasks.media.video import Windows, cut_windows, here
from capflow_tasks.records import Span


def facts(seconds: float, fps: float = 25.0) -> VideoFacts:
    return VideoFacts(max(1, round(seconds * fps)), 0.0, seconds, 640, 480)


def cut(seconds: float, source_fps: float = 25.0, **changes: float) -> list[Span]:
    return list(cut_windows(facts(seconds, source_fps), MediaBudget().overridden_by(changes)))


def names(*spans: Span) -> list[str]:
    return [str(span) for span in spans]


class Measured:
    """Measures every file as one and the same, or fails."""

    play = staticmethod(here.play)

    def __init__(self, found: VideoFacts | SampleError) -> None:
        self._found = found

    def measure(self, path: str, budget: MediaBudget) -> VideoFacts:
        if isinstance(self._found, SampleError):
            raise self._found
        return self._found


def test_windows_hold_256_frames_taken_twice_a_second() -> None:
    assert names(*cut(300)) == ["00:00:00-00:02:08", "00:02:08-00:05:00"]
    assert names(*cut(320)) == ["00:00:00-00:02:08", "00:02:08-00:04:16", "00:04:16-00:05:20"]
    assert str(cut(320.25)[-1]) == "00:04:16-00:05:20.250"


@pytest.mark.parametrize("seconds", [0.04, 1.9, 12, 128, 191.4])
def test_a_short_video_has_no_windows(seconds: float) -> None:
    assert cut(seconds) == []


def test_a_remainder_of_half_a_window_stands_alone() -> None:
    assert len(cut(192)) == 2


def test_an_hour_has_28_windows() -> None:
    spans = cut(3600)
    assert len(spans) == 28
    assert str(spans[-1]) == "00:57:36-01:00:00"


def test_more_windows_than_allowed_are_made_longer_instead() -> None:
    assert [span.end - span.start for span in cut(3600, max_windows=4)] == [900.0] * 4
    assert len(cut(100 * 3600)) <= 64


def test_a_video_with_fewer_frames_than_are_wanted_is_cut_by_those_it_has() -> None:
    # a time lapse: 256 frames are 512 s of it
    assert names(*cut(1024, 0.5)) == ["00:00:00-00:08:32", "00:08:32-00:17:04"]


def test_a_domain_has_its_own_windows() -> None:
    windows = Windows(MediaBudget(max_windows=7), Measured(facts(40)))
    assert windows.of("a.mp4", {}) == ()
    assert len(windows.of("a.mp4", {"fps": 1, "window_frames": 10})) == 4
    assert len(windows.of("a.mp4", {"fps": 1, "window_frames": 10, "max_windows": 3})) == 3


@given(some.floats(0.001, 400_000), some.floats(0.01, 240), some.floats(0.01, 1000), some.integers(4, 600))
def test_windows_follow_each_other_from_beginning_to_end_and_none_shares_its_name(
    seconds: float, fps: float, sampled: float, size: int
) -> None:
    spans = cut(seconds, fps, fps=sampled, window_frames=size)
    assert len({str(span) for span in spans}) == len(spans) <= 64
    if spans:
        assert spans[0].start == 0
        assert spans[-1].end == pytest.approx(seconds, abs=6e-4)
        assert all(span.start < span.end for span in spans)
        assert [span.end for span in spans[:-1]] == [span.start for span in spans[1:]]


def test_an_error_of_the_file_is_raised_where_the_file_is_loaded_and_not_here() -> None:
    assert Windows(MediaBudget(), Measured(MediaCorrupt())).of("a.mp4", {}) == ()


def test_a_long_video_is_never_taken_for_a_short_one_because_the_disk_failed() -> None:
    with pytest.raises(MediaUnreadable):
        Windows(MediaBudget(), Measured(MediaUnreadable())).of("a.mp4", {})


def test_spans_are_named_by_the_clock() -> None:
    assert str(Span(0, 59.9996)) == "00:00:00-00:01:00"
    assert str(Span(3661.5, 360_000)) == "01:01:01.500-100:00:00"
