"""Measure whether the order in which the router is offered the domains matters, with the product's router.

    PYTHONPATH=deploy/demo CAPFLOW_MODEL=deploy/demo/model python -m world.orders FOLDER [--scenes 90]

The same held-out pictures are routed under as many orders as there are domains, each turned by one place
further than the one before, so that each domain has each letter once. It prints a table in Markdown.
"""

import argparse
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from statistics import fmean

from capflow_tasks.captioning.conversation import Conversation
from capflow_tasks.domains.catalogue import Catalogue
from capflow_tasks.engine.interface import Engine, build_engine
from capflow_tasks.errors import SampleError
from capflow_tasks.records import Modality, Stage
from capflow_tasks.settings import read_settings
from capflow_tasks.store.states import Claim, PendingSample
from world.exhibit import draw_scenes, write_medium
from world.facts import Scene
from world.lessons import VIDEO
from world.questions import catalogue

#: Scenes that neither training nor the card's results have seen.
SEED = 23


@dataclass(frozen=True, slots=True)
class Routing:
    """One picture under one order."""

    domain: str
    confidence: float
    letter: str


def orders(known: Catalogue) -> list[Catalogue]:
    """Return the catalogue in each order: the files' own, then turned by one place, and so on."""
    videos = tuple(each for each in known.domains if each.modality is Modality.VIDEO)
    return [
        replace(known, domains=known.routable[start:] + known.routable[:start] + videos)
        for start in range(len(known.routable))
    ]


def route(engine: Engine, known: Catalogue, root: Path, names: Sequence[str]) -> list[Routing]:
    """Route each picture by the product's own code. Raises SampleError."""
    claim = Claim(
        *(0, Stage.ROUTE, 1, 1, "study", 0, len(names), "pictures", str(root), Modality.IMAGE, 0),
        stages=(Stage.ROUTE,),
        min_confidence=0.0,
    )
    talks = [
        Conversation(claim, PendingSample(index, index, {"image": name}, None, ()), known, engine.model)
        for index, name in enumerate(names)
    ]
    calls = [talk.calls()[0] for talk in talks]
    letters = {domain.name: letter for letter, domain in known.letters.items()}
    found = []
    answers = engine.generate([call.request for call in calls])
    for talk, call, answer in zip(talks, calls, answers, strict=True):
        if isinstance(answer, SampleError):
            raise answer
        talk.take(call.agent, answer)
        if (chosen := talk.outcome().route) is None:
            raise SystemExit(f"the router's answer {answer.text!r} names no domain")
        found.append(Routing(chosen.domain, chosen.confidence, letters[chosen.domain]))
    return found


def table(routed: Sequence[Sequence[Routing]], truths: Sequence[str]) -> str:
    """Compare the orders with the truth and with each other."""

    def agreement(one: Sequence[Routing], other: Sequence[Routing]) -> float:
        return fmean(a.domain == b.domain for a, b in zip(one, other, strict=True))

    lines = [
        "| order begins with | right | as in the first order | mean confidence | letters chosen |",
        "|---|---|---|---|---|",
    ]
    for number, each in enumerate(routed, start=1):
        right = fmean(one.domain == truth for one, truth in zip(each, truths, strict=True))
        confidence = fmean(one.confidence for one in each)
        times = sorted(Counter(one.letter for one in each).items())
        figures = [f"{figure:.3f}" for figure in (right, agreement(routed[0], each), confidence)]
        chosen = ", ".join(f"{letter} {count}" for letter, count in times)
        lines.append(f"| {' | '.join((f'domain {number}', *figures, chosen))} |")
    pairs = fmean(agreement(one, other) for one, other in combinations(routed, 2))
    alike = fmean(len({one.domain for one in picture}) == 1 for picture in zip(*routed, strict=True))
    summary = f"{len(truths)} pictures; two orders agree on {pairs:.3f} of them, all orders on {alike:.3f}."
    return "\n".join([*lines, "", summary])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--scenes", type=int, default=90)
    arguments = parser.parse_args()
    scenes: list[Scene] = [each for each in draw_scenes(arguments.scenes, SEED) if each.domain != VIDEO]
    folder = arguments.folder.absolute()
    names = [write_medium(folder, number, scene)["image"] for number, scene in enumerate(scenes)]
    settings = read_settings()
    engine = build_engine(settings, settings.model_of(settings.queue_of(Stage.ROUTE)), settings.engine)
    engine.start()
    try:
        routed = [route(engine, each, folder / "media", names) for each in orders(catalogue())]
    finally:
        engine.stop()
    print(table(routed, [scene.domain for scene in scenes]))


if __name__ == "__main__":
    main()
