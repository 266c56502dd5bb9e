"""Write held-out scenes as a data set: media, annotations with their facts, and a plan.

    PYTHONPATH=deploy/demo python -m world.exhibit FOLDER [--scenes 45] [--seed 7]

Some real photographs follow, which are beyond what the demo's model knows. The same call writes the same
files.
"""

import argparse
import json
import random
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pictures import photograph
from videos import FRAMES_PER_SECOND, encode
from world.drawing import draw_frames, draw_picture
from world.facts import Scene, write
from world.lessons import VIDEO
from world.scenes import STORIES, draw_scene

Entry = dict[str, Any]

VIDEO_SECONDS = 4
PHOTOGRAPHS = {"cat": "chelsea.png", "coffee": "coffee.png", "rocket": "rocket.jpg"}


def draw_scenes(count: int, seed: int = 7, *, is_held_out: bool = True) -> list[Scene]:
    """Draw scenes, the domains in turn."""
    draw = random.Random(f"exhibits/{seed}")
    domains = list(STORIES)
    return [
        draw_scene(domains[number % len(domains)], draw, is_held_out=is_held_out) for number in range(count)
    ]


def write_medium(folder: Path, number: int, scene: Scene) -> Entry:
    """Write what a scene looks like; return its entry, with the facts."""
    kind = "video" if scene.domain == VIDEO else "image"
    name = f"{kind}s/{number:03}.{'mp4' if kind == 'video' else 'png'}"
    path = folder / "media" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if kind == "video":
        encode(path, draw_frames(scene, VIDEO_SECONDS * FRAMES_PER_SECOND))
    else:
        draw_picture(scene).save(path)
    return {"id": number, kind: name, "domain": scene.domain, "facts": write(scene.facts)}


def _write_photographs(folder: Path) -> list[Entry]:
    (folder / "media" / "photographs").mkdir(parents=True, exist_ok=True)
    entries = []
    for name, source in PHOTOGRAPHS.items():
        path = f"photographs/{name}.jpg"
        photograph(source).save(folder / "media" / path)
        entries.append(
            {"id": name, "image": path, "facts": "a real photograph: beyond what this model knows"}
        )
    return entries


def write_plan(folder: Path, sets: Mapping[str, Sequence[Entry]]) -> Path:
    """Write the annotations of each data set, and the plan; pictures are routed, videos are not."""
    path = folder / "plan.jsonl"
    lines = (_plan_line(folder, name, entries) for name, entries in sets.items())
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines), "utf-8")
    return path


def _plan_line(folder: Path, name: str, entries: Sequence[Entry]) -> Entry:
    path = folder / f"{name}.json"
    path.write_text(json.dumps(entries, indent=1) + "\n", "utf-8")
    is_video = "video" in entries[0]
    return {
        "data_name": name,
        "json_url": str(path),
        "root": str(folder / "media"),
        **({"task": VIDEO} if is_video else {}),
        "modality": "video" if is_video else "image",
        "total": len(entries),
        "processed": 0,
        "remain": len(entries),
        "shard_index": 0,
        "num_shards": 1,
        "start_idx": 0,
        "end_idx": len(entries),
        "anno_file_key": path.name,
        "assign_rank": 0,
    }


def by_kind(entries: Iterable[Entry], suffix: str = "") -> dict[str, list[Entry]]:
    """Part the entries into data sets of pictures and of videos."""
    found: dict[str, list[Entry]] = {}
    for entry in entries:
        found.setdefault(("pictures" if "image" in entry else "videos") + suffix, []).append(entry)
    return found


def write_exhibit(folder: Path, count: int, seed: int) -> None:
    """Write media and annotations and, last, the plan."""
    entries = [write_medium(folder, number, scene) for number, scene in enumerate(draw_scenes(count, seed))]
    path = write_plan(folder, by_kind(entries) | {"photographs": _write_photographs(folder)})
    print(f"{path}: {count + len(PHOTOGRAPHS)} samples")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--scenes", type=int, default=45)
    parser.add_argument("--seed", type=int, default=7)
    arguments = parser.parse_args()
    write_exhibit(arguments.folder.absolute(), arguments.scenes, arguments.seed)


if __name__ == "__main__":
    main()
