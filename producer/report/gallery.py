"""The samples of a run as files that the page loads when it needs them.

    data/index.js            a few numbers per sample, for filters
    data/text-<n>.js         name, path and caption of 200 samples, for the gallery and the text search
    data/samples-<n>.js      everything about the same 200 samples
    small/<n>/<number>.jpg   pictures of the gallery
    large/<n>/<number>-<m>.jpg

Memory holds one chunk at a time, however many samples there are.
"""

import heapq
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import Any

from capflow_tasks.captioning.answers import errors_named
from capflow_tasks.entries import media_of
from capflow_tasks.errors import BadEntry
from capflow_tasks.records import FinishedSample, GuardOutcome, JsonObject, Modality, PlanShard, Result, Stage
from capflow_tasks.store.states import SampleState, ShardRow
from capflow_tasks.store.views import PAGE, Views
from producer.report.pictures import Drawn, PictureTask, draw_all
from producer.writing.captions import checked_text, guard_findings

#: Samples of one chunk.
CHUNK = 200

#: Pictures shown of one sample, at most.
MOST_PICTURES = 4

#: What the index holds of each sample.
_COLUMNS = ("domains", "states", "grades", "confidences", "has_small", "guards", "errors", "is_cut_off")


#: Begins the kind of a failure by a rule of the guard.
_ANSWER_FAULT = "answer_"


@dataclass(frozen=True, slots=True)
class ShownSample:
    """A sample on its way into the report."""

    shard: PlanShard
    sample: FinishedSample
    state: SampleState

    @property
    def name(self) -> str:
        return f"{self.shard.dataset}[{self.sample.index}]"

    @property
    def media(self) -> Sequence[tuple[Modality, str]]:
        """Its pictures and videos as (kind, path as written)."""
        try:
            return media_of(self.sample.entry, self.shard.modality)
        except BadEntry:
            return ()

    @property
    def caption(self) -> str | None:
        summary = self._last(Stage.SUMMARIZE)
        return summary.text if summary else None

    @property
    def grades(self) -> JsonObject:
        """By dimension, with the overall grade among them."""
        judgement = self._last(Stage.SCORE)
        return (judgement and judgement.data) or {}

    @property
    def errors(self) -> list[str]:
        """What the judge found wrong or missing."""
        judgement = self._last(Stage.SCORE)
        return errors_named(judgement.text) if judgement else []

    @property
    def checked_text(self) -> JsonObject:
        """How far the caption agrees with the text read in its pictures."""
        summary = self._last(Stage.SUMMARIZE)
        return checked_text(summary) if summary else {}

    @property
    def guard_labels(self) -> list[str]:
        """What the guard did for it: outcomes such as "asked again", and each with its rule."""
        found = {(each["outcome"], each["rule"]) for each in guard_findings(self.sample.results)}
        failure = self.sample.failure
        if failure and failure.kind.startswith(_ANSWER_FAULT):
            found.add((GuardOutcome.FAILED, failure.kind.removeprefix(_ANSWER_FAULT)))
        labels = {outcome for outcome, _ in found} | {f"{outcome}: {rule}" for outcome, rule in found}
        return sorted(label.replace("_", " ") for label in labels)

    @property
    def is_cut_off(self) -> bool:
        """Whether its caption ended at the limit."""
        summary = self._last(Stage.SUMMARIZE)
        return summary is not None and summary.finish_reason == "length"

    @property
    def domain_shares(self) -> JsonObject:
        """The router's probability by domain."""
        route = self._last(Stage.ROUTE)
        return (route and route.data) or {}

    def _last(self, stage: Stage) -> Result | None:
        found = [result for result in self.sample.results if result.stage is stage]
        return found[-1] if found else None


@dataclass(frozen=True, slots=True)
class Size:
    """How much of a run is shown."""

    #: Samples, at most.
    samples: int
    #: Samples with pictures, at most.
    thumbnails: int
    #: The long side of a large picture, pixels.
    picture_size: int
    #: Processes that draw pictures.
    processes: int


#: Called with the number of samples written so far.
Progress = Callable[[int], None]


def samples_of(views: Views, shards: Sequence[ShardRow], most: int) -> Iterator[ShownSample]:
    """At most so many samples, a fair share of each shard, in index order whatever their state."""
    for position, row in enumerate(shards):
        share = -(-most // (len(shards) - position))
        streams = (_of_state(views, row, state, min(share, PAGE)) for state in SampleState)
        in_order = heapq.merge(*streams, key=lambda shown: shown.sample.index)
        for shown in islice(in_order, share):
            most -= 1
            yield shown


def _of_state(views: Views, row: ShardRow, state: SampleState, page: int) -> Iterator[ShownSample]:
    for sample in views.finished_samples(row.id, state, page):
        yield ShownSample(row.shard, sample, state)


@dataclass
class Gallery:
    """Writes the chunks of one report and keeps its index."""

    folder: Path
    size: Size
    #: Names of domains, in the order in which the index numbers them.
    domains: list[str | None] = field(default_factory=list)
    #: Labels of what the guard did, in the order in which the index numbers them.
    guards: list[str] = field(default_factory=list)
    #: Per sample: domain and state by number, overall grade, confidence, whether there is a small picture,
    #: labels of the guard by number, number of errors that the judge found, whether the caption is cut off.
    columns: dict[str, list[Any]] = field(default_factory=lambda: {name: [] for name in _COLUMNS})

    @property
    def pictures(self) -> int:
        """Samples with a picture."""
        return sum(self.columns["has_small"])

    def write(self, samples: Iterable[ShownSample], progress: Progress) -> int:
        """Write all samples and return their number."""
        remaining = iter(samples)
        (self.folder / "data").mkdir(parents=True)
        for number, chunk in enumerate(iter(lambda: list(islice(remaining, CHUNK)), [])):
            self._write_chunk(number, chunk)
            progress(number * CHUNK + len(chunk))
        names = {"chunk": CHUNK, "domain_names": self.domains, "state_names": list(SampleState)}
        names["guard_names"] = self.guards
        self._write_script("index", names | self.columns)
        return len(self.columns["states"])

    def _write_chunk(self, number: int, chunk: Sequence[ShownSample]) -> None:
        tasks = [self._tasks(number, place, shown) for place, shown in enumerate(chunk)]
        drawn = iter(draw_all(list(chain.from_iterable(tasks)), self.size.processes))
        pictures = [[(task, next(drawn)) for task in of_sample] for of_sample in tasks]
        details = []
        for shown, of_sample in zip(chunk, pictures, strict=True):
            self._add(shown, of_sample)
            files = [(task.large.relative_to(self.folder).as_posix(), what) for task, what in of_sample]
            details.append(detail(shown, files))
        self._write_script(f"text-{number}", [searchable(shown) for shown in chunk])
        self._write_script(f"samples-{number}", details)

    def _tasks(self, chunk: int, place: int, shown: ShownSample) -> list[PictureTask]:
        number = chunk * CHUNK + place
        if number >= self.size.thumbnails:
            return []
        return [
            PictureTask(
                kind=kind,
                root=shown.shard.root,
                path=path,
                large=self.folder / "large" / str(chunk) / f"{number}-{position}.jpg",
                small=None if position else self.folder / "small" / str(chunk) / f"{number}.jpg",
                size=self.size.picture_size,
            )
            for position, (kind, path) in enumerate(shown.media[:MOST_PICTURES])
        ]

    def _add(self, shown: ShownSample, pictures: Sequence[tuple[PictureTask, Drawn]]) -> None:
        domain, confidence = shown.sample.domain, shown.sample.confidence
        if domain not in self.domains:
            self.domains.append(domain)
        labels = shown.guard_labels
        self.guards += (label for label in labels if label not in self.guards)
        values = (
            self.domains.index(domain),
            list(SampleState).index(shown.state),
            overall(shown),
            None if confidence is None else round(confidence, 4),
            int(bool(pictures) and pictures[0][1].reason is None),
            [self.guards.index(label) for label in labels],
            len(shown.errors),
            int(shown.is_cut_off),
        )
        for column, value in zip(self.columns.values(), values, strict=True):
            column.append(value)

    def _write_script(self, name: str, value: Any) -> None:
        (self.folder / "data" / f"{name}.js").write_text(as_script(name, value), "ascii")


def overall(shown: ShownSample) -> int | None:
    """The overall grade; None without one."""
    grade = shown.grades.get("overall")
    return grade if type(grade) is int else None


def searchable(shown: ShownSample) -> list[str]:
    """Name, paths, and caption or failure: the text of a card, which the text search reads."""
    paths = " ".join(path for _, path in shown.media)
    failure = shown.sample.failure
    words = shown.caption or (f"{failure.kind}: {failure.message}" if failure else "")
    return [shown.name, paths, words]


def detail(shown: ShownSample, pictures: Sequence[tuple[str, Drawn]]) -> JsonObject:
    """Everything about a sample; `pictures` are the large ones by their file in the report."""
    sample = shown.sample
    return {
        "name": shown.name,
        "pictures": [
            {
                "kind": kind,
                "path": path,
                "file": None if drawn.reason else file,
                "reason": drawn.reason,
                "times": list(drawn.times),
            }
            for (kind, path), (file, drawn) in zip(shown.media, pictures, strict=False)
        ],
        "hidden_pictures": max(0, len(shown.media) - len(pictures)),
        "domain": sample.domain,
        "confidence": sample.confidence,
        "domain_shares": shown.domain_shares,
        "state": shown.state,
        "attempts": sample.attempts,
        "failure": _failure(sample),
        "caption": shown.caption,
        "grades": {name: grade for name, grade in shown.grades.items() if name != "overall"},
        "overall": overall(shown),
        "errors": shown.errors,
        "text": shown.checked_text,
        "said": [_answer(result) for result in sample.results],
        "others": [_answer(result) for result in sample.others],
        "entry": json.dumps(sample.entry, ensure_ascii=False, indent=2),
        "annotation": shown.shard.annotation,
    }


def _failure(sample: FinishedSample) -> JsonObject | None:
    failure = sample.failure
    if failure is None:
        return None
    retry = "may succeed when tried again" if failure.is_retryable else "fails again at every retry"
    return {"stage": failure.stage, "kind": failure.kind, "message": failure.message, "retry": retry}


def _answer(result: Result) -> dict[str, Any]:
    return {
        "stage": result.stage,
        "agent": result.agent,
        "text": result.text,
        "model": result.model,
        "revision": result.revision or "",
        "engine": result.engine or "",
        "sampling": ", ".join(f"{name} {value:g}" for name, value in (result.sampling or {}).items()),
        "workflow": result.workflow,
        "worker": result.worker,
        "prompt_tokens": result.prompt_tokens,
        "cached_tokens": result.cached_tokens,
        "completion_tokens": result.completion_tokens,
        "finish_reason": result.finish_reason,
        "seconds": round(result.seconds, 3),
        "guard": guard_findings([result]),
    }


#: Characters that could end a script element, or begin a comment, if a script were put into a page.
_ESCAPED = str.maketrans({character: f"\\u{ord(character):04x}" for character in "<>&'"})


def as_script(name: str, value: Any) -> str:
    """A script, pure ASCII, that gives the value to the page under this name.

    The value is a string for JSON.parse, because in a literal a key named __proto__ would set the prototype.
    """
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return f"capflow.data.take({_literal(name)}, JSON.parse({_literal(text)}));\n"


def _literal(text: str) -> str:
    return json.dumps(text).translate(_ESCAPED)
