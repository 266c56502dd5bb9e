"""Makes the report of a run: the page, its overview and gallery, as a folder that appears whole."""

import shutil
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from sqlalchemy import Engine

from capflow_tasks.errors import UserError
from capflow_tasks.store.statistics import Statistics
from capflow_tasks.store.views import Views
from producer.cost import Prices
from producer.report.gallery import Gallery, Progress, Size, samples_of
from producer.report.overview import Overview, overview_of
from producer.services import find_run
from producer.writing.whole import whole_folder

_HERE = Path(__file__).parent

#: In the order in which they depend on one another.
SCRIPTS = ("data.js", "filters.js", "gallery.js", "detail.js", "page.js")

#: `file:` as well as 'self', because browsers disagree on the origin of a page from disk.
POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self' file:",
        "style-src 'self' file:",
        "img-src 'self' file:",
        "base-uri 'none'",
        "form-action 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types capflow",
    )
)


def write_page(folder: Path, overview: Overview, shown: int) -> None:
    """Write index.html and its styles and scripts; `shown` samples are in the gallery."""
    environment = Environment(
        loader=FileSystemLoader(_HERE / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template("page.html").render(
        overview=overview, shown=shown, scripts=SCRIPTS, policy=POLICY, made_at=datetime.now(UTC)
    )
    (folder / "index.html").write_text(page.lstrip(), "utf-8")
    shutil.copytree(_HERE / "static", folder / "static")


#: A folder with all of these is a report, which may be replaced.
_SIGNS = ("index.html", "static", "data")


def check_replaceable(folder: Path) -> None:
    """Raise UserError where the folder holds anything but a report."""
    if folder.is_dir() and all((folder / sign).exists() for sign in _SIGNS):
        return
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise UserError(f"{folder} holds something other than a report; name another folder with -o")


@dataclass(frozen=True, slots=True)
class Made:
    """A finished report."""

    run: str
    page: Path
    #: Samples in the report, and samples of the run.
    shown: int
    samples: int
    #: Samples with a picture.
    pictures: int


def make_report(
    engine: Engine, name_or_plan: str, folder: Path, size: Size, prices: Prices, progress: Progress
) -> Made:
    """Write the report of this run to the folder. Raises UserError when there is no such run."""
    check_replaceable(folder)
    run = find_run(engine, name_or_plan)
    overview = overview_of(run, Statistics(engine), prices)
    views = Views(engine)
    with whole_folder(folder) as aside:
        gallery = Gallery(aside, size)
        shown = gallery.write(samples_of(views, views.shards(run.id), size.samples), progress)
        write_page(aside, overview, shown)
    return Made(run.name, folder / "index.html", shown, run.samples, gallery.pictures)
