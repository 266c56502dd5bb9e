"""One sample on its way into a report: what its card and its detail view say."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from capflow_tasks.captioning.answers import errors_named, is_grade
from capflow_tasks.entries import media_of
from capflow_tasks.errors import BadEntry
from capflow_tasks.records import FinishedSample, GuardOutcome, JsonObject, Modality, PlanShard, Result, Stage
from capflow_tasks.store.states import SampleState, ShardRow
from capflow_tasks.store.views import PAGE, Views
from producer.console import without_folders
from producer.reading.marks import key_of_sample
from producer.writing.captions import checks_of, guard_findings

#: Begins the kind of a failure by a rule of the guard.
_ANSWER_FAULT = "answer_"


@dataclass(frozen=True, slots=True)
class ShownSample:
    """A sample on its way into the report."""

    shard: PlanShard
    sample: FinishedSample
    state: SampleState
    #: Whether its pictures are to be drawn.
    has_pictures: bool = True

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
    def key(self) -> str:
        """Names its caption where people mark it."""
        return key_of_sample(self.sample)

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
    def overall(self) -> int | None:
        """The overall grade; None without one."""
        grade = self.grades.get("overall")
        return grade if is_grade(grade) else None

    @property
    def dimensions(self) -> dict[str, int]:
        """The valid grades by dimension."""
        return {name: grade for name, grade in self.grades.items() if name != "overall" and is_grade(grade)}

    @property
    def errors(self) -> list[str]:
        """What the judge found wrong or missing."""
        judgement = self._last(Stage.SCORE)
        return errors_named(judgement.text) if judgement else []

    @property
    def checks(self) -> JsonObject:
        """How far the caption agrees with the text read in its pictures, and with what its media show."""
        summary = self._last(Stage.SUMMARIZE)
        return checks_of(summary) if summary else {}

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


def samples_of(
    views: Views, run_id: int, shards: Sequence[ShardRow], most: int, with_pictures: int
) -> Iterator[ShownSample]:
    """At most so many samples, in plan order: failures and the worst first, the rest spread evenly.

    Those with pictures are chosen alike.
    """
    rows = {row.id: row.shard for row in shards}
    ids = views.shown_ids(run_id, most)
    pictured = set(ids if with_pictures >= len(ids) else views.shown_ids(run_id, with_pictures))
    for start in range(0, len(ids), PAGE):
        page = ids[start : start + PAGE]
        for placed in views.samples(page):
            yield ShownSample(rows[placed.shard_id], placed.sample, placed.state, placed.id in pictured)


def searchable(shown: ShownSample) -> list[str]:
    """Name, paths, and caption or failure: the text of a card, which the text search reads."""
    paths = " ".join(path for _, path in shown.media)
    failure = shown.sample.failure
    words = shown.caption or (without_folders(f"{failure.kind}: {failure.message}") if failure else "")
    return [shown.name, paths, words]


def detail(shown: ShownSample, pictures: Sequence[JsonObject]) -> JsonObject:
    """Everything about a sample."""
    sample = shown.sample
    return {
        "name": shown.name,
        "pictures": list(pictures),
        "hidden_pictures": max(0, len(shown.media) - len(pictures)),
        "domain": sample.domain,
        "confidence": sample.confidence,
        "domain_shares": shown.domain_shares,
        "state": shown.state,
        "attempts": sample.attempts,
        "failure": _failure(sample),
        "caption": shown.caption,
        "grades": shown.dimensions,
        "overall": shown.overall,
        "errors": shown.errors,
        "checks": shown.checks,
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


def _answer(result: Result) -> JsonObject:
    return {
        "stage": result.stage,
        "agent": result.agent,
        "text": result.text,
        "grades": result.data if result.stage is Stage.SCORE else None,
        "errors": errors_named(result.text) if result.stage is Stage.SCORE else [],
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
