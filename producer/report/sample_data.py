"""What the page is told of one sample: a line for the gallery, and all that is known for the detail view."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from capflow_tasks.entries import media_of
from capflow_tasks.errors import BadEntry
from capflow_tasks.records import FinishedSample, JsonObject, Modality, PlanShard, Result, Stage
from capflow_tasks.store.states import SampleState
from producer.report.pictures import Drawn

#: Pictures of one sample that are shown.
MOST_PICTURES = 4


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
    def domain_shares(self) -> JsonObject:
        """The router's probability by domain."""
        route = self._last(Stage.ROUTE)
        return (route and route.data) or {}

    def _last(self, stage: Stage) -> Result | None:
        found = [result for result in self.sample.results if result.stage is stage]
        return found[-1] if found else None


def overall(shown: ShownSample) -> int | None:
    """The overall grade; None without one."""
    grade = shown.grades.get("overall")
    return grade if type(grade) is int else None


def searchable(shown: ShownSample) -> list[str]:
    """What the gallery shows below the picture, and what a search for text looks at."""
    paths = " ".join(path for _, path in shown.media)
    failure = shown.sample.failure
    said = shown.caption or (f"{failure.kind}: {failure.message}" if failure else "")
    return [shown.name, paths, said]


def detail(shown: ShownSample, pictures: Sequence[tuple[str, Drawn]]) -> JsonObject:
    """All that is known of a sample; `pictures` are the large ones by their file in the report."""
    sample = shown.sample
    return {
        "name": shown.name,
        "pictures": [
            {"kind": kind, "path": path, "file": None if drawn.reason else file, **_shown(drawn)}
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
        "said": [_said(result) for result in sample.results],
        "entry": json.dumps(sample.entry, ensure_ascii=False, indent=2),
        "annotation": shown.shard.annotation,
    }


def _shown(drawn: Drawn) -> JsonObject:
    return {"reason": drawn.reason, "times": list(drawn.times)}


def _failure(sample: FinishedSample) -> JsonObject | None:
    failure = sample.failure
    if failure is None:
        return None
    retry = "may pass when tried again" if failure.is_retryable else "stays, however often it is tried"
    return {"stage": failure.stage, "kind": failure.kind, "message": failure.message, "retry": retry}


def _said(result: Result) -> dict[str, Any]:
    return {
        "stage": result.stage,
        "agent": result.agent,
        "text": result.text,
        "model": result.model,
        "workflow": result.workflow,
        "worker": result.worker,
        "prompt_tokens": result.prompt_tokens,
        "cached_tokens": result.cached_tokens,
        "completion_tokens": result.completion_tokens,
        "finish_reason": result.finish_reason,
        "seconds": round(result.seconds, 3),
    }
