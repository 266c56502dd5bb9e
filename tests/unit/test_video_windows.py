from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as some

from capflow_tasks.curator.caption_stages import load_windows
from capflow_tasks.errors import MediaUnsupported
from capflow_tasks.media.budget import MediaBudget
from capflow_tasks.media.video import compute_windows, load_video

TOKEN = 28 * 28
BUDGET = MediaBudget(frame_min_pixels=4 * TOKEN, frame_max_pixels=16 * TOKEN)
#: Grey levels between one frame and the next; a lossy codec keeps them apart.
STEP = 4


def make_clip(path: Path, count: int, rate: int = 10) -> str:
    """Write a clip whose frame n is grey level n * STEP, from the start again at 256."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=rate)
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.codec_context.gop_size = 10
        for number in range(count):
            grey = np.full((48, 64, 3), number * STEP % 256, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(grey, format="rgb24")))
        container.mux(stream.encode(None))
    return str(path)


def bounds(total_frames: int, *sizes: int) -> list[tuple[int, int]]:
    return [(window.start, window.end) for window in compute_windows(total_frames, *sizes)]


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
    frames = [frame for window in windows for frame in range(window.start, window.end + 1)]
    assert frames == list(range(total_frames))
    assert sum(window.frame_count for window in windows) == total_frames
    assert all(window.frame_count == size for window in windows[:-1])


def test_a_window_without_frames_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one frame"):
        compute_windows(10, 0)


def test_each_window_holds_its_own_frames_with_the_files_times(tmp_path: Path) -> None:
    path = make_clip(tmp_path / "a.mp4", count=50)
    windows = list(load_windows(path, BUDGET, window_size=20, remainder_threshold=8))
    assert [(info.start, info.end) for info, _ in windows] == [(0, 19), (20, 39), (40, 49)]
    for info, video in windows:
        seconds = info.frame_count / 10
        assert len(video.frames) == max(4, 2 * seconds)
        assert video.total_num_frames == info.frame_count
        assert video.duration_seconds == pytest.approx(seconds)
        levels = [round(float(frame.mean()) / STEP) for frame in video.frames]
        shown = [info.start + number for number in video.frames_indices]
        assert all(abs(one - other) <= 1 for one, other in zip(levels, shown, strict=True))
        assert video.timestamps == pytest.approx([number / 10 for number in shown], abs=0.11)
        assert video.timestamps[0] == pytest.approx(info.start / 10, abs=2e-3)


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
