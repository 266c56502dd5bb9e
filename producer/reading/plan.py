"""Reads a split plan and checks all of it, before anything is sent. Knows nothing of the database."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from operator import attrgetter
from pathlib import Path

from capflow_tasks.entries import type_name, unstorable
from capflow_tasks.errors import PlanError
from capflow_tasks.records import Shard
from producer.reading.plan_line import PlanLine, doubts_of, shard_of
from producer.reading.plan_text import Found, read_values

#: Domains whose agents watch a video and cannot be shown a picture.
VIDEO_TASKS = frozenset({"Video & Temporal"})

#: Longest dataset name in a file name, in bytes; leaves room for rank, node and suffix.
_NAME_BYTES = 120


@dataclass(frozen=True, slots=True)
class Plan:
    """A plan that can be sent as it is."""

    #: In the order of the file.
    shards: tuple[Shard, ...]
    #: What looks wrong and does no harm, one message each.
    warnings: tuple[str, ...] = ()

    @property
    def sample_count(self) -> int:
        return sum(shard.sample_count for shard in self.shards)


def read_plan(
    path: Path, known_tasks: Callable[[str], str], video_tasks: Collection[str] = VIDEO_TASKS
) -> Plan:
    """Read and check the plan; PlanError holds every problem there is, one per line.

    `known_tasks` gives the canonical name of a task or raises WorkflowError.
    """
    reader = _Reader(path, known_tasks, video_tasks)
    shards = [shard for found in read_values(path) if (shard := reader.shard(found)) is not None]
    reader.problems.extend(_shared_outputs(shards))
    reader.problems.extend(_overlaps(shards))
    if reader.problems:
        raise PlanError("\n".join(_messages(path, reader.problems)))
    if not shards:
        raise PlanError(f"{path}: holds no shard; write one JSON object per line")
    return Plan(tuple(shards), tuple(_messages(path, reader.warnings)))


def output_name(shard: Shard, part: str = "") -> str:
    """The file that holds the shard's captions, or a further `part` of it such as "failed"."""
    suffix = f".{part}.jsonl" if part else ".jsonl"
    return f"Rank{shard.assign_rank}_node{shard.shard_index}_{file_name_part(shard.dataset)}{suffix}"


def file_name_part(dataset: str) -> str:
    """A dataset's name as part of a file name: no separator, no blank, no suffix of ours, not too long."""
    name = re.sub(r"[^\w.+=@-]+", "_", dataset)
    name = re.sub(r"\.(failed|held|scored)$", r"_\1", name)
    if len(name.encode()) <= _NAME_BYTES:
        return name
    digest = hashlib.sha256(dataset.encode()).hexdigest()[:8]
    return f"{name.encode()[: _NAME_BYTES - 9].decode(errors='ignore')}-{digest}"


@dataclass(frozen=True, slots=True)
class _Message:
    """What there is to say about a line of the plan."""

    line: int
    text: str


def _messages(path: Path, messages: list[_Message]) -> Iterator[str]:
    return (f"{path}:{message.line}: {message.text}" for message in sorted(messages, key=attrgetter("line")))


@dataclass(slots=True)
class _Reader:
    """Turns values into shards and collects what is wrong with them."""

    path: Path
    known_tasks: Callable[[str], str]
    video_tasks: Collection[str]
    problems: list[_Message] = field(default_factory=list)
    warnings: list[_Message] = field(default_factory=list)

    def shard(self, found: Found) -> Shard | None:
        problem = found.problem
        if problem is None and not isinstance(found.value, dict):
            problem = f"is {type_name(found.value)}, not an object; write one JSON object per shard"
        elif problem is None:
            problem = unstorable(found.value)
        if problem is not None:
            self.problems.append(_Message(found.line, problem))
            return None
        line = PlanLine(found.line, found.value, self.path.parent)
        shard = shard_of(line, self.known_tasks, self.video_tasks)
        if line.problems:
            self.problems.extend(_Message(found.line, problem) for problem in line.problems)
            return None
        self.warnings.extend(_Message(found.line, doubt) for doubt in doubts_of(shard))
        return shard


def _shared_outputs(shards: list[Shard]) -> Iterator[_Message]:
    writers: dict[str, Shard] = {}
    for shard in shards:
        name = output_name(shard)
        if (other := writers.setdefault(name, shard)) is not shard:
            text = (
                f'would write {name}, as line {other.line_number} does; change "shard_index" in one of them'
            )
            yield _Message(shard.line_number, text)


def _overlaps(shards: list[Shard]) -> Iterator[_Message]:
    """Samples that two lines take, against the line that reaches furthest so far in the same file."""
    furthest: dict[str, Shard] = {}
    for shard in sorted(shards, key=attrgetter("start_idx", "end_idx", "line_number")):
        if shard.sample_count == 0:
            continue
        file = os.path.realpath(shard.annotation)
        other = furthest.setdefault(file, shard)
        if other is not shard and shard.start_idx < other.end_idx:
            first, second = sorted((shard.line_number, other.line_number))
            span = f"{shard.start_idx} to {min(shard.end_idx, other.end_idx) - 1}"
            text = f"samples {span} of {shard.annotation} are in line {first} as well; leave them in one line"
            yield _Message(second, text)
        if shard.end_idx > other.end_idx:
            furthest[file] = shard
