"""capflow-report as a user types it, after a real run with a scripted model."""

from __future__ import annotations

import json

import pytest

from tests.datasets import entries_with_pictures, film_video, write_plan
from tests.e2e.conftest import Cli

pytestmark = pytest.mark.e2e


def test_a_run_becomes_a_folder_to_look_at(quick_cli: Cli) -> None:
    entries = [*entries_with_pictures(quick_cli.folder, 3), {"id": 3, "image": "gone.png"}]
    film_video(quick_cli.folder / "media" / "clip.mp4")
    entries.append({"id": 4, "image": None, "video": "clip.mp4"})
    plan = write_plan(quick_cli.folder, entries)
    assert quick_cli.run("capflow-produce", plan, "--output", "out").returncode == 1

    answer = quick_cli.run("capflow-report", plan, "-o", "report", "--json")

    assert answer.returncode == 0, answer.stderr
    report = quick_cli.folder / "report"
    made = json.loads(answer.stdout)
    assert made | {"run": ""} == {
        "run": "",
        "page": str(report / "index.html"),
        "shown": 5,
        "samples": 5,
        "pictures": 4,
    }
    assert sorted(path.name for path in report.iterdir()) == [
        "data",
        "index.html",
        "large",
        "small",
        "static",
    ]
    assert "said of" in (report / "data" / "text-0.js").read_text()
    assert made["run"] in (report / "index.html").read_text("utf-8")

    again = quick_cli.run("capflow-report", made["run"], "-o", "report", "--thumbnails", 0)

    assert again.returncode == 0, again.stderr
    assert "5 of 5 samples, 0 with pictures" in again.stdout
    assert not (report / "large").exists()

    unknown = quick_cli.run("capflow-report", "no-such-run", "-o", "other")
    assert (unknown.returncode, "no-such-run" in unknown.stderr) == (2, True)
    in_the_way = quick_cli.run("capflow-report", plan, "-o", "out")
    assert (in_the_way.returncode, "name another folder" in in_the_way.stderr) == (2, True)
