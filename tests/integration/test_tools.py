"""Agents that a program answers in place of the model: over a real database, with real text recognition."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image, ImageDraw, ImageFont
from sqlalchemy import Engine

from capflow_tasks.captioning.heartbeat import Heartbeat
from capflow_tasks.captioning.stages import StageRunner
from capflow_tasks.domains.catalogue import Catalogue, load_catalogue
from capflow_tasks.media.budget import MediaBudget
from capflow_tasks.media.ocr import TextReader, version
from capflow_tasks.records import FinishedSample, Request, Stage
from capflow_tasks.settings import Settings
from capflow_tasks.store.claims import WorkerStore
from capflow_tasks.store.figures import TextFigures
from capflow_tasks.store.states import SampleState
from capflow_tasks.store.statistics import Statistics
from capflow_tasks.testing import ScriptedEngine, scripted_text
from producer.writing.captions import caption_record
from tests.stores import Fleet

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def reader() -> Iterator[TextReader]:
    reader = TextReader(1, MediaBudget())
    yield reader
    reader.stop()


@pytest.fixture
def fleet(engine: Engine, tmp_path: Path) -> Fleet:
    """One document of two lines."""
    picture = Image.new("RGB", (500, 140), "white")
    pen, font = ImageDraw.Draw(picture), ImageFont.load_default(30)
    pen.text((20, 20), "Invoice No. 2024-0317", "black", font)
    pen.text((20, 80), "Total due 1,284.50", "black", font)
    picture.save(tmp_path / "a.png")
    return Fleet(engine, [{"image": "a.png"}], domain="Document", root=str(tmp_path))


def caption(fleet: Fleet, engine: ScriptedEngine, tools: dict[str, TextReader]) -> FinishedSample:
    catalogue: Catalogue = load_catalogue()
    heartbeat = Heartbeat(WorkerStore(fleet.engine), "worker", lease_seconds=60)
    engines = dict.fromkeys(Stage, engine)
    runner = StageRunner(fleet.batches, lambda _: catalogue, engines, heartbeat, Settings(), tools=tools)
    for stage in list(Stage)[1:]:
        runner.run(fleet.batch_ids[0], stage)
    (sample,) = fleet.views.finished_samples(fleet.shard_id, SampleState.DONE)
    return sample


def test_what_is_read_is_stored_and_told_to_those_that_reason_and_write(
    fleet: Fleet, reader: TextReader
) -> None:
    engine = ScriptedEngine()

    sample = caption(fleet, engine, {"ocr": reader})

    (found,) = [result for result in sample.results if result.agent == "recognized_text"]
    assert found.text == "Invoice No. 2024-0317\nTotal due 1,284.50"
    assert found.data is not None
    assert [line["text"] for row in found.data["pictures"][0]["rows"] for line in row] == found.text.split(
        "\n"
    )
    assert (found.model, found.engine, found.prompt_tokens) == ("rapidocr", version(), 0)
    told = f"Read by a program and surely written there:\n{found.text}"
    report = f'<report from="recognized_text">\n{told}\n</report>'
    readers = [request for request in engine.requests if report in request.instruction]
    assert len(readers) == 2
    assert len(engine.requests) == len(sample.results) - 1


def quoting(request: Request) -> str:
    """Write a caption that gets the number of the invoice wrong, and leaves out the total."""
    is_summary = "Write the one caption" in request.instruction
    return 'It is headed "Invoice No. 2024-0817".' if is_summary else scripted_text(request)


def test_captions_are_compared_with_what_was_read(fleet: Fleet, reader: TextReader) -> None:
    sample = caption(fleet, ScriptedEngine(quoting), {"ocr": reader})

    record = caption_record(sample)
    assert (record["quote_support"], record["unsupported_quotes"]) == (0.0, ["Invoice No. 2024-0817"])
    # invoice, no and 2024, of these and 0317, total, due, 1, 284 and 50
    assert record["text_coverage"] == round(3 / 9, 4)
    text = Statistics(fleet.engine).text(fleet.run_id)
    assert text is not None
    assert text == replace(
        TextFigures(read=1, unread=0, seconds=0, quotes=1, unsupported=1, words=9, covered_words=3),
        seconds=text.seconds,
    )
    assert text.seconds > 0
    assert all(usage.model == "scripted" for usage in Statistics(fleet.engine).usage(fleet.run_id))


def test_without_the_tool_its_agent_is_passed_over(fleet: Fleet) -> None:
    engine = ScriptedEngine()
    sample = caption(fleet, engine, {})
    assert "recognized_text" not in {result.agent for result in sample.results}
    assert not any("recognized_text" in request.instruction for request in engine.requests)
