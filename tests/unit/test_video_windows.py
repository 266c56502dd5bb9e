from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as some

from capflow_tasks.curator.caption_stages import load_windows
from capflow_tasks.errors import MediaCorrupt, MediaUnreadable, MediaUnsupported, SampleError
from capflow_tasks.media import player
from capflow_tasks.media.budget import MediaBudget
from capflow_tasks.media.player import VideoFacts
from capflow_tasks.media.video import Windows, compute_windows, load_video
from capflow_tasks.records import Span
from tests.clips import STEP, make_clip

TOKEN = 28 * 28
BUDGET = MediaBudget(frame_min_pixels=4 * TOKEN, frame_max_pixels=16 * TOKEN)


def bounds(total_frames: int, *sizes: int) -> list[tuple[int, int]]:
    return [(window[0], window[-1]) for window in compute_windows(total_frames, *sizes)]


@pytest.mark.parametrize(
    ("total_frames", "wanted"),
    [
        (0, []),
        (3, []),
        (4, [(0, 3)]),
        (100, [(0, 99)]),
        (256, [(0, 255)]),
        (257, [(0, 256)]),
        (383, [(0, 382)]),
        (384, [(0, 255), (256, 383)]),
        (512, [(0, 255), (256, 511)]),
        (639, [(0, 255), (256, 638)]),
        (640, [(0, 255), (256, 511), (512, 639)]),
    ],
)
def test_a_remainder_below_half_a_window_joins_the_last_one(
    total_frames: int, wanted: list[tuple[int, int]]
) -> None:
    assert bounds(total_frames) == wanted


@given(some.integers(4, 3000), some.integers(1, 300), some.integers(0, 400))
def test_windows_cover_every_frame_once(total_frames: int, size: int, threshold: int) -> None:
    windows = compute_windows(total_frames, size, threshold)
    assert [frame for window in windows for frame in window] == list(range(total_frames))
    assert all(len(window) == size for window in windows[:-1])


def test_a_window_without_frames_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one frame"):
        compute_windows(10, 0)


def test_each_window_holds_its_own_frames_with_the_files_times(tmp_path: Path) -> None:
    path = make_clip(tmp_path / "a.mp4", count=50)
    windows = list(load_windows(path, BUDGET, window_size=20, remainder_threshold=8))
    assert [(numbers[0], numbers[-1]) for numbers, _ in windows] == [(0, 19), (20, 39), (40, 49)]
    for numbers, video in windows:
        seconds = len(numbers) / 10
        assert len(video.frames) == max(4, 2 * seconds)
        assert video.total_num_frames == len(numbers)
        assert video.duration_seconds == pytest.approx(seconds)
        levels = [round(float(frame.mean()) / STEP) for frame in video.frames]
        shown = [numbers.start + number for number in video.frames_indices]
        wanted = [number % (256 // STEP) for number in shown]
        assert all(abs(one - other) <= 1 for one, other in zip(levels, wanted, strict=True))
        assert video.timestamps == pytest.approx([number / 10 for number in shown], abs=0.11)
        assert video.timestamps[0] == pytest.approx(numbers.start / 10, abs=2e-3)


def test_one_window_is_the_whole_video_as_it_is_read_elsewhere(tmp_path: Path) -> None:
    path = make_clip(tmp_path / "a.mp4", count=30)
    ((_, video),) = load_windows(path, BUDGET)
    whole = load_video(path, BUDGET)
    np.testing.assert_array_equal(video.frames, whole.frames)
    assert video.timestamps == whole.timestamps
    assert video.for_vllm()[1] == whole.for_vllm()[1]


def test_a_video_of_three_frames_has_no_window(tmp_path: Path) -> None:
    assert list(load_windows(make_clip(tmp_path / "a.mp4", count=3), BUDGET)) == []


def test_what_is_no_video_is_refused_with_the_reason(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    path.write_text("not a video")
    with pytest.raises(MediaUnsupported, match="text"):
        list(load_windows(str(path), BUDGET))


def facts(seconds: float, fps: float = 25.0) -> VideoFacts:
    return VideoFacts(max(1, round(seconds * fps)), 0.0, seconds, 640, 480)


def cut(seconds: float, source_fps: float = 25.0, **changes: float) -> list[Span]:
    return list(Windows(MediaBudget(), Measured(facts(seconds, source_fps))).of("a.mp4", changes))


def names(*spans: Span) -> list[str]:
    return [str(span) for span in spans]


class Measured:
    """Measures every file as one and the same, or fails."""

    play = staticmethod(player.play)

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
