"""What is captioned: pictures of one megapixel and clips of 32 frames, and how long the answers are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import numpy as np
import yaml
from numpy.typing import NDArray
from PIL import Image

from capflow_tasks.domains.catalogue import load_catalogue
from capflow_tasks.records import JsonObject, Modality, Stage
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
    #: Tokens of an answer, by stage.
    tokens: Mapping[Stage, int]

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

    def write_domains(self, folder: Path) -> None:
        """Write copies of the packaged domain files in which every free text has the load's tokens.

        Random weights end a text with about one token in 150,000, so each answer is as long as it may be.
        A judge's answer ends with its JSON.
        """
        folder.mkdir(parents=True, exist_ok=True)
        agents = [agent for domain in load_catalogue().domains for agent in domain.agents]
        limits = {agent.name: self.tokens[agent.stage] for agent in agents if agent.answer == "text"}
        for file in (files("capflow_tasks") / "domains").iterdir():
            if file.name.endswith(".yaml"):
                content = yaml.safe_load(file.read_text("utf-8"))
                content["agents"] = {
                    name: _limited(keys or {}, limits[name]) if name in limits else keys
                    for name, keys in content["agents"].items()
                }
                (folder / file.name).write_text(yaml.safe_dump(content, sort_keys=False, allow_unicode=True))


def _limited(keys: JsonObject, tokens: int) -> JsonObject:
    return keys | {"sampling": keys.get("sampling", {}) | {"max_tokens": tokens}}


def _pattern(number: int, size: tuple[int, int]) -> NDArray[np.uint8]:
    """Return coarse noise that differs for each number, so that no prefix cache knows it."""
    width, height = size
    coarse = np.random.default_rng(number).integers(0, 255, (height // 14, width // 14, 3), np.uint8)
    return coarse.repeat(14, axis=0).repeat(14, axis=1)


#: 1,280 tokens per picture, 299 per pair of frames.
REALISTIC = Load((1120, 896), (644, 364), {Stage.PERCEIVE: 256, Stage.REASON: 256, Stage.SUMMARIZE: 512})
TINY = Load((448, 448), (336, 308), dict.fromkeys((Stage.PERCEIVE, Stage.REASON, Stage.SUMMARIZE), 8))
