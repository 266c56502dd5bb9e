"""Entries as datasets have them: several pictures, an id given twice, names in any script."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import pytest

from tests.datasets import draw_picture, read_lines, write_plan
from tests.e2e import engines
from tests.e2e.conftest import Cli

pytestmark = pytest.mark.e2e


def test_every_agent_is_shown_all_pictures_in_order(quick_cli: Cli) -> None:
    media = quick_cli.folder / "media"
    for number, name in enumerate(("a.png", "b.png", "c.png", "teil 1/Straße ü.png", "日本/絵.png")):
        draw_picture(media / name, number)
    asked = {"conversations": [{"from": "human", "value": "<image> and <image>?"}], "width": 64, "height": 48}
    entries: list[dict[str, Any]] = [
        {"id": 1, "images": ["c.png", "a.png", "b.png"]},
        {"id": 1, "image": ["b.png", "teil 1/Straße ü.png"], **asked},
        {"id": None, "image": str(media / "a.png"), "task": "UI"},
        {"image": "日本/絵.png", "images": ["a.png"], "width": None},
    ]
    recorded = quick_cli.folder / "requests.jsonl"
    quick_cli.environment |= {"CAPFLOW_ENGINE": "tests.e2e.engines:build", engines.MEDIA: str(recorded)}

    answer = quick_cli.run("capflow-produce", write_plan(quick_cli.folder, entries), "--output", "out")

    assert answer.returncode == 0, answer.stderr
    shown = Counter(tuple(paths) for paths in read_media(recorded.read_text()))
    expected = [
        ("c.png", "a.png", "b.png"),
        ("b.png", "teil 1/Straße ü.png"),
        ("a.png",),
        ("日本/絵.png", "a.png"),
    ]
    assert set(shown) == {tuple(str(media / name) for name in names) for names in expected}
    records = read_lines(quick_cli.folder / "out" / "Rank0_node0_set.jsonl")
    # Each of them by every agent, the router (where no task is named) and the judge.
    for names, record in zip(expected, records, strict=True):
        calls = len(record["reports"]) + 2 + (record["confidence"] is not None)
        assert shown[tuple(str(media / name) for name in names)] == calls
    assert [
        {key: record.get(key) for key in entry} for record, entry in zip(records, entries, strict=True)
    ] == [
        {**entry, **{key: record[key] for key in ("task", "conversations") if key in entry}}
        for record, entry in zip(records, entries, strict=True)
    ]
    questions = [record["conversations"][0]["value"] for record in records]
    assert [question.count("<image>") for question in questions] == [3, 2, 1, 2]
    assert records[1]["source_conversations"] == asked["conversations"]


def read_media(text: str) -> list[list[str]]:
    return [json.loads(line) for line in text.splitlines()]
