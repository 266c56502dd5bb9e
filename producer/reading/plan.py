"""Reads a split plan and checks all of it, before anything is sent. Knows nothing of the database."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from operator import attrgetter
from pathlib import Path
from typing import Any

from capflow_tasks.entries import printable, shown, type_name, unstorable
from capflow_tasks.errors import PlanError, WorkflowError
from capflow_tasks.records import JsonObject, Modality, PlanShard

_DECODER = json.JSONDecoder()
_BLANK = re.compile(r"[ \t\r\n]*")
#: After a broken object: the line that opens the next one, or the end of the line that closes this one.
_RESTART = re.compile(r"^(?=[{\[])|^\}[ \t\r,]*$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Found:
    """One value of the plan, or why there is none."""

    line: int
    value: Any = None
    problem: str | None = None


def read_values(path: Path) -> Iterator[Found]:
    """Every value of the file, in order."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise PlanError(f"{path}: cannot be read: {error.strerror}; give the path of a split plan") from error
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise PlanError(f"{path}: is UTF-16; save it as UTF-8")
    # Bytes that are not UTF-8 become lone surrogates, so that they spoil their own line and no other.
    return _values(data.decode("utf-8-sig", "surrogateescape"))


def _values(text: str) -> Iterator[Found]:
    line, counted, at = 1, 0, _skip_blanks(text, 0)
    while at < len(text):
        line, counted = line + text.count("\n", counted, at), at
        try:
            value, next_at = _DECODER.raw_decode(text, at)
            yield Found(line, value)
        except json.JSONDecodeError as error:
            next_at = _after_broken(text, at)
            yield _broken(text, line, at, next_at, error)
        except (ValueError, RecursionError) as error:
            next_at = _after_broken(text, at)
            yield Found(line, problem=f"cannot be decoded: {error}; mend it")
        at = _skip_blanks(text, next_at)


def _skip_blanks(text: str, at: int) -> int:
    match = _BLANK.match(text, at)
    return match.end() if match else at


def _after_broken(text: str, at: int) -> int:
    line_end = text.find("\n", at)
    if line_end < 0:
        return len(text)
    first_line = text[at:line_end].rstrip()
    if not first_line.startswith("{") or first_line.endswith("}"):
        return line_end
    restart = _RESTART.search(text, line_end + 1)
    return restart.end() if restart else len(text)


def _broken(text: str, line: int, at: int, next_at: int, error: json.JSONDecodeError) -> Found:
    if error.pos >= next_at and text.startswith("{", at):
        return Found(line, problem='the object is cut short; end it with "}", one object per line')
    problem = f"no JSON at column {error.colno}: {error.msg}; write one JSON object per line"
    return Found(error.lineno, problem=problem)


REQUIRED_KEYS = ("data_name", "json_url", "root", "modality", "start_idx", "end_idx")

#: What an index, a rank or a count may be at most.
LARGEST_NUMBER = 2**31 - 1


def shard_of(fields: PlanLine, known_tasks: Callable[[str], str], video_tasks: Collection[str]) -> PlanShard:
    """The shard that the line says; not to be used when one of its keys is a problem."""
    fields.require(REQUIRED_KEYS)
    modality = fields.modality()
    task = fields.task(known_tasks)
    if task in video_tasks and modality is Modality.IMAGE:
        fields.refuse("task", 'is for videos, but "modality" is "image"; change one, or set "task" to ""')
    start_idx, end_idx = fields.span()
    return PlanShard(
        dataset=fields.text("data_name"),
        annotation=fields.path("json_url", annotation_problem),
        root=fields.path("root", root_problem),
        task=task,
        modality=modality or Modality.IMAGE,
        start_idx=start_idx,
        end_idx=end_idx,
        shard_index=fields.number("shard_index", 0),
        num_shards=fields.number("num_shards", 1, smallest=1),
        assign_rank=fields.number("assign_rank", 0),
        line=fields.values,
        line_number=fields.line_number,
    )


@dataclass(slots=True)
class PlanLine:
    """The keys of one plan line. A bad one becomes a problem and gives a stand-in of its type."""

    line_number: int
    values: JsonObject
    #: Where relative paths are looked for first.
    folder: Path
    problems: list[str] = field(default_factory=list)

    def refuse(self, key: str, reason: str) -> None:
        self.problems.append(f'"{key}" {reason}')

    def require(self, keys: Collection[str]) -> None:
        if missing := [f'"{key}"' for key in keys if key not in self.values]:
            self.problems.append(f"lacks {', '.join(missing)}; add what is missing")

    def text(self, key: str) -> str:
        value = self.values.get(key, "-")
        if isinstance(value, str) and value.strip():
            return value
        self.refuse(key, f"is {shown(value)}; write a text that is not empty")
        return ""

    def number(self, key: str, default: int, smallest: int = 0) -> int:
        value = self.values.get(key, default)
        if value is None and key not in REQUIRED_KEYS:
            return default
        if type(value) is not int:
            self.refuse(key, f"is {shown(value)}; write a whole number, without quotes or a point")
        elif not smallest <= value <= LARGEST_NUMBER:
            self.refuse(key, f"is {shown(value)}; write a number from {smallest} to {LARGEST_NUMBER}")
        else:
            return value
        return default

    def modality(self) -> Modality | None:
        value = self.values.get("modality", "image")
        if isinstance(value, str) and value.strip().lower() in list(Modality):
            return Modality(value.strip().lower())
        self.refuse("modality", f'is {shown(value)}; write "image" or "video"')
        return None

    def task(self, known_tasks: Callable[[str], str]) -> str | None:
        value = self.values.get("task")
        if value is None or value == "":
            return None
        if not isinstance(value, str):
            self.refuse("task", f'is {shown(value)}; write a domain\'s name, or "" to have it routed')
            return None
        try:
            return known_tasks(value)
        except WorkflowError as error:
            self.problems.append(f'"task": {error}')
            return None

    def span(self) -> tuple[int, int]:
        known_problems = len(self.problems)
        start_idx, end_idx = self.number("start_idx", 0), self.number("end_idx", 0)
        total, _, _ = (self.number(key, LARGEST_NUMBER) for key in ("total", "processed", "remain"))
        if len(self.problems) > known_problems or not {"start_idx", "end_idx"} <= self.values.keys():
            return 0, 0
        if end_idx < start_idx:
            remedy = "make end_idx the index after the last sample"
            self.refuse("end_idx", f'is {end_idx}, before "start_idx" {start_idx}; {remedy}')
        elif end_idx > total:
            self.refuse("end_idx", f'is {end_idx}, but "total" is {total}; end at {total} or mend "total"')
        return start_idx, end_idx

    def path(self, key: str, problem_of: Callable[[Path], str | None]) -> str:
        """The path made absolute: from the plan's folder, or from the working directory if only there.

        `problem_of` says what is wrong with what lies there, or None.
        """
        if key not in self.values or not (value := self.text(key)):
            return ""
        places = [Path(self.folder, value).absolute(), Path(value).absolute()]
        place = places[0]
        try:
            place = next(filter(Path.exists, places), place)
            problem = problem_of(place)
        except OSError as error:
            problem = f"cannot be read: {error.strerror}; mend the path or its permissions"
        if problem is not None:
            looked = " and ".join(dict.fromkeys(printable(str(place)) for place in places))
            self.refuse(key, f"is {shown(value)}: {problem} (looked for {looked})")
        return str(place)


def annotation_problem(path: Path) -> str | None:
    if path.is_dir():
        return "is a folder; name the annotation file in it"
    if not path.is_file():
        return "there is no such file here; mend the path, or download what is elsewhere"
    with path.open("rb") as file:
        file.read(1)
    return None


def root_problem(path: Path) -> str | None:
    return None if path.is_dir() else "there is no such folder here; name the folder of the media"


def doubts_of(shard: PlanShard) -> Iterator[str]:
    """What the plan says twice and differently; `start_idx` and `end_idx` are what counts."""
    total: int | None = shard.line.get("total")
    processed: int | None = shard.line.get("processed")
    remain: int | None = shard.line.get("remain")
    if shard.sample_count == 0:
        yield 'holds no sample: "start_idx" is "end_idx"'
    if total is not None and processed is not None and remain is not None and processed + remain != total:
        yield f'"processed" {processed} and "remain" {remain} do not add up to "total" {total}'
    if remain is not None and shard.sample_count > remain:
        yield f'"remain" is {remain}, but the line takes {shard.sample_count}: some are captioned again'
    if shard.shard_index >= shard.num_shards:
        yield f'"shard_index" {shard.shard_index} is not below "num_shards" {shard.num_shards}'


#: Domains whose agents watch a video and cannot be shown a picture.
VIDEO_TASKS = frozenset({"Video & Temporal"})

#: Longest dataset name in a file name, in bytes; leaves room for rank, node and suffix.
_NAME_BYTES = 120


@dataclass(frozen=True, slots=True)
class Plan:
    """A plan that can be sent as it is."""

    #: In the order of the file.
    shards: tuple[PlanShard, ...]
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


def output_name(shard: PlanShard, part: str = "") -> str:
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

    def shard(self, found: Found) -> PlanShard | None:
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


def _shared_outputs(shards: list[PlanShard]) -> Iterator[_Message]:
    writers: dict[str, PlanShard] = {}
    for shard in shards:
        name = output_name(shard)
        if (other := writers.setdefault(name, shard)) is not shard:
            text = (
                f'would write {name}, as line {other.line_number} does; change "shard_index" in one of them'
            )
            yield _Message(shard.line_number, text)


def _overlaps(shards: list[PlanShard]) -> Iterator[_Message]:
    """Samples that two lines take, against the line that reaches furthest so far in the same file."""
    furthest: dict[str, PlanShard] = {}
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
