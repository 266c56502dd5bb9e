"""Lost sectors of videos are found, and nothing beside the pictures is taken for one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from capflow_tasks.errors import MediaCorrupt
from capflow_tasks.media.budget import MediaBudget
from capflow_tasks.media.player import measure
from tests.fuzz.videos import FORMATS, VIDEO_DAMAGES, clips, is_refused, with_odd_metadata


@pytest.mark.parametrize(
    ("name", "least"),
    [("H.264 in MP4", 4), ("H.265 in MKV", 3), ("VP9 in WebM", 3), ("Motion JPEG in MOV", 3)],
)
def test_sectors_that_a_disk_has_lost_are_found(tmp_path: Path, name: str, least: int) -> None:
    random, path = np.random.default_rng(0), tmp_path / f"damaged{FORMATS[name][0]}"

    files = [VIDEO_DAMAGES["512 bytes zero"](content, random) for content in clips(name, 5, tmp_path)]

    assert sum(is_refused(content, path) for content in files) >= least


@pytest.mark.parametrize("name", ["H.264 in MP4", "H.264 in MPEG-TS"])
def test_the_message_says_where_the_zeros_are(tmp_path: Path, name: str) -> None:
    (content,) = clips(name, 1, tmp_path)
    path = tmp_path / f"damaged{FORMATS[name][0]}"
    start = next(at for at in range(2048, 8192, 512) if content[at - 1] and content[at + 512])
    path.write_bytes(content[:start] + bytes(512) + content[start + 512 :])

    with pytest.raises(
        MediaCorrupt, match=f"is damaged: 512 bytes from {start:,} on are zero, a disk's lost"
    ):
        measure(str(path), MediaBudget())


def test_sound_clips_with_odd_metadata_and_padding_are_never_refused(tmp_path: Path) -> None:
    refused = [
        suffix
        for suffix, content in with_odd_metadata(1, tmp_path)
        if is_refused(content, tmp_path / f"odd{suffix}")
    ]

    assert refused == []
