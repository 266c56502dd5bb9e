"""The samples that arms are compared on: drawn from the user's by a seed, and known by their media."""

import json
import os
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from random import Random

from capflow_tasks.entries import media_of
from capflow_tasks.errors import BadEntry, UserError
from capflow_tasks.records import JsonObject, Modality, PlanShard
from producer.reading.annotations import read_entries
from producer.reading.folders import named_by_content
from producer.reading.plan import Plan
from producer.writing.whole import write_lines

#: The media of a sample, by absolute path: the same in every run.
Key = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Drawn:
    """One sample that all arms caption."""

    key: Key
    shard: PlanShard
    entry: JsonObject

    @property
    def media(self) -> tuple[tuple[Modality, str], ...]:
        """Kind and path as written of each medium."""
        return media_of(self.entry, self.shard.modality)


def key_of(root: str, entry: JsonObject, modality: Modality) -> Key:
    """Return what a sample is known by. Raises BadEntry when it names no media."""
    return tuple(place_of(root, path) for _, path in media_of(entry, modality))


def place_of(root: str, path: str) -> str:
    """Return a medium's absolute path, or its URL."""
    if "://" in path:
        return path
    if "://" in root:
        return f"{root.rstrip('/')}/{path}"
    return os.path.normpath(Path(root, path))


def draw(plan: Plan, count: int, seed: int, wanted: Set[Key] | None = None) -> list[Drawn]:
    """Draw so many samples of the plan, the same for the same seed, in the plan's order.

    Of samples with the same media, only the first is taken; entries that name none are passed over. With
    `wanted` only samples with these media are drawn. Raises UserError when there are none.
    """
    places = range(plan.sample_count) if wanted is None else _places(plan, wanted)
    chosen = set(Random(seed).sample(places, min(count, len(places))))
    found: dict[Key, Drawn] = {}
    for place, sample in _samples(plan, chosen):
        if place in chosen and sample is not None:
            found.setdefault(sample.key, sample)
    if not found:
        raise UserError("no sample to compare arms on: the source has no entry with media; name another one")
    return list(found.values())


def draw_asked(plan: Plan, count: int, seed: int, asked: Set[Key], folder: Path) -> list[Drawn]:
    """Draw samples that questions are about; keep those of `folder`, if they hold all of these.

    So questions that come later ask for no caption again.
    """
    written = folder / "plan.jsonl"
    if written.exists():
        drawn = draw(plan, count, seed)
        sizes = (json.loads(line)["end_idx"] for line in written.read_text().splitlines())
        if sum(sizes) == len(drawn) and asked <= {each.key for each in drawn}:
            return drawn
    return draw(plan, count, seed, asked)


def known_keys(plan: Plan) -> set[Key]:
    """Return the media of all samples of the plan."""
    return {sample.key for _, sample in _samples(plan) if sample is not None}


def _places(plan: Plan, wanted: Set[Key]) -> list[int]:
    found: dict[Key, int] = {}
    for place, sample in _samples(plan):
        if sample is not None and sample.key in wanted:
            found.setdefault(sample.key, place)
    return list(found.values())


def _samples(plan: Plan, chosen: Set[int] | None = None) -> Iterator[tuple[int, Drawn | None]]:
    """Yield the entries by their place in the plan, up to the last chosen; None for one without media."""
    first = 0
    for shard in plan.shards:
        end = shard.end_idx
        if chosen is not None:
            inside = [place for place in chosen if first <= place < first + shard.sample_count]
            end = shard.start_idx + max(inside) - first + 1 if inside else shard.start_idx
        for entry in read_entries(Path(shard.annotation), shard.start_idx, end):
            sample = None if entry.value is None else _drawn(shard, entry.value)
            yield first + entry.index - shard.start_idx, sample
        first += shard.sample_count


def _drawn(shard: PlanShard, entry: JsonObject) -> Drawn | None:
    try:
        value = named_by_content(entry, shard.root)
        return Drawn(key_of(shard.root, value, shard.modality), shard, value)
    except BadEntry:
        return None


def write_plan(samples: Sequence[Drawn], folder: Path) -> Path:
    """Write the samples as annotation files, with a plan of them; return the plan's path."""
    groups = [list(group) for _, group in groupby(samples, lambda sample: id(sample.shard))]
    lines = []
    for number, own in enumerate(groups):
        shard, path = own[0].shard, folder / f"{number:04}.jsonl"
        write_lines(path, (sample.entry for sample in own))
        lines.append(
            {
                "data_name": shard.dataset,
                "json_url": str(path),
                "root": shard.root,
                "task": shard.task or "",
                "modality": shard.modality.value,
                "start_idx": 0,
                "end_idx": len(own),
                "shard_index": number,
                "num_shards": len(groups),
            }
        )
    write_lines(folder / "plan.jsonl", lines)
    return folder / "plan.jsonl"
