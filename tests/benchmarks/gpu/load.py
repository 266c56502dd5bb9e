"""What is captioned: pictures of one megapixel and clips of 32 frames; smaller ones for a rehearsal."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from capflow_tasks.records import JsonObject, Modality, Stage
from tests.benchmarks.gpu.lengths import TOKENS
from tests.clips import make_clip

#: Frames that the model gets of a clip, at two per second.
FRAMES = 32
_FRAMES_PER_SECOND = 2
_TASKS = ("Natural", "Structure & Math", "Infographic & Document", "UI & Interaction", "Code & Programming")


@dataclass(frozen=True, slots=True)
class Load:
    """How large the media and the answers are."""

    #: Width and height, multiples of 28, so that nothing is resized.
    picture: tuple[int, int]
    frame: tuple[int, int]
    #: Tokens of an answer, by stage.
    tokens: Mapping[Stage, int]

    def entries(self, kind: Modality, media: Path, first: int, count: int) -> list[JsonObject]:
        """Media that nobody has seen, from this number on, and what an annotation file says of them."""
        media.mkdir(parents=True, exist_ok=True)
        write = _WRITERS[kind]
        return [write(self, media, number) for number in range(first, first + count)]


def _write_picture(load: Load, media: Path, number: int) -> JsonObject:
    Image.fromarray(_pattern(number, load.picture)).save(media / f"{number}.png")
    return {"image": f"{number}.png", "task": _TASKS[number % len(_TASKS)]}


def _write_clip(load: Load, media: Path, number: int) -> JsonObject:
    pixels, name = _pattern(number, load.frame), f"{number}.mp4"
    make_clip(media / name, count=FRAMES, rate=_FRAMES_PER_SECOND, size=load.frame, pixels=pixels)
    return {"video": name}


def _pattern(number: int, size: tuple[int, int]) -> NDArray[np.uint8]:
    """Coarse, and of its own for each number, or the prefix cache would know the file."""
    width, height = size
    coarse = np.random.default_rng(number).integers(0, 255, (height // 14, width // 14, 3), np.uint8)
    return coarse.repeat(14, axis=0).repeat(14, axis=1)


_WRITERS: Mapping[Modality, Callable[[Load, Path, int], JsonObject]] = {
    Modality.IMAGE: _write_picture,
    Modality.VIDEO: _write_clip,
}

#: 1,280 tokens per picture, 299 per pair of frames.
REALISTIC = Load((1120, 896), (644, 364), TOKENS)
TINY = Load((448, 448), (336, 308), dict.fromkeys(TOKENS, 8))
