"""The samples of a run as files that the page loads when it needs them.

    data/index.js            a few numbers per sample, for filters
    data/text-<n>.js         name, path and caption of 200 samples, for the gallery and the text search
    data/samples-<n>.js      everything about the same 200 samples
    data/prompts.js          the prompts of the run's agents, by digest
    small/<n>/<number>.jpg   pictures of the gallery
    large/<n>/<number>-<m>.jpg

Memory holds one chunk at a time, however many samples there are.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

from capflow_tasks.domains.catalogue import Catalogue
from capflow_tasks.records import JsonObject
from producer.report.pictures import Drawn, Originals, PictureTask, draw_all
from producer.report.shown import ShownSample, detail, searchable

#: Samples of one chunk.
CHUNK = 200

#: Pictures shown of one sample, at most.
MOST_PICTURES = 4

#: What the index holds of each sample by the number of a name.
_NAMED = ("domain", "state", "dataset", "kind")
#: What it holds of each sample as a list of such numbers.
_LISTED = ("guard", "agent", "model")
_FIGURES = ("grades", "confidences", "has_small", "errors", "is_cut_off")


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
    originals: Originals = Originals.NONE


#: Called with the number of samples written so far.
Progress = Callable[[int], None]


class Names:
    """Names as numbers, in the order in which they came."""

    def __init__(self) -> None:
        self._numbers: dict[str | None, int] = {}

    def number(self, name: str | None) -> int:
        return self._numbers.setdefault(name, len(self._numbers))

    def __iter__(self) -> Iterator[str | None]:
        return iter(self._numbers)


class Gallery:
    """Writes the chunks of one report and keeps its index."""

    def __init__(self, folder: Path, size: Size) -> None:
        self.folder = folder
        self.size = size
        self._names = {name: Names() for name in (*_NAMED, *_LISTED)}
        self._columns: dict[str, list[Any]] = {
            **{f"{name}s": [] for name in self._names},
            **{name: [] for name in _FIGURES},
        }
        #: A digit per sample, 0 for none, by dimension.
        self._grades: dict[str, bytearray] = {}
        #: Names the caption of each sample, for marks; all of one length.
        self._keys: list[str] = []
        #: Digests of the prompts that were asked.
        self._digests: set[str] = set()

    @property
    def pictures(self) -> int:
        """Samples with a picture."""
        return sum(self._columns["has_small"])

    def write(self, samples: Iterable[ShownSample], progress: Progress) -> int:
        """Write all samples and return their number."""
        remaining = iter(samples)
        (self.folder / "data").mkdir(parents=True)
        for number, chunk in enumerate(iter(lambda: list(islice(remaining, CHUNK)), [])):
            self._write_chunk(number, chunk)
            progress(number * CHUNK + len(chunk))
        names = {f"{name}_names": list(names) for name, names in self._names.items()}
        grades = {name: digits.decode() for name, digits in self._grades.items()}
        more = {"chunk": CHUNK, "dimensions": grades, "keys": "".join(self._keys)}
        self._write_script("index", more | names | self._columns)
        return len(self._columns["states"])

    def write_prompts(self, catalogue: Catalogue | None) -> None:
        """Write the prompts that the samples' agents were given, without those changed since."""
        agents = catalogue and (catalogue.router, *chain(*(domain.agents for domain in catalogue.domains)))
        prompts = {
            agent.digest: {"system": catalogue.system, "prompt": agent.prompt}
            for agent in agents or ()
            if catalogue and agent.digest in self._digests
        }
        self._write_script("prompts", prompts)

    def _write_chunk(self, number: int, chunk: Sequence[ShownSample]) -> None:
        tasks = [self._tasks(number, place, shown) for place, shown in enumerate(chunk)]
        drawn = iter(draw_all(list(chain.from_iterable(tasks)), self.size.processes))
        pictures = [[(task, next(drawn)) for task in of_sample] for of_sample in tasks]
        details = []
        for shown, of_sample in zip(chunk, pictures, strict=True):
            self._add(shown, of_sample)
            details.append(detail(shown, [self._picture(task, drawn) for task, drawn in of_sample]))
        self._write_script(f"text-{number}", [searchable(shown) for shown in chunk])
        self._write_script(f"samples-{number}", details)

    def _tasks(self, chunk: int, place: int, shown: ShownSample) -> list[PictureTask]:
        number = chunk * CHUNK + place
        if not shown.has_pictures:
            return []
        return [
            PictureTask(
                kind=kind,
                root=shown.shard.root,
                path=path,
                large=self.folder / "large" / str(chunk) / f"{number}-{position}.jpg",
                small=None if position else self.folder / "small" / str(chunk) / f"{number}.jpg",
                size=self.size.picture_size,
                originals=self.size.originals,
            )
            for position, (kind, path) in enumerate(shown.media[:MOST_PICTURES])
        ]

    def _picture(self, task: PictureTask, drawn: Drawn) -> JsonObject:
        """What the page knows of a picture, with addresses that work from the page."""
        original = drawn.original
        is_copy = original is not None and original.is_relative_to(self.folder)
        return {
            "kind": task.kind,
            "path": task.path,
            "file": None if drawn.reason else self._address(task.large),
            "reason": drawn.reason,
            "times": list(drawn.times),
            "original": original and (self._address(original) if is_copy else original.as_uri()),
        }

    def _address(self, path: Path) -> str:
        return path.relative_to(self.folder).as_posix()

    def _add(self, shown: ShownSample, pictures: Sequence[tuple[PictureTask, Drawn]]) -> None:
        place = len(self._columns["states"])
        results, failure = shown.sample.results, shown.sample.failure
        named = (shown.sample.domain, shown.state, shown.shard.dataset, failure.kind if failure else None)
        for name, value in zip(_NAMED, named, strict=True):
            self._columns[f"{name}s"].append(self._names[name].number(value))
        listed = (shown.guard_labels, (each.agent for each in results), (each.model for each in results))
        for name, values in zip(_LISTED, listed, strict=True):
            self._columns[f"{name}s"].append(
                [self._names[name].number(each) for each in dict.fromkeys(values)]
            )
        confidence = shown.sample.confidence
        figures = (
            shown.overall,
            None if confidence is None else round(confidence, 4),
            int(bool(pictures) and pictures[0][1].reason is None),
            len(shown.errors),
            int(shown.is_cut_off),
        )
        for name, figure in zip(_FIGURES, figures, strict=True):
            self._columns[name].append(figure)
        for name, grade in shown.dimensions.items():
            self._grades.setdefault(name, bytearray(b"0" * place)).extend(b"%d" % grade)
        for digits in self._grades.values():
            digits.extend(b"0" * (place + 1 - len(digits)))
        self._keys.append(shown.key)
        self._digests.update(each.workflow for each in results)

    def _write_script(self, name: str, value: Any) -> None:
        (self.folder / "data" / f"{name}.js").write_text(as_script(name, value), "ascii")


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
