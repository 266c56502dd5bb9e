"""Read a split plan and check all of it before any of it is sent."""

import hashlib
import json
import logging
import os
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from pathlib import Path
from typing import Any

from capflow_tasks.domains.catalogue import Domain
from capflow_tasks.entries import media_of, printable, shown, type_name, unstorable
from capflow_tasks.errors import BadEntry, PlanError, SettingsError, WorkflowError
from capflow_tasks.media.remote import is_remote
from capflow_tasks.records import JsonObject, Modality, PlanShard
from producer.reading.annotations import Entry, read_entries

log = logging.getLogger(__name__)

#: Returns the domain of this name or alias, or raises WorkflowError.
Resolve = Callable[[str], Domain]

_REQUIRED_KEYS = ("data_name", "json_url", "root", "modality", "start_idx", "end_idx")
#: The most that an index, a rank or a count may be.
_LARGEST_NUMBER = 2**31 - 1
#: The longest dataset name in a file name, in bytes; leaves room for rank, node and suffix.
_NAME_BYTES = 120

_DECODER = json.JSONDecoder()
_NOT_BLANK = re.compile(r"[^ \t\r\n]")
#: After a broken object: the line that opens the next one, or the end of the line that closes this one.
_RESTART = re.compile(r"^(?=[{\[])|^\}[ \t\r,]*$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Plan:
    """A plan without a problem."""

    #: In the order of the file.
    shards: tuple[PlanShard, ...]
    #: What looks wrong and does no harm, one message each.
    warnings: tuple[str, ...] = ()

    @property
    def sample_count(self) -> int:
        return sum(shard.sample_count for shard in self.shards)


def read_plan(path: Path, resolve: Resolve, *, is_local: bool = True) -> Plan:
    """Read and check the plan. Raises PlanError with every problem, one per line.

    Where the run `is_local`, the folders of its media must be here; else workers may see what is not here.
    """
    shards: list[PlanShard] = []
    # (line, text)
    problems: list[tuple[int, str]] = []
    warnings: list[tuple[int, str]] = []
    for line, value, problem in _values(_read_text(path)):
        if problem is None and not isinstance(value, dict):
            problem = f"is {type_name(value)}, not an object; write one JSON object per shard"
        elif problem is None:
            problem = unstorable(value)
        if problem is not None:
            problems.append((line, problem))
            continue
        fields = Fields(value, path.parent, is_local)
        shard = _shard(fields, line, resolve)
        problems += [(line, text) for text in fields.problems]
        if not fields.problems:
            shards.append(shard)
            warnings += [(line, text) for text in [*fields.warnings, *_warnings_for(shard)]]
    problems += [*_shared_outputs(shards), *_overlaps(shards)]
    if problems:
        raise PlanError("\n".join(_in_order(path, problems)))
    if not shards:
        raise PlanError(f"{path}: holds no shard; write one JSON object per line")
    return Plan(tuple(shards), tuple(_in_order(path, warnings)))


def checked_plan(path: Path, resolve: Resolve, *, is_local: bool = True) -> Plan:
    """Read the plan and log its warnings. Raises PlanError."""
    plan = read_plan(path, resolve, is_local=is_local)
    for warning in plan.warnings:
        log.warning("%s", warning)
    return plan


_PLAN_KEY = re.compile(rb'"(json_url|assign_rank|shard_index)"\s*:')


def is_split_plan(path: Path) -> bool:
    """Whether the file begins as a split plan, perhaps a broken one, and not as another source of samples."""
    try:
        with path.open("rb") as file:
            return _PLAN_KEY.search(file.read(65_536)) is not None
    except OSError:
        return False


def kept_plan(sources: Sequence[str]) -> Path:
    """Return where the plan of these sources is kept, inside CAPFLOW_HOME: the same for the same sources."""
    real = [source if is_remote(source) else os.path.realpath(source) for source in sources]
    name = file_name_part(Path(real[0]).name.split(".")[0] or "sources")
    digest = hashlib.sha256("\n".join(real).encode("utf-8", "surrogateescape")).hexdigest()[:8]
    return Path("sources", f"{name}-{digest}", f"{name}.jsonl")


def check_picture_counts(plan: Plan, limit: int) -> None:
    """Read every entry of the plan. Raises SettingsError where one has more pictures than the limit."""
    counts = [
        count
        for shard in plan.shards
        for entry in read_entries(Path(shard.annotation), shard.start_idx, shard.end_idx)
        if (count := _picture_count(entry, shard.modality)) > limit
    ]
    if counts:
        samples = "1 sample has" if len(counts) == 1 else f"{len(counts):,} samples have"
        raise SettingsError(
            f"{samples} more than {limit} pictures and would fail; set CAPFLOW_MAX_IMAGES={max(counts)}, "
            "here and for the workers"
        )


def _picture_count(entry: Entry, modality: Modality) -> int:
    try:
        return sum(kind is Modality.IMAGE for kind, _ in media_of(entry.value or {}, modality))
    except BadEntry:
        return 0


def output_name(shard: PlanShard, part: str = "") -> str:
    """Name the file of the shard's captions, or of a further `part` of it such as "failed"."""
    suffix = f".{part}.jsonl" if part else ".jsonl"
    return f"Rank{shard.assign_rank}_node{shard.shard_index}_{file_name_part(shard.dataset)}{suffix}"


def file_name_part(dataset: str) -> str:
    """Make a dataset's name part of a file name: no separator, blank or suffix of Capflow's, not too long."""
    name = re.sub(r"[^\w.+=@-]+", "_", dataset)
    name = re.sub(r"\.(failed|held|scored)$", r"_\1", name)
    if len(name.encode()) <= _NAME_BYTES:
        return name
    digest = hashlib.sha256(dataset.encode()).hexdigest()[:8]
    return f"{name.encode()[: _NAME_BYTES - 9].decode(errors='ignore')}-{digest}"


@dataclass(slots=True)
class Fields:
    """The keys of a JSON object. A bad value adds a problem and is read as a value of the right type."""

    values: JsonObject
    #: Where relative paths are searched first.
    folder: Path
    #: Whether all folders must be here.
    is_local: bool = True
    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

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
        if value is None and key not in _REQUIRED_KEYS:
            return default
        if type(value) is not int:
            self.refuse(key, f"is {shown(value)}; write a whole number, without quotes or a point")
        elif not smallest <= value <= _LARGEST_NUMBER:
            self.refuse(key, f"is {shown(value)}; write a number from {smallest} to {_LARGEST_NUMBER}")
        else:
            return value
        return default

    def modality_and_task(self, resolve: Resolve) -> tuple[Modality, str | None]:
        """Read the modality, and the task's canonical name or None."""
        modality = None
        value = self.values.get("modality", "image")
        if isinstance(value, str) and value.strip().lower() in list(Modality):
            modality = Modality(value.strip().lower())
        else:
            self.refuse("modality", f'is {shown(value)}; write "image" or "video"')
        domain = self._domain(resolve)
        if domain is not None and (domain.modality, modality) == (Modality.VIDEO, Modality.IMAGE):
            self.refuse("task", 'is for videos, but "modality" is "image"; change one, or set "task" to ""')
        return modality or Modality.IMAGE, None if domain is None else domain.name

    def _domain(self, resolve: Resolve) -> Domain | None:
        value = self.values.get("task")
        if value is None or value == "":
            return None
        if not isinstance(value, str):
            self.refuse("task", f'is {shown(value)}; write a domain\'s name, or "" to have it routed')
            return None
        try:
            return resolve(value)
        except WorkflowError as error:
            self.problems.append(f'"task": {error}')
            return None

    def path(self, key: str, *, is_folder: bool) -> str:
        """Make the path absolute: from the plan's folder, or from the working directory if only there.

        A folder may be remote.
        """
        if key not in self.values or not (value := self.text(key)):
            return ""
        if is_folder and is_remote(value):
            return value.rstrip("/")
        places = [Path(self.folder, value).absolute(), Path(value).absolute()]
        place = places[0]
        try:
            place = next(filter(Path.exists, places), place)
            problem = _path_problem(place, is_folder)
        except OSError as error:
            problem = f"cannot be read: {error.strerror}; fix the path or its permissions"
        if problem is not None and is_folder and not self.is_local and Path(value).is_absolute():
            self.warnings.append(
                f'"{key}" is {shown(value)}: there is no such folder here; workers may see it'
            )
        elif problem is not None:
            searched = " and ".join(dict.fromkeys(printable(str(place)) for place in places))
            self.refuse(key, f"is {shown(value)}: {problem} (searched: {searched})")
        return str(place)


def _path_problem(path: Path, is_folder: bool) -> str | None:
    """Return why the path cannot be used, None when it can. Raises OSError."""
    if is_folder:
        return None if path.is_dir() else "there is no such folder here; name the folder of the media"
    if path.is_dir():
        return "is a folder; name the annotation file in it"
    if not path.is_file():
        return "there is no such file here; fix the path, or download the file"
    with path.open("rb") as file:
        file.read(1)
    return None


def _shard(fields: Fields, line: int, resolve: Resolve) -> PlanShard:
    """Return the shard of a plan line; it is not usable when `fields` has problems."""
    fields.require(_REQUIRED_KEYS)
    modality, task = fields.modality_and_task(resolve)
    start_idx, end_idx = _range(fields)
    return PlanShard(
        dataset=fields.text("data_name"),
        annotation=fields.path("json_url", is_folder=False),
        root=fields.path("root", is_folder=True),
        task=task,
        modality=modality,
        start_idx=start_idx,
        end_idx=end_idx,
        shard_index=fields.number("shard_index", 0),
        num_shards=fields.number("num_shards", 1, smallest=1),
        assign_rank=fields.number("assign_rank", 0),
        line=fields.values,
        line_number=line,
    )


def _range(fields: Fields) -> tuple[int, int]:
    known_problems = len(fields.problems)
    start_idx, end_idx = fields.number("start_idx", 0), fields.number("end_idx", 0)
    total, _, _ = (fields.number(key, _LARGEST_NUMBER) for key in ("total", "processed", "remain"))
    if len(fields.problems) > known_problems or not {"start_idx", "end_idx"} <= fields.values.keys():
        return 0, 0
    if end_idx < start_idx:
        remedy = "make end_idx the index after the last sample"
        fields.refuse("end_idx", f'is {end_idx}, before "start_idx" {start_idx}; {remedy}')
    elif end_idx > total:
        fields.refuse("end_idx", f'is {end_idx}, but "total" is {total}; end at {total} or fix "total"')
    return start_idx, end_idx


def _warnings_for(shard: PlanShard) -> Iterator[str]:
    """Yield where a plan line contradicts itself; `start_idx` and `end_idx` are what counts."""
    total, processed, remain = (shard.line.get(key) for key in ("total", "processed", "remain"))
    if shard.sample_count == 0:
        yield 'holds no sample: "start_idx" is "end_idx"'
    if total is not None and processed is not None and remain is not None and processed + remain != total:
        yield f'"processed" {processed} and "remain" {remain} do not add up to "total" {total}'
    if remain is not None and shard.sample_count > remain:
        yield f'"remain" is {remain}, but the line takes {shard.sample_count}: some are captioned again'
    if shard.shard_index >= shard.num_shards:
        yield f'"shard_index" {shard.shard_index} is not below "num_shards" {shard.num_shards}'


def _shared_outputs(shards: list[PlanShard]) -> Iterator[tuple[int, str]]:
    writers: dict[str, PlanShard] = {}
    for shard in shards:
        name = output_name(shard)
        if (other := writers.setdefault(name, shard)) is not shard:
            remedy = 'change "shard_index" in one of them'
            yield shard.line_number, f"would write {name}, as line {other.line_number} does; {remedy}"


def _overlaps(shards: list[PlanShard]) -> Iterator[tuple[int, str]]:
    """Compare each shard with the one that reaches furthest so far in the same file."""
    furthest: dict[str, PlanShard] = {}
    for shard in sorted(shards, key=attrgetter("start_idx", "end_idx", "line_number")):
        if shard.sample_count == 0:
            continue
        file = os.path.realpath(shard.annotation)
        other = furthest.setdefault(file, shard)
        if other is not shard and shard.start_idx < other.end_idx:
            first, second = sorted((shard.line_number, other.line_number))
            shared = f"samples {shard.start_idx} to {min(shard.end_idx, other.end_idx) - 1}"
            where = f"{shared} of {shard.annotation} are in line {first} as well"
            yield second, f"{where}; leave them in one line"
        if shard.end_idx > other.end_idx:
            furthest[file] = shard


def _in_order(path: Path, messages: list[tuple[int, str]]) -> list[str]:
    return [f"{path}:{line}: {text}" for line, text in sorted(messages, key=lambda message: message[0])]


def _read_text(path: Path) -> str:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise PlanError(f"{path}: cannot be read: {error.strerror}; give the path of a split plan") from error
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise PlanError(f"{path}: is UTF-16; save it as UTF-8")
    # Bytes that are not UTF-8 become lone surrogates, so that they spoil their own line and no other.
    return data.decode("utf-8-sig", "surrogateescape")


def _values(text: str) -> Iterator[tuple[int, Any, str | None]]:
    """Yield the line and the value of each object, single-line or not; in place of a value, its problem."""
    line, counted, next_at = 1, 0, 0
    while (found := _NOT_BLANK.search(text, next_at)) is not None:
        at = found.start()
        line, counted = line + text.count("\n", counted, at), at
        try:
            value, next_at = _DECODER.raw_decode(text, at)
            yield line, value, None
        except json.JSONDecodeError as error:
            next_at = _after_broken(text, at)
            if error.pos >= next_at and text.startswith("{", at):
                yield line, None, 'the object is cut short; end it with "}", one object per line'
            else:
                problem = f"no JSON at column {error.colno}: {error.msg}; write one JSON object per line"
                yield error.lineno, None, problem
        except (ValueError, RecursionError) as error:
            next_at = _after_broken(text, at)
            yield line, None, f"cannot be decoded: {error}; fix the line"


def _after_broken(text: str, at: int) -> int:
    """Return where to read on after the broken value that begins here."""
    line_end = text.find("\n", at)
    if line_end < 0:
        return len(text)
    first_line = text[at:line_end].rstrip()
    if not first_line.startswith("{") or first_line.endswith("}"):
        return line_end
    restart = _RESTART.search(text, line_end + 1)
    return restart.end() if restart else len(text)
