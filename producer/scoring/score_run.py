"""Scores a folder of captions: finds the lines without scores, runs these, and publishes the scored files."""

from collections.abc import Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from threading import Event
from time import monotonic

from capflow_tasks.domains.catalogue import load_catalogue
from capflow_tasks.errors import PlanError, UserError
from capflow_tasks.records import FinishedSample, Modality, PlanShard, Stage
from capflow_tasks.settings import Settings
from capflow_tasks.store.states import NewSample, SampleState
from producer.budget import Budget
from producer.caption_run import checked_plan
from producer.parallel import ProgressLines, call_all
from producer.reading.caption_files import dataset_of, scored_beside, unscored_files
from producer.reading.plan import file_name_part
from producer.reading.scores import Rubrics
from producer.run import OpenRun, Order, name_of_run
from producer.scoring.caption_lines import CaptionFile, publish, sample_of, survey, unscored_lines
from producer.scoring.summary import ScoreCounts, ScoreSummary
from producer.services import reach_fleet, through_outages

#: Where a domain is known, the chain begins with the judge.
_STAGES = (Stage.ROUTE, Stage.SCORE)


class ScoreRun:
    """The scoring of one folder. Raises UserError before anything starts."""

    def __init__(
        self,
        folder: Path,
        settings: Settings,
        *,
        root: Path | None,
        plan: Path | None,
        output: Path | None,
        processes: int,
    ) -> None:
        """Find what has no scores yet.

        `plan` is a split plan that names folder and task of each dataset's media, `root` the folder of the
        others. The scored files go to `output`, by default to the folder itself.
        """
        self._folder = folder.resolve()
        self._output = output.resolve() if output else self._folder
        self._settings = settings
        self._catalogue = load_catalogue(settings.domains)
        self._rubrics = Rubrics(self._catalogue)
        progress = ProgressLines("caption files read")
        found = list(self._find_files(root, plan))
        self.files = call_all(partial(survey, self._catalogue), found, processes, progress)

    @property
    def to_score(self) -> int:
        """Records, in all files, that have no scores yet."""
        return sum(file.to_score for file in self.files)

    def run(
        self, stopping: Event, run: str | None, batch_size: int, window: int, budget: Budget | None = None
    ) -> ScoreSummary:
        """Score what has no scores yet, then publish; publish nothing when stopped before that.

        `run` is the last part of the run's name; by default it follows from the folder. Raises ServiceError
        when database, broker or model is not available at the start; later it waits.
        """
        started = monotonic()
        # Never the name of a plan's run: the shards of files that have changed are removed.
        name = f"score-{run or name_of_run(self._folder)}"
        order = Order(self._folder, self._output, name, batch_size, window, _STAGES, budget=budget)
        shards = [_shard(file) for file in self.files if file.to_score]
        if not shards:
            counts, files = self._publish(None, stopping)
            return ScoreSummary(name, True, counts, files, monotonic() - started)
        with reach_fleet(self._settings) as fleet:
            # A file that has changed is another shard; nobody needs the samples of the old one.
            scoring = OpenRun(fleet, order, shards, forget_other_shards=True)
            scoring.retry_failed()
            is_complete = scoring.finish(self._read_samples, stopping)
            seconds = monotonic() - started
            if not is_complete:
                counts = ScoreCounts(problems=scoring.problems)
                return ScoreSummary(name, False, counts, [], seconds, scoring.pause)
            counts, files = self._publish(scoring, stopping)
            return ScoreSummary(name, True, counts, files, seconds)

    def _read_samples(self, shard: PlanShard, start_idx: int) -> Iterator[NewSample]:
        """Read the lines of a file that have no scores, numbered from 0. Raises PlanError."""
        (file,) = (file for file in self.files if str(file.path) == shard.annotation)
        lines = enumerate(unscored_lines(file, self._rubrics))
        try:
            for index, line in islice(lines, start_idx, shard.end_idx):
                yield sample_of(self._catalogue, file.task, index, line)
        except UserError as error:
            raise PlanError(str(error)) from error

    def _publish(self, scoring: OpenRun | None, stopping: Event) -> tuple[ScoreCounts, list[Path]]:
        """Write the scored files; one that cannot be written is a problem, and the others follow."""
        counts, files = ScoreCounts(problems=[*scoring.problems] if scoring else []), []
        for file in self.files:
            try:
                counts += through_outages(partial(self._publish_file, file, scoring), stopping)
                files.append(file.scored)
            except UserError as error:
                counts.problems.append(str(error))
        return counts, files

    def _publish_file(self, file: CaptionFile, scoring: OpenRun | None) -> ScoreCounts:
        return publish(file, _finished_samples(scoring, file) if scoring else (), self._rubrics)

    def _find_files(self, root: Path | None, plan: Path | None) -> Iterator[CaptionFile]:
        shards = checked_plan(plan, self._catalogue).shards if plan else ()
        by_dataset = {file_name_part(shard.dataset): shard for shard in reversed(shards)}
        for path in unscored_files(self._folder):
            shard = by_dataset.get(dataset_of(path))
            place = self._output / path.name
            yield CaptionFile(
                path=path,
                scored=scored_beside(place),
                failed=scored_beside(place, "failed"),
                root=Path(shard.root) if shard else root,
                task=shard.task if shard else None,
            )


def _finished_samples(scoring: OpenRun, file: CaptionFile) -> Iterator[FinishedSample]:
    for row in scoring.shards:
        if row.shard.annotation == str(file.path):
            yield from scoring.views.finished_samples(row.id, SampleState.DONE)
            yield from scoring.views.finished_samples(row.id, SampleState.FAILED)


def _shard(file: CaptionFile) -> PlanShard:
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
        # The records name their media by keys of their own.
        modality=Modality.IMAGE,
        start_idx=0,
        end_idx=file.to_score,
        shard_index=0,
        num_shards=1,
        assign_rank=0,
        version=file.version,
    )
