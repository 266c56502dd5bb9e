"""Reports without a database: samples as the store would give them, written by the real gallery and page."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from capflow_tasks.errors import MediaMissing
from capflow_tasks.records import Failure, FinishedSample, Result, Stage
from capflow_tasks.store.figures import RunFigures
from capflow_tasks.store.states import SampleState, Tally
from producer.cost import cost_of, read_prices
from producer.report.gallery import Gallery, Size
from producer.report.report import Overview, write_page
from producer.report.shown import ShownSample
from tests.stores import a_shard

SIZE = Size(samples=100_000, thumbnails=100_000, picture_size=320, processes=1)
GRADES = {"factual_accuracy": 2, "professionalism": 3}


def an_answer(stage: Stage, agent: str, text: str, data: dict[str, Any] | None = None) -> Result:
    return Result(stage, agent, text, data, "some-model", "d1gest", 300, 200, 12, "stop", 0.5, "gpu@host")


def a_sample(
    index: int,
    caption: str | None = "A caption.",
    overall: int | None = 3,
    domain: str | None = "Natural",
    confidence: float | None = 0.9,
    root: str = "/data",
    guard: dict[str, Any] | None = None,
    errors: Sequence[str] = (),
    **entry: Any,
) -> ShownSample:
    """A captioned sample; one without caption has failed."""
    results = []
    if confidence is not None and domain is not None:
        results.append(an_answer(Stage.ROUTE, "router", "A", {domain: confidence, "Other": 1 - confidence}))
    results.append(an_answer(Stage.PERCEIVE, "natural", f"report of {index}"))
    if caption is not None:
        results.append(replace(an_answer(Stage.SUMMARIZE, "general_summary", caption), guard=guard))
    if caption is not None and overall is not None:
        said = json.dumps({"errors": list(errors)})
        results.append(an_answer(Stage.SCORE, "judge", said, {**GRADES, "overall": overall}))
    failure = None
    if caption is None:
        failure = Failure(
            Stage.PERCEIVE, MediaMissing.kind, f"{index}.png does not exist.", is_retryable=False
        )
    sample = FinishedSample(
        index, {"image": f"{index}.png", **entry}, domain, confidence, tuple(results), failure, attempts=1
    )
    state = SampleState.FAILED if failure else SampleState.DONE
    return ShownSample(a_shard(1, root), sample, state)


def an_overview(samples: int, name: str = "run") -> Overview:
    run = RunFigures(
        id=1,
        name=name,
        plan="/plan.jsonl",
        output="/out",
        stages=tuple(Stage),
        min_confidence=0,
        pin_ranks=False,
        is_stopped=False,
        created_at=datetime(2026, 1, 2, 3, 4, tzinfo=UTC),
        shards=1,
        samples=samples,
        expanded=samples,
        tally=Tally(done=samples),
        open_batches=0,
        running_batches=0,
    )
    return Overview(run, [], [], {}, [], [], cost_of([], read_prices()), None, None, 60)


def write_report(
    folder: Path, samples: Sequence[ShownSample], size: Size = SIZE, overview: Overview | None = None
) -> Path:
    """The page of a report of these samples."""
    gallery = Gallery(folder, size)
    shown = gallery.write(samples, lambda done: None)
    gallery.write_prompts(None)
    write_page(folder, overview or an_overview(len(samples)), shown)
    return folder / "index.html"
