"""Make pictures for the screenshots: 35 and 3 videos, of all nine domains, with annotations and a plan.

    python deploy/demo/pictures.py FOLDER

The photographs come with scikit-image and scikit-learn; the rest is drawn. The same call gives the same
files.
"""

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import skimage.data
from PIL import Image
from sklearn.datasets import load_sample_images

import artworks
import charts
import pages
import videos

#: Samples per shard of the plan, and its ranks.
SHARD_SIZE, RANKS = 4, 2
PICTURES = Path(skimage.data.__file__).parent


@dataclass(frozen=True, slots=True)
class Dataset:
    """One annotation file of the plan."""

    name: str
    #: Domain of all samples; None to have each routed.
    task: str | None
    #: What the annotation asks about each sample.
    question: str
    #: Pictures by file name.
    pictures: dict[str, Image.Image]
    #: Domain of single samples, by file name; it wins over `task`.
    own_tasks: dict[str, str] = field(default_factory=dict)


def photograph(name: str) -> Image.Image:
    """Open a photograph of the scikit-image wheel; nothing is downloaded."""
    return Image.open(PICTURES / name).convert("RGB")


def collect_datasets() -> list[Dataset]:
    china, flower = (Image.fromarray(np.asarray(pixels)) for pixels in load_sample_images().images)
    return [
        Dataset(
            "photographs",
            "Natural",
            "What does the photograph show?",
            {
                "temple.jpg": china,
                "flower.jpg": flower,
                "cat.jpg": photograph("chelsea.png"),
                "coffee.jpg": photograph("coffee.png"),
                "rocket.jpg": photograph("rocket.jpg"),
                "motorcycle.jpg": photograph("motorcycle_left.png"),
            },
        ),
        Dataset(
            "charts",
            "Structure & Math",
            "Describe the figure with all its values.",
            {
                "sales.png": charts.bar_chart(),
                "temperature.png": charts.line_chart(),
                "trails.png": charts.data_table(),
                "quadratic.png": charts.equation(),
                "incircle.png": charts.geometry(),
                "order.png": charts.flowchart(),
            },
        ),
        Dataset(
            "documents",
            "Infographic & Document",
            "What does the document say?",
            {
                "report.png": pages.report_page(),
                "invoice.png": pages.invoice(),
                "poster.png": pages.poster(),
                "scan.png": photograph("page.png"),
            },
        ),
        Dataset(
            "medical",
            "Medical & Bio-Imaging",
            "Which structures are visible?",
            {
                "retina.jpg": photograph("retina.jpg").resize((706, 706)),
                "tissue.jpg": photograph("ihc.png"),
                "microaneurysms.png": photograph("microaneurysms.png"),
                "head_phantom.png": photograph("phantom.png"),
            },
        ),
        Dataset(
            "screens",
            "UI & Interaction",
            "Describe the screen and what can be done on it.",
            {"shop.png": pages.shop_page(), "settings.png": pages.settings_screen()},
        ),
        Dataset(
            "code",
            "Code & Programming",
            "What does the code do?",
            {
                "editor.png": pages.code_editor(),
                "terminal.png": pages.terminal(),
                "login.png": pages.web_code(),
            },
        ),
        Dataset(
            "knowledge",
            "Knowledge & Education",
            "What is taught here?",
            {
                "planets.png": charts.solar_system(),
                "plant_cell.png": charts.plant_cell(),
                "deep_field.jpg": photograph("hubble_deep_field.jpg"),
            },
        ),
        Dataset(
            "art",
            "Synthetic & Aesthetic",
            "Describe style and composition.",
            {
                "julia.png": artworks.julia_set(),
                "dusk.png": artworks.mountain_dusk(),
                "glass.png": artworks.stained_glass(),
            },
        ),
        Dataset(
            "mixed",
            None,
            "Describe the picture.",
            {
                "astronaut.jpg": photograph("astronaut.png"),
                "budget.png": charts.pie_chart(),
                "road_sign.png": pages.road_sign(),
                "weather.png": pages.weather_screen(),
            },
            own_tasks={"weather.png": "UI & Interaction"},
        ),
    ]


def annotate(number: int, key: str, path: str, size: tuple[int, int], question: str) -> dict[str, Any]:
    """Return one entry of an annotation file; `key` is `image` or `video`."""
    return {
        "id": number,
        key: path,
        "conversations": [
            {"from": "system", "value": "You are a helpful assistant."},
            {"from": "human", "value": f"<{key}>\n{question}"},
        ],
        "width": size[0],
        "height": size[1],
    }


def write_pictures(folder: Path, dataset: Dataset) -> list[dict[str, Any]]:
    entries = []
    (folder / "media" / dataset.name).mkdir(parents=True, exist_ok=True)
    for number, (name, picture) in enumerate(dataset.pictures.items()):
        path = f"{dataset.name}/{name}"
        picture.save(folder / "media" / path)
        entry = annotate(number, "image", path, picture.size, dataset.question)
        if name in dataset.own_tasks:
            entry["task"] = dataset.own_tasks[name]
        entries.append(entry)
    return entries


def write_videos(folder: Path) -> list[dict[str, Any]]:
    china = Image.fromarray(np.asarray(load_sample_images().images[0]))
    scenes = {
        "temple_pan.mp4": videos.pan(china, seconds=5),
        "bouncing_ball.mp4": videos.bouncing_ball(seconds=4),
        "nightfall.mp4": videos.day_to_night(photograph("rocket.jpg"), seconds=4),
    }
    (folder / "media" / "videos").mkdir(parents=True, exist_ok=True)
    entries = []
    for number, (name, frames) in enumerate(scenes.items()):
        videos.encode(folder / "media" / "videos" / name, frames)
        size = (videos.WIDTH, videos.HEIGHT)
        entries.append(annotate(number, "video", f"videos/{name}", size, "What happens in the video?"))
    return entries


def plan_shards(folder: Path, name: str, task: str | None, modality: str, total: int) -> list[dict[str, Any]]:
    """Cut one annotation file into shards, in the split plan's format."""
    starts = range(0, total, SHARD_SIZE)
    shards = []
    for index, start in enumerate(starts):
        end = min(start + SHARD_SIZE, total)
        shard: dict[str, Any] = {
            "data_name": name,
            "json_url": str(folder / f"{name}.json"),
            "root": str(folder / "media"),
        }
        if task is not None:
            shard["task"] = task
        shards.append(
            shard
            | {
                "modality": modality,
                "total": total,
                "processed": 0,
                "remain": total,
                "shard_index": index,
                "num_shards": len(starts),
                "start_idx": start,
                "end_idx": end,
                "anno_file_key": f"{name}.json",
                "assign_rank": 0,
            }
        )
    return shards


def write_annotations(folder: Path, name: str, entries: list[dict[str, Any]]) -> None:
    (folder / f"{name}.json").write_text(json.dumps(entries, indent=1, ensure_ascii=False) + "\n", "utf-8")


def write_data(folder: Path) -> None:
    """Write the media, the annotations and, last, the plan."""
    folder.mkdir(parents=True, exist_ok=True)
    plan = []
    for dataset in collect_datasets():
        entries = write_pictures(folder, dataset)
        write_annotations(folder, dataset.name, entries)
        plan += plan_shards(folder, dataset.name, dataset.task, "image", len(entries))
    entries = write_videos(folder)
    write_annotations(folder, "videos", entries)
    plan += plan_shards(folder, "videos", "Video & Temporal", "video", len(entries))
    lines = [json.dumps(shard | {"assign_rank": number % RANKS}) for number, shard in enumerate(plan)]
    (folder / "plan.jsonl").write_text("\n".join(lines) + "\n", "utf-8")
    print(f"{folder / 'plan.jsonl'}: {sum(shard['end_idx'] - shard['start_idx'] for shard in plan)} samples")


if __name__ == "__main__":
    write_data(Path(sys.argv[1]).absolute())
