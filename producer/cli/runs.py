"""Commands about a run: status, stop, delete and report."""

from __future__ import annotations

import shlex
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from capflow_tasks.errors import UserError
from capflow_tasks.records import MOST_CANDIDATES, Workflow
from producer.cli import options as cli

if TYPE_CHECKING:
    from capflow_tasks.store.figures import RunFigures


@click.command(cls=cli.Command, exit_codes=(2, 3), exit_meanings={0: "shown"})
@click.argument("runs", metavar="[RUN]...", nargs=-1)
@cli.flag("--watch is_watching", "Refresh until the run is done or you press Ctrl-C.")
@cli.option(
    "--interval SECONDS", "Time between refreshes.", 2.0, click.FloatRange(0.1, 3600), "STATUS_INTERVAL"
)
@cli.prices_option
@cli.minimum_options
@cli.json_option("one JSON object; with --watch, one per line")
def status(
    runs: tuple[str, ...],
    is_watching: bool,
    interval: float,
    prices: Path | None,
    as_json: bool,
    **asked: Any,
) -> None:
    """Show how far RUN is, how fast, where its samples stand, what fails, and what it costs.

    RUN is a run's name or the plan that it came from; without it all runs are listed, and of several the
    grades and costs stand side by side. Captions count as accepted when they have at least the grades asked
    for.

    Without CAPFLOW_DATABASE_URL it reads the database that runs under CAPFLOW_HOME. If that does not run, the
    command starts it for as long as it takes to read it; --watch then shows one snapshot, since nothing can
    change. Where stdout is not a terminal, --watch prints a line per refresh.

    Examples:
      capflow status
      capflow status plan.jsonl --watch
      capflow status plan.jsonl --prices prices.yaml --min-overall 2
      capflow status plan-fast plan-verified
      capflow status plan.jsonl --json | jq .cost.usd_per_100_samples
    """
    from capflow_tasks.domains.catalogue import load_catalogue
    from capflow_tasks.settings import read_settings
    from capflow_tasks.store.statistics import Statistics
    from producer.cost import read_prices
    from producer.reading.caption_files import Rubrics
    from producer.services import database, find_run, is_asleep, reading
    from producer.status.display import (
        show,
        statuses_of_run,
        statuses_of_runs,
        statuses_of_several,
        watch,
    )
    from producer.status.snapshot import snapshots

    settings = read_settings()
    catalogue = load_catalogue(settings.domains)
    minimums = cli.minimums_of(catalogue, Rubrics(catalogue), asked)
    table = read_prices(prices)
    # Nothing changes in a database that only this command runs, and producers cannot use it meanwhile.
    is_watching = is_watching and not is_asleep(settings)
    with database(settings) as url, reading(url) as engine:
        statistics = Statistics(engine)
        statuses = statuses_of_runs(statistics, settings.lease_seconds)
        ids = [find_run(engine, run).id for run in runs]
        taken = [snapshots(statistics, each, table, minimums, settings.lease_seconds) for each in ids]
        if taken:
            statuses = statuses_of_run(*taken) if len(taken) == 1 else statuses_of_several(taken)
        if is_watching:
            watch(statuses, interval, as_json)
        else:
            show(next(statuses), as_json)


@click.command(cls=cli.Command, exit_codes=(0, 2, 3))
@cli.run_argument
@cli.json_option("what was stopped as one JSON object")
def stop(run_or_plan: str, as_json: bool) -> None:
    """Stop RUN: take back its queued batches, and let the running stages finish.

    RUN is a run's name or the plan that it came from. Nothing is lost: what has finished is kept, and the
    command that started the run continues it.

    Examples:
      capflow stop plan.jsonl
      capflow stop plan-2c792dcc --json
    """
    from capflow_tasks.store.runs import RunStore
    from capflow_tasks.store.states import StoppedRun

    with cli.open_run(run_or_plan) as (run, engine):
        stopped = RunStore(engine).stop(run.id) if run.is_open else StoppedRun(0, 0)
    if as_json:
        cli.print_json({"run": run.name, "taken_back": stopped.taken_back, "running": stopped.running})
        return
    if not run.is_open:
        click.echo(f"run {run.name} has finished; there is nothing to stop")
        return
    taken_back = _count(stopped.taken_back, "queued batch was", "queued batches were")
    running = "no stage is running"
    if stopped.running:
        running = f"{_count(stopped.running, 'running stage', 'running stages')} will finish and be kept"
    click.echo(f"run {run.name}: {taken_back} taken back; {running}. `{command_of(run)}` goes on from here.")


@click.command(cls=cli.Command, exit_codes=(0, 2, 3), exit_meanings={1: "the answer was not yes"})
@cli.run_argument
@cli.flag("-y --yes", "Delete without asking.")
def delete(run_or_plan: str, yes: bool) -> None:
    """Delete the rows of RUN: its shards, batches, samples and what the agents answered.

    RUN is a run's name or the plan that it came from. Caption files stay as they are. A deleted run cannot be
    exported, reported or retried; captioning its plan again starts from the beginning.

    Examples:
      capflow delete plan.jsonl
      capflow delete plan-2c792dcc --yes
    """
    from capflow_tasks.store.runs import RunStore

    with cli.open_run(run_or_plan) as (run, engine):
        if run.running_batches:
            batches, name = _count(run.running_batches, "batch", "batches"), shlex.quote(run.name)
            raise UserError(
                f"run {run.name}: workers run {batches} of it; run `capflow stop {name}` and wait for them"
            )
        rows = f"{_count(run.shards, 'shard', 'shards')}, {_count(run.expanded, 'sample', 'samples')}"
        click.echo(f"run {run.name} of {run.plan}: {rows}, {run.tally.done:,} captioned; {run.output} stays")
        if not yes:
            click.confirm("Delete it?", abort=True)
        RunStore(engine).delete(run.id)
    click.echo(f"run {run.name} is deleted")


def _count(number: int, one: str, several: str) -> str:
    return f"{number:,} {one if number == 1 else several}"


def command_of(run: RunFigures) -> str:
    """Return the command that continues the run."""
    from capflow_tasks.store.states import CandidatePolicy
    from producer.run import name_of_run

    if Path(run.plan).is_dir():
        return shlex.join(["capflow", "score", run.plan])
    name = [] if run.name == name_of_run(Path(run.plan)) else ["--run", run.name]
    workflow = [] if run.workflow == Workflow.STANDARD else ["--workflow", run.workflow]
    usual = MOST_CANDIDATES.get(run.workflow, 1)
    candidates = [] if run.candidates == usual else ["--candidates", str(run.candidates)]
    bar = [] if run.min_overall == CandidatePolicy().min_overall else ["--min-overall", str(run.min_overall)]
    budget = ["--token-budget", str(run.token_budget)] if run.token_budget else []
    flags = {"--strict": run.strict, "--skip-text-only": run.skips_text_only}
    limits = {"--max-tokens": run.max_tokens, "--max-cost": run.max_cost, "--prices": run.prices}
    terms = [flag for flag, is_set in flags.items() if is_set]
    terms += [word for flag, value in limits.items() if value is not None for word in (flag, str(value))]
    return shlex.join(["capflow", "caption", run.plan, *workflow, *candidates, *bar, *budget, *terms, *name])


@click.command(cls=cli.Command, exit_codes=(0, 2, 3, 130))
@click.argument("run")
@cli.output_option(
    "Folder of the report, written whole or not at all; replaces an earlier report.", "REPORT", "report"
)
@cli.option(
    "--max-samples SAMPLES samples",
    "Size of the gallery: failures and the worst grades first, the rest spread evenly; the figures cover the "
    "whole run.",
    10_000,
    cli.COUNT,
    "REPORT_SAMPLES",
)
@cli.option(
    "--thumbnails SAMPLES",
    "Samples that get pictures, chosen alike; 0: none.",
    10_000,
    cli.COUNT,
    "REPORT_THUMBNAILS",
)
@cli.option(
    "--picture-size PIXELS",
    "Long side of the large pictures.",
    960,
    click.IntRange(64, 8192),
    "REPORT_PICTURE_SIZE",
)
@cli.option(
    "--originals",
    "How the page leads to a picture at full size, and to a video that plays: link (by its path on this "
    "machine), copy (into the report) or none.",
    "link",
    click.Choice(["link", "copy", "none"]),
    "REPORT_ORIGINALS",
)
@cli.processes_option("Pictures drawn", "REPORT_PROCESSES")
@cli.prices_option
@cli.json_option("what was written as one JSON object")
def report(run: str, output: Path, prices: Path | None, as_json: bool, **options: Any) -> None:
    """Write a page that shows the captions of RUN, a run's name or the plan that it came from.

    The page is one folder that opens from disk in any browser: figures and charts, and a gallery with each
    sample's picture, caption, scores, what each agent answered, and where it came from. You can filter,
    search and step through it by keyboard. It holds small copies of the pictures, so you can move it, zip it
    or put it on a web server.

    Examples:
      capflow report plan.jsonl -o report
      capflow report plan-2c792dcc --max-samples 100000 --thumbnails 2000 -o report
      capflow report plan.jsonl --json | jq .shown
    """
    from capflow_tasks.settings import read_settings
    from producer.cost import read_prices
    from producer.parallel import ProgressLines
    from producer.report.gallery import Size
    from producer.report.pictures import Originals
    from producer.report.report import make_report
    from producer.services import database, reading

    settings, table = read_settings(), read_prices(prices)
    size = Size(originals=Originals(options.pop("originals")), **options)
    with database(settings) as url, reading(url) as engine:
        made = make_report(engine, run, output, size, table, ProgressLines("samples written"), settings)
    if as_json:
        cli.print_json(asdict(made) | {"page": str(made.page)})
    else:
        click.echo(f"{made.page}: {made.shown} of {made.samples} samples, {made.pictures} with pictures")
