"""One line of a split plan: its keys, checked, as a shard. Knows nothing of the other lines."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from capflow_tasks.entries import printable, shown
from capflow_tasks.errors import WorkflowError
from capflow_tasks.records import JsonObject, Modality, Shard

REQUIRED_KEYS = ("data_name", "json_url", "root", "modality", "start_idx", "end_idx")

#: What an index, a rank or a count may be at most.
LARGEST_NUMBER = 2**31 - 1


def shard_of(fields: PlanLine, known_tasks: Callable[[str], str], video_tasks: Collection[str]) -> Shard:
    """The shard that the line says; not to be used when one of its keys is a problem."""
    fields.require(REQUIRED_KEYS)
    modality = fields.modality()
    task = fields.task(known_tasks)
    if task in video_tasks and modality is Modality.IMAGE:
        fields.refuse("task", 'is for videos, but "modality" is "image"; change one, or set "task" to ""')
    start_idx, end_idx = fields.span()
    return Shard(
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


def doubts_of(shard: Shard) -> Iterator[str]:
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
