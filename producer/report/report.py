"""Makes the report of one run: its overview, its gallery and the page around them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import Engine

from capflow_tasks.store.statistics import Statistics
from capflow_tasks.store.views import Views
from producer.report.gallery import Gallery, Progress, Size, samples_of
from producer.report.overview import overview_of
from producer.report.page import check_replaceable, whole_folder, write_page
from producer.services import chosen_run
from producer.status.cost import Prices


@dataclass(frozen=True, slots=True)
class Made:
    """A report that is there."""

    run: str
    page: Path
    #: Samples in it, and samples of the run.
    shown: int
    samples: int
    #: Samples with a picture.
    pictures: int


def make_report(
    engine: Engine, name_or_plan: str, folder: Path, size: Size, prices: Prices, progress: Progress
) -> Made:
    """Write the report of this run to the folder. Raises UserError when there is no such run."""
    check_replaceable(folder)
    run = chosen_run(engine, name_or_plan)
    views = Views(engine)
    overview = overview_of(run, Statistics(engine), prices)
    with whole_folder(folder) as aside:
        gallery = Gallery(aside, size)
        shown = gallery.write(samples_of(views, views.shards(run.id), size.samples), progress)
        write_page(aside, overview, shown)
    return Made(run.name, folder / "index.html", shown, run.samples, gallery.pictures)
