"""Text read in pictures, through the real command and worker: caption files, status, report and filters."""

from __future__ import annotations

import json

import pytest
from PIL import Image, ImageDraw, ImageFont

from tests.datasets import read_lines, write_plan
from tests.e2e.conftest import Cli
from tests.unit.test_report_data import read

pytestmark = pytest.mark.e2e


def test_text_is_read_told_compared_and_filtered_by(quick_cli: Cli) -> None:
    quick_cli.environment["CAPFLOW_OCR_PROCESSES"] = "1"
    (quick_cli.folder / "media").mkdir()
    picture = Image.new("RGB", (500, 140), "white")
    ImageDraw.Draw(picture).text((20, 50), "Total due 1,284.50", "black", ImageFont.load_default(30))
    picture.save(quick_cli.folder / "media" / "bill.png")
    # Nobody reads pictures of this domain.
    picture.save(quick_cli.folder / "media" / "photo.png")
    entries = [{"image": "bill.png", "task": "Document"}, {"image": "photo.png", "task": "Natural"}]
    plan = write_plan(quick_cli.folder, entries)

    done = quick_cli.run("capflow", "caption", plan, "--run", "text", "--workflow", "verified", "-o", "out")

    assert done.returncode == 0, done.stderr + quick_cli.worker_log
    bill, photo = read_lines(quick_cli.folder / "out" / "Rank0_node0_set.jsonl")
    assert bill["reports"]["recognized_text"] == "Total due 1,284.50"
    assert (bill["quote_support"], bill["text_coverage"], bill["unsupported_quotes"]) == (None, 0.0, [])
    assert bill["claims"] == photo["claims"] == {"kept": 0, "unsure": 0, "dropped": 0}
    assert "text_coverage" not in photo
    status = json.loads(quick_cli.run("capflow", "status", "text", "--json").stdout)
    assert (status["text"]["read"], status["text"]["words"], status["claims"]["captions"]) == (1, 5, 2)
    assert "captions hold 0.0% of 5 words surely read" in quick_cli.run("capflow", "status", "text").stdout
    chosen = ("--min-text-coverage", "0.5", "--json")
    exported = json.loads(quick_cli.run("capflow", "export", "text", *chosen, "-o", "chosen").stdout)
    assert (exported["rejected"], [file["samples"] for file in exported["files"]]) == (1, [1])
    filtered = quick_cli.run("capflow", "filter", "out", *chosen)
    assert json.loads(filtered.stdout)["rejected_by"] == {"text_coverage": 1}
    assert quick_cli.run("capflow", "report", "text", "-o", "report").returncode == 0
    shown = read(quick_cli.folder / "report", "samples-0")
    assert [each["checks"].get("text_coverage") for each in shown] == [0.0, None]
    assert "1 sample" in (quick_cli.folder / "report" / "index.html").read_text()
