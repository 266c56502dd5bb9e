"""Lines of caption files: their scores, the samples that get them scored, and the scored files.

A line is identified by what its record says, apart from what scoring adds. So scores stay valid when a file
grows or is reordered, and a changed line is scored anew. Memory holds one line, and the identity and scores
of each record that scoring has added to.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from pathlib import Path
from sys import intern
from typing import Any

from capflow_tasks.captioning.answers import check_text
from capflow_tasks.domains.catalogue import Catalogue, Domain
from capflow_tasks.domains.prompts import WINDOW_MARK
from capflow_tasks.entries import MEDIA_KEYS, media_of, task_of, type_name, unstorable
from capflow_tasks.errors import BadAnswer, BadEntry
from capflow_tasks.records import Failure, FinishedSample, JsonObject, Modality, Result, Stage
from capflow_tasks.store.states import NewSample
from producer.reading.caption_files import CaptionLine, read_captions
from producer.reading.scores import Rubrics, Scores, scores_of
from producer.scoring.summary import ScoreCounts
from producer.writing.captions import failed_record
from producer.writing.whole import json_line, whole_file

#: What scoring adds to a record.
_ADDED_KEYS = ("task", "confidence", "scores", "overall")
#: Key of a line's identity in the entry of its sample.
_IDENTITY = "line_digest"
#: Stands for model, workflow and worker of texts that come from the file.
_GIVEN = "given"
#: Bytes shown of a line that is not a record.
_SHOWN_BYTES = 1000


@dataclass(frozen=True, slots=True)
class CaptionFile:
    """A file of captions, and where its scored records go."""

    path: Path
    scored: Path
    failed: Path
    #: Folder of its media; None when it is not known.
    root: Path | None
    #: Domain of the records that name none; None when the router decides.
    task: str | None
    #: Records without scores, and a digest of them.
    to_score: int = 0
    version: str = ""


@dataclass(frozen=True, slots=True)
class ScoredLine:
    """One line of a caption file, and what is known of its scores."""

    line: CaptionLine
    #: None when the line has no valid scores yet.
    scores: Scores | None
    #: The line as the scored file has it.
    text: bytes
    #: Not set for a line that has brought its scores itself.
    identity: str = ""


def survey(catalogue: Catalogue, file: CaptionFile) -> CaptionFile:
    """Count what is to be scored in a file. Raises UserError where it cannot be read on."""
    digest, to_score = blake2b(digest_size=16), 0
    for line in unscored_lines(file, Rubrics(catalogue)):
        to_score += 1
        digest.update(line.identity.encode())
    return replace(file, to_score=to_score, version=digest.hexdigest())


def unscored_lines(file: CaptionFile, rubrics: Rubrics) -> Iterator[ScoredLine]:
    """Read the lines that have no scores yet. Raises UserError where the file cannot be read on."""
    lines = _scored_lines(file, rubrics, _published(file.scored, rubrics))
    return (line for line in lines if line.scores is None)


def publish(file: CaptionFile, finished: Iterable[FinishedSample], rubrics: Rubrics) -> ScoreCounts:
    """Write the scored and the failed records in the order of the file; both files appear whole.

    A line that has changed since it was sent is left to another run. Raises UserError where the file cannot
    be read on, and leaves what was published as it was.
    """
    counts, left = ScoreCounts(), 0
    known = _published(file.scored, rubrics)
    added, failed_samples = _sort(finished, rubrics)
    fresh = added.keys() - known.keys()
    with whole_file(file.scored) as scored, whole_file(file.failed) as failed:
        for line in _scored_lines(file, rubrics, added | known):
            if line.scores is not None:
                counts.add(line.scores, is_fresh=line.identity in fresh)
                scored.write(line.text)
            elif (sample := failed_samples.get(line.identity)) and sample.failure:
                counts.fail(f"{file.path}:{line.line.number}", sample.failure)
                failed.write(json_line(_failed_record(line.line, sample)))
            else:
                left += 1
    if not counts.failed:
        file.failed.unlink(missing_ok=True)
    if left:
        lines = "1 line has" if left == 1 else f"{left} lines have"
        counts.problems.append(f"{file.path}: {lines} changed since they were sent; run the command again")
    return counts


def _scored_lines(file: CaptionFile, rubrics: Rubrics, known: Mapping[str, str]) -> Iterator[ScoredLine]:
    """Every line of the file, with its own valid scores, else with the known ones."""
    for line in read_captions(file.path):
        scores = scores_of(line.record, rubrics) if line.record else None
        if isinstance(scores, Scores):
            yield ScoredLine(line, scores, line.raw)
            continue
        identity = _identity(line, (line.record or {}).get("task") or file.task, rubrics)
        text = known.get(identity)
        if text is None or line.record is None:
            yield ScoredLine(line, None, line.raw, identity)
            continue
        record = _with_scores(line.record, json.loads(text))
        scores = scores_of(record, rubrics)
        valid = scores if isinstance(scores, Scores) else None
        yield ScoredLine(line, valid, json_line(record), identity)


def _identity(line: CaptionLine, task: Any, rubrics: Rubrics) -> str:
    """Digest what the record says without scores, and the task that it is scored in."""
    if line.record is None:
        return line.digest
    record = {key: value for key, value in line.record.items() if key not in _ADDED_KEYS}
    try:
        said = json_line(record | {"task": rubrics.domain_of(task) or task or None})
    except (ValueError, RecursionError):
        # It holds half of a surrogate pair, for example: nobody can score it.
        return line.digest
    return blake2b(said, digest_size=16).hexdigest()


def _published(path: Path, rubrics: Rubrics) -> dict[str, str]:
    """What scoring has added to each record of a scored file, as JSON, by the identity of the line."""
    known: dict[str, str] = {}
    for line in read_captions(path) if path.exists() else ():
        if line.record is None or not isinstance(scores_of(line.record, rubrics), Scores):
            continue
        # There are few domains and grades, so that most records share this text.
        text = intern(json.dumps({key: line.record.get(key) for key in _ADDED_KEYS}))
        # Its task may have been given, or found by the router.
        for task in (None, line.record.get("task")):
            known[_identity(line, task, rubrics)] = text
    return known


def sample_of(catalogue: Catalogue, task: str | None, index: int, line: ScoredLine) -> NewSample:
    """Make the line the sample at `index`; one that cannot be scored has failed already.

    `task` is the domain of records that name none; None when the router decides.
    """
    entry = {_IDENTITY: line.identity}
    record = line.line.record
    try:
        if record is None:
            raise BadEntry(line.line.problem)
        if (reason := unstorable(record)) is not None:
            raise BadEntry(f"cannot be stored: {reason}")
        domain = _domain(catalogue, task, record)
        domains = (domain,) if domain else catalogue.routable
        media = {key: record[key] for keys in MEDIA_KEYS.values() for key in keys if key in record}
        results = tuple(_given_results(record, domains))
        return NewSample(index, entry | media, domain.name if domain else None, results=results)
    except BadEntry as error:
        return NewSample(index, entry, None, unscorable(str(error)))


def _domain(catalogue: Catalogue, task: str | None, record: JsonObject) -> Domain | None:
    kinds = {kind for kind, _ in media_of(record, Modality.IMAGE)}
    name = task_of(record, lambda given: catalogue.resolve(given).name) or task
    if name is None:
        return catalogue.for_video() if Modality.VIDEO in kinds else None
    return catalogue.resolve(name)


def unscorable(reason: str) -> Failure:
    """The failure of a record that cannot be scored, however often it is tried."""
    return Failure(Stage.SCORE, BadEntry.kind, reason, is_retryable=False)


def caption_of(record: JsonObject) -> str:
    """The record's caption: under `caption`, else the last `gpt` turn. Raises BadEntry when there is none."""
    caption, where = record.get("caption"), '"caption"'
    if caption is None:
        given = record.get("conversations")
        turns = [turn for turn in given if isinstance(turn, dict)] if isinstance(given, list) else []
        answers = [turn for turn in turns if turn.get("from") == "gpt"]
        if not answers:
            raise BadEntry('has no caption: neither "caption" nor a "gpt" turn in "conversations"')
        caption, where = answers[-1].get("value"), 'the last "gpt" turn'
    if not isinstance(caption, str):
        raise BadEntry(f"has no caption: {where} is {type_name(caption)}")
    try:
        return check_text(caption)
    except BadAnswer:
        raise BadEntry(f"has no caption: {where} is empty") from None


def _given_results(record: JsonObject, domains: Sequence[Domain]) -> Iterator[Result]:
    """The caption as the answer of each captioner, and the answers of agents that a judge sees."""
    caption = caption_of(record)
    for name in dict.fromkeys(domain.captioner.name for domain in domains):
        yield _given_result(Stage.SUMMARIZE, name, caption)
    seen = {name for domain in domains for judge in domain.agents_of(Stage.SCORE) for name in judge.sees}
    stages = {agent.name: agent.stage for domain in domains for agent in domain.agents if agent.name in seen}
    reports = record.get("reports")
    for name, text in reports.items() if isinstance(reports, dict) else ():
        # A long video has an answer for each of its windows.
        stage = stages.get(name.partition(WINDOW_MARK)[0])
        if stage in (Stage.PERCEIVE, Stage.REASON) and isinstance(text, str):
            yield _given_result(stage, name, text)


def _given_result(stage: Stage, agent: str, text: str) -> Result:
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


def _sort(
    finished: Iterable[FinishedSample], rubrics: Rubrics
) -> tuple[dict[str, str], dict[str, FinishedSample]]:
    """What scoring adds to each line, as JSON, and the samples that have failed, both by identity."""
    added: dict[str, str] = {}
    failed: dict[str, FinishedSample] = {}
    for sample in finished:
        identity = str(sample.entry.get(_IDENTITY))
        data = [result.data for result in sample.results if result.stage is Stage.SCORE and result.data]
        grades = data[-1] if data else {}
        said = {
            "task": sample.domain,
            "confidence": sample.confidence,
            "scores": {name: grade for name, grade in grades.items() if name != "overall"},
            "overall": grades.get("overall"),
        }
        valid = scores_of(said, rubrics) if data else f"the domain {sample.domain} has no judge"
        if sample.failure is None and isinstance(valid, Scores):
            added[identity] = intern(json.dumps(said))
        else:
            failure = sample.failure or unscorable(str(valid))
            failed[identity] = replace(sample, entry={}, results=(), failure=failure)
    return added, failed


def _with_scores(record: JsonObject, added: JsonObject) -> JsonObject:
    """The record with its scores, and with the domain that they were given in if it named none."""
    keys = ("scores", "overall") if record.get("task") else _ADDED_KEYS
    return record | {key: added[key] for key in keys}


def _failed_record(line: CaptionLine, sample: FinishedSample) -> JsonObject:
    """The record, or the start of a line that is not one, with the reason."""
    entry = line.record
    if entry is None or unstorable(entry) is not None:
        entry = {"line": line.raw[:_SHOWN_BYTES].decode("utf-8", "replace").rstrip("\r\n")}
    record = failed_record(replace(sample, entry=entry))
    record["error"] = {"line_number": line.number, **record["error"]}
    return record
