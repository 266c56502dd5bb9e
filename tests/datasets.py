"""Tiny datasets: pictures, annotation files and split plans as users write them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image

from capflow_tasks.records import JsonObject


def draw_picture(path: Path, number: int, size: tuple[int, int] = (64, 48)) -> None:
    """A PNG that differs from that of every other number."""
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.new("RGB", size, ((number * 67) % 256, (number * 151) % 256, (number * 29) % 256))
    picture.putpixel((number % size[0], 0), (255, 255, 255))
    picture.save(path)


def film_video(path: Path, seconds: float = 2, codec: str = "mpeg4") -> None:
    """An MP4 of a bar that moves."""
    frames_per_second, width, height = 8, 112, 84
    with av.open(path, "w") as container:
        stream = container.add_stream(codec, rate=Fraction(frames_per_second))
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for number in range(round(seconds * frames_per_second)):
            pixels = np.zeros((height, width, 3), np.uint8)
            pixels[:, number * 4 : number * 4 + 20] = (200, 120, 40)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode(None))


def entries_with_pictures(folder: Path, count: int) -> list[JsonObject]:
    """Entries and their pictures, in `folder/media`."""
    for number in range(count):
        draw_picture(folder / "media" / f"{number}.png", number)
    return [{"id": number, "image": f"{number}.png"} for number in range(count)]


def write_plan(folder: Path, entries: Sequence[Any], name: str = "set", **changes: Any) -> Path:
    """One annotation file of these entries and a plan of one line that takes them all."""
    (folder / "media").mkdir(parents=True, exist_ok=True)
    annotations = folder / f"{name}.json"
    annotations.write_text(json.dumps(entries))
    line = {
        "data_name": name,
        "json_url": annotations.name,
        "root": "media",
        "modality": "image",
        "task": "",
        "start_idx": 0,
        "end_idx": len(entries),
        "shard_index": 0,
        "num_shards": 1,
        "assign_rank": 0,
        **changes,
    }
    plan = folder / f"{name}.plan.jsonl"
    plan.write_text(json.dumps(line) + "\n")
    return plan


def read_lines(path: Path) -> list[JsonObject]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]
