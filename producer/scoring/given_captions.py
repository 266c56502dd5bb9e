"""Caption records as samples that have been captioned already, so that the judge sees what it always sees.

A caption becomes the result of its domain's captioner, and reports become those of the agents that a judge
sees. Knows nothing of which records need scores.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from capflow_tasks.captioning.answers import check_text
from capflow_tasks.domains.catalogue import Catalogue, Domain
from capflow_tasks.domains.prompts import WINDOW_MARK
from capflow_tasks.entries import MEDIA_KEYS, media_of, task_of, type_name, unstorable
from capflow_tasks.errors import BadAnswer, BadEntry
from capflow_tasks.records import Failure, JsonObject, Modality, Result, Stage
from capflow_tasks.store.rows import NewSample
from producer.reading.caption_files import CaptionLine

#: What stands for model, workflow and worker of what came with the file.
_GIVEN = "given"


def caption_of(record: JsonObject) -> str:
    """The record's caption: under `caption`, else the last `gpt` turn. Raises BadEntry when there is none."""
    caption = record.get("caption")
    where = '"caption"'
    if caption is None:
        turns = [turn for turn in _turns(record) if turn.get("from") == "gpt"]
        if not turns:
            raise BadEntry('has no caption: neither "caption" nor a "gpt" turn in "conversations"')
        caption, where = turns[-1].get("value"), 'the last "gpt" turn'
    if not isinstance(caption, str):
        raise BadEntry(f"has no caption: {where} is {type_name(caption)}")
    try:
        return check_text(caption)
    except BadAnswer:
        raise BadEntry(f"has no caption: {where} is empty") from None


@dataclass(frozen=True, slots=True)
class GivenCaptions:
    """Turns the lines of one file into samples to be scored."""

    catalogue: Catalogue
    #: Domain of the records that name none; None when they are to be routed.
    task: str | None

    def sample(self, index: int, line: CaptionLine) -> NewSample:
        """The line as the sample at `index`; one that cannot be scored has failed already."""
        place = place_of(line)
        try:
            if line.record is None:
                raise BadEntry(line.problem)
            return self._sample(index, line.record, place)
        except BadEntry as error:
            return NewSample(index, place, None, unscorable(str(error)))

    def _sample(self, index: int, record: JsonObject, place: JsonObject) -> NewSample:
        if (reason := unstorable(record)) is not None:
            raise BadEntry(f"cannot be stored: {reason}")
        kinds = {kind for kind, _ in media_of(record, Modality.IMAGE)}
        domain = self._domain(record, kinds)
        domains = (domain,) if domain else self.catalogue.routable
        media = {key: record[key] for keys in MEDIA_KEYS.values() for key in keys if key in record}
        results = (*_captions(record, domains), *_reports(record, domains))
        return NewSample(index, place | media, domain.name if domain else None, results=results)

    def _domain(self, record: JsonObject, kinds: set[Modality]) -> Domain | None:
        name = task_of(record, lambda task: self.catalogue.resolve(task).name) or self.task
        if name is not None:
            return self.catalogue.resolve(name)
        return self.catalogue.for_video() if Modality.VIDEO in kinds else None


def place_of(line: CaptionLine) -> JsonObject:
    """What tells, when the line's scores are there, whether it still stands there."""
    return {"line_number": line.number, "line_digest": line.digest}


def unscorable(reason: str) -> Failure:
    """Why a record cannot be scored, however often it is tried."""
    return Failure(Stage.SCORE, BadEntry.kind, reason, is_retryable=False)


def _turns(record: JsonObject) -> list[Mapping[str, Any]]:
    given = record.get("conversations")
    return [turn for turn in given if isinstance(turn, dict)] if isinstance(given, list) else []


def _captions(record: JsonObject, domains: Sequence[Domain]) -> Iterator[Result]:
    """The caption as each captioner's that may turn out to be the one; a judge sees its own domain's."""
    caption = caption_of(record)
    for name in dict.fromkeys(domain.captioner.name for domain in domains):
        yield _result(Stage.SUMMARIZE, name, caption)


def _reports(record: JsonObject, domains: Sequence[Domain]) -> Iterator[Result]:
    """The reports that a judge asks for; those of a long video's windows too."""
    given = record.get("reports")
    stages = {
        agent.name: agent.stage
        for domain in domains
        for agent in domain.agents
        if agent.name in {name for judge in domain.agents_of(Stage.SCORE) for name in judge.sees}
    }
    for name, text in given.items() if isinstance(given, dict) else ():
        stage = stages.get(name.partition(WINDOW_MARK)[0])
        if stage in (Stage.PERCEIVE, Stage.REASON) and isinstance(text, str):
            yield _result(stage, name, text)


def _result(stage: Stage, agent: str, text: str) -> Result:
    return Result(
        stage=stage,
        agent=agent,
        text=text,
        data=None,
        model=_GIVEN,
        workflow=_GIVEN,
        prompt_tokens=0,
        cached_tokens=0,
        completion_tokens=0,
        finish_reason=_GIVEN,
        seconds=0.0,
        worker=_GIVEN,
    )
