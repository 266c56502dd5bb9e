"""Bad answers through the real command and worker: repaired, asked again, or failed under their own kind."""

from __future__ import annotations

import json

import pytest

from tests.datasets import draw_picture, read_lines, write_plan
from tests.e2e.conftest import Cli
from tests.e2e.engines import FLAWS


@pytest.mark.e2e
def test_no_bad_answer_becomes_a_caption_and_the_record_says_what_was_found(quick_cli: Cli) -> None:
    cli = quick_cli
    names = [*FLAWS, "plain.png"]
    (cli.folder / "media").mkdir()
    for number, name in enumerate(names):
        draw_picture(cli.folder / "media" / name, number)
    entries = [{"id": name, "image": name} for name in names]
    plan = write_plan(cli.folder, entries, task="Natural")
    cli.environment["CAPFLOW_ENGINE"] = "tests.e2e.engines:build_flawed"

    done = cli.run("capflow-produce", plan, "-o", cli.folder / "captions", "--json")

    assert done.returncode == 1, done.stderr
    path = cli.folder / "captions" / "Rank0_node0_set.jsonl"
    captioned = {line["id"]: line for line in read_lines(path)}
    assert captioned.keys() == {*names} - {"refuses.png"}
    assert captioned["plain.png"]["guard"] == []
    for name in ("loops-once.png", "thinks-once.png"):
        rule = "loop" if "loop" in name else "thinking"
        assert {found["rule"] for found in captioned[name]["guard"]} == {rule}
        assert {found["outcome"] for found in captioned[name]["guard"]} == {"asked_again"}
        assert FLAWS[name].strip() not in json.dumps(captioned[name] | {"guard": None})
    assert captioned["opens.png"]["caption"] == "A lamp on a desk."
    assert {found["outcome"] for found in captioned["opens.png"]["guard"]} == {"repaired"}
    (failed,) = read_lines(path.with_suffix(".failed.jsonl"))
    assert failed["error"]["kind"] == "answer_refusal"
    assert "I'm sorry" in failed["error"]["message"]
    dropped = cli.run("capflow-filter", cli.folder / "captions", "--drop-guard", "loop", "--json")
    assert json.loads(dropped.stdout)["rejected_by"] == {"guard: loop": 1}
    again = cli.run("capflow-retry", plan, "--kind", "answer_refusal")
    assert "answer_refusal" in again.stdout
