"""Make samples of the entries of a shard: their media by content, their domain by task and shard."""

import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar

from capflow_tasks.domains.catalogue import Catalogue
from capflow_tasks.entries import media_of, shown, task_of
from capflow_tasks.errors import BadEntry, PlanError, WorkflowError
from capflow_tasks.records import Failure, JsonObject, Modality, PlanShard, Stage
from capflow_tasks.store import states
from producer.console import counted
from producer.reading.annotations import read_entries
from producer.reading.folders import named_by_content

T = TypeVar("T")

log = logging.getLogger(__name__)


def read_samples(
    catalogue: Catalogue, shard: PlanShard, start_idx: int, foreign: Counter[str] | None = None
) -> Iterator[states.NewSample]:
    """Read the shard's samples from an index on; one that cannot be used has failed already.

    With `foreign`, a task that is no domain is counted there, and the sample goes on as if it named none.
    Raises PlanError where the annotation file breaks off.
    """
    for entry in read_entries(Path(shard.annotation), start_idx, shard.end_idx):
        try:
            if entry.value is None:
                raise BadEntry(entry.problem)
            value = named_by_content(entry.value, shard.root)
            yield states.NewSample(entry.index, value, domain_of(catalogue, shard, value, foreign))
        except BadEntry as error:
            failure = Failure(Stage.ROUTE, error.kind, str(error), is_retryable=False)
            yield states.NewSample(entry.index, entry.value or {}, None, failure)


def batches_of(
    samples: Iterator[states.NewSample], batch_size: int, stages: Sequence[Stage]
) -> Iterator[states.NewBatch]:
    """Group samples into batches; a PlanError from reading them comes after those read before it."""
    return (
        states.NewBatch(states.first_stage(group, stages), group) for group in in_groups(samples, batch_size)
    )


def in_groups(items: Iterator[T], size: int) -> Iterator[list[T]]:
    """Lists of up to `size` items; a PlanError comes after the items that came before it."""
    group: list[T] = []
    try:
        for item in items:
            group.append(item)
            if len(group) == size:
                yield group
                group = []
    except PlanError:
        if group:
            yield group
        raise
    if group:
        yield group


def domain_of(
    catalogue: Catalogue, shard: PlanShard, entry: JsonObject, foreign: Counter[str] | None = None
) -> str | None:
    """The entry's own task, else the shard's, else the one for videos; None means that the router decides."""
    kinds = {kind for kind, _ in media_of(entry, shard.modality)}
    given = task_of(entry, partial(_known_task, catalogue, foreign)) or shard.task
    if given is None and Modality.VIDEO in kinds:
        return catalogue.for_video().name
    return given


def _known_task(catalogue: Catalogue, foreign: Counter[str] | None, task: str) -> str | None:
    """Return the task's domain; None for a foreign one, which is counted."""
    try:
        return catalogue.resolve(task).name
    except WorkflowError:
        if foreign is None:
            raise
        foreign[task] += 1
        return None


def warn_of_foreign(tasks: Counter[str]) -> None:
    """Log how many samples named which tasks that are no domain."""
    if tasks:
        named = ", ".join(f"{shown(task)} {count:,}" for task, count in tasks.most_common(5))
        log.warning(
            "%s named a task that is no domain: routed, or with the shard's task (see --strict): %s",
            counted(tasks.total(), "sample"),
            named,
        )
