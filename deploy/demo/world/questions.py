"""Every question that the product asks about a picture, worded by its own code, with the right answer."""

import json
import random
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from string import Template

import yaml

from capflow_tasks.domains.catalogue import Agent, Catalogue, Domain, load_catalogue
from capflow_tasks.domains.prompts import instruction_for, router_instruction
from capflow_tasks.records import Stage
from world.facts import Fact, Scene, falsified, write
from world.grading import GradedCaption

FOLDER = Path(__file__).parent
#: Share of the questions that are not worded as in the domain files.
_REWORDED = 0.3
#: Share of the sets of reports that contain a false statement, and that lack one.
_PLANTED, _LOST = 0.5, 0.3


@dataclass(frozen=True, slots=True)
class Question:
    """One model call about a picture."""

    #: What is learned, as in `lessons.TASKS`.
    task: str
    instruction: str
    answer: str


@cache
def catalogue() -> Catalogue:
    return load_catalogue(FOLDER / "domains")


@cache
def _wordings() -> Mapping[str, list[str]]:
    found: dict[str, list[str]] = yaml.safe_load((FOLDER / "wordings.yaml").read_text("utf-8"))
    return found


@cache
def _claims() -> Mapping[str, str]:
    found: dict[str, str] = yaml.safe_load((FOLDER / "claims.yaml").read_text("utf-8"))
    return found


def task_of(agent: Agent) -> str:
    if agent.stage in (Stage.REASON, Stage.SUMMARIZE, Stage.SCORE):
        return {Stage.REASON: "conclusions", Stage.SUMMARIZE: "summary", Stage.SCORE: "grade"}[agent.stage]
    if agent.name.endswith("guideline"):
        return "overview"
    return "words" if agent.name == "ocr" else "details"


def answer_of(agent: Agent, scene: Scene) -> str:
    """Return what a perfect agent answers; a judge's answer depends on the caption."""
    parts: dict[str, tuple[Fact, ...]] = {
        "overview": (scene.overview,),
        "details": (scene.overview, *scene.details) if agent.name == "ui" else scene.details,
        "conclusions": scene.conclusions,
        "summary": scene.facts,
    }
    task = task_of(agent)
    return "\n".join(scene.words) if task == "words" else write(parts[task])


def ask(agent: Agent, scene: Scene, draw: random.Random) -> Question:
    """Ask an agent that writes; those that read reports get some with errors, and answer without."""
    domain = catalogue().resolve(scene.domain)
    reports = _draw_reports(domain, agent, scene, draw)
    instruction = instruction_for(_reworded(agent, draw), domain, reports)
    return Question(task_of(agent), instruction, answer_of(agent, scene))


def ask_router(scene_domain: str, draw: random.Random) -> Question:
    router = _reworded(catalogue().router, draw)
    letters = {domain.name: letter for letter, domain in catalogue().letters.items()}
    return Question("route", router_instruction(replace(catalogue(), router=router)), letters[scene_domain])


def ask_judge(scene: Scene, caption: GradedCaption, draw: random.Random | None) -> Question:
    """Ask for the grades of a caption; without `draw`, in the words of the domain file.

    The answer is written as vLLM's grammar lets a model write it: without blanks between its parts.
    """
    domain = catalogue().resolve(scene.domain)
    (judge,) = domain.agents_of(Stage.SCORE)
    asked = _reworded(judge, draw) if draw else judge
    instruction = instruction_for(asked, domain, {domain.captioner.name: caption.text})
    answer = json.dumps({"errors": caption.named_errors, **caption.grades}, separators=(",", ":"))
    return Question("grade", instruction, answer)


def ask_critic(caption: GradedCaption) -> Question:
    return Question("errors", _fill("critic", caption.text), caption.errors)


def ask_verifier(claim: Fact, scene: Scene) -> Question:
    return Question("claim", _fill("verifier", str(claim)), "yes" if claim in scene.facts else "no")


def ask_corrector(claim: Fact, truth: Fact) -> Question:
    return Question("correction", _fill("corrector", str(claim)), str(truth))


def _fill(question: str, statement: str) -> str:
    return Template(_claims()[question].strip()).substitute(statement=statement)


def _reworded(agent: Agent, draw: random.Random) -> Agent:
    if draw.random() >= _REWORDED:
        return agent
    prompt = agent.prompt.rstrip()
    for ending, others in _wordings().items():
        if prompt.endswith(ending):
            return replace(agent, prompt=agent.prompt.replace(ending, draw.choice(others)))
    return agent


def _draw_reports(domain: Domain, reader: Agent, scene: Scene, draw: random.Random) -> dict[str, str]:
    """Return the answers that the agent reads, now and then with a statement made false or left out."""
    details = list(scene.details)
    if draw.random() < _PLANTED:
        number = draw.randrange(len(details))
        details[number] = falsified(details[number], scene.facts, draw)
    if draw.random() < _LOST and len(details) > 1:
        del details[draw.randrange(len(details))]
    altered = replace(scene, details=tuple(details))
    return {agent.name: answer_of(agent, altered) for agent in domain.agents if agent.name in reader.sees}
