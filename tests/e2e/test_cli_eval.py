"""`capflow eval` with a model that can see: two arms on drawn scenes, in one real worker with vLLM."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from sqlalchemy import Engine, func, select

from capflow_tasks.records import Stage
from capflow_tasks.store.tables import AgentResult
from tests.datasets import entries_with_pictures, read_lines
from tests.datasets import write_plan as user_plan
from tests.e2e.conftest import REPOSITORY, Cli
from world.exhibit import by_kind, draw_scenes, write_medium, write_plan
from world.facts import read

pytestmark = pytest.mark.e2e

MODEL = REPOSITORY / "deploy" / "demo" / "model"
DOMAINS = REPOSITORY / "deploy" / "demo" / "world" / "domains"
#: Pictures of four domains.
SCENES = draw_scenes(4, 5)


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
    facts = [{"media": entry["image"], "facts": read(entry["facts"])[:2]} for entry in entries]
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
    """Write domain files whose captioner sees neither the picture nor the reports."""
    shutil.copytree(DOMAINS, folder)
    path = folder / "_defaults.yaml"
    defaults = yaml.safe_load(path.read_text())
    blind = {"sees": [], "media": False, "prompt": "Write the caption; drop what is false."}
    defaults["agents"]["general_summary"] |= blind
    path.write_text(yaml.safe_dump(defaults))
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
    names = ("question_accuracy", "question_coverage", "fact_recall", "overall", "expected_grade", "tokens")
    for name in names:
        assert first[name]["low"] <= first[name]["value"] <= first[name]["high"]
        assert second[name]["difference"]["value"] == pytest.approx(
            second[name]["value"] - first[name]["value"], abs=2e-4
        )
    # The judge sees the pictures, so it knows which of the arms did not.
    assert second["overall"]["difference"]["value"] < 0
    assert second["overall"]["difference"]["is_more_than_chance"]
    page = Path(found["page"]).read_text()
    assert page.count("<article>") == page.count("<img ") == len(SCENES)

    def answers() -> int:
        with engine.connect() as connection:
            return connection.execute(select(func.count()).select_from(AgentResult)).scalar_one()

    before = answers()
    again = cli.run("capflow", "eval", "compare", plan, *arms, *asked)

    assert again.returncode == 0, again.stderr
    assert "blind against standard, question_accuracy" in again.stdout.replace("\n", " ")
    assert answers() == before


@pytest.fixture
def cli_with_examiner(quick_cli: Cli, broker_url: str) -> Iterator[Cli]:
    quick_cli.environment |= {
        "CAPFLOW_BROKER_URL": broker_url,
        "CAPFLOW_ENGINE": "tests.e2e.engines:build_examiner",
    }
    worker = quick_cli.start("celery", "-A", "capflow_tasks", "worker", "-Q", "gpu", "--loglevel", "WARNING")
    yield quick_cli
    worker.terminate()
    worker.communicate()


def test_questions_are_written_and_kept_where_they_need_a_caption_and_an_arm_may_be_added_later(
    cli_with_examiner: Cli, engine: Engine
) -> None:
    cli = cli_with_examiner
    plan = user_plan(cli.folder, entries_with_pictures(cli.folder, 3), task="Natural")

    written = cli.run("capflow", "eval", "questions", plan, "-o", "exam.jsonl", "--json")

    assert written.returncode == 0, written.stderr
    figures = json.loads(written.stdout)
    assert (figures["drafts"], figures["guessable"], figures["questions"]) == (6, 3, 3)
    asked = read_lines(cli.folder / "exam.jsonl")
    assert {each["question"] for each in asked} == {"Which ball is told of?"}

    arms = ("--questions", "exam.jsonl", "--samples", "2", "--arm", "standard")
    first = cli.run("capflow", "eval", "compare", plan, *arms, "--json")
    assert first.returncode == 0, first.stderr
    with engine.connect() as connection:
        captions = select(func.count()).select_from(AgentResult).where(AgentResult.stage == Stage.SUMMARIZE)
        before = connection.execute(captions).scalar_one()
        second = cli.run("capflow", "eval", "compare", plan, *arms, "--arm", "quick=fast", "--json")
        # Two captions for the new arm, and four given ones for its questions and those of the first.
        assert connection.execute(captions).scalar_one() - before <= 2 + 4
    found = json.loads(second.stdout)
    assert [arm["name"] for arm in found["arms"]] == ["standard", "quick"]
    assert found["samples"] == 2
    for arm in found["arms"]:
        assert arm["measures"]["question_accuracy"]["value"] == 1.0

    (cli.folder / "bad.jsonl").write_text(json.dumps(asked[0] | {"answer": "none"}) + "\n")
    refused = cli.run("capflow", "eval", "compare", plan, "--arm", "fast", "--questions", "bad.jsonl")
    assert refused.returncode == 2
    assert 'bad.jsonl:1: "answer" "none" is not among the choices; write one of' in refused.stderr
