"""The samples of a run as files that the page loads when it needs them.

    data/index.js            a few numbers per sample: what filters look at
    data/text-<n>.js         name, path and caption of 200 samples: what the gallery shows and a search reads
    data/samples-<n>.js      all that is known of the same 200 samples
    small/<n>/<number>.jpg   pictures of the gallery
    large/<n>/<number>-<m>.jpg

One chunk is held at a time, however many samples there are.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import Any

from capflow_tasks.store.rows import ShardRow
from capflow_tasks.store.states import SampleState
from capflow_tasks.store.views import PAGE, Views
from producer.report.page import as_script
from producer.report.pictures import Drawn, PictureTask, draw_all
from producer.report.sample_data import MOST_PICTURES, ShownSample, detail, overall, searchable

#: Samples of one chunk.
CHUNK = 200


@dataclass(frozen=True, slots=True)
class Size:
    """How much of a run is shown."""

    #: Samples, at most.
    samples: int
    #: Samples with pictures, at most.
    thumbnails: int
    #: The long side of a large picture, pixels.
    picture_size: int
    #: Pictures drawn at a time, each in its own process.
    processes: int


#: Called with the number of samples whose pictures are drawn.
Progress = Callable[[int], None]


def samples_of(views: Views, shards: Sequence[ShardRow], most: int) -> Iterator[ShownSample]:
    """At most so many samples, of each shard a fair share, in index order whatever became of them."""
    for position, row in enumerate(shards):
        share = -(-most // (len(shards) - position))
        for shown in islice(_in_order(views, row, share), share):
            most -= 1
            yield shown


def _in_order(views: Views, row: ShardRow, share: int) -> Iterator[ShownSample]:
    streams = (_of_state(views, row, state, min(share, PAGE)) for state in SampleState)
    return heapq.merge(*streams, key=lambda shown: shown.sample.index)


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
    #: Per sample: domain and state by number, overall grade, confidence, whether there is a small picture.
    columns: list[list[Any]] = field(default_factory=lambda: [[], [], [], [], []])

    @property
    def pictures(self) -> int:
        """Samples with a picture."""
        return sum(self.columns[-1])

    def write(self, samples: Iterable[ShownSample], progress: Progress) -> int:
        """Write all of them and return how many there were."""
        coming = iter(samples)
        (self.folder / "data").mkdir(parents=True)
        for number, chunk in enumerate(iter(lambda: list(islice(coming, CHUNK)), [])):
            self._write_chunk(number, chunk)
            progress(number * CHUNK + len(chunk))
        domains, states, grades, confidences, has_small = self.columns
        index = {
            "chunk": CHUNK,
            "domain_names": self.domains,
            "state_names": list(SampleState),
            "domains": domains,
            "states": states,
            "grades": grades,
            "confidences": confidences,
            "has_small": has_small,
        }
        self._write_script("index", index)
        return len(states)

    def _write_chunk(self, number: int, chunk: Sequence[ShownSample]) -> None:
        tasks = [self._tasks(number, place, shown) for place, shown in enumerate(chunk)]
        drawn = iter(draw_all(list(chain.from_iterable(tasks)), self.size.processes))
        pictures = [[(task, next(drawn)) for task in of_sample] for of_sample in tasks]
        for shown, of_sample in zip(chunk, pictures, strict=True):
            self._add(shown, of_sample)
        self._write_script(f"text-{number}", [searchable(shown) for shown in chunk])
        details = [
            detail(shown, [(self._file(task.large), what) for task, what in of_sample])
            for shown, of_sample in zip(chunk, pictures, strict=True)
        ]
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
        values = (
            self.domains.index(domain),
            list(SampleState).index(shown.state),
            overall(shown),
            None if confidence is None else round(confidence, 4),
            int(bool(pictures) and pictures[0][1].reason is None),
        )
        for column, value in zip(self.columns, values, strict=True):
            column.append(value)

    def _write_script(self, name: str, value: Any) -> None:
        (self.folder / "data" / f"{name}.js").write_text(as_script(name, value), "ascii")

    def _file(self, path: Path) -> str:
        return path.relative_to(self.folder).as_posix()
