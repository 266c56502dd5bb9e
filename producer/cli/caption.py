"""Commands that put the fleet to work: caption, resume, retry and score."""

from __future__ import annotations

import logging
import shlex
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Any, NoReturn

import click

from capflow_tasks.errors import ServiceError, UserError, failure_kinds
from capflow_tasks.records import MOST_CANDIDATES, Stage
from producer.cli import options as cli
from producer.cli.sources import planned, source_options, sources_argument

if TYPE_CHECKING:
    from capflow_tasks.store.states import CandidatePolicy
    from producer.run import Order
    from producer.summary import ScoreSummary, Summary

log = logging.getLogger("producer.cli")

#: What `capflow retry` and `capflow resume` keep of a run, unless an option says otherwise.
_KEPT = (
    *("stages", "min_confidence", "pin_ranks", "workflow", "candidates", "min_overall", "token_budget"),
    *("strict", "skips_text_only", "max_tokens", "max_cost", "prices"),
)

batch_size_option = cli.option(
    "--batch-size SAMPLES",
    "Samples in one batch, which goes through all stages as one chain.",
    8,
    click.IntRange(1, 1024),
)
window_option = cli.option(
    "--window BATCHES",
    "Most batches in flight, over all workers.",
    kind=click.IntRange(1),
    show_default="256, and two for each that runs",
)


def _parse_stages(
    context: click.Context, option: click.Parameter, value: str | None
) -> tuple[Stage, ...] | None:
    """Return the stages of a comma-separated list, in the order in which they run."""
    if value is None:
        return None
    words = {word.strip() for word in value.split(",") if word.strip()}
    if unknown := words - set(Stage):
        raise click.BadParameter(f"{', '.join(sorted(unknown))}; choose from {', '.join(Stage)}")
    if not words:
        raise click.BadParameter(f"name at least one of {', '.join(Stage)}")
    return tuple(stage for stage in Stage if stage in words)


def _check_kinds(context: click.Context, option: click.Parameter, kinds: tuple[str, ...]) -> tuple[str, ...]:
    known = failure_kinds()
    for kind in kinds:
        if kind not in known:
            raise click.BadParameter(f"no failure is of kind {kind!r}; {cli.nearest(kind, known)}")
    return kinds


def _run_options(*, has_defaults: bool) -> cli.Decorator:
    """Return the options of a run; without defaults, None stands for what the run was started with."""

    def default(value: Any) -> dict[str, Any]:
        return {"default": value} if has_defaults else {"show_default": "as for the run"}

    name_default = "from the plan's path" if has_defaults else "RUN"
    candidates = "1, or 3 with --workflow verified" if has_defaults else "as for the run"
    confidence = "Hold back samples routed with less, in *.held.jsonl, until a run asks for less."
    return cli.combined(
        cli.output_option("Folder of the caption files.", "OUTPUT", **default("Output/Caption")),
        batch_size_option,
        window_option,
        cli.option("--run", "Name of the run; the same name continues it.", show_default=name_default),
        cli.option(
            "--stages",
            "Stages to run, separated by commas; a later run with more of them continues this one.",
            callback=_parse_stages,
            **default(",".join(Stage)),
        ),
        cli.option("--min-confidence", confidence, kind=click.FloatRange(0, 1), **default(0.0)),
        cli.option(
            "--pin-ranks",
            "Send a shard only to workers of its assign_rank (celery ... worker -Q gpu.rank4).",
            is_flag=True,
            **default(False),
        ),
        cli.flag(
            "--skip-text-only skips_text_only",
            "Pass over entries that name no media: count and list them, but not as failures in the end.",
        ),
        cli.flag("--overwrite overwrites", "Replace files in the output folder that are not this run's own."),
        cli.option(
            "--candidates CAPTIONS",
            "Most captions of one sample: one that is graded below --min-overall is written again with the "
            "errors found, and the best is kept.",
            kind=click.IntRange(1, 9),
            show_default=candidates,
        ),
        cli.option(
            "--min-overall",
            "With --candidates: the overall grade below which a caption is written again.",
            kind=click.IntRange(1, 3),
            **default(3),
        ),
        cli.option(
            "--token-budget TOKENS",
            "With --candidates: write no further caption of a sample whose prompts and answers took so many.",
            kind=click.IntRange(1),
            **({} if has_defaults else default(None)),
        ),
        cli.option(
            "--strict",
            "Fail samples whose entry names a task that is no domain, instead of routing them.",
            is_flag=True,
            **default(False),
        ),
        cli.budget_options,
        cli.json_option(),
    )


@click.command(cls=cli.Command, exit_codes=(0, 1, 2, 3, 4, 5, 130), shows_settings=True)
@sources_argument
@source_options
@cli.workflow_option
@_run_options(has_defaults=True)
@cli.flag("--dry-run", "Check the sources, count their samples and pictures; send nothing.")
@cli.flag(
    "--refresh",
    "Show which answers are stale, as prompts, the model, media or entries have changed, and what they cost.",
)
@cli.flag("--yes", "With --refresh: ask for those answers again, and for those that depend on them.")
@cli.flag("--reconcile", "Without SOURCE: resend batches that runs lost, until stopped.")
def caption(
    sources: tuple[str, ...],
    as_json: bool,
    dry_run: bool,
    refresh: bool,
    yes: bool,
    reconcile: bool,
    **options: Any,
) -> None:
    """Caption every sample of each SOURCE and write the caption files.

    A SOURCE is a folder of pictures and videos, or single ones; an annotation file (JSON, JSONL, CSV, TSV); a
    list of paths; a metafile; or, alone, a split plan. All but a split plan are listed first; no media are
    copied. Named again, a source keeps its samples in their places, and what was added comes last.

    The same command continues a run that was stopped. Without CAPFLOW_DATABASE_URL and
    CAPFLOW_BROKER_URL it starts PostgreSQL, Redis and a worker of its own, and stops them at the end.
    The first Ctrl-C lets the worker finish the running stages; the second stops at once.

    Examples:
      capflow caption photos/ -o captions
      capflow caption products.csv --image-key picture --id-key sku --root /data/products
      capflow caption plan.jsonl
      CAPFLOW_MODEL=/models/Qwen2.5-VL-7B-Instruct capflow caption plan.jsonl -o captions
      capflow caption plan.jsonl --dry-run
      capflow caption plan.jsonl --workflow fast --run plan-fast -o captions-fast
      capflow caption plan.jsonl --candidates 3 --min-overall 2 --token-budget 40000
      capflow caption plan.jsonl --stages route --min-confidence 0.6
      capflow caption plan.jsonl --refresh && capflow caption plan.jsonl --refresh --yes
      capflow caption plan.jsonl --max-cost 250 --prices prices.yaml
      capflow caption --reconcile
    """
    from capflow_tasks.domains.catalogue import load_workflow
    from capflow_tasks.settings import read_settings
    from producer.console import counted
    from producer.dispatch import reconcile_until_stopped
    from producer.reading.plan import check_picture_counts
    from producer.run import CaptionRun, Order

    if reconcile == bool(sources):
        raise click.UsageError("name a SOURCE, or use --reconcile alone")
    if yes and not refresh:
        raise click.UsageError("--yes is for --refresh; leave it out, or give both")
    settings = read_settings()
    if reconcile:
        with stop_on_signals() as stopping:
            reconcile_until_stopped(settings, stopping)
        return
    catalogue = load_workflow(options["workflow"], settings.domains, settings.language)
    plan = planned(sources, options, settings, catalogue.resolve)
    order = Order(plan, budget=cli.budget_of(options), candidates=_candidates_of(options), **options)
    captioning = CaptionRun(order, settings)
    if dry_run:
        checked = captioning.plan
        check_picture_counts(checked, settings.max_images)
        found = f"{counted(len(checked.shards), 'shard')}, {counted(checked.sample_count, 'sample')}"
        try:
            said = list(captioning.preview())
        except ServiceError as error:
            said = [f"neither earlier runs nor workers were asked: {error}"]
        untried = "not tried: to decode the media, to write the output folder, the model (see capflow doctor)"
        click.echo("\n".join([f"{', '.join(sources)}: {found}, nothing to fix in it", *said, untried]))
        return
    if refresh and not yes:
        _show_stale(order, as_json)
        return
    with stop_on_signals() as stopping:
        summary = captioning.run(stopping, refresh=refresh)
    finish(summary, as_json)


def _show_stale(order: Order, as_json: bool) -> None:
    """Print the stale answers by domain and agent, with their cost."""
    from rich.console import Console

    from capflow_tasks.domains.catalogue import load_workflow
    from capflow_tasks.settings import read_settings
    from capflow_tasks.store.edits import EditStore
    from capflow_tasks.store.views import Views
    from producer.console import count, counted, table
    from producer.edits import changed_entries
    from producer.reading.samples import read_samples
    from producer.refresh import Refresh

    settings = read_settings()
    catalogue = load_workflow(order.workflow, settings.domains, settings.language)
    with cli.open_run(order.run_name) as (run, engine):
        refresh = Refresh(engine, run.id, catalogue, settings)
        stale = refresh.stale()
        shards, read = Views(engine).shards(run.id), partial(read_samples, catalogue)
        stale += refresh.about("entry", changed_entries(EditStore(engine), run.id, shards, read))
    if refresh.unseen:
        unseen = counted(refresh.unseen, "sample")
        click.echo(f"media of {unseen} cannot be found from here, and count as unchanged", err=True)
    keys = ("domain", "agent", "model", "answers")
    if as_json:
        rows = [{name: getattr(each.answers, name) for name in keys} for each in stale]
        for row, each in zip(rows, stale, strict=True):
            row |= {"changed": each.changed, **asdict(each.answers.tokens)}
        cli.print_json({"run": run.name, "stale": rows})
        return
    numbers = ["answers", "prompt tokens", "completion tokens"]
    shown = table(None, ["domain", "agent", "changed", "model"], numbers)
    for each in stale:
        answers, tokens = each.answers, each.answers.tokens
        figures = map(count, (answers.answers, tokens.prompt, tokens.completion))
        shown.add_row(answers.domain, answers.agent, each.changed, answers.model, *figures)
    if stale:
        Console(highlight=False).print(shown)
        click.echo(
            "They took so many tokens; with --yes they are asked for again, and so are those that read them."
        )
    else:
        click.echo(f"run {run.name}: no answer is stale")


@click.command(cls=cli.Command, exit_codes=(0, 1, 2, 3, 4, 5, 130))
@cli.run_argument
@cli.repeatable("--kind kinds", "Only failures of this kind, as in the failed files", _check_kinds)
@cli.repeatable("--domain domains", "Only samples of this domain")
@cli.marks_option(
    "Caption again what someone marked bad in this file, which a report's page exported, and nothing else"
)
@_run_options(has_defaults=False)
def retry(
    run_or_plan: str,
    as_json: bool,
    kinds: tuple[str, ...],
    domains: tuple[str, ...],
    marks: Path | None,
    **options: Any,
) -> None:
    """Caption again the samples that failed in RUN, and only those; then write the caption files.

    With --marks, all agents but the router are asked again about the captions marked bad. A caption that has
    been written again since it was marked stays.

    RUN is a run's name or the plan that it came from. What no option changes is as for the run, its limits
    of tokens and cost, too; `capflow caption` sets all of it anew.

    Examples:
      capflow retry plan.jsonl
      capflow retry plan-2c792dcc --kind media_missing --kind media_corrupt --domain Natural
      capflow retry plan.jsonl --marks marks.json
    """
    from capflow_tasks.settings import read_settings
    from producer.run import CaptionRun

    if marks and (kinds or domains):
        raise click.UsageError("--marks names its samples; leave out --kind and --domain")
    found = cli.read_marks(marks)
    captioning = CaptionRun(_order_as_started(run_or_plan, options), read_settings())
    with stop_on_signals() as stopping:
        summary = captioning.run(stopping, retry=True, kinds=kinds, domains=domains, marks=found)
    finish(summary, as_json)


@click.command(cls=cli.Command, exit_codes=(0, 1, 2, 3, 4, 5, 130))
@cli.run_argument
@_run_options(has_defaults=False)
def resume(run_or_plan: str, as_json: bool, **options: Any) -> None:
    """Go on with RUN, which has paused or was stopped; then write the caption files.

    RUN is a run's name or the plan that it came from. A run pauses by itself when most of its latest samples
    fail alike; the kinds of failures that it has by now no longer pause it. Failed samples are not tried
    again: `capflow retry` does that, and goes on, too. What no option changes is as for the run, its limits
    of tokens and cost, too; `capflow caption` sets all of it anew.

    Examples:
      capflow resume plan.jsonl
      capflow resume plan-2c792dcc
    """
    from capflow_tasks.settings import read_settings
    from capflow_tasks.store.runs import RunStore
    from producer.run import CaptionRun

    order = _order_as_started(run_or_plan, options)
    captioning = CaptionRun(order, read_settings())
    with cli.open_run(order.run_name) as (run, engine):
        RunStore(engine).accept_failures(run.id)
    with stop_on_signals() as stopping:
        summary = captioning.run(stopping)
    finish(summary, as_json)


def _order_as_started(run_or_plan: str, options: dict[str, Any]) -> Order:
    """Return the order that the run was started with, changed by the options."""
    from producer.reading.plan import is_split_plan
    from producer.run import Order

    with cli.open_run(options["run"] or run_or_plan) as (run, _):
        pass
    plan = Path(run_or_plan) if is_split_plan(Path(run_or_plan)) else Path(run.plan)
    if plan.is_dir():
        raise UserError(f"run {run.name} scores {plan}; `capflow score {plan}` tries its failures again")
    kept = {name: getattr(run, name) for name in _KEPT} | {"prices": run.prices and Path(run.prices)}
    given = {name: value for name, value in options.items() if value is not None and value is not False}
    started: dict[str, Any] = {"source": plan, "run": run.name, "output": Path(run.output)} | kept | given
    return Order(budget=cli.budget_of(started), candidates=_candidates_of(started), **started)


def _candidates_of(options: dict[str, Any]) -> CandidatePolicy:
    """Take the options about candidates out of the others."""
    from capflow_tasks.store.states import CandidatePolicy

    most, *others = (options.pop(name) for name in ("candidates", "min_overall", "token_budget"))
    return CandidatePolicy(most or MOST_CANDIDATES.get(options["workflow"], 1), *others)


def finish(summary: Summary | ScoreSummary, as_json: bool) -> NoReturn:
    """Print how the run ended, and exit with its code."""
    from rich.console import Console

    from producer.summary import exit_code

    if as_json:
        cli.print_json(summary.as_json())
    else:
        summary.show(Console(width=None if sys.stdout.isatty() else 120))
    for problem in summary.problems:
        click.echo(f"error: {problem}", err=True)
    if summary.pause:
        click.echo(
            f"run {summary.run} is paused: {summary.pause}. What was running finishes and is kept.", err=True
        )
    elif not summary.is_complete:
        click.echo(f"run {summary.run} was stopped; the same command goes on from here", err=True)
        _say_what_is_left(summary)
    sys.exit(exit_code(summary))


def _say_what_is_left(summary: Summary | ScoreSummary) -> None:
    name = shlex.quote(summary.run)
    queued = getattr(summary, "queued", 0)
    if queued:
        batches = "1 batch is" if queued == 1 else f"{queued:,} batches are"
        click.echo(
            f"{batches} still with the fleet, which goes on; `capflow stop {name}` takes them back", err=True
        )
    if summary.tally.done:
        click.echo(f"`capflow export {name}` writes what is captioned so far", err=True)


@contextmanager
def stop_on_signals() -> Iterator[Event]:
    """Yield an event that the first Ctrl-C or SIGTERM sets; the second ends the process."""
    stopping = Event()

    def stop(number: int, frame: object) -> None:
        if stopping.is_set():
            raise KeyboardInterrupt
        stopping.set()
        # As a log line it stands above the progress bar.
        log.info("stopping: running stages finish first; press Ctrl-C again to stop at once")

    earlier = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stopping
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)


@click.command(cls=cli.Command, exit_codes=(0, 1, 2, 3, 5, 130), shows_settings=True)
@click.argument("folder", type=cli.FOLDER)
@cli.option(
    "--root",
    "Folder that the media paths of the records start from.",
    kind=click.Path(path_type=Path, file_okay=False, exists=True),
    show_default="that of --plan",
)
@cli.option(
    "--plan", "Split plan that names root and task of each dataset, instead of --root.", kind=cli.FILE
)
@cli.output_option("Folder of the scored files.", "SCORED", show_default="FOLDER")
@batch_size_option
@window_option
@cli.option(
    "--run",
    "Name of the scoring; the same name continues it.",
    variable="SCORE_RUN",
    show_default="from FOLDER's path",
)
@cli.processes_option("Caption files scanned", "SCORE_PROCESSES")
@cli.budget_options
@cli.flag("--anew", "Score records that have scores, too, and leave these as they are; needs --output.")
@cli.flag("--overwrite overwrites", "Replace files that an earlier `capflow score` of FOLDER did not write.")
@cli.flag("--dry-run", "Count the records without scores; send nothing.")
@cli.json_option()
def score(
    as_json: bool, dry_run: bool, run: str | None, batch_size: int, window: int | None, **options: Any
) -> None:
    """Score the captions in FOLDER's Rank*_node*_*.jsonl that have no valid scores yet.

    It reads the files of `capflow caption`, and those of the CapFlow scripts, whose caption is the last "gpt"
    turn. All workers of the fleet share the work. X.jsonl stays as it is: records that have scores go to
    X.scored.jsonl in their order, the others to X.scored.failed.jsonl with the reason. `capflow filter` then
    reads X.scored.jsonl instead of X.jsonl. The same command continues a scoring that was stopped, and scores
    what is new or has failed. The first Ctrl-C lets the worker finish the running stages; the second stops at
    once.

    Examples:
      capflow score Output/Caption --plan plan.jsonl
      capflow score Output/Caption --root /data/vqa -o Output/Scored
      capflow score Output/Caption --root /data/vqa --dry-run
      CAPFLOW_MODEL=/models/judge capflow score Output/Caption --plan plan.jsonl --anew -o Output/Second
    """
    from capflow_tasks.settings import read_settings
    from producer.scoring import ScoreRun

    budget = cli.budget_of(options)
    scoring = ScoreRun(settings=read_settings(), **options)
    if dry_run:
        to_score = sum(file.sample_count for file in scoring.files)
        click.echo(f"{len(scoring.files)} files, {to_score} records without scores")
        return
    with stop_on_signals() as stopping:
        summary = scoring.run(stopping, run, batch_size, window, budget)
    finish(summary, as_json)
