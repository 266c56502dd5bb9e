"""What is captioned: pictures of one megapixel and clips of 32 frames, and how long answers are."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from capflow_tasks.records import JsonObject, Modality
from tests.benchmarks.scene import TASKS
from tests.clips import make_clip

#: Frames that the model gets of a clip, at two per second.
FRAMES = 32
_FRAMES_PER_SECOND = 2


@dataclass(frozen=True, slots=True)
class Load:
    """How large the media and the answers are."""

    #: Width and height, multiples of 28, so that nothing is resized.
    picture: tuple[int, int]
    frame: tuple[int, int]
    #: Tokens of a free text: median and 95th percentile of a log-normal distribution.
    answer: tuple[int, int]

    def entries(self, kind: Modality, media: Path, first: int, count: int) -> list[JsonObject]:
        """Draw new media, numbered from `first`, and return their annotation entries."""
        media.mkdir(parents=True, exist_ok=True)
        draw = self._draw_picture if kind is Modality.IMAGE else self._draw_clip
        return [draw(media, number) for number in range(first, first + count)]

    def _draw_picture(self, media: Path, number: int) -> JsonObject:
        Image.fromarray(_pattern(number, self.picture)).save(media / f"{number}.png")
        return {"image": f"{number}.png", "task": TASKS[number % len(TASKS)]}

    def _draw_clip(self, media: Path, number: int) -> JsonObject:
        pixels = _pattern(number, self.frame)
        make_clip(
            media / f"{number}.mp4", count=FRAMES, rate=_FRAMES_PER_SECOND, size=self.frame, pixels=pixels
        )
        return {"video": f"{number}.mp4"}


def _pattern(number: int, size: tuple[int, int]) -> NDArray[np.uint8]:
    """Return coarse noise that differs for each number, so that no prefix cache knows it."""
    width, height = size
    coarse = np.random.default_rng(number).integers(0, 255, (height // 14, width // 14, 3), np.uint8)
    return coarse.repeat(14, axis=0).repeat(14, axis=1)


#: 1,280 tokens per picture, 299 per pair of frames.
REALISTIC = Load((1120, 896), (644, 364), (180, 600))
TINY = Load((448, 448), (336, 308), (8, 27))
