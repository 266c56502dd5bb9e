"""Measure a checkpoint on held-out scenes with transformers, by greedy decoding.

    PYTHONPATH=deploy/demo python -m world.evaluate CHECKPOINT [--scenes 180]

Captions come from the same chain of agents as in the product: each reads the answers before it.
"""

import argparse
import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import Qwen2_5_VLForConditionalGeneration, Qwen2Tokenizer

from capflow_tasks.captioning.answers import parse_scores
from capflow_tasks.domains.catalogue import Agent
from capflow_tasks.domains.prompts import instruction_for, router_instruction
from capflow_tasks.errors import BadAnswer
from capflow_tasks.records import Stage
from world.exhibit import draw_scenes
from world.facts import Scene, falsified
from world.grading import CORRUPTIONS, GradedCaption
from world.lessons import VIDEO, draw_media, render
from world.measures import Overlap, area_under_curve, calibration_error, overlap
from world.model import cut_patches
from world.questions import ask_judge, ask_verifier, catalogue
from world.scenes import draw_scene

BATCH = 32


@dataclass(frozen=True, slots=True)
class Call:
    """One question about one medium: (frames, height, width, 3)."""

    frames: NDArray[np.uint8]
    instruction: str


class Reader:
    """Answers calls with a checkpoint."""

    def __init__(self, folder: Path) -> None:
        self.model = Qwen2_5_VLForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
        self.tokenizer = Qwen2Tokenizer.from_pretrained(folder)
        self.tokenizer.padding_side = "left"

    def answers(self, calls: Sequence[Call], most_tokens: int = 96) -> list[str]:
        """Answer each call greedily."""
        texts = [""] * len(calls)
        for numbers, inputs in self._batches(calls):
            made = self.model.generate(**inputs, do_sample=False, max_new_tokens=most_tokens)
            answers = self.tokenizer.batch_decode(
                made[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True
            )
            for number, answer in zip(numbers, answers, strict=True):
                texts[number] = answer.strip()
        return texts

    def choices(self, calls: Sequence[Call], choices: Sequence[str]) -> list[dict[str, float]]:
        """Return the probability of each choice, one token each, as the whole answer."""
        tokens = [self.tokenizer.convert_tokens_to_ids(choice) for choice in choices]
        found: list[dict[str, float]] = [{}] * len(calls)
        for numbers, inputs in self._batches(calls):
            with torch.no_grad():
                logits = self.model(**inputs).logits[:, -1, tokens]
            for number, shares in zip(numbers, logits.softmax(-1).tolist(), strict=True):
                found[number] = dict(zip(choices, shares, strict=True))
        return found

    def _batches(self, calls: Sequence[Call]) -> Iterator[tuple[list[int], dict[str, Any]]]:
        """Group calls about media of one kind and alike in length."""

        def kind(number: int) -> str:
            return "image" if len(calls[number].frames) == 1 else "video"

        order = sorted(range(len(calls)), key=lambda number: (kind(number), len(calls[number].instruction)))
        for each, group in groupby(order, kind):
            numbers = list(group)
            for start in range(0, len(numbers), BATCH):
                part = numbers[start : start + BATCH]
                yield part, self._inputs(each, [calls[number] for number in part])

    def _inputs(self, kind: str, calls: Sequence[Call]) -> dict[str, Any]:
        media = torch.from_numpy(np.stack([call.frames for call in calls]))
        steps, side = max(1, media.shape[1] // 2), media.shape[2] // 14
        pad = f"<|{kind}_pad|>"
        texts = [
            render(self.tokenizer, kind, call.instruction).replace(pad, pad * (steps * side * side // 4), 1)
            for call in calls
        ]
        inputs = dict(self.tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=False))
        is_media = inputs["input_ids"] == self.tokenizer.convert_tokens_to_ids(pad)
        inputs["mm_token_type_ids"] = is_media.int() * (1 if kind == "image" else 2)
        grid = torch.tensor([[steps, side, side]] * len(calls))
        patches = cut_patches(media.repeat_interleave(2, 1) if kind == "image" else media).flatten(0, 1)
        self.model.model.rope_deltas = None
        if kind == "image":
            return inputs | {"pixel_values": patches, "image_grid_thw": grid}
        seconds = torch.ones(len(calls))
        return inputs | {
            "pixel_values_videos": patches,
            "video_grid_thw": grid,
            "second_per_grid_ts": seconds,
        }


@dataclass(frozen=True, slots=True)
class Exhibit:
    """A scene and what was drawn of it."""

    scene: Scene
    frames: NDArray[np.uint8]


def draw_exhibits(count: int) -> list[Exhibit]:
    return [Exhibit(scene, draw_media(scene)) for scene in draw_scenes(count)]


def write_captions(reader: Reader, exhibits: Sequence[Exhibit]) -> list[str]:
    """Run perceive, reason and summarize, as the product does."""
    answers: list[dict[str, str]] = [{} for _ in exhibits]
    for stage in (Stage.PERCEIVE, Stage.REASON, Stage.SUMMARIZE):
        turns = [
            (number, agent)
            for number, exhibit in enumerate(exhibits)
            for agent in catalogue().resolve(exhibit.scene.domain).agents_of(stage)
        ]
        calls = [_call(exhibits[number], agent, answers[number]) for number, agent in turns]
        for (number, agent), text in zip(turns, reader.answers(calls), strict=True):
            answers[number][agent.name] = text
    captioners = [catalogue().resolve(exhibit.scene.domain).captioner.name for exhibit in exhibits]
    return [each[name] for each, name in zip(answers, captioners, strict=True)]


def _call(exhibit: Exhibit, agent: Agent, answers: dict[str, str]) -> Call:
    domain = catalogue().resolve(exhibit.scene.domain)
    return Call(exhibit.frames, instruction_for(agent, domain, answers))


def _facts(captions: Sequence[str], exhibits: Sequence[Exhibit]) -> dict[str, Any]:
    by_domain: dict[str, Overlap] = {}
    for caption, exhibit in zip(captions, exhibits, strict=True):
        found = overlap(caption, exhibit.scene)
        by_domain[exhibit.scene.domain] = by_domain.get(exhibit.scene.domain, Overlap(0, 0, 0)) + found
    total = sum(by_domain.values(), Overlap(0, 0, 0))
    figures = {name: round(each.recall, 3) for name, each in by_domain.items()}
    return {"precision": round(total.precision, 3), "recall": round(total.recall, 3), "by_domain": figures}


def measure_captions(reader: Reader, exhibits: Sequence[Exhibit]) -> dict[str, Any]:
    """Compare captions with the facts; and again, with the picture of another scene of the domain."""
    others = [*exhibits[9:], *exhibits[:9]]
    swapped = [replace(each, frames=other.frames) for each, other in zip(exhibits, others, strict=True)]
    return {
        "facts": _facts(write_captions(reader, exhibits), exhibits),
        "facts with a wrong picture": _facts(write_captions(reader, swapped), exhibits),
    }


def measure_routing(reader: Reader, exhibits: Sequence[Exhibit]) -> dict[str, float]:
    pictures = [each for each in exhibits if each.scene.domain != VIDEO]
    letters = catalogue().letters
    calls = [Call(each.frames, router_instruction(catalogue())) for each in pictures]
    found = reader.choices(calls, list(letters))
    named = [{letters[letter].name: share for letter, share in each.items()} for each in found]
    truths = [each.scene.domain for each in pictures]
    right = [max(each, key=each.__getitem__) == truth for each, truth in zip(named, truths, strict=True)]
    return {
        "accuracy": round(sum(right) / len(right), 3),
        "calibration error": round(calibration_error(named, truths), 3),
    }


def measure_judge(reader: Reader, exhibits: Sequence[Exhibit]) -> dict[str, Any]:
    """Grade one caption of each kind for each scene; the score is the sum of the grades."""
    draw = random.Random("judge")
    graded: list[tuple[Exhibit, GradedCaption]] = []
    for exhibit in exhibits:
        other = draw_scene(exhibit.scene.domain, draw, is_held_out=True)
        graded += [(exhibit, make(exhibit.scene, other, draw)) for make in CORRUPTIONS.values()]
    calls = [Call(each.frames, ask_judge(each.scene, caption, None).instruction) for each, caption in graded]
    scores: dict[str, list[float]] = {kind: [] for kind in CORRUPTIONS}
    for (exhibit, caption), text in zip(graded, reader.answers(calls, 48), strict=True):
        kind = "right" if min(caption.grades.values()) == 3 else caption.kind
        scores[kind].append(_score(text, exhibit.scene))
    good = scores.pop("right")
    bad = [score for each in scores.values() for score in each]
    by_kind = {kind: round(area_under_curve(good, each), 3) for kind, each in scores.items()}
    return {"area under the curve": round(area_under_curve(good, bad), 3), "by kind": by_kind}


def _score(text: str, scene: Scene) -> float:
    (judge,) = catalogue().resolve(scene.domain).agents_of(Stage.SCORE)
    try:
        return sum(parse_scores(text, judge).values())
    except BadAnswer:
        return 0.0


def measure_verifier(reader: Reader, exhibits: Sequence[Exhibit]) -> dict[str, float]:
    """Ask of each scene about one true statement and one false one."""
    draw = random.Random("verifier")
    calls, truths = [], []
    for each in exhibits:
        true = draw.choice(each.scene.facts)
        for claim in (true, falsified(true, each.scene.facts, draw)):
            question = ask_verifier(claim, each.scene)
            calls.append(Call(each.frames, question.instruction))
            truths.append(question.answer)
    found = [each["yes"] for each in reader.choices(calls, ("yes", "no"))]
    right = [(share > 0.5) == (truth == "yes") for share, truth in zip(found, truths, strict=True)]
    return {"accuracy": round(sum(right) / len(right), 3)}


def evaluate(folder: Path, count: int) -> dict[str, Any]:
    reader, exhibits = Reader(folder), draw_exhibits(count)
    return {
        "scenes": count,
        **measure_captions(reader, exhibits),
        "routing": measure_routing(reader, exhibits),
        "judge": measure_judge(reader, exhibits[: count // 2]),
        "verifier": measure_verifier(reader, exhibits),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--scenes", type=int, default=180)
    arguments = parser.parse_args()
    print(json.dumps(evaluate(arguments.checkpoint, arguments.scenes), indent=1))


if __name__ == "__main__":
    main()
