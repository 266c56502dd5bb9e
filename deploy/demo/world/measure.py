"""Measure the demo's model through the product, on scenes whose like it never saw, and write its card.

    PYTHONPATH=deploy/demo python -m world.measure CHECKPOINT WORK_FOLDER [--scenes 90]

`capflow caption` captions the scenes, and again with the picture of another scene; `capflow score` grades
right and corrupted captions. README.md in the checkpoint's folder gets the results, captions.png the first
scenes and their captions.
"""

import argparse
import json
import os
import random
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import Any

from world.evaluate import Exhibit, Reader, measure_verifier
from world.exhibit import Entry, by_kind, draw_scenes, write_medium, write_plan
from world.facts import Scene
from world.grading import CORRUPTIONS
from world.lessons import draw_media
from world.measures import Overlap, area_under_curve, calibration_error, overlap
from world.scenes import STORIES, draw_scene
from world.sheet import draw_sheet

#: Scenes other than those of the demo.
SEED = 11
#: Scenes on the contact sheet: two of each domain.
SHOWN = 18
CARD = Path(__file__).with_name("card.md")
Record = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Product:
    """Runs Capflow's commands with one checkpoint, in a folder of their own."""

    checkpoint: Path
    folder: Path

    def run(self, *arguments: str | Path) -> None:
        environment = {
            "CAPFLOW_MODEL": str(self.checkpoint),
            "CAPFLOW_HOME": str(self.folder / "home"),
            "CAPFLOW_DOMAINS": str(Path(__file__).with_name("domains")),
        }
        command = [sys.executable, "-m", "producer.cli", *map(str, arguments)]
        done = subprocess.run(command, env=os.environ | environment, stdout=sys.stderr, check=False)
        if done.returncode:
            sys.exit(f"{' '.join(map(str, arguments))} ended with code {done.returncode}")

    def records(self, folder: Path, pattern: str) -> dict[str, list[Record]]:
        """Return the records of a folder's caption files by data set."""
        return {
            path.name.split("_", 2)[2].split(".")[0]: list(map(json.loads, path.open(encoding="utf-8")))
            for path in sorted(folder.glob(pattern))
        }


def swapped(entries: Sequence[Entry], scenes: Sequence[Scene]) -> list[Entry]:
    """Give each entry the medium of the next scene of its domain; the domain is named, not routed."""
    turned = [*entries[len(STORIES) :], *entries[: len(STORIES)]]
    found = []
    for entry, other, scene in zip(entries, turned, scenes, strict=True):
        kind = "image" if "image" in entry else "video"
        found.append(entry | {kind: other[kind], "task": scene.domain})
    return found


def facts_of(records: Iterable[Record], scenes: Sequence[Scene]) -> dict[str, Overlap]:
    """Compare captions with the facts, by domain."""
    found = {domain: Overlap(0, 0, 0) for domain in STORIES}
    for record in records:
        scene = scenes[record["id"]]
        found[scene.domain] += overlap(record["caption"], scene)
    return found


def routed(records: Sequence[Record], scenes: Sequence[Scene]) -> dict[str, float]:
    truths = [scenes[record["id"]].domain for record in records]
    right = [record["task"] == truth for record, truth in zip(records, truths, strict=True)]
    found = [{record["task"]: record["confidence"]} for record in records]
    return {"accuracy": sum(right) / len(right), "calibration error": calibration_error(found, truths)}


def corrupted(entries: Sequence[Entry], scenes: Sequence[Scene]) -> list[Record]:
    """Write one caption of each kind for each scene, as a caption file has them."""
    draw = random.Random("judge")
    found = []
    for entry, scene in zip(entries, scenes, strict=True):
        other = draw_scene(scene.domain, draw, is_held_out=True)
        for kind, make in CORRUPTIONS.items():
            caption = make(scene, other, draw)
            is_right = min(caption.grades.values()) == 3
            names = {"id": f"{entry['id']}-{kind}", "kind": "right" if is_right else kind}
            found.append(entry | names | {"task": scene.domain, "caption": caption.text})
    return found


def judged(records: Iterable[Record]) -> dict[str, float]:
    """Return how well grades tell right captions from each kind of bad ones, and from all."""
    scores: dict[str, list[float]] = {}
    for record in records:
        expected = sum(grade for name, grade in record["expected_scores"].items() if name != "overall")
        scores.setdefault(record["kind"], []).append(expected)
    good = scores.pop("right")
    everything = [score for each in scores.values() for score in each]
    return {kind: area_under_curve(good, bad) for kind, bad in (scores | {"all of them": everything}).items()}


def write_captions(records: Sequence[Record], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, each in by_kind(records).items():
        lines = "".join(f"{json.dumps(record)}\n" for record in each)
        (folder / f"Rank0_node0_{name}.jsonl").write_text(lines, "utf-8")


def measure(checkpoint: Path, folder: Path, count: int) -> dict[str, Any]:
    product, scenes = Product(checkpoint, folder), draw_scenes(count, SEED)
    data, captions, graded = folder / "data", folder / "captions", folder / "graded"
    entries = [write_medium(data, number, scene) for number, scene in enumerate(scenes)]
    wrong = swapped(entries, scenes)
    plan = write_plan(data, by_kind(entries) | by_kind(wrong, "_swapped"))
    product.run("caption", plan, "-o", captions)
    made = product.records(captions, "Rank*_node*_*.jsonl")
    write_captions(corrupted(entries[: count // 2], scenes[: count // 2]), graded)
    product.run("score", graded, "--root", data / "media")
    grades = product.records(graded, "*.scored.jsonl")
    own = sorted([*made["pictures"], *made["videos"]], key=lambda record: int(record["id"]))
    draw_sheet(checkpoint / "captions.png", scenes, own[:SHOWN])
    exhibits = [Exhibit(scene, draw_media(scene)) for scene in scenes]
    return {
        "facts": facts_of(own, scenes),
        "wrong": facts_of([*made["pictures_swapped"], *made["videos_swapped"]], scenes),
        "routing": routed(made["pictures"], scenes),
        "judge": judged([*grades["pictures"], *grades["videos"]]),
        "verifier": measure_verifier(Reader(checkpoint), exhibits)["accuracy"],
    }


def write_card(checkpoint: Path, count: int, found: dict[str, Any]) -> None:
    """Fill the results into the card's template."""
    facts, wrong = found["facts"], found["wrong"]
    total, misled = (sum(each.values(), Overlap(0, 0, 0)) for each in (facts, wrong))
    domains = "\n".join(
        f"| {domain} | {each.precision:.3f} | {each.recall:.3f} | {wrong[domain].precision:.3f} |"
        for domain, each in facts.items()
    )
    judge = "\n".join(f"| {kind} | {area:.3f} |" for kind, area in found["judge"].items())
    text = Template(CARD.read_text("utf-8")).substitute(
        scenes=count,
        precision=f"{total.precision:.3f}",
        recall=f"{total.recall:.3f}",
        misled=f"{misled.precision:.3f}",
        domains=domains,
        routing=f"{found['routing']['accuracy']:.3f}",
        calibration=f"{found['routing']['calibration error']:.3f}",
        judge=judge,
        verifier=f"{found['verifier']:.3f}",
    )
    (checkpoint / "README.md").write_text(text, "utf-8")
    print(text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--scenes", type=int, default=90)
    arguments = parser.parse_args()
    checkpoint = arguments.checkpoint.absolute()
    found = measure(checkpoint, arguments.folder.absolute(), arguments.scenes)
    write_card(checkpoint, arguments.scenes, found)


if __name__ == "__main__":
    main()
