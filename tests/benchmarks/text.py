"""Measures text recognition, and the two scores that rest on it, on drawn documents whose text is known.

    python -m tests.benchmarks.text

Prints the table of docs/explanation/why-trust-a-caption.md. The same seed draws the same documents.
"""

from __future__ import annotations

import random
import re
import resource
import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from capflow_tasks.captioning.quotes import text_checks, text_coverage
from capflow_tasks.media.budget import MediaBudget
from capflow_tasks.media.ocr import SURE, TextReader
from capflow_tasks.records import JsonObject, MediaRef, Modality

_SEED = 7
#: Documents of each kind, and planted errors of each sort in each document.
_DOCUMENTS, _TRIALS = 9, 3
#: A caption that covers less has lost a line.
_COVERAGE = 0.97
_FONTS = Path(mpl.get_data_path()) / "fonts" / "ttf"
_FACES = ("DejaVuSans", "DejaVuSerif", "DejaVuSans-Bold", "DejaVuSerif-Italic", "STIXGeneral")
_WORDS = sorted(
    {
        word
        for page in (Path(__file__).resolve().parents[2] / "capflow_tasks" / "domains").glob("*.yaml")
        for word in re.findall(r"\b[a-z]{3,11}\b", page.read_text("utf-8"))
    }
)


@dataclass(frozen=True, slots=True)
class Style:
    """How a kind of document is drawn."""

    lines: Callable[[random.Random], list[list[str]]]
    sizes: tuple[int, int] = (20, 28)
    faces: Sequence[str] = _FACES
    ink: tuple[int, int] = (0, 60)
    paper: tuple[int, int] = (235, 255)
    degrees: float = 0
    blur: float = 0


def _sentence(draw: random.Random) -> list[str]:
    words = draw.choices(_WORDS, k=draw.randint(5, 8))
    if draw.random() < 0.6:
        words[draw.randrange(1, len(words))] = str(draw.randint(10, 9999))
    return [" ".join(words).capitalize()]


def _page(draw: random.Random) -> list[list[str]]:
    return [_sentence(draw) for _ in range(draw.randint(6, 10))]


def _table(draw: random.Random) -> list[list[str]]:
    columns = draw.randint(3, 4)
    rows = [[draw.choice(_WORDS).capitalize() for _ in range(columns)]]
    for _ in range(draw.randint(6, 10)):
        numbers = [f"{draw.uniform(1, 5000):,.2f}" for _ in range(columns - 1)]
        rows.append([draw.choice(_WORDS), *numbers])
    return rows


def _code(draw: random.Random) -> list[list[str]]:
    forms = (
        "{0} = {1}.{2}({3})",
        "if {0} == {3}:",
        "    return {0}[{3}] + {1}",
        "for {0} in range({3}):",
        "def {0}({1}, {2}={3}):",
    )
    return [[draw.choice(forms).format(*draw.choices(_WORDS, k=3), draw.randint(10, 999))] for _ in range(9)]


STYLES = {
    "page": Style(_page),
    "small print": Style(_page, sizes=(11, 14)),
    "table": Style(_table),
    "code": Style(_code, faces=("DejaVuSansMono",)),
    "low contrast": Style(_page, ink=(150, 165), paper=(190, 205)),
    "rotated": Style(_page, degrees=6),
    "blurred scan": Style(_page, sizes=(16, 20), blur=1.1),
}


def draw_document(style: Style, draw: random.Random) -> tuple[Image.Image, list[str]]:
    """Return a picture and its rows of text, as a perfect reader has them."""
    rows = style.lines(draw)
    size = draw.randint(*style.sizes)
    font = ImageFont.truetype(_FONTS / f"{draw.choice(style.faces)}.ttf", size)
    widths = [max(font.getlength(row[cell]) for row in rows) + 2 * size for cell in range(len(rows[0]))]
    paper, ink = draw.randint(*style.paper), draw.randint(*style.ink)
    picture = Image.new("L", (round(sum(widths)) + 80, round(len(rows) * size * 1.6) + 80), paper)
    pen = ImageDraw.Draw(picture)
    for number, row in enumerate(rows):
        for cell, text in enumerate(row):
            place = (40 + sum(widths[:cell]), 40 + number * size * 1.6)
            pen.text(place, text, ink, font)
    degrees = draw.uniform(-style.degrees, style.degrees)
    picture = picture.rotate(degrees, Image.Resampling.BICUBIC, expand=True, fillcolor=paper)
    return picture.filter(ImageFilter.GaussianBlur(style.blur)), [" ".join(row) for row in rows]


def _words(text: str) -> Counter[str]:
    return Counter(re.findall(r"[^\W_]+", text.casefold()))


def _caption(rows: Sequence[str]) -> str:
    return " ".join(f'It says "{row}".' for row in rows)


def _with_digit_changed(row: str, draw: random.Random) -> str:
    place = draw.choice([found.start() for found in re.finditer(r"\d", row)])
    other = draw.choice([digit for digit in "0123456789" if digit != row[place]])
    return row[:place] + other + row[place + 1 :]


def _with_word_invented(row: str, draw: random.Random) -> str:
    words = row.split(" ")
    words.insert(draw.randint(1, len(words)), draw.choice(_WORDS))
    return " ".join(words)


def _plant(rows: Sequence[str], pictures: Sequence[JsonObject], draw: random.Random) -> Counter[str]:
    """Count planted errors of each sort, those found, and alarms over a caption without any."""
    found: Counter[str] = Counter()
    true = text_checks(_caption(rows), [], pictures, SURE)
    found.update({"quotes": true["quotes"], "false quotes": true["unsupported"]})
    found.update({"captions": 1, "false losses": _is_short(true)})
    for _ in range(_TRIALS):
        for name, change in {"digit": _with_digit_changed, "word": _with_word_invented}.items():
            places = [number for number, row in enumerate(rows) if name == "word" or re.search(r"\d", row)]
            place = draw.choice(places)
            changed = change(rows[place], draw)
            checks = text_checks(_caption([*rows[:place], changed, *rows[place + 1 :]]), [], pictures, SURE)
            found.update({name: 1, f"{name} found": changed in checks["unsupported_quotes"]})
        place = draw.randrange(len(rows))
        checks = text_checks(_caption([*rows[:place], *rows[place + 1 :]]), [], pictures, SURE)
        found.update({"line": 1, "line found": _is_short(checks)})
    return found


def _is_short(checks: JsonObject) -> bool:
    return (text_coverage(checks) or 0) < _COVERAGE


def measure(reader: TextReader, folder: Path) -> dict[str, Counter[str]]:
    """Read drawn documents of every kind; return counts of words and errors by kind."""
    draw, drawn = random.Random(_SEED), []
    for kind, style in STYLES.items():
        for number in range(_DOCUMENTS):
            picture, rows = draw_document(style, draw)
            path = folder / f"{kind}-{number}.png"
            picture.save(path)
            drawn.append((kind, rows, reader.submit([MediaRef(Modality.IMAGE, str(path))])))
    counts: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for kind, rows, future in drawn:
        answer = future.result()
        lines = [line for page in answer.data["pictures"] for row in page["rows"] for line in row]
        truth, read = _words(" ".join(rows)), _words(" ".join(line["text"] for line in lines))
        sure = _words(" ".join(line["text"] for line in lines if line["confidence"] >= SURE))
        counts[kind].update(
            {
                "written": truth.total(),
                "read": read.total(),
                "right": (truth & read).total(),
                "sure": sure.total(),
                "surely right": (truth & sure).total(),
            }
        )
        counts[kind] += _plant(rows, answer.data["pictures"], draw)
    return dict(counts)


#: The columns of the table: what is counted, of what.
_COLUMNS = {
    "word recall": ("right", "written"),
    "precision": ("right", "read"),
    "surely read": ("sure", "read"),
    "precision of these": ("surely right", "sure"),
    "digit changed": ("digit found", "digit"),
    "word invented": ("word found", "word"),
    "line dropped": ("line found", "line"),
    "false alarms: quotes": ("false quotes", "quotes"),
    "captions": ("false losses", "captions"),
}


def table(counts: dict[str, Counter[str]]) -> str:
    """Format the counts as a table of percentages in Markdown."""
    lines = ["| " + " | ".join(["", *_COLUMNS]) + " |", "|---|" + "---|" * len(_COLUMNS)]
    for kind, found in [*counts.items(), ("all", sum(counts.values(), Counter()))]:
        shares = [f"{100 * found[part] / found[whole]:.1f}" for part, whole in _COLUMNS.values()]
        lines.append("| " + " | ".join([kind, *shares]) + " |")
    return "\n".join(lines)


class _Reader(TextReader):
    """Does not yield to others, so that its time is what it takes."""

    niceness = 0


def main() -> None:
    reader = _Reader(2, MediaBudget())
    with tempfile.TemporaryDirectory(prefix="capflow-text-") as folder:
        counts = measure(reader, Path(folder))
    reader.stop()
    print(table(counts))
    spent, documents = resource.getrusage(resource.RUSAGE_CHILDREN), len(STYLES) * _DOCUMENTS
    seconds = (spent.ru_utime + spent.ru_stime) / documents
    print(f"\n{documents} documents, {seconds:.1f} s of a core each")


if __name__ == "__main__":
    main()
