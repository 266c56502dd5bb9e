"""The head of the report: figures and charts of a run."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from markupsafe import Markup

from capflow_tasks.records import Stage
from capflow_tasks.store.figures import (
    DomainFigures,
    FailureKind,
    RunFigures,
    Tokens,
    Usage,
    grade_histograms,
    span_seconds,
    total_tokens,
)
from capflow_tasks.store.states import SampleState
from capflow_tasks.store.statistics import Statistics
from producer.console import duration, percent, short_count, workers_text
from producer.cost import Prices, cost_of
from producer.report.charts import Column, Part, bar, columns

GRADE_NAMES = {1: "bad", 2: "good", 3: "excellent"}

#: Lengths of time that a column of a chart may stand for, seconds.
_STRETCHES = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 43200, 86400)
#: Columns of a chart over time, at most.
_MOST_COLUMNS = 48


@dataclass(frozen=True, slots=True)
class Figure:
    """A number with its label."""

    label: str
    value: str
    note: str = ""


@dataclass(frozen=True, slots=True)
class BarRow:
    """A line of a table: a name, a bar, and its values as text."""

    name: str
    bar: Markup
    values: Sequence[str]
    note: str = ""


@dataclass(frozen=True, slots=True)
class Overview:
    run: RunFigures
    models: Sequence[str]
    figures: Sequence[Figure]
    domains: Sequence[BarRow]
    grades: Sequence[BarRow]
    tokens: Sequence[BarRow]
    failures: Sequence[BarRow]
    #: None where no sample was routed.
    confidences: Markup | None
    #: None before the first batch is finished.
    throughput: Markup | None
    #: The length of time that one of its columns stands for.
    stretch: str


def overview_of(run: RunFigures, statistics: Statistics, prices: Prices) -> Overview:
    """Ask for everything that is shown. Reads all samples and results of the run once."""
    usage = statistics.usage(run.id)
    stretch = stretch_of(usage)
    finished = statistics.finished_by_time(run.id, stretch)
    confidences = statistics.confidences(run.id)
    grades = grade_histograms(statistics.grades(run.id))
    return Overview(
        run=run,
        models=sorted({each.model for each in usage}),
        figures=[
            *_sample_figures(run),
            *_grade_figures(grades),
            *_work_figures(run, usage),
            *_cost_figures(run, usage, prices),
        ],
        domains=_domain_rows(statistics.domains(run.id)),
        grades=[_grade_row(name, counts) for name, counts in grades.items()],
        tokens=_token_rows(usage),
        failures=_failure_rows(statistics.failures(run.id)),
        confidences=_confidence_chart(confidences) if any(confidences) else None,
        throughput=_throughput_chart(finished, stretch) if finished else None,
        stretch=duration(stretch),
    )


def _sample_figures(run: RunFigures) -> list[Figure]:
    tally = run.tally
    held = [Figure("held back", f"{tally.held:,}", "routed with too little confidence")] if tally.held else []
    return [
        Figure("captioned", f"{tally.done:,}", f"of {run.samples:,} samples"),
        Figure("failed", f"{tally.failed:,}", _share(tally.failed, run.samples)),
        *held,
    ]


def _grade_figures(grades: Mapping[str, Mapping[int, int]]) -> list[Figure]:
    overall = grades.get("overall", {})
    count = sum(overall.values())
    if not count:
        return []
    mean = sum(grade * times for grade, times in overall.items()) / count
    return [Figure("overall grade", f"{mean:.2f}", f"of 3; {_share(overall[3], count)} excellent")]


def _work_figures(run: RunFigures, usage: Sequence[Usage]) -> list[Figure]:
    if not usage:
        return []
    total = total_tokens(usage)
    seconds = span_seconds(usage) or 1.0
    workers = workers_text(len({each.worker for each in usage}))
    return [
        Figure(
            "prompt tokens", short_count(total.prompt), f"{total.prefix_hit_rate:.0%} from the prefix cache"
        ),
        Figure(
            "answer tokens", short_count(total.completion), f"{total.completion / seconds:,.0f} per second"
        ),
        Figure(
            "samples per hour",
            short_count(3600 * run.tally.total / seconds),
            f"{duration(seconds)}, {workers}",
        ),
    ]


def _cost_figures(run: RunFigures, usage: Sequence[Usage], prices: Prices) -> list[Figure]:
    """Nothing where a model has no price, because an unknown cost is not 0."""
    cost = cost_of(usage, prices)
    each = cost.per(run.tally.done)
    if cost.usd is None or each is None:
        return []
    return [Figure("cost", f"${cost.usd:,.2f}", f"${100 * each:,.3g} per 100 captions")]


def _domain_rows(domains: Sequence[DomainFigures]) -> list[BarRow]:
    most = max((row.samples for row in domains), default=0)
    rows = []
    for row in sorted(domains, key=lambda row: -row.samples):
        parts = [Part(f"state-{state}", count, f"{count:,} {state}") for state, count in row.by_state.items()]
        failed = row.by_state[SampleState.FAILED]
        note = f"{failed:,} failed" if failed else ""
        rows.append(BarRow(row.domain or "no domain", bar(parts, most), [f"{row.samples:,}"], note))
    return rows


def _grade_row(name: str, counts: Mapping[int, int]) -> BarRow:
    total = sum(counts.values())
    parts = [
        Part(f"grade-{grade}", count, f"{count:,} {GRADE_NAMES[grade]}") for grade, count in counts.items()
    ]
    mean = sum(grade * count for grade, count in counts.items()) / total
    return BarRow(name.replace("_", " "), bar(parts, total), [f"{mean:.2f}"])


def _token_rows(usage: Iterable[Usage]) -> list[BarRow]:
    """By stage: prompt tokens computed and cached, answer tokens."""
    sums: dict[Stage, Tokens] = {}
    for each in usage:
        sums[each.stage] = sums.get(each.stage, Tokens()) + each.tokens
    most = max((tokens.prompt + tokens.completion for tokens in sums.values()), default=0)
    return [
        BarRow(
            stage,
            _token_bar(tokens, most),
            [short_count(tokens.prompt), short_count(tokens.completion)],
            f"{tokens.prefix_hit_rate:.0%} cached",
        )
        for stage, tokens in sums.items()
    ]


def _token_bar(tokens: Tokens, most: int) -> Markup:
    parts = (
        Part("cached", tokens.cached, f"{tokens.cached:,} prompt tokens cached"),
        Part("one", tokens.computed, f"{tokens.computed:,} prompt tokens computed"),
        Part("two", tokens.completion, f"{tokens.completion:,} answer tokens"),
    )
    return bar(parts, most)


def _failure_rows(failures: Sequence[FailureKind]) -> list[BarRow]:
    most = max((failure.count for failure in failures), default=0)
    return [
        BarRow(
            failure.kind.replace("_", " "),
            bar([Part("state-failed", failure.count, f"{failure.count:,} samples")], most),
            [f"{failure.count:,}"],
            failure.example,
        )
        for failure in failures
    ]


def _confidence_chart(counts: Sequence[int]) -> Markup:
    steps = len(counts)
    chart = [
        Column(
            f"{number / steps:.1f}",
            count,
            f"{number / steps:.1f} to {(number + 1) / steps:.1f}: {count:,} samples",
        )
        for number, count in enumerate(counts)
    ]
    sure = sum(counts[steps * 8 // 10 :]) / sum(counts)
    return columns(chart, f"Samples by the router's confidence; {sure:.0%} have 0.8 or more")


def stretch_of(usage: Sequence[Usage]) -> float:
    """The seconds that one column of a chart stands for, so that there are not too many columns."""
    if not usage:
        return 60.0
    seconds = span_seconds(usage)
    return next((each for each in _STRETCHES if seconds / each <= _MOST_COLUMNS), _STRETCHES[-1])


def _throughput_chart(counts: Mapping[datetime, int], stretch: float) -> Markup:
    first, last = min(counts), max(counts)
    times = [
        first + number * timedelta(seconds=stretch)
        for number in range(int((last - first).total_seconds() / stretch) + 1)
    ]
    chart = [
        Column(
            _clock(time, stretch),
            counts.get(time, 0),
            f"{time:%Y-%m-%d %H:%M:%S}: {counts.get(time, 0):,} samples",
        )
        for time in times
    ]
    return columns(chart, f"Samples finished, from {first:%Y-%m-%d %H:%M} to {last:%H:%M}")


def _clock(time: datetime, stretch: float) -> str:
    return f"{time:%d.%m.}" if stretch >= 43200 else f"{time:%H:%M}" if stretch >= 60 else f"{time:%H:%M:%S}"


def _share(part: float, whole: float) -> str:
    return percent(part / whole if whole else None)
