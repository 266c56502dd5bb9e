"""Text read from pictures: in which order, and what becomes of what cannot be read."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image, ImageDraw, ImageFont

from capflow_tasks.media.budget import MediaBudget
from capflow_tasks.media.ocr import Line, ReadPicture, TextReader, reading_order, version
from capflow_tasks.records import MediaRef, Modality
from tests.unit.jobs import modules


@pytest.fixture(scope="module")
def reader() -> Iterator[TextReader]:
    reader = TextReader(1, MediaBudget())
    yield reader
    reader.stop()


def a_line(text: str, left: int, top: int, width: int = 200, confidence: float = 1.0) -> Line:
    return Line(text, confidence, (left, top, left + width, top + 20))


def texts(lines: list[Line]) -> list[list[str]]:
    return [[line.text for line in row] for row in reading_order(lines)]


def test_pictures_are_read_line_by_line_in_a_child_that_yields(reader: TextReader, tmp_path: Path) -> None:
    picture = Image.new("RGB", (700, 160), "white")
    pen, font = ImageDraw.Draw(picture), ImageFont.load_default(30)
    pen.text((20, 20), "Invoice No. 2024-0317", "black", font)
    pen.text((20, 90), "Total due", "black", font)
    pen.text((480, 90), "1,284.50", "black", font)
    picture.save(tmp_path / "a.png")

    found = reader.submit([MediaRef(Modality.IMAGE, str(tmp_path / "a.png"))]).result()

    assert found.text == "Invoice No. 2024-0317\nTotal due  1,284.50"
    (read,) = found.data["pictures"]
    assert (read["width"], read["height"]) == (700, 160)
    (amount,) = [line for row in read["rows"] for line in row if line["text"] == "1,284.50"]
    assert amount["confidence"] > 0.9
    left, top, right, bottom = amount["box"]
    assert 470 < left < right < 700
    assert 80 < top < bottom < 140
    assert found.engine == version()
    assert reader.run("a.png", 10, os.nice, 0) == os.nice(0) + 10
    assert not reader.run("a.png", 10, modules) & {"torch", "vllm", "transformers"}


def test_a_picture_that_cannot_be_read_is_an_answer_with_the_reason(
    reader: TextReader, tmp_path: Path
) -> None:
    found = reader.submit([MediaRef(Modality.IMAGE, str(tmp_path / "none.png"))]).result()
    assert found.text == ""
    assert found.data == {"error": f"{tmp_path / 'none.png'} does not exist."}


def test_what_was_read_with_doubt_is_illegible_to_others() -> None:
    sure, unsure = a_line("Total", 0, 0), a_line("1Z.5O", 300, 0, confidence=0.5)
    read = ReadPicture(600, 100, [[sure, unsure]])
    assert read.text == "Total  [illegible]"
    assert [line["text"] for line in read.data["rows"][0]] == ["Total", "1Z.5O"]


def test_columns_of_running_text_are_read_one_after_the_other() -> None:
    left = [a_line(f"left {number}", 0, 100 + 30 * number) for number in range(4)]
    right = [a_line(f"right {number}", 300, 100 + 30 * number) for number in range(4)]
    title = a_line("title", 0, 0, width=500)
    mixed = [*right[::-1], title, *left]
    columns = [["left 0"], ["left 1"], ["left 2"], ["left 3"]]
    assert texts(mixed) == [["title"], *columns, *([text.replace("left", "right")] for (text,) in columns)]


def test_tables_and_numbered_lines_are_read_row_by_row() -> None:
    cells = [
        a_line(f"{name} {row}", left, 30 * row, width=60)
        for row in range(4)
        for name, left in (("a", 0), ("b", 300))
    ]
    assert texts(cells) == [[f"a {row}", f"b {row}"] for row in range(4)]
    code = [a_line(str(row), 0, 30 * row, width=20) for row in range(4)]
    code += [a_line(f"x = {row}", 60, 30 * row + 3, width=400) for row in range(4)]
    assert texts(code) == [[str(row), f"x = {row}"] for row in range(4)]


def test_an_empty_picture_has_no_rows() -> None:
    assert reading_order([]) == []
