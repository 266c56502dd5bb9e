"""Runs shards through stages: inserts their samples as batches, has them sent, waits until all have finished.

The database holds what has been done, so a run may be killed at any instant and opened again. `CaptionRun`
runs the shards of a plan and exports the caption files.
"""

import hashlib
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from threading import Event
from time import monotonic

from sqlalchemy import Engine

from capflow_tasks.domains.catalogue import load_workflow
from capflow_tasks.errors import MediaMissing, PlanError, TextOnly, UserError
from capflow_tasks.media.remote import is_remote
from capflow_tasks.records import PlanShard, Stage, Workflow
from capflow_tasks.settings import Settings
from capflow_tasks.store import edits, runs, states, statistics, views
from producer import services
from producer.budget import Budget, Spending
from producer.console import counted, progress
from producer.cost import read_prices
from producer.dispatch import CHECK_SECONDS, Arrivals, Dispatcher
from producer.edits import (
    ReadSamples,
    Replacement,
    follow_plan,
    read_again,
    say_replaced,
    take_over_behind_gaps,
)
from producer.estimate import PlanEstimate, estimate, models_of
from producer.reading.marks import Marks
from producer.reading.plan import checked_plan
from producer.reading.samples import batches_of, in_groups, read_samples, warn_of_foreign
from producer.refresh import Refresh, still_missing, write_marked_again
from producer.summary import SHOWN_FAILURES, Summary
from producer.watch import Watch
from producer.workers import EmbeddedWorkers
from producer.writing.captions import export, file_names
from producer.writing.ownership import OwnFiles
from producer.writing.whole import check_writable

log = logging.getLogger(__name__)

#: Batches inserted in one transaction, at most.
_CHUNK = 64
#: In-flight batches while few are running, where no window is given.
_LEAST_WINDOW = 256
#: Between two rounds of inserting, sending and collecting.
_POLL_SECONDS = 0.2


@dataclass(frozen=True, slots=True)
class Order:
    """What a run is asked to do."""

    #: What the run is made from: a plan, or a folder of captions.
    source: Path
    #: Folder of the files that it writes.
    output: Path
    #: Name of the run; None for one that follows from the source's path.
    run: str | None
    #: Samples per batch.
    batch_size: int
    #: In-flight batches, over all workers; None for as many as the fleet keeps busy, and as many again.
    window: int | None = None
    #: Stages to run, in order.
    stages: tuple[Stage, ...] = tuple(Stage)
    #: Samples routed with a lower confidence are held.
    min_confidence: float = 0.0
    #: Whether only the workers of a shard's rank may take it.
    pin_ranks: bool = False
    #: The name of its workflow, or the folder of its domain files.
    workflow: str = Workflow.STANDARD
    #: When a sample gets another caption.
    candidates: states.CandidatePolicy = states.ONE_CANDIDATE
    #: What it may spend; None for no limit.
    budget: Budget | None = None
    #: Whether entries without media are passed over: they do not count as failures in the end.
    skips_text_only: bool = False
    #: Whether it may replace files in the output folder that are not its own.
    overwrites: bool = False
    #: Whether an entry whose task is no domain fails.
    strict: bool = False

    @property
    def run_name(self) -> str:
        return self.run or name_of_run(self.source)

    @property
    def terms(self) -> states.Terms:
        budget = self.budget
        limits = (budget.max_tokens, budget.max_usd, budget.prices.own_file) if budget else ()
        return states.Terms(self.strict, self.skips_text_only, *limits)


def name_of_run(source: Path) -> str:
    """Name a run after its source: the same name for the same path, wherever the command is typed."""
    digest = hashlib.sha256(str(source.resolve()).encode()).hexdigest()
    return f"{source.stem}-{digest[:8]}"


class OpenRun:
    """One run, opened in the database; it goes on with what an earlier run of that name has left."""

    def __init__(
        self,
        fleet: services.Fleet,
        order: Order,
        shards: Sequence[PlanShard],
        *,
        forget_other_shards: bool = False,
    ) -> None:
        """Open the run and add its shards. Raises UserError when its unfinished batches need other stages."""
        self.views = views.Views(fleet.engine)
        self.runs = runs.RunStore(fleet.engine)
        self._fleet = fleet
        self.order = order
        self.id = self.runs.open_run(
            order.run_name,
            str(order.source.resolve()),
            str(order.output),
            order.stages,
            order.min_confidence,
            pin_ranks=order.pin_ranks,
            workflow=order.workflow,
            candidates=order.candidates,
            terms=order.terms,
        )
        #: In the order given.
        self.shards = self.runs.add_shards(self.id, shards)
        self._sample_count = sum(row.shard.sample_count for row in self.shards)
        #: In-flight batches that are enough, where none were ordered.
        self._window = _LEAST_WINDOW
        #: One message for each file that broke off; the other shards went on.
        self.problems: list[str] = []
        self._unreadable: list[str] = []
        self._replaced: list[Replacement] = []
        #: Whether no other command's workers take its batches.
        self.has_own_workers = fleet.settings.broker_url is None
        #: Why the run paused by itself; None when it did not.
        self.pause: str | None = None
        if forget_other_shards:
            self.runs.forget_other_shards(self.id, [row.id for row in self.shards])
        else:
            store = edits.EditStore(fleet.engine)
            self._replaced = follow_plan(store, self.views, self.id, self.shards, order.source)
            self._look_up_cursors()
        if other_stages := self.views.open_stages(self.id) - set(order.stages):
            raise UserError(
                f"run {order.run_name} has batches that wait for {', '.join(sorted(other_stages))}: "
                "finish it with its earlier --stages first, or give this one a --run of its own"
            )
        self.runs.continue_run(self.id, order.stages, order.min_confidence)

    def retry_failed(self, kinds: Sequence[str] = (), domains: Sequence[str] = ()) -> None:
        """Try failed samples again: all, or those of some kinds and domains, by canonical names."""
        gone = (
            still_missing(self.views, self.shards)
            if MediaMissing.kind in (kinds or [MediaMissing.kind])
            else []
        )
        if gone:
            log.warning(
                "%s cannot be tried again: their media are still missing", counted(len(gone), "sample")
            )
        if count := self.runs.retry_failed(self.id, kinds, domains, gone):
            log.info("trying %s again", counted(count, "failed sample"))

    def allow_candidates(self) -> None:
        """Go on with samples whose caption is below the bar now, or that may have more captions now."""
        if count := self.runs.allow_candidates(self.id, self.order.candidates):
            log.info("writing again the captions of %s", counted(count, "sample"))

    def read_again(self, read_samples: ReadSamples, *, refused_too: bool) -> None:
        """Correct the samples whose entries have changed; `refused_too` where only the domains may have.

        Then say what has become of edited lines.
        """
        store, stages = edits.EditStore(self._fleet.engine), self.order.stages
        for each in self._replaced:
            take_over_behind_gaps(store, self.runs, each, read_samples, self.order.batch_size, stages)
        store.drop_emptied(self.id)
        self._look_up_cursors()
        self._unreadable, corrected = read_again(
            store, self.id, self.shards, read_samples, stages, refused_too=refused_too
        )
        say_replaced(self._replaced, self.order.source, corrected)

    def _look_up_cursors(self) -> None:
        stored = {row.id: row.expanded_to for row in self.views.shards(self.id)}
        self.shards = [replace(row, expanded_to=stored[row.id]) for row in self.shards]

    def finish(self, read_samples: ReadSamples, stopping: Event) -> bool:
        """Send what is not done and wait for it; return False when stopped before the end.

        Waits while the database or the broker is away. Raises ServiceError when no worker can start, and
        UserError when another command has changed what the run consists of.
        """
        fleet = self._fleet
        ranks = {row.shard.assign_rank for row in self.shards} if self.order.pin_ranks else set()
        ask = partial(statistics.Statistics(fleet.engine).activity, self.id, fleet.settings.lease_seconds)
        worker = EmbeddedWorkers(fleet, ranks)
        with closing(worker), progress(self._sample_count, ask, worker.awaited) as display:
            work = partial(self._work, read_samples, worker, display.show, stopping)
            return services.through_outages(work, stopping)

    def _work(
        self,
        read_samples: ReadSamples,
        worker: EmbeddedWorkers,
        show: Callable[[states.Tally, bool], None],
        stopping: Event,
    ) -> bool:
        """Insert, send and collect until all is done; call it again after an outage."""
        fleet = self._fleet
        dispatcher = Dispatcher(fleet, self.id)
        in_flight = set(self.views.open_batches(self.id))
        inserting = self._insert(read_samples, in_flight)
        budget = self.order.budget
        spending = None
        if budget and budget.is_limited:
            spending = Spending(budget, statistics.Statistics(fleet.engine), self.id)
        tally = self.views.tally(self.id)
        arrivals = Arrivals(self.views, self.id)
        watch = Watch(fleet.engine, self.id, fleet.settings)
        has_begun = False
        shard_ids = [row.id for row in self.shards]
        checked_at = -CHECK_SECONDS
        while not (stopping.is_set() or self.runs.is_stopped(self.id)):
            is_due = monotonic() - checked_at >= CHECK_SECONDS
            checked_at = monotonic() if is_due else checked_at
            if is_due and not self.views.has_shards(self.id, shard_ids):
                raise UserError(
                    f"run {self.order.run_name} goes on with an edited plan, which a later command has read; "
                    "this command ends, and nothing is lost"
                )
            if is_due:
                watch.look()
            is_inserted = next(inserting, True)
            if in_flight and spending and (reached := spending.limit_reached()):
                self.runs.stop(self.id, f"{reached}; the same command with a higher limit goes on from here")
                break
            dispatcher.send()
            tally = sum(arrivals.take_from(in_flight), tally)
            if in_flight:
                worker.check()
            has_begun = has_begun or self.views.running(self.id) > 0
            show(tally, has_begun)
            if is_inserted and not in_flight:
                # Batches that were split, or that another producer inserted, are not among these.
                in_flight.update(self.views.open_batches(self.id))
                if not in_flight:
                    return True
            stopping.wait(_POLL_SECONDS)
        if stopping.is_set() and self.has_own_workers and self.views.running(self.id):
            running, seconds = self.views.running(self.id), fleet.settings.drain_seconds
            batches = "1 batch" if running == 1 else f"{running} batches"
            log.info("finishing the running stage of %s, for up to %g s", batches, seconds)
        self.pause = self.runs.pause_of(self.id)
        return False

    def _insert(self, read_samples: ReadSamples, in_flight: set[int]) -> Iterator[bool]:
        """Insert the shards, and add their batches to those in flight; yield False when these are enough."""
        self.problems = list(self._unreadable)
        order = self.order
        # How far each shard is inserted may have changed since it was added.
        stored = {row.id: row for row in self.views.shards(self.id)}
        left = [stored[row.id] for row in reversed(self.shards) if row.id in stored]
        while left:
            row = left.pop()
            cursor = row.expanded_to
            if cursor >= row.shard.end_idx:
                continue
            batches = batches_of(read_samples(row.shard, cursor), order.batch_size, order.stages)
            try:
                for chunk in in_groups(batches, min(_CHUNK, order.window or _CHUNK)):
                    while self._is_full(len(in_flight)):
                        yield False
                    ids = self.runs.expand(row.id, cursor, chunk)
                    if ids is None:
                        # Another producer inserts its samples, too: go on from where that one is.
                        left += [moved for moved in self.views.shards(self.id) if moved.id == row.id]
                        break
                    cursor = chunk[-1].end_idx
                    in_flight.update(ids)
            except PlanError as error:
                self.problems += [] if str(error) in self.problems else [str(error)]
                log.error("%s", error)

    def _is_full(self, in_flight: int) -> bool:
        """Whether so many batches are enough: as ordered, else two for each that runs and some more."""
        if not self.order.window and in_flight >= self._window:
            self._window = _LEAST_WINDOW + 2 * self.views.running(self.id)
        return in_flight >= (self.order.window or self._window)


class CaptionRun:
    """The captioning of one plan. Raises PlanError or WorkflowError before anything starts."""

    def __init__(self, order: Order, settings: Settings) -> None:
        self._settings = settings
        self._catalogue = load_workflow(order.workflow, settings.domains, settings.language)
        known = [stage for stage in Stage if stage in self._catalogue.stages]
        stages = tuple(stage for stage in order.stages if stage in known)
        if not stages:
            raise UserError(
                f"workflow {order.workflow} has no agent in {', '.join(order.stages)}; "
                f"its stages are {', '.join(known)}"
            )
        if order.candidates.most > 1 and Stage.SCORE not in stages:
            log.warning("no caption is written again before a run with the stage score has graded it")
        self._order = replace(order, stages=stages)
        self._name = order.run_name
        self.plan = checked_plan(order.source, self._catalogue.resolve, is_local=settings.broker_url is None)
        self._roots = {shard.root for shard in self.plan.shards if not is_remote(shard.root)}

    def run(
        self,
        stopping: Event,
        *,
        retry: bool = False,
        refresh: bool = False,
        kinds: Sequence[str] = (),
        domains: Sequence[str] = (),
        marks: Marks | None = None,
    ) -> Summary:
        """Caption what is not captioned yet, then export; export nothing when stopped before that.

        Failed samples are tried again only if asked for: all, or those of some kinds and domains, by name or
        alias; with `marks`, the captions marked bad are written again instead. With `refresh`, stale answers
        are asked for again. Raises ServiceError when database, broker or model is not available at the start;
        later it waits.
        """
        started = monotonic()
        domains = [self._catalogue.resolve(domain).name for domain in domains]
        with services.reach_fleet(self._settings) as fleet:
            files = file_names(self.plan.shards)
            # Before anything of the run changes: no file in the folder is another's, and it can be written.
            self._own_files(fleet.engine).check(files)
            check_writable(self._order.output)
            run = OpenRun(fleet, self._order, self.plan.shards)
            own = self._own_files(fleet.engine)
            own.claim(files)
            if marks:
                write_marked_again(run.views, run.runs, run.id, marks)
            elif retry:
                run.retry_failed(kinds, domains)
            foreign = Counter[str]()
            read = partial(read_samples, self._catalogue, foreign=None if self._order.strict else foreign)
            run.read_again(read, refused_too=retry)
            stale = Refresh(fleet.engine, run.id, self._catalogue, self._settings)
            if refresh:
                samples = stale.forget()
                log.info("asking again about %s", counted(samples, "sample"))
            elif stale.is_needed():
                log.warning(
                    "some answers of this run were given to other prompts or by another model, and are kept; "
                    "the same command with --refresh shows them"
                )
            # After what opens finished batches only.
            run.allow_candidates()
            for said in services.unseen_media(self._settings, fleet, self._roots):
                log.warning("%s", said)
            if found := self._estimate(fleet.engine, run.views.tally(run.id).total):
                log.info("%s", found)
            is_complete = run.finish(read, stopping)
            warn_of_foreign(foreign)
            seconds = monotonic() - started
            return services.through_outages(partial(_export, run, own, is_complete, seconds), stopping)

    def preview(self) -> Iterator[str]:
        """Yield what workers do not see, and what the run may take; change nothing.

        Raises UserError where a file in the output folder is another's, and ServiceError where neither
        earlier runs nor workers can be asked.
        """
        with services.looking(self._settings) as fleet:
            self._own_files(fleet.engine if fleet else None).check(file_names(self.plan.shards))
            yield from services.unseen_media(self._settings, fleet, self._roots)
            found, done = None, 0
            if fleet is not None:
                done = sum(run.tally.total for run in statistics.Statistics(fleet.engine).runs(self._name))
                found = self._estimate(fleet.engine, done)
            unknown = "what it may take is not known: no sample was captioned with this workflow and model"
            yield str(found or unknown) if done < self.plan.sample_count else "every sample has been finished"

    def _estimate(self, engine: Engine, done: int) -> PlanEstimate | None:
        order, shards = self._order, self.plan.shards
        asked = (order.workflow, order.stages, order.candidates)
        models = models_of(self._settings, order.stages)
        prices = order.budget.prices if order.budget else read_prices()
        left = max(0, self.plan.sample_count - done)
        return estimate(statistics.Statistics(engine), shards, left, asked, models, prices)

    def _own_files(self, engine: Engine | None) -> OwnFiles:
        begun = runs.RunStore(engine).begun_at(self._name) if engine else None
        return OwnFiles(self._order.output, self._name, begun, overwrites=self._order.overwrites)


def _export(run: OpenRun, own: OwnFiles, is_complete: bool, seconds: float) -> Summary:
    figures = statistics.Statistics(run.views.engine)
    failures = figures.failures(run.id)
    (found,) = figures.runs(run_id=run.id)
    return Summary(
        run=run.order.run_name,
        is_complete=is_complete,
        domains=figures.domains(run.id, with_stages=True),
        confidences=figures.confidences(run.id),
        failures=run.views.failures(run.id, SHOWN_FAILURES),
        problems=run.problems,
        files=export(run.views.finished_samples, run.shards, run.order.output, own) if is_complete else [],
        seconds=seconds,
        pause=run.pause,
        kinds={each.kind: each.count for each in failures},
        queued=0 if is_complete or run.has_own_workers else found.open_batches,
        skipped=sum(each.count for each in failures if each.kind == TextOnly.kind)
        if run.order.skips_text_only
        else 0,
    )
