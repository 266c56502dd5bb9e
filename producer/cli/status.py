"""The command capflow-status: parse, call, print."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from capflow_tasks.settings import read_settings
from producer.cli import options as flags
from producer.cli.options import Command, minimum_options, minimums_of

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from producer.reading.scores import Minimums
    from producer.status.cost import Prices
    from producer.status.watch import Status


EPILOG = """\b
Examples:
  capflow-status
  capflow-status plan.jsonl --watch
  capflow-status plan.jsonl --prices prices.yaml --min-overall 2
  capflow-status plan.jsonl --json | jq .cost.usd_per_100_samples

\b
Exit codes: 0 shown; 2 there is no such run, or the price table must be mended;
3 the database cannot be reached."""


@click.command(cls=Command, epilog=EPILOG)
@click.argument("run", required=False)
@click.option(
    "--watch", "is_watching", is_flag=True, help="Show it again and again, until it is done or Ctrl-C."
)
@click.option(
    "--interval",
    envvar="CAPFLOW_STATUS_INTERVAL",
    default=2.0,
    type=click.FloatRange(0.1, 3600),
    help="Between two looks with --watch, seconds.",
    show_envvar=True,
    show_default=True,
)
@flags.prices()
@minimum_options
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object; with --watch one per line.")
def status(
    run: str | None, is_watching: bool, interval: float, prices: Path | None, as_json: bool, **asked: Any
) -> None:
    """Show how far RUN is, how fast, where its samples stand, what fails, and what it costs.

    RUN is a run's name, or the plan that it was made from; without it all runs are listed. Captions count as
    accepted when they have the least grades that are asked for.

    Without CAPFLOW_DATABASE_URL it asks the database that runs under CAPFLOW_HOME, and starts it for as long
    as that takes when nothing runs there; then --watch looks once, since nothing can change. Where stdout is
    no terminal, --watch prints a line per look.
    """
    # Only now: `--help` need not wait.
    from capflow_tasks.domains.catalogue import load_catalogue
    from producer.reading.scores import Rubrics
    from producer.services import database, is_asleep, reading
    from producer.status.cost import read_prices
    from producer.status.watch import show, watch

    settings = read_settings()
    catalogue = load_catalogue(settings.domains)
    minimums = minimums_of(catalogue, Rubrics(catalogue), asked)
    table = read_prices(prices)
    # A database that was started for this alone changes for nobody, and keeps producers out.
    is_watching = is_watching and not is_asleep(settings)
    with database(settings) as url, reading(url) as engine:
        look = _look(engine, run, table, minimums, settings.lease_seconds)
        if is_watching:
            watch(look, interval, as_json)
        else:
            show(look(), as_json)


def _look(
    engine: Engine, run: str | None, prices: Prices, minimums: Minimums, lease_seconds: float
) -> Callable[[], Status]:
    from capflow_tasks.store.statistics import Statistics
    from producer.services import chosen_run
    from producer.status.snapshot import Observer
    from producer.status.watch import status_of_run, status_of_runs

    statistics = Statistics(engine)
    if run is None:
        return partial(status_of_runs, statistics, lease_seconds)
    observer = Observer(statistics, chosen_run(engine, run).id, prices, minimums, lease_seconds)
    return partial(status_of_run, observer)


if __name__ == "__main__":
    status()
