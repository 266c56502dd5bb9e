"""`capflow eval` with a model that can see: two arms on drawn scenes, in one real worker with vLLM."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Engine, func, select

from capflow_tasks.store.tables import AgentResult
from tests.e2e.conftest import REPOSITORY, Cli
from world.exhibit import by_kind, draw_scenes, write_medium, write_plan
from world.facts import read

pytestmark = pytest.mark.e2e

MODEL = REPOSITORY / "deploy" / "demo" / "model"
DOMAINS = REPOSITORY / "deploy" / "demo" / "world" / "domains"
#: One of each domain of pictures.
SCENES = [scene for scene in draw_scenes(9, 5) if scene.domain != "Video & Temporal"]


@pytest.fixture
def cli_with_worker(quick_cli: Cli, broker_url: str) -> Iterator[Cli]:
    quick_cli.environment |= {
        "CAPFLOW_BROKER_URL": broker_url,
        "CAPFLOW_ENGINE": "vllm",
        "CAPFLOW_MODEL": str(MODEL),
        "CAPFLOW_DOMAINS": str(DOMAINS),
        "HF_HUB_OFFLINE": "1",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "TORCHDYNAMO_DISABLE": "1",
    }
    worker = quick_cli.start("celery", "-A", "capflow_tasks", "worker", "-Q", "gpu", "--loglevel", "WARNING")
    yield quick_cli
    worker.terminate()
    worker.communicate()


def write_scenes(folder: Path) -> Path:
    """Write pictures and their plan, facts about them, and a question about each."""
    entries = [write_medium(folder, number, scene) for number, scene in enumerate(SCENES)]
    facts = [{"media": entry["image"], "facts": read(entry["facts"])} for entry in entries]
    (folder / "facts.jsonl").write_text("".join(f"{json.dumps(each)}\n" for each in facts))
    asked = [
        {
            "media": entry["image"],
            "question": "Which statement is true of the picture?",
            "choices": ["nothing can be seen", str(scene.facts[0])],
            "answer": str(scene.facts[0]),
        }
        for entry, scene in zip(entries, SCENES, strict=True)
    ]
    (folder / "questions.jsonl").write_text("".join(f"{json.dumps(each)}\n" for each in asked))
    return write_plan(folder, by_kind(entries))


def write_blind_domains(folder: Path) -> Path:
    """Write domain files whose captioner sees the reports and not the picture, and whose observers do not."""
    shutil.copytree(DOMAINS, folder)
    defaults = folder / "_defaults.yaml"
    text = defaults.read_text().replace("  natural:\n", "  natural:\n    media: false\n", 1)
    defaults.write_text(text)
    return folder


def test_arms_are_captioned_asked_compared_and_shown_and_nothing_is_done_twice(
    cli_with_worker: Cli, engine: Engine
) -> None:
    cli = cli_with_worker
    plan, blind = write_scenes(cli.folder), write_blind_domains(cli.folder / "blind")
    arms = ("--arm", "standard", "--arm", f"blind={blind}")
    asked = ("--questions", "questions.jsonl", "--facts", "facts.jsonl")

    answer = cli.run("capflow", "eval", "compare", plan, *arms, *asked, "--json")

    assert answer.returncode == 0, answer.stderr
    found = json.loads(answer.stdout)
    assert (found["samples"], found["left_out"]) == (len(SCENES), 0)
    first, second = (arm["measures"] for arm in found["arms"])
    for name in ("accuracy", "coverage", "fact_recall", "overall", "expected_grade", "kept", "tokens"):
        assert first[name]["low"] <= first[name]["value"] <= first[name]["high"]
        assert second[name]["difference"]["value"] == pytest.approx(
            second[name]["value"] - first[name]["value"], abs=2e-4
        )
    page = Path(found["page"]).read_text()
    print(answer.stdout)
    assert page.count("<article>") == page.count("<img ") == len(SCENES)

    def answers() -> int:
        with engine.connect() as connection:
            return connection.execute(select(func.count(AgentResult.id))).scalar_one()

    before = answers()
    again = cli.run("capflow", "eval", "compare", plan, *arms, *asked)

    assert again.returncode == 0, again.stderr
    assert "blind against standard, accuracy" in again.stdout.replace("\n", " ")
    assert answers() == before
    print(again.stdout)
