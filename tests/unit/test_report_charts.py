"""Charts as inline SVG."""

import re
from xml.etree import ElementTree

import pytest

from producer.report.charts import Column, Part, bar, columns, nice_top

HOSTILE = "\"><script>alert('1')</script>&"


def elements(svg: str, name: str) -> list[ElementTree.Element]:
    """Of a well-formed picture; anything else is an error."""
    return [element for element in ElementTree.fromstring(svg).iter() if element.tag == name]


def test_parts_of_a_bar_stand_side_by_side_and_fill_their_share() -> None:
    svg = bar([Part("one", 3, "three"), Part("two", 0, "none"), Part("cached", 1, "one")], total=8)

    boxes = [(float(box.attrib["x"]), float(box.attrib["width"])) for box in elements(svg, "rect")]
    assert boxes == [(0, 37.5), (37.5, 12.5)]


def test_a_bar_of_nothing_is_empty() -> None:
    assert elements(bar([Part("one", 0, "none")], total=0), "rect") == []


def test_columns_reach_as_high_as_their_values_and_none_leaves_the_canvas() -> None:
    svg = columns([Column("a", 5, "five"), Column("b", 10, "ten"), Column("c", 0, "none")], "label")

    heights = [float(box.attrib["height"]) for box in elements(svg, "rect")]
    assert heights[0] * 2 == pytest.approx(heights[1], abs=0.02)
    assert heights[2] == 0
    assert all(float(box.attrib["y"]) >= 0 for box in elements(svg, "rect"))


def test_many_columns_share_a_few_labels() -> None:
    svg = columns([Column(f"at {number}", 1, "") for number in range(48)], "label")

    assert len(elements(svg, "rect")) == 48
    assert 4 <= len(re.findall("at ", svg)) <= 6


def test_what_stands_in_a_chart_is_text_whatever_it_says() -> None:
    svg = columns([Column(HOSTILE, 1, HOSTILE)], HOSTILE) + bar([Part("one", 1, HOSTILE)], 1)

    assert "<script" not in svg
    assert elements(columns([Column(HOSTILE, 1, HOSTILE)], HOSTILE), "title")[0].text == HOSTILE


@pytest.mark.parametrize(("most", "top"), [(0, 1), (1, 1), (3, 5), (17, 20), (0.3, 0.5), (1001, 2000)])
def test_an_axis_ends_at_a_round_number(most: float, top: float) -> None:
    assert nice_top(most) == pytest.approx(top)
