"""Choose what of a run is exported: which captions, in which order, in which split, with which keys."""

import os
from bisect import bisect
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from itertools import accumulate
from random import Random

from capflow_tasks.entries import MEDIA_KEYS
from capflow_tasks.media.remote import is_remote
from capflow_tasks.records import FinishedSample, JsonObject, PlanShard
from capflow_tasks.store.states import SampleState, ShardRow
from capflow_tasks.store.views import PAGE, Views
from producer.parallel import ProgressLines
from producer.reading.caption_files import Criteria
from producer.writing.captions import Captioned, caption_record
from producer.writing.conversations import PLAIN, ConversationStyle, media_listed


@dataclass(frozen=True, slots=True)
class Choice:
    criteria: Criteria
    style: ConversationStyle = PLAIN
    #: The share of samples by split, with a sum of 1; empty for files without splits.
    splits: Mapping[str, float] = field(default_factory=dict)
    #: Puts the samples of all shards into a random order; None keeps the plan's.
    seed: int | None = None
    #: Whether paths of media are written from "/" on, not from their root.
    is_absolute: bool = False


class Selection:
    """Reads the captioned samples that are chosen, and counts them."""

    def __init__(self, views: Views, rows: Sequence[ShardRow], choice: Choice) -> None:
        self._views = views
        self._rows = rows
        self._choice = choice
        self._progress = ProgressLines("samples")
        #: Captions that do not meet the criteria.
        self.rejected = 0
        #: Chosen captions by domain, by model, and by the digest of their prompts.
        self.domains, self.models, self.workflows = Counter[str](), Counter[str](), Counter[str]()

    def of_shard(self, row: ShardRow) -> Iterator[Captioned]:
        """Yield the chosen samples of a shard in index order."""
        samples = self._views.finished_samples(row.id, SampleState.DONE)
        return self._chosen(((row.shard, sample) for sample in samples), None)

    def of_split(self, split: str | None) -> Iterator[Captioned]:
        """Yield the chosen samples of a split, or of the run, in the order asked for."""
        return self._chosen(self._in_plan_order() if self._choice.seed is None else self._shuffled(), split)

    def _in_plan_order(self) -> Iterator[tuple[PlanShard, FinishedSample]]:
        for row in self._rows:
            for sample in self._views.finished_samples(row.id, SampleState.DONE):
                yield row.shard, sample

    def _shuffled(self) -> Iterator[tuple[PlanShard, FinishedSample]]:
        shards = {row.id: row.shard for row in self._rows}
        ids = self._views.captioned_ids(shards.keys())
        Random(self._choice.seed).shuffle(ids)
        for start in range(0, len(ids), PAGE):
            for placed in self._views.samples(ids[start : start + PAGE]):
                yield shards[placed.shard_id], placed.sample

    def _chosen(
        self, samples: Iterator[tuple[PlanShard, FinishedSample]], split: str | None
    ) -> Iterator[Captioned]:
        for shard, sample in samples:
            if split is not None and split_of(sample.entry, self._choice.splits) != split:
                continue
            self._progress(self.domains.total() + self.rejected)
            record = caption_record(sample, self._choice.style)
            if not self._choice.criteria.keeps(record):
                self.rejected += 1
                continue
            if self._choice.is_absolute:
                sample = _with_absolute_paths(sample, shard.root)
                record = caption_record(sample, self._choice.style)
            self.domains[str(record.get("task"))] += 1
            self.models[str(record.get("model"))] += 1
            self.workflows[str(record.get("workflow"))] += 1
            yield Captioned(shard, sample, record)


def split_of(entry: JsonObject, splits: Mapping[str, float]) -> str:
    """Return the split of a sample, which depends on its first medium alone.

    So no picture is in two splits, and a later export of more captions moves none.
    """
    first = next((path for _, path in media_listed(entry)), "")
    place = int.from_bytes(blake2b(first.encode(), digest_size=8).digest()) / (1 << 64)
    reached = list(accumulate(splits.values()))
    return list(splits)[min(bisect(reached, place), len(splits) - 1)]


def _with_absolute_paths(sample: FinishedSample, root: str) -> FinishedSample:
    def absolute(value: str | list[str]) -> str | list[str]:
        if isinstance(value, list):
            return [_joined(root, path) for path in value]
        return _joined(root, value)

    names = [key for keys in MEDIA_KEYS.values() for key in keys if sample.entry.get(key)]
    return replace(sample, entry=sample.entry | {key: absolute(sample.entry[key]) for key in names})


def _joined(root: str, path: str) -> str:
    return path if is_remote(path) else os.path.join(root, path)  # noqa: PTH118 - a root may be remote
