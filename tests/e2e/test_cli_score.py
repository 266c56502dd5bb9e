"""capflow-score as it is typed, with real workers and services; only the model is scripted."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path

import pytest
from sqlalchemy import Engine

from capflow_tasks.records import JsonObject
from tests.conftest import Eventually
from tests.datasets import draw_picture, read_lines
from tests.e2e import engines
from tests.e2e.conftest import Cli

pytestmark = pytest.mark.e2e

IMAGE = (
    "factual_accuracy",
    "information_completeness",
    "reasoning_rigor",
    "core_intent_capture",
    "professionalism",
)
#: As the README of the CapFlow scripts shows it.
THEIRS: JsonObject = {
    "id": 0,
    "image": "ADE_train_00002626.jpg",
    "conversations": [
        {"from": "system", "value": "SYSTEM PROMPT"},
        {"from": "human", "value": "<image>\n QUESTION PROMPT"},
        {"from": "gpt", "value": "GPT Response"},
    ],
    "width": 1024,
    "height": 1024,
}
OURS = "Rank0_node0_ours"
ADE = "Rank4_node1_ade"


def write_folder(folder: Path) -> Path:
    """Captions of ours and of theirs: with and without scores, a broken line, an empty caption."""
    media, captions = folder / "media", folder / "Output" / "Caption"
    captions.mkdir(parents=True)
    for number, name in enumerate(["0.png", "1.png", engines.HELD, "3.png", "4.png"]):
        draw_picture(media / name, number)
    draw_picture(media / "drawn.png", 9)
    shutil.copy(media / "drawn.png", media / str(THEIRS["image"]))
    ours = [
        {"id": number, "image": name, "task": "Natural", "caption": f"Käfer {number}."}
        for number, name in enumerate(["0.png", "1.png", engines.HELD, "3.png"])
    ]
    ours[1] |= {"scores": dict.fromkeys(IMAGE, 2), "overall": 2}
    theirs = [json.dumps(THEIRS), '{"id": 1, "image": ', "", json.dumps({"image": "4.png", "caption": ""})]
    (captions / f"{OURS}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in ours))
    (captions / f"{ADE}.jsonl").write_text("\n".join(theirs))
    return captions


def judgements(cli: Cli) -> Counter[str]:
    """How often each picture went to a judge."""
    path = cli.folder / "requests"
    lines = path.read_text().splitlines() if path.exists() else []
    return Counter(Path(line.partition(" ")[2]).name for line in lines if line.startswith("score "))


def test_a_folder_is_scored_once_whatever_is_killed_and_filtered_by_its_scores(
    quick_cli: Cli, engine: Engine, eventually: Eventually
) -> None:
    cli, captions = quick_cli, write_folder(quick_cli.folder)
    gate = cli.folder / "speak"
    cli.environment |= {
        "CAPFLOW_ENGINE": "tests.e2e.engines:build_held",
        "CAPFLOW_LEASE_SECONDS": "2",
        engines.REQUESTS: str(cli.folder / "requests"),
        engines.HELD_MAY_SPEAK: str(gate),
    }
    before = {path.name: path.read_bytes() for path in captions.iterdir()}
    command = ("capflow-score", "Output/Caption", "--root", "media", "--batch-size", 1)

    def assert_others_are_scored() -> None:
        with engine.connect() as connection:
            query = "SELECT count(*) FROM results WHERE stage = 'score'"
            assert connection.exec_driver_sql(query).scalar_one() == 3

    with cli.start(*command) as process:
        eventually(assert_others_are_scored, 60)
        process.kill()
        process.communicate(timeout=60)
    # The hidden list says whose the files are.
    assert {path.name: path.read_bytes() for path in captions.glob("[!.]*")} == before
    gate.touch()
    answer = cli.run(*command)

    assert answer.returncode == 1, answer.stderr
    assert judgements(cli) == dict.fromkeys(["0.png", engines.HELD, "3.png", THEIRS["image"]], 1)
    ours = read_lines(captions / f"{OURS}.scored.jsonl")
    assert [(record["id"], record["overall"]) for record in ours] == [(0, 3), (1, 2), (2, 3), (3, 3)]
    found = ["scores", "overall", "errors", "expected_scores"]
    assert list(ours[0]) == ["id", "image", "task", "caption", *found]
    (theirs,) = read_lines(captions / f"{ADE}.scored.jsonl")
    graded = {"scores": dict.fromkeys(IMAGE, 3), "overall": 3, "errors": []}
    graded["expected_scores"] = dict.fromkeys((*IMAGE, "overall"), 2.7)
    assert theirs == THEIRS | {"task": theirs["task"], "confidence": 0.9} | graded
    failed = [record["error"] for record in read_lines(captions / f"{ADE}.scored.failed.jsonl")]
    assert [(error["line_number"], error["kind"]) for error in failed] == [(2, "bad_entry"), (4, "bad_entry")]
    assert f"{ADE}.jsonl:2: bad_entry: is not JSON at column 19" in answer.stdout
    assert f'{ADE}.jsonl:4: bad_entry: has no caption: "caption" is empty' in answer.stdout
    assert "7 records: 4 scored now, 1 had scores, 2 failed" in answer.stdout
    assert {name: (captions / name).read_bytes() for name in before} == before

    filtered = cli.run("capflow-filter", "--data-folder", "Output/Caption", "--json")

    assert filtered.returncode == 0, filtered.stderr
    counts = json.loads(filtered.stdout)
    assert [counts[key] for key in ("kept", "rejected", "invalid")] == [4, 1, 0]
    assert [record["id"] for record in read_lines(captions / "kept" / f"{OURS}.jsonl")] == [0, 2, 3]
    assert sorted(path.name for path in (captions / "kept").iterdir()) == [f"{OURS}.jsonl", f"{ADE}.jsonl"]

    scored = {path.name: path.read_bytes() for path in captions.glob("*.scored.jsonl")}
    (captions / f"{ADE}.jsonl").write_text(json.dumps(THEIRS) + "\n")
    # With every record scored no service is needed, and none is asked.
    cli.environment["CAPFLOW_DATABASE_URL"] = "postgresql://nobody@127.0.0.1:1/gone"
    again = cli.run(*command, "--json")

    assert again.returncode == 0, again.stderr
    summary = json.loads(again.stdout)
    assert [summary[key] for key in ("records", "known", "scored", "failed")] == [5, 5, 0, 0]
    assert summary["domains"]["Natural"]["scores"]["professionalism"] == 2.75
    assert {path.name: path.read_bytes() for path in captions.glob("*.scored*")} == scored


def test_a_second_judge_scores_the_same_captions_anew_and_is_compared(quick_cli: Cli) -> None:
    cli, captions = quick_cli, write_folder(quick_cli.folder)
    (captions / f"{ADE}.jsonl").unlink()
    command = ("capflow-score", "Output/Caption", "--root", "media")
    assert cli.run(*command).returncode == 0
    before = {path.name: path.read_bytes() for path in captions.iterdir()}

    anew = cli.run(*command, "--anew", "-o", "second", "--json")
    again = cli.run(*command, "--anew", "-o", "second", "--json")
    compared = cli.run("capflow", "agreement", "Output/Caption", "second", "--json")

    assert json.loads(anew.stdout)["scored"] == 4, anew.stderr
    assert json.loads(again.stdout)["scored"] == 0
    assert {path.name: path.read_bytes() for path in captions.iterdir()} == before
    assert [record["overall"] for record in read_lines(cli.folder / "second" / f"{OURS}.scored.jsonl")] == [
        3
    ] * 4
    figures = json.loads(compared.stdout)
    assert (figures["captions"], figures["only_first"], figures["only_second"]) == (4, 0, 0)
    # The captions' own grades are 3, 2, 3, 3.
    assert figures["dimensions"]["overall"] == {
        "captions": 4,
        "exact": 0.75,
        "mean_difference": 0.25,
        "kappa": 0.0,
    }
    assert "second minus first" in cli.run("capflow", "agreement", "Output/Caption", "second").stdout
    refused = cli.run(*command, "--anew")
    assert refused.returncode == 2
    assert "name another one with --output" in refused.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["."], "holds no Rank*_node*_*.jsonl"),
        (
            ["Output/Caption"],
            f"{OURS}.jsonl: where its media lie is not known; name their folder with --root",
        ),
        (["Output/Caption", "--plan", "gone.jsonl"], "gone.jsonl: cannot be read"),
    ],
)
def test_what_cannot_be_used_is_refused_with_the_remedy(cli: Cli, arguments: list[str], message: str) -> None:
    write_folder(cli.folder)

    answer = cli.run("capflow-score", *arguments)

    assert (answer.returncode, answer.stdout) == (2, ""), answer.stderr
    assert message in answer.stderr
    assert "Traceback" not in answer.stderr
    assert not cli.home.exists()


def test_the_plan_tells_where_the_media_lie(cli: Cli) -> None:
    captions = write_folder(cli.folder)
    (captions / f"{ADE}.jsonl").unlink()
    (cli.folder / "a.json").write_text("[]")
    line = {"json_url": "a.json", "root": "media", "modality": "image", "start_idx": 0, "end_idx": 0}
    (cli.folder / "plan.jsonl").write_text(json.dumps({"data_name": "ours", **line}))

    answer = cli.run("capflow-score", "Output/Caption", "--plan", "plan.jsonl", "--dry-run")

    assert (answer.returncode, answer.stdout) == (0, "1 files, 3 records without scores\n"), answer.stderr
