"""Figures and charts of a report's page."""

import re
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from capflow_tasks.records import Stage
from capflow_tasks.store.figures import DomainFigures, FailureKind, Tokens, Usage
from capflow_tasks.store.states import SampleState, Tally
from producer.cost import cost_of, read_prices
from producer.report.report import Chart, Column, nice_top, templates, write_page
from tests.reports import an_overview

HOSTILE = "\"><script>alert('1')</script>&"


def bar(parts: list[tuple[str, int, str]], total: int) -> str:
    return drawn("bar(total, parts)", total=total, parts=parts)


def columns(*chart: Column, label: str = "label") -> str:
    return drawn("columns(chart)", chart=Chart(label, chart))


def drawn(call: str, **values: Any) -> str:
    page = f'{{% from "charts.html" import bar, columns %}}{{{{ {call} }}}}'
    return templates().from_string(page).render(values)


def elements(svg: str, name: str) -> list[ElementTree.Element]:
    """Of a well-formed picture; anything else is an error."""
    return [element for element in ElementTree.fromstring(svg).iter() if element.tag == name]


def test_parts_of_a_bar_stand_side_by_side_and_fill_their_share() -> None:
    svg = bar([("one", 3, "three"), ("two", 0, "none"), ("cached", 1, "one")], total=8)

    boxes = [(float(box.attrib["x"]), float(box.attrib["width"])) for box in elements(svg, "rect")]
    assert boxes == [(0, 37.5), (37.5, 12.5)]


def test_a_bar_of_nothing_is_empty() -> None:
    assert elements(bar([("one", 0, "none")], total=0), "rect") == []


def test_columns_reach_as_high_as_their_values_and_none_leaves_the_canvas() -> None:
    svg = columns(Column("a", "five", 5), Column("b", "ten", 10), Column("c", "none", 0))

    heights = [float(box.attrib["height"]) for box in elements(svg, "rect")]
    assert heights[0] * 2 == pytest.approx(heights[1], abs=0.02)
    assert heights[2] == 0
    assert all(float(box.attrib["y"]) >= 0 for box in elements(svg, "rect"))


def test_many_columns_share_a_few_labels() -> None:
    svg = columns(*(Column(f"at {number}", "", 1) for number in range(48)))

    assert len(elements(svg, "rect")) == 48
    assert 4 <= len(re.findall("at ", svg)) <= 6


def test_what_stands_in_a_chart_is_text_whatever_it_says() -> None:
    svg = columns(Column(HOSTILE, HOSTILE, 1), label=HOSTILE)

    assert "<script" not in svg + bar([("one", 1, HOSTILE)], 1)
    assert elements(svg, "title")[0].text == f"{HOSTILE}: 1 samples"


@pytest.mark.parametrize(("most", "top"), [(0, 1), (1, 1), (3, 5), (17, 20), (0.3, 0.5), (1001, 2000)])
def test_an_axis_ends_at_a_round_number(most: float, top: float) -> None:
    assert nice_top(most) == pytest.approx(top)


def test_the_page_shows_all_figures_of_a_run(tmp_path: Path) -> None:
    began = datetime(2026, 1, 2, tzinfo=UTC)
    tokens = Tokens(prompt=2_000_000, cached=1_500_000, completion=100_000)
    usages = [Usage(Stage.SCORE, "gpt-4.1", "a/1", 10, tokens, 5, began, began + timedelta(hours=1), 3600)]
    overview = replace(
        an_overview(1000),
        usages=usages,
        domains=[DomainFigures(None, dict.fromkeys(SampleState, 2500), {})],
        grades={"factual_accuracy": {1: 0, 2: 1, 3: 0}, "overall": {1: 1, 2: 0, 3: 3}},
        failures=[FailureKind("media_missing", 2, (Stage.ROUTE,), False, "<gone>")],
        cost=cost_of(usages, read_prices()),
    )
    overview = replace(overview, run=replace(overview.run, tally=Tally(done=900, failed=99, held=1)))

    write_page(tmp_path, overview, 10)

    words = " ".join(re.sub("<[^>]*>", " ", (tmp_path / "index.html").read_text("utf-8")).split())
    for expected in (
        "captioned 900 of 1,000 samples failed 99 9.9% held back 1 routed with too little confidence",
        "overall grade 2.50 of 3; 75.0% excellent",
        "prompt tokens 2M 75% from the prefix cache answer tokens 100k 28 per second",
        "samples per hour 1k 1 h, 1 worker cost $2.55 $0.283 per 100 captions",
        "no domain 2,500 failed 2,500 pending 2,500 done 2,500 failed 2,500 held 10,000",
        "factual accuracy 1 good 2.00",
        "score 75% cached 1,500,000 prompt tokens cached 500,000 prompt tokens computed",
        "media missing &lt;gone&gt; 2 samples 2",
    ):
        assert expected in words
