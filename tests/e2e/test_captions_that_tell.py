"""The demo's model can see: its captions of drawn scenes tell whether each call got what it should."""

from __future__ import annotations

import json
import random
import re
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest

from capflow_tasks.captioning.verification import Verification
from capflow_tasks.domains.catalogue import Agent, load_catalogue
from capflow_tasks.domains.prompts import instruction_for
from capflow_tasks.records import Completion, MediaRef, Modality, Request, Stage
from capflow_tasks.settings import Settings
from tests.conftest import wait_until
from tests.datasets import read_lines
from tests.e2e.conftest import REPOSITORY, Cli
from world.evaluate import Call, Reader
from world.exhibit import Entry, by_kind, draw_scenes, write_medium, write_plan
from world.facts import Scene, falsified, read, write
from world.lessons import VIDEO, draw_media
from world.measure import corrupted, write_captions
from world.measures import Overlap, overlap
from world.questions import answer_of, catalogue

if TYPE_CHECKING:
    from capflow_tasks.engine.vllm_engine import VllmEngine

pytestmark = pytest.mark.e2e

MODEL = REPOSITORY / "deploy" / "demo" / "model"
SEED = 3
#: Two of each domain.
SCENES = draw_scenes(18, SEED)
VERIFY = {"enabled": True, "claims": "sentences", "question": "$claim\nIs it true? Answer yes or no."}
#: Id of an entry whose own key `task` is not what its picture shows.
MISNAMED = 100
STANDING = {
    "CAPFLOW_ENGINE": "vllm",
    "CAPFLOW_MODEL": str(MODEL),
    "CAPFLOW_DOMAINS": str(REPOSITORY / "deploy" / "demo" / "world" / "domains"),
    "HF_HUB_OFFLINE": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "TORCHDYNAMO_DISABLE": "1",
}


def _verifying(folder: Path) -> Path:
    """The demo's domain files, with the question that the model has learned to answer of each statement."""
    domains = shutil.copytree(STANDING["CAPFLOW_DOMAINS"], folder / "domains")
    with (domains / "_defaults.yaml").open("a") as file:
        file.write(f"\nverify: {json.dumps(VERIFY)}\n")
    return domains


@pytest.fixture(scope="module")
def shown() -> Iterator[Cli]:
    """Commands in a folder that holds the scenes."""
    with tempfile.TemporaryDirectory(prefix="capflow-e2e-", ignore_cleanup_errors=True) as folder:
        cli = Cli(Path(folder), dict(STANDING) | {"CAPFLOW_DOMAINS": str(_verifying(Path(folder)))})
        yield cli
        for process in cli.processes():
            process.kill()


@pytest.fixture(scope="module")
def entries(shown: Cli) -> list[Entry]:
    return [write_medium(shown.folder, number, scene) for number, scene in enumerate(SCENES)]


@pytest.fixture(scope="module")
def captioned(shown: Cli, entries: list[Entry]) -> list[dict[str, Any]]:
    """The records of all scenes, in small batches, while whose work the engine's process is killed once."""
    misnamed = [entries[0] | {"id": MISNAMED, "task": "Natural"}]
    plan = write_plan(shown.folder, by_kind(entries) | {"misnamed": misnamed})
    with shown.start("capflow", "caption", plan, "-o", "out", "--batch-size", "3") as command:
        wait_until(lambda: _assert_a_batch_is_at_work(shown), 200)
        started = psutil.Process(command.pid).children(recursive=True)
        (engine,) = (process for process in started if "EngineCore" in " ".join(process.cmdline()))
        engine.kill()
        _, errors = command.communicate(timeout=500)
    assert command.returncode == 0, errors[-3000:] + shown.worker_log[-3000:]
    files = sorted((shown.folder / "out").glob("Rank0_node0_*.jsonl"))
    return [record for path in files for record in read_lines(path)]


def _assert_a_batch_is_at_work(cli: Cli) -> None:
    assert re.search(r"batch \d+ (route|perceive): ", cli.worker_log)


def _of_scenes(records: list[dict[str, Any]]) -> list[tuple[dict[str, Any], Scene]]:
    return [(record, SCENES[record["id"]]) for record in records if record["id"] != MISNAMED]


def test_each_caption_tells_what_its_own_picture_shows_though_the_engine_was_killed(
    captioned: list[dict[str, Any]],
) -> None:
    pairs = _of_scenes(captioned)
    assert sorted(record["id"] for record, _ in pairs) == list(range(len(SCENES)))
    total = sum((overlap(record["caption"], scene) for record, scene in pairs), Overlap(0, 0, 0))
    assert total.precision > 0.85
    assert total.recall > 0.85
    for record, scene in pairs:
        others = (overlap(record["caption"], other).recall for other in SCENES if other is not scene)
        assert overlap(record["caption"], scene).recall > max(others), record


def test_each_statement_was_asked_of_the_media_and_true_ones_are_kept(
    shown: Cli, captioned: list[dict[str, Any]]
) -> None:
    counts = sum((Counter(record["claims"]) for record, _ in _of_scenes(captioned)), Counter[str]())
    assert counts["kept"] > 0.8 * counts.total() > 0
    status = json.loads(shown.run("capflow", "status", "plan.jsonl", "--json").stdout)
    assert status["claims"]["captions"] == len(captioned)
    # The media stand in the cache since the caption was written.
    assert status["claims"]["tokens"]["prefix_hit_rate"] > 0.5


def test_pictures_are_routed_by_what_they_show_and_an_entry_s_own_domain_wins(
    captioned: list[dict[str, Any]],
) -> None:
    assert all(record["task"] == scene.domain for record, scene in _of_scenes(captioned))
    (misnamed,) = (record for record in captioned if record["id"] == MISNAMED)
    assert misnamed["task"] == "Natural"
    assert "natural" in misnamed["reports"]


def test_filter_keeps_right_captions_and_rejects_others(shown: Cli, entries: list[Entry]) -> None:
    graded = shown.folder / "graded"
    write_captions(corrupted(entries, SCENES), graded)

    for command in (
        ("score", graded, "--root", shown.folder / "media"),
        ("filter", graded, "--min-overall", 3),
    ):
        answer = shown.run("capflow", *command)
        assert answer.returncode == 0, answer.stderr[-3000:] + shown.worker_log[-3000:]

    kept = _kinds(graded / "kept")
    made = _kinds(graded)
    assert kept["right"] > 0.7 * made["right"]
    assert kept.total() - kept["right"] < 0.3 * (made.total() - made["right"])


def _kinds(folder: Path) -> Counter[str]:
    files = folder.glob("Rank0_node0_*.jsonl")
    names = [path for path in files if ".scored" not in path.name or folder.name == "kept"]
    return Counter(record["kind"] for path in names for record in read_lines(path))


@pytest.fixture(scope="module")
def engine() -> Iterator[VllmEngine]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in STANDING.items():
            patch.setenv(name, value)
        from capflow_tasks.engine.vllm_engine import build

        engine = build(Settings(model=str(MODEL), max_model_len=2048), str(MODEL))
        engine.start()
        yield engine
        engine.stop()


def test_vllm_answers_as_transformers_does(engine: VllmEngine, shown: Cli, entries: list[Entry]) -> None:
    asked = [
        (number, agent)
        for number, scene in enumerate(SCENES)
        if scene.domain != VIDEO
        for agent in catalogue().resolve(scene.domain).agents_of(Stage.PERCEIVE)
    ]
    requests = [_request(shown, entries[number], agent, {}) for number, agent in asked]
    calls = [
        Call(draw_media(SCENES[number]), request.instruction)
        for (number, _), request in zip(asked, requests, strict=True)
    ]

    pairs = zip(engine.generate(requests), Reader(MODEL).answers(calls), strict=True)

    assert sum(
        isinstance(answer, Completion) and answer.text.strip() == text for answer, text in pairs
    ) > 0.96 * len(calls)


def test_a_summary_sees_the_picture_and_drops_what_a_report_has_wrong(
    engine: VllmEngine, shown: Cli, entries: list[Entry]
) -> None:
    draw = random.Random(1)
    asked, planted = [], []
    for scene, entry in zip(SCENES, entries, strict=True):
        domain = catalogue().resolve(scene.domain)
        false = falsified(scene.details[0], scene.facts, draw)
        told = replace(scene, details=(false, *scene.details[1:]))
        answers = {
            agent.name: answer_of(agent, told)
            for agent in domain.agents
            if agent.stage in (Stage.PERCEIVE, Stage.REASON)
        }
        asked.append(_request(shown, entry, domain.captioner, answers))
        planted.append(str(false))

    captions = [answer.text for answer in engine.generate(asked) if isinstance(answer, Completion)]

    dropped = [false not in read(caption) for false, caption in zip(planted, captions, strict=True)]
    assert sum(dropped) > 0.8 * len(SCENES)


def test_a_statement_that_the_picture_denies_is_removed_from_the_caption(
    engine: VllmEngine, shown: Cli, entries: list[Entry]
) -> None:
    draw = random.Random(2)
    verifier = load_catalogue(shown.folder / "domains").verifier
    assert verifier is not None
    false_removed, true_removed, true = 0, 0, 0
    for scene, entry in zip(SCENES, entries, strict=True):
        false = falsified(scene.details[0], scene.facts, draw)
        facts = [*scene.facts[:1], false, *scene.facts[2:]]
        verification = Verification(verifier, write(facts))
        while questions := verification.questions():
            asked = _request(shown, entry, catalogue().resolve(entry["domain"]).captioner, {})
            requests = [
                replace(
                    asked,
                    instruction=each.instruction,
                    choices=each.choices,
                    sampling=each.sampling or asked.sampling,
                )
                for each in questions
            ]
            for question, answer in zip(questions, engine.generate(requests), strict=True):
                assert isinstance(answer, Completion)
                verification.take(question, answer)
        left = read(verification.rewritten or verification.caption)
        false_removed += str(false) not in left
        true_removed += sum(str(fact) not in left for fact in facts if fact is not false)
        true += len(facts) - 1

    assert false_removed > 0.6 * len(SCENES)
    assert true_removed < 0.1 * true


def _request(cli: Cli, entry: Entry, agent: Agent, answers: dict[str, str]) -> Request:
    kind = "image" if "image" in entry else "video"
    medium = MediaRef(Modality(kind), str(cli.folder / "media" / entry[kind]))
    domain = catalogue().resolve(entry["domain"])
    instruction = instruction_for(agent, domain, answers)
    return Request(catalogue().system, (medium,), instruction, agent.sampling, budget=agent.budget)
