"""Draws the pictures of a report: a small one for the gallery, a large one for the detail view.

A video becomes a film strip in the gallery, and a sheet of the same frames in the detail view. The original
is linked where it lies, or copied, so that it can be seen at full size, or played.
"""

import mimetypes
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path

from PIL import Image

from capflow_tasks.errors import SampleError
from capflow_tasks.media.addresses import open_media, part_of, readable_name, split_address
from capflow_tasks.media.budget import MediaBudget
from capflow_tasks.media.decoders import shared_video_files
from capflow_tasks.media.paths import resolve_media
from capflow_tasks.media.remote import is_remote
from capflow_tasks.records import Modality, Span
from producer.parallel import call_all

#: Frames of a film strip.
FRAMES = 5

#: Pixels: the long side of a small picture, the height of a film strip, the gap between frames.
_SMALL = 256
_STRIP_HEIGHT = 96
_GAP = 4
_QUALITY = 82
_FILM = (18, 18, 20)


class Originals(StrEnum):
    """How a report leads to the media themselves."""

    NONE = "none"
    #: By the path of the file; a member of a tar or Parquet file has none.
    LINK = "link"
    COPY = "copy"


@dataclass(frozen=True, slots=True)
class PictureTask:
    """One picture or video of a sample, and the files to draw from it."""

    kind: Modality
    root: str
    #: As the annotation entry has it, inside the root.
    path: str
    large: Path
    #: None for all but a sample's first.
    small: Path | None
    #: The long side of a large picture, pixels.
    size: int
    originals: Originals = Originals.NONE


@dataclass(frozen=True, slots=True)
class Drawn:
    """The outcome of a task."""

    #: Why there is no picture; None when there is one.
    reason: str | None = None
    #: Times of a video's frames, seconds from its beginning.
    times: tuple[float, ...] = ()
    #: Where the original lies: a path, absolute or beside the large picture.
    original: Path | None = None


def draw_all(tasks: Sequence[PictureTask], processes: int) -> list[Drawn]:
    """Draw the files of all tasks, several at a time."""
    return call_all(draw, tasks, processes, lambda done, total: None)


def draw(task: PictureTask) -> Drawn:
    """Draw the files. Media that cannot be read give a reason, not an error."""
    try:
        path = resolve_media(task.root, task.path)
        drawn = _draw_video(path, task) if task.kind is Modality.VIDEO else _draw_picture(path, task)
        return replace(drawn, original=_original(path, task))
    except SampleError as error:
        return Drawn(str(error))


def _original(path: str, task: PictureTask) -> Path | None:
    file, member = split_address(path)
    if task.originals is Originals.LINK and member is None and not is_remote(file):
        return Path(file)
    if task.originals is not Originals.COPY:
        return None
    # Its name must not make a browser take it for a page.
    suffix = Path(readable_name(path)).suffix
    kind, _, form = (mimetypes.types_map.get(suffix.lower()) or "").partition("/")
    is_media = kind in ("image", "video") and "xml" not in form
    copy = task.large.with_name(f"{task.large.stem}-original{suffix if is_media else ''}")
    with open_media(path) as source, copy.open("wb") as target:
        shutil.copyfileobj(source, target)
    return copy


def _draw_picture(path: str, task: PictureTask) -> Drawn:
    from capflow_tasks.media.pictures import load_image

    picture = load_image(path, MediaBudget(factor=1, min_pixels=1, max_pixels=task.size**2))
    picture.thumbnail((task.size, task.size))
    _save(picture, task.large)
    if task.small:
        picture.thumbnail((_SMALL, _SMALL))
        _save(picture, task.small)
    return Drawn()


def _draw_video(path: str, task: PictureTask) -> Drawn:
    files, budget = shared_video_files(1), MediaBudget()
    facts = files.measure(path, budget)
    span = part_of(path).span or Span(0, facts.seconds)
    start, end = min(span.start, facts.seconds), min(span.end, facts.seconds)
    times = [start + (number + 0.5) * (end - start) / FRAMES for number in range(FRAMES)]
    scale = min(1.0, task.size / max(facts.width, facts.height))
    size = max(1, round(facts.width * scale)), max(1, round(facts.height * scale))
    pixels, _ = files.play(path, budget, facts, times, size)
    frames = [Image.fromarray(frame) for frame in pixels]
    _save(film_sheet(frames), task.large)
    if task.small:
        _save(film_strip(frames), task.small)
    return Drawn(times=tuple(round(time, 1) for time in times))


def film_strip(frames: Sequence[Image.Image]) -> Image.Image:
    """The frames side by side."""
    width = max(1, frames[0].width * _STRIP_HEIGHT // frames[0].height)
    strip = Image.new("RGB", (len(frames) * (width + _GAP) - _GAP, _STRIP_HEIGHT), _FILM)
    for number, frame in enumerate(frames):
        strip.paste(frame.resize((width, _STRIP_HEIGHT)), (number * (width + _GAP), 0))
    return strip


def film_sheet(frames: Sequence[Image.Image]) -> Image.Image:
    """The first frame large, the others below it in two columns."""
    first, *others = frames
    width, height = (max(1, (side - _GAP) // 2) for side in first.size)
    rows = -(-len(others) // 2)
    sheet = Image.new("RGB", (first.width, first.height + rows * (height + _GAP)), _FILM)
    sheet.paste(first, (0, 0))
    for number, frame in enumerate(others):
        corner = number % 2 * (width + _GAP), first.height + _GAP + number // 2 * (height + _GAP)
        sheet.paste(frame.resize((width, height)), corner)
    return sheet


def _save(picture: Image.Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path, "JPEG", quality=_QUALITY)
