"""A folder of captions scored from beginning to end: look, run what has no scores as a job, publish."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from threading import Event
from time import monotonic

from capflow_tasks.domains.catalogue import Catalogue, load_catalogue
from capflow_tasks.errors import PlanError, UserError
from capflow_tasks.records import FinishedSample, Modality, PlanShard, Stage
from capflow_tasks.settings import Settings
from capflow_tasks.store.rows import NewBatch
from producer.dispatch import batches_of
from producer.parallel import ToldProgress, call_all
from producer.reading.caption_files import CaptionLine, dataset_of, scored_beside, unscored_files
from producer.reading.plan import file_name_part
from producer.reading.scores import Rubrics
from producer.run import Ending, Job, JobRunner, Retry, checked_plan, name_of_run
from producer.scoring.given_captions import GivenCaptions
from producer.scoring.publishing import CaptionFile, Publisher, Survey, finished_lines, judged_lines, survey
from producer.scoring.summary import ScoreCounts, ScoreSummary

#: Where a domain is known, the chain begins with the judge.
_STAGES = (Stage.ROUTE, Stage.SCORE)


@dataclass(frozen=True, slots=True)
class ScoreOrder:
    """What is asked for on the command line."""

    folder: Path
    #: Folder of the scored files; None for the folder itself.
    output: Path | None
    #: Folder of the media of files whose dataset is in no plan.
    root: Path | None
    #: Split plan that says where the media of each dataset lie, and which domain they are.
    plan: Path | None
    #: Last part of the run's name; None for one that follows from the folder's path.
    run: str | None
    #: Records per batch.
    batch_size: int
    #: Batches in flight.
    window: int
    #: Files looked through at a time.
    processes: int

    @property
    def run_name(self) -> str:
        """Never that of a plan's run: what is scored no more is forgotten."""
        return f"score-{self.run or name_of_run(self.folder)}"


class Scorer:
    """One order, looked into and ready to run. Raises UserError before anything starts."""

    def __init__(self, order: ScoreOrder, settings: Settings) -> None:
        self._order = order
        self._settings = settings
        self._catalogue = load_catalogue(settings.domains)
        self._rubrics = Rubrics(self._catalogue)
        files = list(_files(order, self._catalogue))
        told = ToldProgress("caption files looked through")
        self.surveys = call_all(partial(survey, self._catalogue), files, order.processes, told)
        self._files = {str(file.path): file for file in files}
        self._published: dict[Path, ScoreCounts] = {}

    @property
    def to_score(self) -> int:
        """Records, in all files, that have no scores yet."""
        return sum(found.to_score for found in self.surveys)

    def run(self, stopping: Event) -> ScoreSummary:
        """Score what has no scores yet, then publish; nothing is published when told to stop before.

        Raises ServiceError when database, broker or model cannot be had at the start; later it waits.
        """
        if self.to_score:
            return JobRunner(self._job(), self._settings).run(stopping, self._conclude, Retry())
        started = monotonic()
        problems = self._publish({})
        return self._summary(problems, monotonic() - started)

    def _conclude(self, ending: Ending) -> ScoreSummary:
        if not ending.is_complete:
            return self._summary(ending.problems, ending.seconds, is_complete=False)
        finished = {row.shard.annotation: finished_lines(ending.views, row.id) for row in ending.shards}
        return self._summary([*ending.problems, *self._publish(finished)], ending.seconds)

    def _publish(self, finished: Mapping[str, Iterator[FinishedSample]]) -> list[str]:
        """Write the scored files; what kept some of them from being written."""
        problems = []
        for found in self.surveys:
            path = found.file.path
            try:
                # Once: the database may go away and come back between two files.
                if path not in self._published:
                    publisher = Publisher(found.file, finished.get(str(path), iter(())), self._rubrics)
                    self._published[path] = publisher.publish()
            except UserError as error:
                problems.append(str(error))
        return problems

    def _summary(self, problems: list[str], seconds: float, *, is_complete: bool = True) -> ScoreSummary:
        published = [found.file.scored for found in self.surveys if found.file.path in self._published]
        grades = sum(self._published.values(), ScoreCounts())
        told = [*problems, *grades.problems]
        return ScoreSummary(self._order.run_name, is_complete, told, grades, published, seconds)

    def _job(self) -> Job:
        order = self._order
        return Job(
            run=order.run_name,
            source=order.folder.resolve(),
            output=(order.output or order.folder).resolve(),
            shards=tuple(_shard(found) for found in self.surveys if found.to_score),
            sample_count=self.to_score,
            expand=self._batches,
            stages=_STAGES,
            window=order.window,
            # A file that has changed is another shard; what was sent of the old one is of no use any more.
            forgets_other_shards=True,
        )

    def _batches(self, shard: PlanShard, start_idx: int) -> Iterator[NewBatch]:
        """What has no scores yet, numbered from 0, in batches. Raises PlanError."""
        given = GivenCaptions(self._catalogue, shard.task)
        lines = enumerate(self._lines_to_score(self._files[shard.annotation]))
        samples = (given.sample(index, line) for index, line in islice(lines, start_idx, shard.end_idx))
        return batches_of(samples, self._order.batch_size, _STAGES)

    def _lines_to_score(self, file: CaptionFile) -> Iterator[CaptionLine]:
        try:
            for judged in judged_lines(file, self._rubrics):
                if judged.scores is None:
                    yield judged.line
        except UserError as error:
            raise PlanError(str(error)) from error


def _files(order: ScoreOrder, catalogue: Catalogue) -> Iterator[CaptionFile]:
    plan = checked_plan(order.plan, catalogue).shards if order.plan else ()
    by_dataset = {file_name_part(shard.dataset): shard for shard in reversed(plan)}
    for path in unscored_files(order.folder.resolve()):
        shard = by_dataset.get(dataset_of(path))
        place = order.output.resolve() / path.name if order.output else path
        yield CaptionFile(
            path=path,
            scored=scored_beside(place),
            failed=scored_beside(place, "failed"),
            root=Path(shard.root) if shard else order.root,
            task=shard.task if shard else None,
        )


def _shard(found: Survey) -> PlanShard:
    file = found.file
    if file.root is None:
        raise UserError(
            f"{file.path}: where its media lie is not known; name their folder with --root, "
            "or with --plan the split plan that it was captioned by"
        )
    return PlanShard(
        dataset=file.path.name,
        annotation=str(file.path),
        root=str(file.root.absolute()),
        task=file.task,
        # Each record says itself what its media are.
        modality=Modality.IMAGE,
        start_idx=0,
        end_idx=found.to_score,
        shard_index=0,
        num_shards=1,
        assign_rank=0,
        version=found.version,
    )
