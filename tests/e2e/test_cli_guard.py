"""Bad answers through the real command and worker: repaired, asked again, or failed under their own kind."""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import NewDatabase
from tests.datasets import draw_picture, read_lines, write_plan
from tests.e2e.conftest import Cli
from tests.e2e.engines import FLAWS
from tests.unit.test_report_data import read

pytestmark = pytest.mark.e2e

#: The rule of each picture whose first answers break it, and whose next ones are fine.
ONCE = {name: name.removesuffix("-once.png") for name in FLAWS if "once" in name}
CAPTIONS = Path("captions") / "Rank0_node0_set.jsonl"


@pytest.fixture(scope="module")
def captioned(new_database: NewDatabase) -> Iterator[Cli]:
    """Commands in a folder where a model with flaws has captioned `set.plan.jsonl`, as run `flawed`."""
    with (
        tempfile.TemporaryDirectory(prefix="capflow-e2e-", ignore_cleanup_errors=True) as folder,
        new_database() as url,
    ):
        cli = Cli(Path(folder), {"CAPFLOW_DATABASE_URL": url})
        cli.environment["CAPFLOW_ENGINE"] = "tests.e2e.engines:build_flawed"
        names = [*FLAWS, "plain.png"]
        (cli.folder / "media").mkdir()
        for number, name in enumerate(names):
            draw_picture(cli.folder / "media" / name, number)
        plan = write_plan(cli.folder, [{"id": name, "image": name} for name in names], task="Natural")
        done = cli.run("capflow-produce", plan, "-o", "captions", "--run", "flawed")
        assert done.returncode == 1, done.stderr
        yield cli


def test_no_bad_answer_becomes_a_caption_and_the_record_says_what_was_found(captioned: Cli) -> None:
    path = captioned.folder / CAPTIONS
    records = {line["id"]: line for line in read_lines(path)}
    assert records.keys() == {*FLAWS, "plain.png"} - {"loops.png", "refuses.png"}
    assert records["plain.png"]["guard"] == []
    for name, rule in ONCE.items():
        assert {found["rule"] for found in records[name]["guard"]} == {rule}
        assert {found["outcome"] for found in records[name]["guard"]} == {"asked_again"}
        assert FLAWS[name].strip() not in records[name]["reports"].values()
        assert FLAWS[name].strip() != records[name]["caption"]
    assert records["opens.png"]["caption"] == "A lamp on a desk."
    assert {found["outcome"] for found in records["opens.png"]["guard"]} == {"repaired"}
    failed = {line["id"]: line["error"] for line in read_lines(path.with_suffix(".failed.jsonl"))}
    assert {name: error["kind"] for name, error in failed.items()} == {
        "loops.png": "answer_loop",
        "refuses.png": "answer_refusal",
    }
    assert "I'm sorry" in failed["refuses.png"]["message"]


def test_the_filter_drops_captions_by_what_the_guard_found(captioned: Cli) -> None:
    dropped = captioned.run("capflow-filter", "captions", "-o", "good", "--drop-guard", "loop", "--json")

    assert json.loads(dropped.stdout)["rejected_by"] == {"guard: loop": 1}


def test_the_status_counts_what_was_repaired_and_asked_again_and_what_that_cost(captioned: Cli) -> None:
    status = json.loads(captioned.run("capflow-status", "flawed", "--json").stdout)
    page = captioned.run("capflow-status", "flawed").stdout

    agents = 4  # that answer in free text about a Natural picture
    found: Counter[tuple[str, str]] = Counter()
    for each in status["guard"]:
        found[each["rule"], each["outcome"]] += each["answers"]
        is_thrown_away = each["outcome"] != "repaired"
        assert (each["prompt_tokens"] + each["completion_tokens"] > 0) == is_thrown_away
    perceivers, attempts = 2, 3  # a picture that fails gets no further than these agents, in so many attempts
    assert found == {
        ("meta_opening", "repaired"): agents,
        **{(rule, "asked_again"): agents for rule in ONCE.values()},
        ("loop", "asked_again"): agents + perceivers * (attempts - 1),
        ("loop", "failed"): perceivers,
        ("refusal", "asked_again"): perceivers * (attempts - 1),
        ("refusal", "failed"): perceivers,
    }
    thrown_away = sum(
        each["prompt_tokens"] + each["completion_tokens"]
        for each in status["guard"]
        if each["rule"] == "refusal"
    )
    assert thrown_away > attempts * perceivers * 256  # tokens of the picture alone
    assert {failure["kind"]: failure["count"] for failure in status["failures"]} == {
        "answer_loop": 1,
        "answer_refusal": 1,
    }
    assert "Answers that broke a rule of the guard" in page
    assert "capflow retry flawed --kind answer_loop" in page
    assert status["grades"]["own_judges"] == ["scripted"]
    assert "The judge is the captioner's own model (scripted)" in page


def test_the_report_knows_each_sample_by_what_the_guard_did(captioned: Cli) -> None:
    answer = captioned.run("capflow-report", "flawed", "-o", "report", "--thumbnails", 0)

    assert answer.returncode == 0, answer.stderr
    folder = captioned.folder / "report"
    index, texts = read(folder, "index"), read(folder, "text-0")
    labels = {
        name: [index["guard_names"][number] for number in numbers]
        for (_, name, _), numbers in zip(texts, index["guards"], strict=True)
    }
    assert labels == {
        **{name: ["asked again", f"asked again: {rule.replace('_', ' ')}"] for name, rule in ONCE.items()},
        "loops.png": ["failed", "failed: loop"],
        "opens.png": ["repaired", "repaired: meta opening"],
        "plain.png": [],
        "refuses.png": ["failed", "failed: refusal"],
    }
    page = (folder / "index.html").read_text("utf-8")
    assert "meta opening" in page
    assert "The judge is the captioner&#39;s own model (scripted)" in page


def test_a_loop_is_tried_again_by_its_kind_and_nothing_else(captioned: Cli) -> None:
    captioned.environment["CAPFLOW_ENGINE"] = "capflow_tasks.testing:build"

    again = captioned.run("capflow-retry", "flawed", "--kind", "answer_loop", "--json")

    assert again.returncode == 1, again.stderr
    captions = {line["id"] for line in read_lines(captioned.folder / CAPTIONS)}
    assert captions == {*FLAWS, "plain.png"} - {"refuses.png"}
