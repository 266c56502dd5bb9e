"""Dashboard and alerts use metrics that exist: renaming one leaves no panel empty."""

from __future__ import annotations

import importlib.util
import json
import re
from itertools import pairwise
from pathlib import Path

import pytest
import yaml
from prometheus_client import metrics as kinds

from capflow_tasks.observe import metrics

REPOSITORY = Path(__file__).resolve().parents[2]
FOLDER = REPOSITORY / "deploy" / "observability"
NAME = re.compile(r"\b(?:capflow_|vllm:)\w+")
SUFFIXES = {
    kinds.Counter: ("_total",),
    kinds.Gauge: ("",),
    kinds.Histogram: ("_bucket", "_count", "_sum"),
}

PANELS = json.loads((FOLDER / "dashboard.json").read_text("utf-8"))["panels"]
ALERTS = [
    rule
    for group in yaml.safe_load((FOLDER / "alerts.yaml").read_text("utf-8"))["groups"]
    for rule in group["rules"]
]


#: Titles of panels and names of alerts, with their expressions.
ASKED = [
    *((panel["title"], target["expr"]) for panel in PANELS for target in panel.get("targets", ())),
    *((rule["alert"], rule["expr"]) for rule in ALERTS),
]


def names_of_workers() -> set[str]:
    found = [each for each in vars(metrics).values() if isinstance(each, kinds.MetricWrapperBase)]
    return {each._name + suffix for each in found for suffix in SUFFIXES[type(each)]}


def names_of_the_fleet() -> set[str]:
    source = (REPOSITORY / "producer" / "fleet_metrics.py").read_text("utf-8")
    return {"capflow_database_up", "capflow_broker_up", *re.findall(r'"(capflow_\w+)"', source)}


def names_of_vllm() -> set[str]:
    """Read from its source, since importing it takes seconds."""
    spec = importlib.util.find_spec("vllm")
    assert spec is not None
    assert spec.origin is not None
    source = (Path(spec.origin).parent / "v1" / "metrics" / "loggers.py").read_text("utf-8")
    names = re.findall(r'name="(vllm:\w+)"', source)
    return {name + suffix for name in names for suffix in ("", "_total", "_bucket", "_count", "_sum")}


@pytest.mark.parametrize(("asker", "expression"), ASKED)
def test_every_metric_that_is_asked_for_exists(asker: str, expression: str) -> None:
    asked = set(NAME.findall(expression))

    assert asked - names_of_workers() - names_of_the_fleet() - names_of_vllm() == set()


def test_every_metric_of_a_worker_and_of_the_fleet_is_on_a_panel_or_in_an_alert() -> None:
    asked = {name for _, expression in ASKED for name in NAME.findall(expression)}
    # What a histogram is asked for in one way, it need not be in all.
    unseen = {re.sub(r"_(bucket|count|sum)$", "", name) for name in names_of_workers() | names_of_the_fleet()}

    assert unseen - {re.sub(r"_(bucket|count|sum)$", "", name) for name in asked} == set()


def test_every_alert_says_what_is_wrong_and_what_to_do_and_is_proved() -> None:
    proved = (FOLDER / "alerts_test.yaml").read_text("utf-8")

    for rule in ALERTS:
        assert rule["labels"]["severity"] in ("page", "ticket")
        assert set(rule["annotations"]) == {"summary", "remedy"}
        assert f"alertname: {rule['alert']}" in proved


def test_no_panel_lies_on_another() -> None:
    assert len({panel["id"] for panel in PANELS}) == len(PANELS)
    places = [panel["gridPos"] for panel in PANELS]
    for above, below in pairwise(places):
        is_right_of = below["y"] == above["y"] and below["x"] >= above["x"] + above["w"]
        assert is_right_of or below["y"] >= above["y"] + above["h"]
        assert below["x"] + below["w"] <= 24
