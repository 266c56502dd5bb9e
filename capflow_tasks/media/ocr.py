"""Reads the text in pictures with RapidOCR, in child processes that yield to everything else on the node.

Its models (PP-OCR) come with the package, so nothing is downloaded. It is an extra: `pip install '.[ocr]'`.
"""

import re
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import cache
from importlib import metadata, util
from statistics import median
from time import monotonic
from typing import Any

import numpy as np

from capflow_tasks.errors import SampleError
from capflow_tasks.media.budget import MediaBudget
from capflow_tasks.media.children import ChildProcesses
from capflow_tasks.media.pictures import load_image
from capflow_tasks.records import TEXT_READER, MediaRef, Modality, ToolAnswer

#: The package that reads, and the one that runs its models.
_PACKAGES = (TEXT_READER, "onnxruntime")
#: What to do where one is missing.
REMEDY = "install RapidOCR (pip install '.[ocr]'), or set CAPFLOW_OCR_PROCESSES=0"
#: Lines read with at least this confidence count as surely written there.
SURE = 0.9
#: Stands for a line that was read with less.
ILLEGIBLE = "[illegible]"
#: The longest text that other agents get: `max_tokens` in _defaults.yaml, at 3 characters a token.
_MAX_CHARACTERS = 4608
#: Larger pictures are scaled down: RapidOCR itself reads no side above 2,000 pixels.
_MAX_PIXELS = 2048 * 2048


@dataclass(frozen=True, slots=True)
class Line:
    """One line of text in a picture, or one cell of a table."""

    text: str
    #: From 0 to 1.
    confidence: float
    #: Left, top, right, bottom in pixels of the picture as it was read.
    box: tuple[int, int, int, int]

    @property
    def height(self) -> int:
        return self.box[3] - self.box[1]

    @property
    def middle(self) -> float:
        return (self.box[1] + self.box[3]) / 2


@dataclass(frozen=True, slots=True)
class ReadPicture:
    #: Of the picture as it was read, pixels.
    width: int
    height: int
    #: From top to bottom, one column of text after the other; cells of a row from left to right.
    rows: Sequence[Sequence[Line]]

    @property
    def text(self) -> str:
        """The rows, with ILLEGIBLE in place of what is not sure."""
        shown = [[each.text if each.confidence >= SURE else ILLEGIBLE for each in row] for row in self.rows]
        return "\n".join("  ".join(row) for row in shown)

    @property
    def data(self) -> dict[str, Any]:
        """Everything, as it is stored."""
        rows = [[asdict(line) for line in row] for row in self.rows]
        return {"width": self.width, "height": self.height, "rows": rows}


def version() -> str | None:
    """Return the packages with their versions; None where one is not installed."""
    if not all(map(util.find_spec, _PACKAGES)):
        return None
    return " ".join(f"{name} {metadata.version(name)}" for name in _PACKAGES)


class TextReader(ChildProcesses):
    """Reads the text in pictures, in at most `count` child processes. Thread-safe."""

    child_name = "text reader"
    does = "reads text"
    done = "read"
    niceness = 10

    def __init__(self, count: int, budget: MediaBudget) -> None:
        super().__init__(count)
        self._threads = ThreadPoolExecutor(count, thread_name_prefix="ocr")
        self._budget = replace(budget, factor=1, min_pixels=1, max_pixels=_MAX_PIXELS)

    def submit(self, media: Sequence[MediaRef]) -> Future[ToolAnswer]:
        """Begin to read the pictures among the media.

        A picture that cannot be read is the result's `error`: captioning goes on without its text. The future
        raises DecodersBroken where no child starts.
        """
        return self._threads.submit(self._read, [ref for ref in media if ref.kind is Modality.IMAGE])

    def _read(self, media: Sequence[MediaRef]) -> ToolAnswer:
        began, texts, data, error = monotonic(), [], [], None
        try:
            for ref in media:
                read = self.run(ref.path, self._budget.timeout_seconds, read_text, ref.path, self._budget)
                data.append(read.data)
                texts.append(read.text)
        except SampleError as raised:
            error = str(raised)
        seconds = monotonic() - began
        found: dict[str, Any] = {"pictures": data} if error is None else {"error": error}
        return ToolAnswer("" if error else _joined(texts), found, TEXT_READER, version() or "", seconds)


def _joined(texts: Sequence[str]) -> str:
    """Return the texts of a sample's pictures as one, cut at the end of a row if it is too long."""
    numbered = [f"Picture {number}:\n{text}" for number, text in enumerate(texts, 1) if text]
    text = "\n\n".join(numbered if len(texts) > 1 else texts)
    if len(text) <= _MAX_CHARACTERS:
        return text
    return text[:_MAX_CHARACTERS].rpartition("\n")[0] + "\n[cut off]"


def read_text(path: str, budget: MediaBudget) -> ReadPicture:
    """Read a picture's text in this process. Raises SampleError."""
    picture = load_image(path, budget)
    # RapidOCR expects blue first, as OpenCV does.
    found = _engine()(np.asarray(picture)[:, :, ::-1])
    lines = [
        Line(_plain_forms(text), round(float(score), 3), _bounds(box))
        for text, score, box in zip(found.txts or (), found.scores or (), _boxes(found), strict=True)
        if text.strip()
    ]
    return ReadPicture(picture.width, picture.height, reading_order(lines))


@cache
def _engine() -> Any:
    import cv2
    from rapidocr import RapidOCR

    cv2.setNumThreads(1)
    threads = {f"EngineConfig.onnxruntime.{kind}_op_num_threads": 1 for kind in ("intra", "inter")}
    return RapidOCR(params={"Global.log_level": "error", **threads})


def _boxes(found: Any) -> Sequence[Any]:
    return () if found.boxes is None else found.boxes


def _bounds(corners: Any) -> tuple[int, int, int, int]:
    (left, top), (right, bottom) = corners.min(axis=0), corners.max(axis=0)
    return round(float(left)), round(float(top)), round(float(right)), round(float(bottom))


_EAST_ASIAN = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]")
#: Full-width forms of ASCII.
_WIDE = {wide: wide - 0xFEE0 for wide in range(0xFF01, 0xFF5F)}


def _plain_forms(text: str) -> str:
    """Return the text without full-width signs, which the model prefers, unless its script has them."""
    return text if _EAST_ASIAN.search(text) else text.translate(_WIDE)


#: A column of running text has so many lines, which are so many times as wide as high.
_COLUMN_LINES, _COLUMN_WIDTH = 3, 8


def reading_order(lines: Sequence[Line]) -> list[list[Line]]:
    """Return the lines as rows, from top to bottom, and columns of running text one after the other.

    The page is cut where nothing is written (XY cut, Nagy and Seth 1984). Columns of short lines are those
    of a table, which is read row by row.
    """
    if columns := _columns(lines):
        return [row for column in columns for row in reading_order(column)]
    for above, below in _cuts(lines, axis=1, gap=0):
        if _columns(above) or _columns(below):
            return reading_order(above) + reading_order(below)
    return _rows(lines)


def _columns(lines: Sequence[Line]) -> list[Sequence[Line]]:
    """Return two columns of running text with a blank between them; nothing where there are none."""
    for left, right in _cuts(lines, axis=0, gap=median(line.height for line in lines) if lines else 0):
        if _is_running(left) and _is_running(right):
            return [left, right]
    return []


def _is_running(lines: Sequence[Line]) -> bool:
    if len(lines) < _COLUMN_LINES:
        return False
    width = median(line.box[2] - line.box[0] for line in lines)
    return width >= _COLUMN_WIDTH * median(line.height for line in lines)


def _cuts(lines: Sequence[Line], axis: int, gap: float) -> Iterator[tuple[Sequence[Line], Sequence[Line]]]:
    """Yield both sides of each blank that is wider than `gap` pixels, across (1) or along (0) the page."""
    ordered = sorted(lines, key=lambda line: line.box[axis])
    reached = float("-inf")
    for number, line in enumerate(ordered):
        if number and line.box[axis] - reached > gap:
            yield ordered[:number], ordered[number:]
        reached = max(reached, line.box[axis + 2])


def _rows(lines: Sequence[Line]) -> list[list[Line]]:
    """Put lines side by side into rows, each from left to right."""
    rows: list[list[Line]] = []
    for line in sorted(lines, key=lambda line: line.middle):
        before = rows[-1][-1] if rows else None
        if before and line.middle - before.middle < min(line.height, before.height) / 2:
            rows[-1].append(line)
        else:
            rows.append([line])
    return [sorted(row, key=lambda line: line.box[0]) for row in rows]
