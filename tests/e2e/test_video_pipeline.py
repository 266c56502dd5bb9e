"""Videos from plan to caption file: every kind of clip, an hour, all that can be wrong with a file.

The real command, worker, database and media; only the model is scripted, but in the last test.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from sqlalchemy import Engine, select

from capflow_tasks.media import player
from capflow_tasks.media.budget import MediaBudget
from capflow_tasks.media.loader import load_media
from capflow_tasks.media.video import Windows, plan_frames
from capflow_tasks.records import JsonObject, MediaRef, Modality
from capflow_tasks.store.tables import AgentResult, Sample
from tests.checkpoints import NOISE_RULES
from tests.clips import (
    ENCRYPTED,
    NOISE,
    claim_seconds,
    cut_short,
    make_clip,
    make_sound,
    overwrite_middle,
)
from tests.conftest import Eventually
from tests.datasets import draw_picture, film_video, read_lines, write_plan
from tests.e2e.conftest import REPOSITORY, Cli

pytestmark = pytest.mark.e2e

#: File, encoder, and how it is made: 3 s at 10 frames per second unless told otherwise.
GOOD: list[tuple[str, str, dict[str, Any]]] = [
    ("h264.mp4", "libx264", {}),
    ("fragmented.mp4", "libx264", {"muxer": {"movflags": "frag_keyframe+empty_moov"}}),
    ("hevc.mp4", "libx265", {}),
    ("av1.mp4", "libsvtav1", {"options": {"preset": "12"}}),
    ("phone.mp4", "libx264", {"rotation": -90}),
    (
        "variable.mp4",
        "libx264",
        {"times": [*range(0, 1000, 100), 1000, *range(3000, 4000, 100)], "count": 21},
    ),
    ("hevc.mkv", "libx265", {}),
    ("odd.mkv", "ffv1", {"size": (65, 49), "pixel_format": "yuv444p"}),
    ("vp9.webm", "libvpx-vp9", {}),
    ("vp8.webm", "libvpx", {}),
    ("mpeg4.mov", "mpeg4", {}),
    ("deep.mov", "libx264", {"pixel_format": "yuv420p10le"}),
    ("mpeg4.avi", "mpeg4", {}),
    ("mjpeg.avi", "mjpeg", {"pixel_format": "yuvj420p"}),
    ("transport.ts", "libx264", {}),
    ("one-frame.mp4", "libx264", {"count": 1}),
]
HOUR = 3600


def make_hour(path: Path) -> str:
    """An hour at two frames per second, with a keyframe every 100 seconds."""
    fast = {"preset": "ultrafast"}
    return make_clip(path, count=2 * HOUR, rate=2, size=(32, 32), keyframe_every=200, options=fast)


def make_large(path: Path) -> str:
    """Two frames of 8K."""
    black = np.zeros((4320, 7680, 3), np.uint8)
    return make_clip(path, count=2, size=(7680, 4320), pixels=black, options={"preset": "ultrafast"})


def claim_size(path: str, width: int, height: int) -> str:
    """Have a Matroska file of 400 x 300 pixels say that it has more."""
    file = Path(path)
    content = file.read_bytes()
    for element, before, after in ((b"\xb0\x82", 400, width), (b"\xba\x82", 300, height)):
        old = element + before.to_bytes(2, "big")
        assert old in content
        content = content.replace(old, element + after.to_bytes(2, "big"), 1)
    file.write_bytes(content)
    return path


def make_bad(folder: Path) -> dict[str, tuple[str, str]]:
    """All that can be wrong with a file: by name the kind of its failure, and words of its reason."""
    overwrite_middle(make_clip(folder / "corrupt.mp4", pixels=NOISE, count=60))
    cut_short(make_clip(folder / "truncated.mp4", pixels=NOISE), 0.6)
    cut_short(make_clip(folder / "truncated.mkv", pixels=NOISE), 0.6)
    (folder / "empty.mp4").touch()
    make_sound(folder / "sound.mp4")
    make_clip(folder / "encrypted.mp4", muxer=ENCRYPTED)
    (folder / "text.mp4").write_text("This is no video.\n" * 50)
    claim_seconds(make_clip(folder / "liar.mkv"), HOUR)
    claim_size(
        make_clip(folder / "huge.mkv", "ffv1", size=(400, 300), pixel_format="yuv444p"), 16_000, 12_000
    )
    (folder / "noise.mp4").write_bytes(b"\0\0\0\x18ftypisom" + np.random.default_rng(2).bytes(4000))
    return {
        "corrupt.mp4": ("media_corrupt", "damaged"),
        "truncated.mp4": ("media_corrupt", "cut short"),
        "truncated.mkv": ("media_corrupt", "data ends at"),
        "empty.mp4": ("media_corrupt", "zero bytes"),
        "sound.mp4": ("media_unsupported", "only audio"),
        "encrypted.mp4": ("media_unsupported", "encrypted"),
        "text.mp4": ("media_unsupported", "holds text"),
        "liar.mkv": ("media_corrupt", "claims 3600.0 s"),
        "huge.mkv": ("media_too_large", "16000 x 12000"),
        "noise.mp4": ("media_corrupt", "cut short"),
    }


@pytest.fixture
def scripted(quick_cli: Cli) -> Cli:
    quick_cli.environment |= {
        "CAPFLOW_ENGINE": "tests.e2e.loading_engine:build",
        "CAPFLOW_VIDEO_DECODERS": "2",
        "TEST_LOADED_MEDIA": str(quick_cli.folder / "loaded.jsonl"),
    }
    (quick_cli.folder / "media").mkdir()
    return quick_cli


def test_every_kind_of_clip_is_captioned_and_every_bad_file_has_its_reason(
    scripted: Cli, eventually: Eventually
) -> None:
    media = scripted.folder / "media"
    good = [(name, codec, how) for name, codec, how in GOOD if codec in av.codecs_available]
    for name, codec, how in good:
        make_clip(media / name, codec, **how)
    make_large(media / "8k.mp4")
    make_hour(media / "hour.mkv")
    names = [*(name for name, _, _ in good), "8k.mp4", "hour.mkv"]
    assert len(names) >= 12
    assert len({Path(name).suffix for name in names}) >= 5
    bad = make_bad(media)
    entries = [{"id": name, "video": name} for name in sorted([*names, *bad])]
    plan = write_plan(scripted.folder, entries, modality="video")

    answer = scripted.run("capflow-produce", plan, "--output", "out")

    assert answer.returncode == 1, answer.stderr + scripted.worker_log[-4000:]
    failures = {
        line["id"]: line["error"] for line in read_lines(scripted.folder / "out/Rank0_node0_set.failed.jsonl")
    }
    assert {name: error["kind"] for name, error in failures.items()} == {
        name: kind for name, (kind, _) in bad.items()
    }, failures
    for name, (_, words) in bad.items():
        assert words in failures[name]["message"]
        assert failures[name]["attempts"] == 1
    records = {line["id"]: line for line in read_lines(scripted.folder / "out/Rank0_node0_set.jsonl")}
    assert sorted(records) == sorted(names)
    assert all(record["caption"] and record["task"] == "Video & Temporal" for record in records.values())
    _check_the_hour(records["hour.mkv"], read_lines(scripted.folder / "loaded.jsonl"))
    eventually(lambda: _assert_nothing_runs(scripted))


def _check_the_hour(record: JsonObject, loaded: list[JsonObject]) -> None:
    """28 windows of 128 s, as NeMo Curator cuts them, and of no clip more frames than allowed."""
    reports = [name for name in record["reports"] if name.startswith("video@")]
    assert reports == sorted(reports)
    assert (len(reports), reports[0], reports[-1]) == (
        28,
        "video@00:00:00-00:02:08",
        "video@00:57:36-01:00:00",
    )
    spans = [line["span"] for line in loaded if line["name"] == "hour.mkv"]
    assert sorted(filter(None, spans)) == [name.partition("@")[2] for name in reports]
    assert spans.count("") == 4  # the overview, for those who see the whole
    assert all(line["shape"][0] <= 64 and line["tokens"] <= 8192 for line in loaded)


def test_an_hour_is_read_window_by_window_at_the_cost_foretold(tmp_path: Path) -> None:
    path = make_hour(tmp_path / "hour.mkv")
    budget = MediaBudget(frame_min_pixels=4 * 784, frame_max_pixels=16 * 784)
    facts = player.measure(path, budget)
    sampled = []
    for span in Windows(budget, player).of(path, {}):
        clip = load_media(MediaRef(Modality.VIDEO, path, span), budget)
        sampled.append(len(clip.value[0]))
        assert clip.tokens == plan_frames(facts, budget, span).tokens
    assert sampled == [256] * 28


@pytest.fixture
def two_stages(folder: Path) -> Path:
    """The overlay of docs/how-to/caption-videos.md, as a user's folder of domain files."""
    text = (REPOSITORY / "docs" / "how-to" / "caption-videos.md").read_text("utf-8")
    overlay = next(block for block in text.split("```yaml\n")[1:] if "video_summary_refined" in block)
    (folder / "domains").mkdir()
    (folder / "domains" / "video.yaml").write_text(overlay.partition("```")[0])
    return folder / "domains"


def test_pictures_short_and_long_videos_in_one_plan_with_the_real_engine(
    quick_cli: Cli, engine: Engine, tiny_model: Path, two_stages: Path, eventually: Eventually
) -> None:
    media = quick_cli.folder / "media"
    for number in range(2):
        draw_picture(media / f"{number}.png", number)
    film_video(media / "short.mp4", seconds=2)
    film_video(media / "long.mp4", seconds=10)
    shutil.copy(media / "0.png", media / "picture.mp4")
    entries: list[JsonObject] = [
        {"id": 0, "image": "0.png"},
        {"id": 1, "video": "short.mp4"},
        {"id": 2, "video": "long.mp4"},
        {"id": 3, "video": "picture.mp4"},
        {"id": 4, "image": "1.png"},
    ]
    plan = write_plan(quick_cli.folder, entries)
    quick_cli.environment |= {
        "CAPFLOW_ENGINE": "vllm",
        "CAPFLOW_MODEL": str(tiny_model),
        "CAPFLOW_MAX_MODEL_LEN": "16384",
        "CAPFLOW_MAX_ANSWER_TOKENS": "48",
        "CAPFLOW_GUARD_OFF": NOISE_RULES,
        "CAPFLOW_VIDEO_WINDOW_FRAMES": "8",
        "CAPFLOW_DOMAINS": str(two_stages),
        "HF_HUB_OFFLINE": "1",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "TORCHDYNAMO_DISABLE": "1",
    }

    answer = quick_cli.run("capflow-produce", plan, "--output", "out")

    assert answer.returncode == 1, answer.stderr + quick_cli.worker_log[-4000:]
    failures = read_lines(quick_cli.folder / "out" / "Rank0_node0_set.failed.jsonl")
    assert [(failed["id"], failed["error"]["kind"]) for failed in failures] == [(3, "media_unsupported")], (
        failures
    )
    records = {
        record["id"]: record for record in read_lines(quick_cli.folder / "out" / "Rank0_node0_set.jsonl")
    }
    assert list(records) == [0, 1, 2, 4]
    assert all(record["caption"] and {record["overall"]} <= {1, 2, 3} for record in records.values())
    windows = ["video@00:00:00-00:00:04", "video@00:00:04-00:00:08", "video@00:00:08-00:00:10"]
    assert [name for name in records[2]["reports"] if name.startswith("video@")] == windows
    assert "video" in records[1]["reports"]
    said = _results(engine)
    for idx in (1, 2):
        assert records[idx]["caption"] == said[idx, "video_summary_refined"].text
        assert records[idx]["caption"] != said[idx, "video_summary"].text
    _check_tokens(said, media)
    eventually(lambda: _assert_nothing_runs(quick_cli))


def _results(engine: Engine) -> dict[tuple[int, str], Any]:
    statement = select(Sample.idx, AgentResult).join(Sample, Sample.id == AgentResult.sample_id)
    with engine.connect() as connection:
        return {(row.idx, row.agent): row for row in connection.execute(statement)}


def _check_tokens(said: dict[tuple[int, str], Any], media: Path) -> None:
    """What a clip cost in the engine is what was foretold: the same words, other frames."""
    budget = MediaBudget(max_frames=64, total_pixels=8192 * 784)
    short, long = (
        plan_frames(player.measure(str(media / name), budget), budget).tokens
        for name in ("short.mp4", "long.mp4")
    )
    overviews = [said[idx, "video_guideline"].prompt_tokens for idx in (1, 2)]
    assert overviews[1] - overviews[0] == long - short > 0
    for agent in ("video_reasoning", "video_summary", "video_summary_refined", "video_judge"):
        assert all(said[idx, agent].cached_tokens > 0 for idx in (1, 2))


def _assert_nothing_runs(cli: Cli) -> None:
    assert cli.processes() == []
