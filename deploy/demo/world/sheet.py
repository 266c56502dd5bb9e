"""Draws a contact sheet: held-out scenes above their captions, what is wrong in red."""

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot
from PIL import Image

from world.drawing import draw_frames, draw_picture
from world.facts import Scene, read
from world.lessons import VIDEO

COLUMNS, WIDTH = 6, 34


def picture_of(scene: Scene) -> Image.Image:
    """Return the picture; of a video, its first and last frame side by side."""
    if scene.domain != VIDEO:
        return draw_picture(scene)
    first, *_, last = draw_frames(scene, 8)
    width = first.width * 2 + 8
    film = Image.new("RGB", (width, width), "white")
    film.paste(first, (0, 0))
    film.paste(last, (first.width + 8, 0))
    return film


def draw_sheet(path: Path, scenes: Sequence[Scene], records: Sequence[dict[str, Any]]) -> None:
    """Draw as many scenes as there are records, in this order."""
    rows = -(-len(records) // COLUMNS)
    figure, axes = pyplot.subplots(rows, COLUMNS, figsize=(15, 4.1 * rows), layout="constrained")
    for place, record in zip(axes.flat, records, strict=True):
        scene = scenes[record["id"]]
        place.imshow(picture_of(scene))
        place.set_title(scene.domain, fontsize=9, loc="left", weight="bold")
        place.axis("off")
        _write_caption(place, record["caption"], read(record["facts"]))
    figure.savefig(path, dpi=80)
    pyplot.close(figure)


def _write_caption(place: Any, caption: str, facts: Sequence[str]) -> None:
    height = -0.05
    for said in read(caption):
        for line in textwrap.wrap(f"{said};", WIDTH):
            colour = "black" if said in facts else "crimson"
            place.text(0, height, line, fontsize=8.5, color=colour, va="top", transform=place.transAxes)
            height -= 0.07
