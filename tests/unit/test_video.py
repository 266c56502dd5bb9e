from __future__ import annotations

import dataclasses
import gc
import io
import warnings
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from numpy.typing import NDArray

from capflow_tasks.errors import (
    MediaCorrupt,
    MediaMissing,
    MediaTooLarge,
    MediaUnreadable,
    MediaUnsupported,
)
from capflow_tasks.media import player as video_player
from capflow_tasks.media.budget import FrameSampling, MediaBudget
from capflow_tasks.media.loader import load_media
from capflow_tasks.media.player import VideoFacts, measure, playing
from capflow_tasks.media.video import DecodedVideo, FramePlan, load_video, plan_frames
from capflow_tasks.records import MediaRef, Modality, Span
from tests.clips import (
    ENCRYPTED,
    NOISE,
    STEP,
    claim_seconds,
    cut_short,
    make_clip,
    make_sound,
    overwrite_middle,
)

TOKEN = 28 * 28
#: 4 to 16 tokens per pair of frames, so that tests stay quick.
BUDGET = MediaBudget(frame_min_pixels=4 * TOKEN, frame_max_pixels=16 * TOKEN)


def levels(video: DecodedVideo) -> list[int]:
    """Return which of `make_clip`'s frames were taken."""
    height, width = video.frames.shape[1:3]
    return [round(float(frame[height // 2, width // 2].mean()) / STEP) for frame in video.frames]


def planned(count: int, rate: float, budget: MediaBudget, size: tuple[int, int] = (64, 48)) -> FramePlan:
    return plan_frames(VideoFacts(count, 0.0, count / rate, *size), budget)


CODECS = [
    ("a.mp4", "libx264", {}),
    ("fragmented.mp4", "libx264", {"muxer": {"movflags": "frag_keyframe+empty_moov"}}),
    ("faststart.mp4", "libx264", {"muxer": {"movflags": "faststart"}}),
    ("b.mp4", "libx265", {}),
    ("a.mkv", "libx265", {}),
    ("b.mkv", "libx264", {}),
    ("c.mkv", "ffv1", {}),
    ("d.mkv", "mjpeg", {"pixel_format": "yuvj420p"}),
    ("a.webm", "libvpx-vp9", {}),
    ("b.webm", "libvpx", {}),
    ("a.mov", "mpeg4", {}),
    ("b.mov", "libx264", {"pixel_format": "yuv420p10le"}),
    ("a.avi", "mpeg4", {}),
    ("b.avi", "libx264", {}),
    ("c.avi", "mjpeg", {"pixel_format": "yuvj420p"}),
    ("a.ts", "libx264", {}),
    ("a.flv", "libx264", {}),
    ("a.gif", "gif", {"pixel_format": "rgb8"}),
]


@pytest.mark.parametrize(
    ("name", "codec", "options"), CODECS, ids=[f"{name}-{codec}" for name, codec, _ in CODECS]
)
def test_every_container_and_codec_gives_the_frames_on_screen_at_even_times(
    tmp_path: Path, name: str, codec: str, options: dict[str, Any]
) -> None:
    if codec not in av.codecs_available:
        pytest.skip(f"this build of FFmpeg has no {codec}")
    video = load_video(make_clip(tmp_path / name, codec, **options), BUDGET)
    assert video.frames.dtype == np.uint8
    assert video.frames.shape == (6, *video.frames.shape[1:3], 3)
    assert video.frames_indices == (0, 5, 10, 15, 20, 25)
    assert [abs(one - other) for one, other in zip(levels(video), video.frames_indices, strict=True)] <= [
        1
    ] * 6
    assert video.timestamps == pytest.approx([0.0, 0.5, 1.0, 1.5, 2.0, 2.5], abs=2e-3)
    assert video.total_num_frames == 30
    assert video.duration_seconds == pytest.approx(3.0, abs=0.01)


@pytest.mark.parametrize(("name", "rate"), [("a.mp4", 10), ("a.mkv", 30)])
def test_frames_from_the_first_to_the_last_are_those_of_linspace(
    tmp_path: Path, name: str, rate: int
) -> None:
    """Matroska rounds times to milliseconds, which must not give the neighbour of a frame."""
    path = make_clip(tmp_path / name, count=30, rate=rate)
    budget = dataclasses.replace(BUDGET, fps=6 / 30 * rate, sampling=FrameSampling.LINSPACE)
    video = load_video(path, budget)
    assert video.frames_indices == tuple(np.linspace(0, 29, 6).round()) == (0, 6, 12, 17, 23, 29)
    assert levels(video) == list(video.frames_indices)


@pytest.mark.parametrize("sampling", FrameSampling)
def test_a_span_has_the_numbers_and_times_of_the_whole_film(tmp_path: Path, sampling: FrameSampling) -> None:
    path = make_clip(tmp_path / "a.mp4", count=60)
    budget = dataclasses.replace(BUDGET, sampling=sampling)
    whole, part = load_video(path, budget), load_video(path, budget, Span(3.0, 5.0))
    assert part.frames_indices[0] == 30
    assert part.frames_indices[-1] == {FrameSampling.EVEN: 45, FrameSampling.LINSPACE: 49}[sampling]
    assert levels(part) == [index % (256 // STEP) for index in part.frames_indices]
    assert part.timestamps == pytest.approx([index / part.fps for index in part.frames_indices], abs=0.01)
    assert part.fps == whole.fps == pytest.approx(10)
    assert part.total_num_frames == 20
    assert part.duration_seconds == pytest.approx(2)


@pytest.mark.skipif("libsvtav1" not in av.codecs_available, reason="this build of FFmpeg has no AV1 encoder")
@pytest.mark.parametrize("name", ["a.mp4", "a.webm"])
def test_av1_is_read(tmp_path: Path, name: str, capfd: pytest.CaptureFixture[str]) -> None:
    path = make_clip(tmp_path / name, "libsvtav1", options={"preset": "12"})
    capfd.readouterr()
    assert levels(load_video(path, BUDGET)) == [0, 5, 10, 15, 20, 25]
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.mov"])
def test_with_a_variable_rate_the_frame_is_the_one_on_screen_and_keeps_its_own_time(
    tmp_path: Path, name: str
) -> None:
    # ten frames in the first second, then one that stands for two seconds, then ten more
    times = [*range(0, 1000, 100), 1000, *range(3000, 4000, 100)]
    path = make_clip(tmp_path / name, times=times, count=len(times))
    video = load_video(path, dataclasses.replace(BUDGET, min_frames=8))
    assert video.duration_seconds == pytest.approx(4.0, abs=0.11)
    assert len(video.frames) == 8
    wanted = [number * video.duration_seconds / 8 for number in range(8)]
    shown = [max(at for at in times if at / 1000 <= moment + 1e-6) for moment in wanted]
    assert video.timestamps == pytest.approx([at / 1000 for at in shown], abs=2e-3)
    assert levels(video) == [times.index(at) for at in shown]
    assert 10 in levels(video)
    assert levels(video).count(10) == 4


def test_the_metadata_makes_vllms_seconds_per_grid_true(tmp_path: Path) -> None:
    video_utils = pytest.importorskip("transformers.video_utils")
    times = [*range(0, 1000, 100), 1000, *range(3000, 4000, 100)]
    path = make_clip(tmp_path / "a.mp4", times=times, count=len(times))
    for video in (load_video(path, BUDGET), load_video(make_clip(tmp_path / "b.mp4"), BUDGET)):
        frames, metadata = video.for_vllm()
        assert frames is video.frames
        assert metadata.pop("do_sample_frames") is False
        seen = video_utils.VideoMetadata(**metadata)
        second_per_grid = 2 / seen.sampled_fps
        assert second_per_grid == pytest.approx(2 * video.duration_seconds / len(frames))
        assert second_per_grid * len(frames) / 2 == pytest.approx(video.duration_seconds)
        even = [number * video.duration_seconds / len(frames) for number in range(len(frames))]
        assert seen.timestamps == pytest.approx(even, abs=1 / metadata["fps"])


def quarters() -> NDArray[np.uint8]:
    """Return a 64 x 32 picture: white in the upper left quarter, black elsewhere."""
    pixels = np.zeros((32, 64, 3), np.uint8)
    pixels[:16, :32] = 255
    return pixels


@pytest.mark.parametrize(
    ("rotation", "is_mirrored", "corner", "is_tall"),
    [
        (0, False, "upper left", False),
        (90, False, "lower left", True),
        (-90, False, "upper right", True),
        (180, False, "lower right", False),
        (0, True, "upper right", False),
    ],
)
@pytest.mark.parametrize("name", ["a.mp4", "a.mov"])
def test_the_rotation_flag_is_applied(
    tmp_path: Path, name: str, rotation: int, is_mirrored: bool, corner: str, is_tall: bool
) -> None:
    """FFmpeg counts degrees counterclockwise: a phone held upright writes -90."""
    path = make_clip(
        tmp_path / name, size=(64, 32), pixels=quarters(), rotation=rotation, is_mirrored=is_mirrored
    )
    frame = load_video(path, BUDGET).frames[0]
    height, width = frame.shape[:2]
    assert (height > width) is is_tall
    corners = {
        "upper left": frame[: height // 3, : width // 3],
        "upper right": frame[: height // 3, -width // 3 :],
        "lower left": frame[-height // 3 :, : width // 3],
        "lower right": frame[-height // 3 :, -width // 3 :],
    }
    brightness = {name: float(part.mean()) for name, part in corners.items()}
    assert max(brightness, key=lambda name: brightness[name]) == corner
    assert brightness[corner] > 200


def test_pixels_that_are_not_square_are_shown_in_their_true_shape(tmp_path: Path) -> None:
    video = load_video(make_clip(tmp_path / "a.mkv", size=(72, 72), aspect=Fraction(2, 1)), BUDGET)
    assert video.frames.shape[1:3] == planned(30, 10.0, BUDGET, (144, 72)).size[::-1]


@pytest.mark.parametrize("size", [(65, 49), (31, 17), (2, 2), (400, 16)])
def test_odd_sizes_come_out_in_whole_tokens(tmp_path: Path, size: tuple[int, int]) -> None:
    path = make_clip(tmp_path / "a.mkv", "ffv1", size=size, pixel_format="yuv444p")
    _, height, width, _ = load_video(path, BUDGET).frames.shape
    assert height % 28 == width % 28 == 0


def test_a_video_with_sound_that_outlasts_it_has_the_length_of_its_frames(tmp_path: Path) -> None:
    path = tmp_path / "a.mkv"
    with av.open(str(path), "w") as container:
        picture = container.add_stream("libx264", rate=10)
        sound = container.add_stream("aac", rate=8000)
        assert isinstance(picture, av.VideoStream)
        assert isinstance(sound, av.AudioStream)
        picture.width, picture.height, picture.pix_fmt = 64, 48, "yuv420p"
        for number in range(10):
            grey = np.full((48, 64, 3), number * STEP, np.uint8)
            container.mux(picture.encode(av.VideoFrame.from_ndarray(grey)))
        for number in range(40):
            silence = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
            silence.sample_rate, silence.pts = 8000, number * 1024
            container.mux(sound.encode(silence))
        container.mux([*picture.encode(None), *sound.encode(None)])
    video = load_video(str(path), BUDGET)
    assert video.duration_seconds == pytest.approx(1.0, abs=0.01)
    assert levels(video) == [0, 2, 5, 7]


def test_one_frame_is_shown_twice(tmp_path: Path) -> None:
    video = load_video(make_clip(tmp_path / "a.mp4", count=1), BUDGET)
    assert video.frames.shape[0] == 2
    assert (video.frames[0] == video.frames[1]).all()
    assert video.timestamps == (0.0, 0.0)
    assert video.frames_indices == (0, 0)
    assert video.total_num_frames == 1
    assert video.duration_seconds == pytest.approx(0.1)


@pytest.mark.parametrize(("count", "taken"), [(2, 2), (3, 2), (5, 4), (7, 4)])
def test_a_handful_of_frames_gives_an_even_number(tmp_path: Path, count: int, taken: int) -> None:
    assert len(load_video(make_clip(tmp_path / "a.mp4", count=count), BUDGET).frames) == taken


@pytest.mark.parametrize(("total", "rate"), [(30, 10.0), (31, 29.97), (4, 1.0), (20_000, 25.0), (600, 0.5)])
def test_the_number_of_frames_is_what_qwen_vl_utils_takes(
    total: int, rate: float, caplog: pytest.LogCaptureFixture
) -> None:
    from qwen_vl_utils.vision_process import smart_nframes

    wanted = {"fps": BUDGET.fps, "min_frames": 4, "max_frames": 256}
    taken = len(planned(total, rate, BUDGET).times)
    assert caplog.records == []
    assert taken == smart_nframes(wanted, total, rate)


@pytest.mark.parametrize("size", [(64, 48), (1920, 1080), (7680, 4320), (480, 854)])
@pytest.mark.parametrize("seconds", [1, 60, 7200])
@pytest.mark.parametrize("total_tokens", [300, 4096, 20480])
def test_no_video_costs_more_tokens_than_its_budget(
    size: tuple[int, int], seconds: int, total_tokens: int
) -> None:
    budget = MediaBudget(total_pixels=total_tokens * TOKEN)
    plan = planned(seconds * 30, 30.0, budget, size)
    assert len(plan.times) % 2 == 0
    assert 2 <= len(plan.times) <= 256
    assert plan.tokens <= total_tokens


def test_the_tokens_foretold_are_those_of_the_frames(tmp_path: Path) -> None:
    path = make_clip(tmp_path / "a.mp4", rotation=90)
    video = load_video(path, BUDGET)
    count, height, width, _ = video.frames.shape
    foretold = planned(30, 10.0, BUDGET, (48, 64)).tokens
    assert foretold == count // 2 * (height // 28) * (width // 28)
    loaded = load_media(MediaRef(Modality.VIDEO, path), BUDGET)
    assert loaded.tokens == foretold
    assert loaded.nbytes == video.frames.nbytes
    assert (loaded.value[0] == video.frames).all()


@pytest.fixture(scope="module")
def hour(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return an hour at two frames per second, with a keyframe every 100 seconds."""
    return make_clip(
        tmp_path_factory.mktemp("hour") / "hour.mkv",
        count=7200,
        rate=2,
        size=(32, 32),
        keyframe_every=200,
        options={"preset": "ultrafast"},
    )


def test_an_hour_is_read_with_a_handful_of_frames_held(hour: str) -> None:
    facts = measure(hour, BUDGET)
    assert facts.seconds == pytest.approx(3600, abs=1)
    gc.collect()
    gc.freeze()  # so that what is there already is not counted
    held = []
    with playing(hour, BUDGET, facts) as player:
        for seconds in range(0, 3600, 50):
            player.collect([seconds], (28, 28))
            frames = (thing for thing in gc.get_objects() if type(thing) is av.VideoFrame)
            held.append(sum(frame.width == 32 for frame in frames))  # without the tiny copies
    gc.unfreeze()
    assert 1 <= max(held) <= 8


@pytest.mark.parametrize("is_measured_by_its_end", [False, True])
@pytest.mark.parametrize("name", ["a.mkv", "a.mp4", "a.avi"])
def test_jumping_to_keyframes_gives_the_frames_on_screen(
    tmp_path: Path, name: str, is_measured_by_its_end: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make_clip(tmp_path / name, count=1200, rate=2, size=(32, 32), keyframe_every=60)
    if is_measured_by_its_end:
        monkeypatch.setattr(video_player, "SCAN_BYTES", 0)
    video = load_video(path, dataclasses.replace(BUDGET, max_frames=12))
    assert video.frames_indices == tuple(range(0, 1200, 100))
    assert video.timestamps == pytest.approx(range(0, 600, 50), abs=1)
    shown = [index % (256 // STEP) for index in video.frames_indices]
    assert all(abs(one - other) <= 1 for one, other in zip(levels(video), shown, strict=True))


def test_decoding_that_takes_too_long_is_given_up(hour: str) -> None:
    with pytest.raises(MediaUnreadable, match="time limit") as caught:
        load_video(hour, dataclasses.replace(BUDGET, timeout_seconds=1e-3))
    assert caught.value.is_retryable


@pytest.mark.parametrize(
    ("name", "codec", "options"),
    [clip for clip in CODECS if clip[0] not in {"a.ts", "a.flv", "a.gif", "fragmented.mp4"}],
    ids=lambda value: value if isinstance(value, str) else "",
)
@pytest.mark.parametrize("share", [0.4, 0.8])
def test_a_file_that_is_cut_short_is_corrupt(
    tmp_path: Path, name: str, codec: str, options: dict[str, Any], share: float
) -> None:
    path = make_clip(tmp_path / name, codec, pixels=NOISE, **options)
    with pytest.raises(MediaCorrupt, match=r"cut short|its data ends|frames are lost"):
        load_video(cut_short(path, share), BUDGET)


def test_a_cut_file_is_found_out_when_only_its_end_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(video_player, "SCAN_BYTES", 0)
    muxer = {"movflags": "faststart"}
    for name, options in (("a.mp4", muxer), ("a.mkv", {}), ("a.avi", {})):
        codec = "mpeg4" if name == "a.avi" else "libx264"
        whole = make_clip(tmp_path / name, codec, pixels=NOISE, count=80, muxer=options)
        assert len(load_video(whole, BUDGET).frames) == 16
        with pytest.raises(MediaCorrupt):
            load_video(cut_short(whole, 0.6), BUDGET)


def test_a_file_whose_middle_is_overwritten_is_corrupt(tmp_path: Path) -> None:
    path = overwrite_middle(make_clip(tmp_path / "a.mp4", pixels=NOISE, count=60))
    with pytest.raises(MediaCorrupt, match=r"frames are lost|damaged"):
        load_video(path, BUDGET)


def test_a_container_that_claims_to_last_longer_than_its_data_is_corrupt(tmp_path: Path) -> None:
    path = claim_seconds(make_clip(tmp_path / "a.mkv"), 3600)
    with pytest.raises(MediaCorrupt, match=r"claims 3600\.0 s, but its data ends at 3\.0 s"):
        load_video(path, BUDGET)


def test_a_container_that_claims_to_be_shorter_than_its_data_is_read_to_its_end(tmp_path: Path) -> None:
    path = claim_seconds(make_clip(tmp_path / "a.mkv"), 0.5)
    video = load_video(path, BUDGET)
    assert video.duration_seconds == pytest.approx(3.0)
    assert levels(video) == [0, 5, 10, 15, 20, 25]


def test_a_stream_without_a_length_is_measured(tmp_path: Path) -> None:
    """What a browser records, or a pipe, has no duration."""
    buffer = io.BytesIO()
    make_clip(tmp_path / "a.webm", "libvpx-vp9")
    with av.open(str(tmp_path / "a.webm")) as source, av.open(buffer, "w", "webm", {"live": "1"}) as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                target.mux(packet)
    (tmp_path / "live.webm").write_bytes(buffer.getvalue())
    video = load_video(str(tmp_path / "live.webm"), BUDGET)
    assert video.duration_seconds == pytest.approx(3.0, abs=0.05)
    assert levels(video) == [0, 5, 10, 15, 20, 25]


def test_an_encrypted_file_is_named_as_such(tmp_path: Path) -> None:
    with pytest.raises(MediaUnsupported, match="is encrypted"):
        load_video(make_clip(tmp_path / "a.mp4", muxer=ENCRYPTED), BUDGET)


def test_a_file_with_sound_only_is_named_as_such(tmp_path: Path) -> None:
    for name in ("a.mp4", "a.mkv"):
        with pytest.raises(MediaUnsupported, match="holds no video, only audio"):
            load_video(make_sound(tmp_path / name), BUDGET)


@pytest.mark.parametrize(
    ("content", "kind", "reason"),
    [
        (b"", MediaCorrupt, "zero bytes"),
        (b"This is no video.\n" * 40, MediaUnsupported, "holds text"),
        (b"<!DOCTYPE html><html>Not found</html>", MediaUnsupported, "an HTML page"),
        (b"\0" * 4096, MediaUnsupported, "zero bytes"),
        (b"\x89PNG\r\n\x1a\n" + b"x" * 99, MediaUnsupported, "a PNG picture, not a video"),
        (b"#EXTM3U\n#EXTINF:9,\n/etc/passwd\n#EXT-X-ENDLIST\n", MediaUnsupported, "text"),
        (b"ffconcat version 1.0\nfile /etc/passwd\n", MediaUnsupported, "text"),
        (b"\0\0\0\x18ftypisom\0\0\2\0isomiso2", MediaCorrupt, "begins as an MP4 or MOV video"),
        (b"\x1a\x45\xdf\xa3" + b"\1" * 64, MediaCorrupt, "begins as a Matroska or WebM video"),
    ],
)
def test_what_is_no_video_is_named(
    tmp_path: Path, content: bytes, kind: type[Exception], reason: str
) -> None:
    path = tmp_path / "a.mp4"
    path.write_bytes(content)
    with pytest.raises(kind, match=reason):
        load_video(str(path), BUDGET)


def test_a_missing_file_a_folder_and_a_large_file_are_told_apart(tmp_path: Path) -> None:
    path = make_clip(tmp_path / "a.mp4")
    with pytest.raises(MediaMissing):
        load_video(str(tmp_path / "none.mp4"), BUDGET)
    with pytest.raises(MediaUnsupported, match="folder"):
        load_video(str(tmp_path), BUDGET)
    with pytest.raises(MediaTooLarge, match="bytes"):
        load_video(path, dataclasses.replace(BUDGET, max_file_bytes=100))
    with pytest.raises(MediaTooLarge, match="64 x 48 = 3,072 pixels"):
        load_video(path, dataclasses.replace(BUDGET, max_source_pixels=3000))


def test_frames_over_200_times_as_wide_as_tall_are_refused(tmp_path: Path) -> None:
    path = make_clip(tmp_path / "a.mkv", "ffv1", size=(804, 4), pixel_format="yuv444p")
    with pytest.raises(MediaUnsupported, match="too long and thin"):
        load_video(path, BUDGET)


def test_a_disk_that_fails_while_reading_is_worth_another_try(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class FailingDisk(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            if self.tell() > 0:
                raise OSError(5, "Input/output error")
            return super().read(min(size or 0, 512))

    content = Path(make_clip(tmp_path / "a.mp4")).read_bytes()
    path = str(tmp_path / "a.mp4")
    monkeypatch.setattr(Path, "open", lambda *_: FailingDisk(content))
    with pytest.raises(MediaUnreadable, match="Input/output error"):
        load_video(path, BUDGET)


def test_a_file_name_is_never_taken_for_an_address_or_a_pattern(tmp_path: Path) -> None:
    for name in ("concat:a|b.mp4", "%03d.mp4", "-i.mp4", "a b ü.mp4"):
        path = make_clip(tmp_path / "plain.mp4")
        Path(path).rename(tmp_path / name)
        assert len(load_video(str(tmp_path / name), BUDGET).frames) == 6


def test_reading_good_and_bad_files_says_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    good = make_clip(tmp_path / "a.mp4")
    bad = cut_short(make_clip(tmp_path / "b.mkv", pixels=NOISE), 0.5)
    capfd.readouterr()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_video(good, BUDGET)
        with pytest.raises(MediaCorrupt):
            load_video(bad, BUDGET)
    assert capfd.readouterr() == ("", "")
