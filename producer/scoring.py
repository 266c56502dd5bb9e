"""Score caption files that exist already: find the lines without scores, run these, publish the files.

A shard is a caption file, and its samples are the lines that have no valid scores yet. A line is identified
by what its record says, apart from what scoring adds. So scores stay valid when a file grows or is reordered,
and a changed line is scored anew. Memory holds one line, and the identity and scores of each record that
scoring has added to.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from functools import partial
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from sys import intern
from threading import Event
from time import monotonic
from typing import Any

from capflow_tasks.captioning.answers import check_text
from capflow_tasks.domains.catalogue import Catalogue, Domain, load_catalogue
from capflow_tasks.domains.prompts import WINDOW_MARK
from capflow_tasks.entries import MEDIA_KEYS, type_name, unstorable
from capflow_tasks.errors import BadAnswer, BadEntry, PlanError, UserError
from capflow_tasks.records import Failure, FinishedSample, JsonObject, Modality, PlanShard, Result, Stage
from capflow_tasks.settings import Settings
from capflow_tasks.store.states import NewSample, SampleState
from producer.budget import Budget
from producer.parallel import ProgressLines, call_all
from producer.reading import caption_files
from producer.reading.caption_files import CaptionLine, Rubrics, Scores
from producer.reading.plan import checked_plan, file_name_part
from producer.reading.samples import domain_of
from producer.run import OpenRun, Order, name_of_run
from producer.services import reach_fleet, through_outages
from producer.summary import ScoreSummary
from producer.writing.captions import caption_record, failed_record
from producer.writing.ownership import OwnFiles
from producer.writing.whole import json_line, whole_file

#: What scoring adds to a record.
_JUDGED_KEYS = ("scores", "overall", "errors", "expected_scores")
_ADDED_KEYS = ("task", "confidence", *_JUDGED_KEYS)
#: Key of a line's identity in the entry of its sample.
_IDENTITY = "line_digest"
#: Stands for model, workflow and worker of texts that come from the file.
_GIVEN = "given"


class ScoreRun:
    """The scoring of one folder. Raises UserError before anything starts.

    `plan` is a split plan that names folder and task of each dataset's media, `root` the folder of others.
    The scored files go to `output`, by default to the folder itself. Scoring `anew` ignores the scores that
    the folder's records have; those in `output` stay.
    """

    def __init__(
        self,
        folder: Path,
        settings: Settings,
        *,
        root: Path | None,
        plan: Path | None,
        output: Path | None,
        processes: int,
        anew: bool = False,
        overwrites: bool = False,
    ) -> None:
        self._folder = folder.resolve()
        self._output = output.resolve() if output else self._folder
        if anew and self._output == self._folder:
            raise UserError("--anew: the earlier scores lie in this folder; name another one with --output")
        self._anew = anew
        self._own = OwnFiles.of_command("capflow score", self._folder, self._output, overwrites=overwrites)
        self._settings = settings
        self._catalogue = load_catalogue(settings.domains)
        self._rubrics = Rubrics(self._catalogue)
        planned = checked_plan(plan, self._catalogue.resolve).shards if plan else ()
        by_dataset = {file_name_part(shard.dataset): shard for shard in reversed(planned)}
        found = []
        for path in caption_files.find(self._folder, unscored=True):
            # Rank0_node0_<dataset>.jsonl
            shard = by_dataset.get(path.stem.split("_", 2)[-1])
            found.append(shard_of(path, Path(shard.root) if shard else root, shard.task if shard else None))
        survey_file = partial(survey, self._catalogue, self._output, anew=anew)
        #: The caption files; those without anything to score have no samples.
        self.files = call_all(survey_file, found, processes, ProgressLines("caption files read"))

    def run(
        self,
        stopping: Event,
        run: str | None,
        batch_size: int,
        window: int | None,
        budget: Budget | None = None,
    ) -> ScoreSummary:
        """Score what has no scores yet, then publish; publish nothing when stopped before that.

        `run` is the last part of the run's name; by default it follows from the folder. Raises ServiceError
        when database, broker or model is not available at the start; later it waits.
        """
        started = monotonic()
        # Never the name of a plan's run: the shards of files that have changed are removed.
        name = f"score-{run or name_of_run(self._output if self._anew else self._folder)}"
        # Where a domain is known, the chain begins with the judge.
        stages = (Stage.ROUTE, Stage.SCORE)
        order = Order(self._folder, self._output, name, batch_size, window, stages, budget=budget)
        shards = [shard for shard in self.files if shard.sample_count]
        if lost := [shard.annotation for shard in shards if not shard.root]:
            raise UserError(
                f"{lost[0]}: where its media lie is not known; name their folder with --root, "
                "or with --plan the split plan that it was captioned by"
            )
        summary = ScoreSummary(name)
        self._own.claim(self._published_names())
        if not shards:
            summary = self._publish(summary, None, stopping)
            summary.seconds = monotonic() - started
            return summary
        with reach_fleet(self._settings) as fleet:
            # A file that has changed is another shard; nobody needs the samples of the old one.
            scoring = OpenRun(fleet, order, shards, forget_other_shards=True)
            scoring.retry_failed()
            summary.is_complete = scoring.finish(self._read_samples, stopping)
            summary.seconds = monotonic() - started
            summary.problems += scoring.problems
            summary.pause = scoring.pause
            return self._publish(summary, scoring, stopping) if summary.is_complete else summary

    def _read_samples(self, shard: PlanShard, start_idx: int) -> Iterator[NewSample]:
        """Read the lines of a file that have no scores, numbered from 0. Raises PlanError."""
        lines = enumerate(unscored_lines(shard, self._output, self._rubrics, anew=self._anew))
        try:
            for index, (line, identity) in islice(lines, start_idx, shard.end_idx):
                yield sample_of(self._catalogue, shard, index, line, identity)
        except UserError as error:
            raise PlanError(str(error)) from error

    def _publish(self, summary: ScoreSummary, scoring: OpenRun | None, stopping: Event) -> ScoreSummary:
        """Write the scored files; one that cannot be written is a problem, and the others follow."""
        with self._own.writing(self._published_names()):
            for file in self.files:
                try:
                    summary = through_outages(partial(self._publish_file, summary, file, scoring), stopping)
                except UserError as error:
                    summary.problems.append(str(error))
        return summary

    def _published_names(self) -> list[str]:
        scored = [caption_files.scored_beside(Path(file.dataset)) for file in self.files]
        return [path.name for each in scored for path in (each, _failed_beside(each))]

    def _publish_file(self, summary: ScoreSummary, file: PlanShard, scoring: OpenRun | None) -> ScoreSummary:
        finished = _finished_samples(scoring, file) if scoring else ()
        return publish(file, self._output, finished, self._rubrics, summary, anew=self._anew)


def _finished_samples(scoring: OpenRun, file: PlanShard) -> Iterator[FinishedSample]:
    for row in scoring.shards:
        if row.shard.annotation == file.annotation:
            yield from scoring.views.finished_samples(row.id, SampleState.DONE)
            yield from scoring.views.finished_samples(row.id, SampleState.FAILED)


def shard_of(path: Path, root: Path | None, task: str | None) -> PlanShard:
    """The caption file as a shard, before its samples are counted; without a known folder its root is ""."""
    return PlanShard(
        dataset=path.name,
        annotation=str(path),
        root=str(root.absolute()) if root else "",
        task=task,
        # The records name their media by keys of their own.
        modality=Modality.IMAGE,
        start_idx=0,
        end_idx=0,
        shard_index=0,
        num_shards=1,
        assign_rank=0,
    )


def survey(catalogue: Catalogue, output: Path, file: PlanShard, *, anew: bool = False) -> PlanShard:
    """Count and digest what is to be scored in a file. Raises UserError where it cannot be read on."""
    digest, to_score = blake2b(digest_size=16), 0
    for _, identity in unscored_lines(file, output, Rubrics(catalogue), anew=anew):
        to_score += 1
        digest.update(identity.encode())
    return replace(file, end_idx=to_score, version=digest.hexdigest())


def unscored_lines(
    file: PlanShard, output: Path, rubrics: Rubrics, *, anew: bool = False
) -> Iterator[tuple[CaptionLine, str]]:
    """Read the lines without scores, with their identities. Raises UserError where the file breaks off."""
    known = _published(caption_files.scored_beside(output / file.dataset), rubrics)
    lines = _all_lines(file, rubrics, known, anew=anew)
    return ((line, identity) for line, identity, scores in lines if not scores)


def publish(
    file: PlanShard,
    output: Path,
    finished: Iterable[FinishedSample],
    rubrics: Rubrics,
    summary: ScoreSummary,
    *,
    anew: bool = False,
) -> ScoreSummary:
    """Write the scored and the failed records in the order of the file; both files appear whole.

    Returns the summary with the file's lines, and leaves the one given as it was, so that it may be called
    again. A line that has changed since it was sent is left to another run. Raises UserError where the file
    cannot be read on, and leaves what was published as it was.
    """
    left, failed_before, summary = 0, summary.failed, deepcopy(summary)
    path = caption_files.scored_beside(output / file.dataset)
    failed_path = _failed_beside(path)
    known = _published(path, rubrics)
    added, failed_samples = _sort(finished, rubrics)
    fresh = added.keys() - known.keys()
    with whole_file(path) as scored, whole_file(failed_path) as failed:
        for line, identity, scores in _all_lines(file, rubrics, added | known, anew=anew):
            if scores is not None:
                summary.add(scores, is_fresh=identity in fresh)
                scored.write(line.raw)
            elif (sample := failed_samples.get(identity)) and sample.failure:
                summary.fail(f"{file.annotation}:{line.number}", sample.failure)
                failed.write(json_line(_failed_record(line, sample)))
            else:
                left += 1
    if summary.failed == failed_before:
        failed_path.unlink(missing_ok=True)
    if left:
        lines = "1 line has" if left == 1 else f"{left} lines have"
        problem = f"{lines} changed since they were sent; run the command again"
        summary.problems.append(f"{file.annotation}: {problem}")
    summary.files.append(path)
    return summary


def _failed_beside(scored: Path) -> Path:
    return scored.with_suffix(".failed.jsonl")


def _all_lines(
    file: PlanShard, rubrics: Rubrics, known: Mapping[str, str], *, anew: bool
) -> Iterator[tuple[CaptionLine, str, Scores | None]]:
    """Every line as the scored file has it, its identity, and its own valid scores, else the known ones.

    A line that has brought its scores itself needs no identity, and has none. With `anew` none brings any.
    """
    for line in caption_files.read_captions(Path(file.annotation)):
        record = line.record or {}
        scores = caption_files.scores_of(record, rubrics)
        if scores.problem is None and not anew:
            yield line, "", scores
            continue
        identity = identity_of(line, record.get("task") or file.task, rubrics)
        if identity not in known:
            yield line, identity, None
            continue
        added = json.loads(known[identity])
        # Name the domain in which the scores were given, where the record named none.
        keys = _JUDGED_KEYS if record.get("task") else _ADDED_KEYS
        # Scored files of an earlier version name no errors.
        record = record | {key: added[key] for key in keys if key in added}
        scores = caption_files.scores_of(record, rubrics)
        yield replace(line, raw=json_line(record)), identity, None if scores.problem else scores


def identity_of(line: CaptionLine, task: Any, rubrics: Rubrics) -> str:
    """Digest what the record says without scores, and the task that it is scored in."""
    record = {key: value for key, value in (line.record or {}).items() if key not in _ADDED_KEYS}
    try:
        named = record | {"task": rubrics.domain_of(task) or task or None}
        said = line.raw if line.record is None else json_line(named)
    except (ValueError, RecursionError):
        # It holds half of a surrogate pair, for example: nobody can score it.
        said = line.raw
    return blake2b(said, digest_size=16).hexdigest()


def _published(path: Path, rubrics: Rubrics) -> dict[str, str]:
    """What scoring has added to each record of a scored file, as JSON, by the identity of the line."""
    known: dict[str, str] = {}
    for line in caption_files.read_captions(path) if path.exists() else ():
        if line.record is None or caption_files.scores_of(line.record, rubrics).problem:
            continue
        # Its task may have been given, or found by the router.
        for task in (None, line.record.get("task")):
            known[identity_of(line, task, rubrics)] = _added(line.record)
    return known


def sample_of(
    catalogue: Catalogue, file: PlanShard, index: int, line: CaptionLine, identity: str
) -> NewSample:
    """Make the line the sample at `index`; one that cannot be scored has failed already."""
    entry, record = {_IDENTITY: identity}, line.record
    try:
        if record is None:
            raise BadEntry(line.problem)
        if (reason := unstorable(record)) is not None:
            raise BadEntry(f"cannot be stored: {reason}")
        domain = domain_of(catalogue, file, record)
        results = _given_results(record, (catalogue.resolve(domain),) if domain else catalogue.routable)
        media = {key: record[key] for keys in MEDIA_KEYS.values() for key in keys if key in record}
        return NewSample(index, entry | media, domain, results=results)
    except BadEntry as error:
        return NewSample(index, entry, None, _unscorable(str(error)))


def _unscorable(reason: str) -> Failure:
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
    if isinstance(caption, dict) and caption:
        return json.dumps(caption, ensure_ascii=False)
    if not isinstance(caption, str):
        raise BadEntry(f"has no caption: {where} is {type_name(caption)}")
    try:
        return check_text(caption)
    except BadAnswer:
        raise BadEntry(f"has no caption: {where} is empty") from None


def _given_results(record: JsonObject, domains: Sequence[Domain]) -> tuple[Result, ...]:
    """The caption as the answer of each captioner, and the answers of agents that a judge sees."""
    caption = caption_of(record)
    captioners = dict.fromkeys(domain.captioner.name for domain in domains)
    given = [(Stage.SUMMARIZE, name, caption) for name in captioners]
    seen = {name for domain in domains for judge in domain.agents_of(Stage.SCORE) for name in judge.sees}
    stages = {agent.name: agent.stage for domain in domains for agent in domain.agents if agent.name in seen}
    reports = record.get("reports")
    for name, said in reports.items() if isinstance(reports, dict) else ():
        text = json.dumps(said, ensure_ascii=False) if isinstance(said, dict) else said
        # A long video has an answer for each of its windows.
        stage = stages.get(name.partition(WINDOW_MARK)[0])
        if stage in (Stage.PERCEIVE, Stage.REASON) and isinstance(text, str):
            given.append((stage, name, text))
    return tuple(given_result(stage, agent, text) for stage, agent, text in given)


def given_result(stage: Stage, agent: str, text: str) -> Result:
    """Return a text that comes from a file as if the agent had written it."""
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
        record = caption_record(replace(sample, entry={}))
        problem = f"the domain {sample.domain} has no judge"
        if "scores" in record:
            problem = caption_files.scores_of(record, rubrics).problem or ""
        if failure := sample.failure or (_unscorable(problem) if problem else None):
            failed[identity] = replace(sample, entry={}, results=(), failure=failure)
        else:
            added[identity] = _added(record)
    return added, failed


def _added(record: JsonObject) -> str:
    """What scoring has added to the record, as JSON; most records share this text, as grades are few."""
    return intern(json.dumps({key: record.get(key) for key in _ADDED_KEYS}))


def _failed_record(line: CaptionLine, sample: FinishedSample) -> JsonObject:
    """The record, or the start of a line that is not one, with the reason."""
    entry = line.record
    if entry is None or unstorable(entry) is not None:
        entry = {"line": line.quoted}
    record = failed_record(replace(sample, entry=entry))
    return record | {"error": {"line_number": line.number, **record["error"]}}
