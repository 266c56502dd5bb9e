"""Makes the report of a run: the page, its overview and gallery, as a folder that appears whole."""

import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import groupby
from math import floor, log10
from pathlib import Path
from urllib.parse import urlencode

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from sqlalchemy import Engine

from capflow_tasks.domains.catalogue import Catalogue, load_workflow
from capflow_tasks.errors import UserError, WorkflowError
from capflow_tasks.records import GuardOutcome, Rule, Stage
from capflow_tasks.settings import Settings
from capflow_tasks.store import figures
from capflow_tasks.store.statistics import Statistics
from capflow_tasks.store.views import Views
from producer import console
from producer.cost import Cost, Prices, cost_of
from producer.report.gallery import Gallery, Progress, Size
from producer.report.shown import samples_of
from producer.services import find_run
from producer.writing.whole import whole_folder

_HERE = Path(__file__).parent

#: In the order in which they depend on one another.
SCRIPTS = ("data.js", "marks.js", "filters.js", "gallery.js", "detail.js", "page.js")

#: `file:` as well as 'self', because browsers disagree on the origin of a page from disk.
POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self' file:",
        "style-src 'self' file:",
        "img-src 'self' file:",
        "media-src 'self' file:",
        "base-uri 'none'",
        "form-action 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types capflow",
    )
)

#: A folder with all of these is a report, which may be replaced.
_SIGNS = ("index.html", "static", "data")

#: Lengths of time that a column of a chart may stand for, seconds.
_STRETCHES = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 43200, 86400)
#: Columns of a chart over time, at most.
_MOST_COLUMNS = 48


@dataclass(frozen=True, slots=True)
class Column:
    """Samples of a stretch of time, or of a range of confidences."""

    label: str
    span: str
    samples: int
    #: The filters of the page that show these samples; empty where none do.
    filters: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Chart:
    #: Read by screen readers.
    label: str
    columns: Sequence[Column]


@dataclass(frozen=True, slots=True)
class Overview:
    """What the head of the page shows of a run."""

    run: figures.RunFigures
    usages: Sequence[figures.Usage]
    domains: Sequence[figures.DomainFigures]
    #: Captions by grade, by dimension.
    grades: Mapping[str, Mapping[int, int]]
    failures: Sequence[figures.FailureKind]
    guard: Sequence[figures.GuardCount]
    cost: Cost
    #: None where no sample was routed.
    confidences: Chart | None
    #: None before the first batch is finished.
    throughput: Chart | None
    #: Seconds that one of its columns stands for.
    stretch: float
    #: What was read in pictures; None where nothing was.
    text: figures.TextFigures | None = None
    #: None where no caption was verified.
    claims: figures.ClaimFigures | None = None

    @property
    def tokens(self) -> figures.Tokens:
        return figures.total_tokens(self.usages)

    @property
    def tokens_by_stage(self) -> dict[Stage, figures.Tokens]:
        stages = groupby(self.usages, lambda usage: usage.stage)
        return {stage: figures.total_tokens(usages) for stage, usages in stages}

    @property
    def guard_by_rule(self) -> dict[Rule, Counter[GuardOutcome]]:
        """Answers by what became of them, by the rule that they broke; the most frequent rule first."""
        found: dict[Rule, Counter[GuardOutcome]] = {}
        for each in self.guard:
            found.setdefault(each.rule, Counter())[each.outcome] += each.answers
        return dict(sorted(found.items(), key=lambda pair: -pair[1].total()))

    @property
    def checked_lines(self) -> list[str]:
        """What was read in pictures and asked about captions, in sentences."""
        text = [console.text_line(self.text)] if self.text else []
        return text + ([console.claims_line(self.claims)] if self.claims else [])

    @property
    def own_judge_text(self) -> str:
        return console.own_judge_text(figures.own_judges(self.usages))

    @property
    def most_tokens(self) -> int:
        """Prompt and answer tokens of the stage that has most."""
        return max(tokens.prompt + tokens.completion for tokens in self.tokens_by_stage.values())

    @property
    def seconds(self) -> float:
        return figures.span_seconds(self.usages)

    @property
    def workers(self) -> int:
        return len({usage.worker for usage in self.usages})


def overview_of(run: figures.RunFigures, statistics: Statistics, prices: Prices) -> Overview:
    """Ask for everything that is shown. Reads all samples and results of the run once."""
    usages = statistics.usage(run.id)
    stretch = _stretch_of(usages)
    return Overview(
        run=run,
        usages=usages,
        domains=statistics.domains(run.id),
        grades=figures.grade_histograms(statistics.grades(run.id)),
        failures=statistics.failures(run.id),
        guard=statistics.guard(run.id),
        cost=cost_of(usages, prices),
        confidences=_confidence_chart(statistics.confidences(run.id)),
        throughput=_throughput_chart(statistics.finished_by_time(run.id, stretch), stretch),
        stretch=stretch,
        text=statistics.text(run.id),
        claims=statistics.claims(run.id),
    )


def _confidence_chart(counts: Sequence[int]) -> Chart | None:
    if not any(counts):
        return None
    steps = len(counts)
    sure = sum(counts[steps * 8 // 10 :]) / sum(counts)
    columns = [
        Column(
            f"{number / steps:.1f}",
            f"{number / steps:.1f} to {(number + 1) / steps:.1f}",
            count,
            {"confidence": f"{number / steps:.1f}-{(number + 1) / steps:.1f}"},
        )
        for number, count in enumerate(counts)
    ]
    return Chart(f"Samples by the router's confidence; {sure:.0%} have 0.8 or more", columns)


def _stretch_of(usages: Sequence[figures.Usage]) -> float:
    """The seconds that one column of a chart stands for, so that there are not too many columns."""
    if not usages:
        return 60.0
    seconds = figures.span_seconds(usages)
    return next((each for each in _STRETCHES if seconds / each <= _MOST_COLUMNS), _STRETCHES[-1])


def _throughput_chart(counts: Mapping[datetime, int], stretch: float) -> Chart | None:
    if not counts:
        return None
    first, last = min(counts), max(counts)
    clock = "%d.%m." if stretch >= 43200 else "%H:%M" if stretch >= 60 else "%H:%M:%S"
    times = [
        first + number * timedelta(seconds=stretch)
        for number in range(int((last - first).total_seconds() / stretch) + 1)
    ]
    columns = [Column(f"{time:{clock}}", f"{time:%Y-%m-%d %H:%M:%S}", counts.get(time, 0)) for time in times]
    return Chart(f"Samples finished, from {first:%Y-%m-%d %H:%M} to {last:%H:%M}", columns)


def nice_top(most: float) -> float:
    """The smallest of 1, 2 and 5 times a power of ten that is at least `most`."""
    if most <= 0:
        return 1.0
    power = 10.0 ** floor(log10(most))
    return next(power * factor for factor in (1, 2, 5, 10) if power * factor >= most)


def address(filters: Mapping[str, str]) -> str:
    """The part of the page's address that filters the gallery so."""
    return f"#{urlencode(filters)}"


def templates() -> Environment:
    """The page and its charts, which escape whatever they are given."""
    environment = Environment(
        loader=FileSystemLoader(_HERE / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "address": address,
        "duration": console.duration,
        "nice_top": nice_top,
        "percent": console.percent,
        "short_count": console.short_count,
        "thousands": console.count,
        "without_folders": console.without_folders,
        "counted": console.counted,
    }
    return environment


def write_page(folder: Path, overview: Overview, shown: int) -> None:
    """Write index.html and its styles and scripts; `shown` samples are in the gallery."""
    page = (
        templates()
        .get_template("page.html")
        .render(overview=overview, shown=shown, scripts=SCRIPTS, policy=POLICY, made_at=datetime.now(UTC))
    )
    (folder / "index.html").write_text(page.lstrip(), "utf-8")
    shutil.copytree(_HERE / "static", folder / "static")


def _catalogue_of(run: figures.RunFigures, settings: Settings) -> Catalogue | None:
    """The run's workflow as it is now; None where its files are away or wrong."""
    with suppress(WorkflowError):
        return load_workflow(run.workflow, settings.domains, settings.language)
    return None


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
    engine: Engine,
    name_or_plan: str,
    folder: Path,
    size: Size,
    prices: Prices,
    progress: Progress,
    settings: Settings,
) -> Made:
    """Write the report of this run to the folder. Raises UserError when there is no such run."""
    check_replaceable(folder)
    run = find_run(engine, name_or_plan)
    overview = overview_of(run, Statistics(engine), prices)
    views = Views(engine)
    with whole_folder(folder) as aside:
        gallery = Gallery(aside, size)
        samples = samples_of(views, run.id, views.shards(run.id), size.samples, size.thumbnails)
        shown = gallery.write(samples, progress)
        gallery.write_prompts(_catalogue_of(run, settings))
        write_page(aside, overview, shown)
    return Made(run.name, folder / "index.html", shown, run.samples, gallery.pictures)
