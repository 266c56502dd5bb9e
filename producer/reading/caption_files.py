"""Find caption files, read their lines one at a time, whatever program wrote them, and judge their scores."""

import json
import logging
import re
from collections.abc import Collection, Iterator, Mapping, Set
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

from capflow_tasks.captioning.answers import is_grade
from capflow_tasks.domains.catalogue import Catalogue
from capflow_tasks.entries import shown, type_name
from capflow_tasks.errors import UserError, WorkflowError
from capflow_tasks.records import JsonObject, Stage
from producer.reading.marks import Mark, Marks, media_in

log = logging.getLogger(__name__)

#: Longer lines are not read, so that a file without line ends cannot fill the memory.
LINE_BYTES = 1 << 26
#: The domain of records that name none, or none that is known.
NO_DOMAIN = "(none)"

_NAME = re.compile(r"Rank\d+_node\d+_.+\.jsonl", re.DOTALL)
#: Ends the names of the files that `capflow score` writes.
_SCORED = ".scored.jsonl"


@dataclass(frozen=True, slots=True)
class CaptionLine:
    """One line of a caption file: a record, or the reason why it is none."""

    #: From 1.
    number: int
    #: As in the file, but without a byte order mark and always with a line end.
    raw: bytes
    #: None when there is a problem.
    record: JsonObject | None
    problem: str | None = None

    @property
    def quoted(self) -> str:
        """The first 1000 bytes of a line that is not a record."""
        return self.raw[:1000].decode("utf-8", "replace").rstrip("\r\n")


def find(folder: Path, *, unscored: bool = False) -> list[Path]:
    """List the folder's `Rank*_node*_*.jsonl` by name, without those of failed and held samples.

    A file that `capflow score` wrote replaces the file that it scored, or with `unscored` is left out.
    Raises UserError when there are none.
    """
    try:
        paths = sorted(path for path in folder.iterdir() if path.is_file())
    except OSError as error:
        raise UserError(
            f"{folder}: cannot be read: {error.strerror}; name the folder of the caption files"
        ) from error
    skipped = (".failed.jsonl", ".held.jsonl", *([_SCORED] if unscored else []))
    found = [path for path in paths if _NAME.fullmatch(path.name) and not path.name.endswith(skipped)]
    if not found:
        remedy = "name the folder that capflow caption wrote its files to"
        raise UserError(f"{folder}: holds no Rank*_node*_*.jsonl; {remedy}")
    names = set(found)
    for path in found:
        scored = scored_beside(path)
        if scored in names and path.stat().st_mtime > scored.stat().st_mtime:
            log.warning("%s has changed since it was scored; run capflow score again", path)
    return [path for path in found if scored_beside(path) not in names]


def scored_beside(path: Path) -> Path:
    """Return the path of a caption file's scored version."""
    return path.with_name(path.name.removesuffix(".jsonl") + _SCORED)


def read_captions(path: Path) -> Iterator[CaptionLine]:
    """Yield every line that is not blank. Raises UserError when the file cannot be read."""
    number = 0
    try:
        with path.open("rb") as file:
            while raw := file.readline(LINE_BYTES):
                number += 1
                raw = raw.removeprefix("\N{BYTE ORDER MARK}".encode()) if number == 1 else raw
                if _skip_rest(file, raw):
                    yield CaptionLine(number, raw, None, f"is longer than {LINE_BYTES} bytes")
                elif raw.strip():
                    yield _parse(number, raw if raw.endswith(b"\n") else raw + b"\n")
    except OSError as error:
        place = f" beyond line {number}" if number else ""
        raise UserError(
            f"{path}: cannot be read{place}: {error.strerror}; fix the disk or the file's permissions"
        ) from error


def _skip_rest(file: BinaryIO, line: bytes) -> bool:
    """Skip the rest of a line that is longer than LINE_BYTES; return whether it was."""
    if line.endswith(b"\n") or not (rest := file.readline(LINE_BYTES)):
        return False
    while rest and not rest.endswith(b"\n"):
        rest = file.readline(LINE_BYTES)
    return True


def _parse(number: int, raw: bytes) -> CaptionLine:
    try:
        record = json.loads(raw.decode().rstrip(), parse_constant=_refuse_constant)
    except UnicodeDecodeError as error:
        problem = f"is not UTF-8 at byte {error.start + 1}"
    except json.JSONDecodeError as error:
        problem = f"is not JSON at column {error.pos + 1}: {error.msg}"
    except (ValueError, RecursionError) as error:
        problem = f"is not JSON: {error}"
    else:
        if isinstance(record, dict):
            return CaptionLine(number, raw, record)
        problem = f"is {type_name(record)}, not an object"
    return CaptionLine(number, raw, None, problem)


def _refuse_constant(word: str) -> NoReturn:
    raise ValueError(f"{word} is no number")


class Rubrics:
    """The dimensions that the judge of each domain grades."""

    def __init__(self, catalogue: Catalogue) -> None:
        self._catalogue = catalogue
        self._by_domain = {
            domain.name: {name for judge in domain.agents_of(Stage.SCORE)[-1:] for name in judge.dimensions}
            for domain in catalogue.domains
        }
        #: All dimensions that any judge grades.
        self.dimensions = frozenset().union(*self._by_domain.values())
        # Bounded: a file may name a million tasks.
        self._resolved = lru_cache(maxsize=1024)(self._resolve)

    def domain_of(self, task: Any) -> str | None:
        """Return the domain that a record's `task` names; None when no domain has that name."""
        return self._resolved(task) if isinstance(task, str) else None

    def missing(self, domain: str | None, given: Collection[str]) -> list[str]:
        """Return the domain's dimensions that are not given; without a domain, the fewest of any domain."""
        rubrics = [self._by_domain[domain]] if domain else self._by_domain.values()
        return min((sorted(rubric.difference(given)) for rubric in rubrics), key=len)

    def _resolve(self, task: str) -> str | None:
        try:
            return self._catalogue.resolve(task).name
        except WorkflowError:
            return None


@dataclass(frozen=True, slots=True)
class Scores:
    """The grades of one caption, or the reason why there are no valid ones."""

    domain: str
    #: 1 to 3 by dimension, then under "overall".
    grades: Mapping[str, int]
    problem: str | None = None


@dataclass(frozen=True, slots=True)
class Minimums:
    """The lowest grades with which a caption is kept, 1 to 3."""

    overall: int
    #: For every dimension that `dimensions` does not name.
    each_dimension: int
    #: By dimension, instead of `each_dimension`.
    dimensions: Mapping[str, int] = field(default_factory=dict)
    #: For the overall grade, by domain, instead of `overall`.
    domains: Mapping[str, int] = field(default_factory=dict)

    def missed(self, scores: Scores) -> dict[str, str]:
        """Return why each grade that is too low is rejected, by dimension."""
        minimums = {**self.dimensions, "overall": self.domains.get(scores.domain, self.overall)}
        return {
            name: f"{name} is {grade}, below {minimum}"
            for name, grade in scores.grades.items()
            if grade < (minimum := minimums.get(name, self.each_dimension))
        }


@dataclass(frozen=True, slots=True)
class Criteria:
    """What a caption has to be to be kept."""

    rubrics: Rubrics
    #: None to keep captions whatever their grades.
    minimums: Minimums | None
    #: Rules of the guard; a caption in whose making one was found is not kept.
    dropped_rules: Set[str] = frozenset()
    #: The lowest `quote_support`, `text_coverage` and `claim_support`; a caption without one is kept.
    shares: Mapping[str, float] = field(default_factory=dict)
    #: What people think of the captions: one that they marked good is kept, a bad one is not.
    marks: Marks | None = None

    def is_marked_good(self, record: JsonObject) -> bool:
        return self._mark_of(record) is Mark.GOOD

    def _mark_of(self, record: JsonObject) -> Mark | None:
        return self.marks.of(media_in(record), record.get("caption")) if self.marks else None

    def missed(self, record: JsonObject, scores: Scores) -> dict[str, str]:
        """Return why it is not kept, by dimension, `guard: <rule>`, share or `mark`; empty when it is."""
        missed = self.minimums.missed(scores) if self.minimums else {}
        mark = self._mark_of(record)
        if mark is Mark.GOOD:
            return {}
        if mark is Mark.BAD:
            missed["mark"] = "someone marked it bad"
        for rule in _rules_found(record) & self.dropped_rules:
            missed[f"guard: {rule}"] = f"the guard found {rule}"
        for name, least in self.shares.items():
            share = record.get(name)
            if isinstance(share, int | float) and share < least:
                missed[name] = f"{name} is {share:g}, below {least:g}"
        return missed

    def keeps(self, record: JsonObject) -> bool:
        """Whether the record meets the criteria; without valid scores or a good mark it meets no minimum."""
        if self.is_marked_good(record):
            return True
        scores = scores_of(record, self.rubrics)
        is_unknown = self.minimums is not None and scores.problem is not None
        return not is_unknown and not self.missed(record, scores)


def _rules_found(record: JsonObject) -> set[str]:
    """Return the guard's rules that a record lists; one that Capflow has not written may hold anything."""
    listed = record.get("guard")
    findings = listed if isinstance(listed, list) else []
    return {str(finding.get("rule")) for finding in findings if isinstance(finding, dict)}


def scores_of(record: JsonObject, rubrics: Rubrics) -> Scores:
    """Return the record's scores; their problem says why they are missing or invalid."""
    domain, given = rubrics.domain_of(record.get("task")), record.get("scores")
    problem = None
    if not isinstance(given, dict) or not given:
        problem = 'has no "scores"' if given is None else f'"scores" is {type_name(given)} without grades'
        return Scores(domain or NO_DOMAIN, {}, problem)
    overall: Any = record.get("overall", given.get("overall"))
    dimensions = {name: grade for name, grade in given.items() if name != "overall"}
    if bad := [pair for pair in [*given.items(), ("overall", overall)] if not is_grade(pair[1])]:
        name, grade = bad[0]
        problem = f"{shown(name)} is {shown(grade)}, not 1, 2 or 3"
    elif given.get("overall", overall) != overall:
        problem = f'"overall" is {overall}, but {given["overall"]} in "scores"'
    elif missing := rubrics.missing(domain, dimensions):
        problem = f'"scores" lack {", ".join(missing)}'
    return Scores(domain or NO_DOMAIN, dimensions | {"overall": overall}, problem)
