"""A run's status as it is printed, once or again and again: tables for a terminal, a line for a log, JSON."""

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from time import monotonic, sleep

import click
from rich.console import Console, Group, RenderableType, group
from rich.live import Live
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from capflow_tasks.records import GuardOutcome, JsonObject
from capflow_tasks.store import figures
from capflow_tasks.store.states import SampleState
from capflow_tasks.store.statistics import Statistics
from producer.console import (
    claims_line,
    count,
    counted,
    duration,
    own_judge_text,
    percent,
    short_count,
    table,
    text_line,
    usd,
    without_folders,
)
from producer.status.snapshot import Kept, Snapshot, retry_line, run_document, runs_document

#: A snapshot of a large run takes long; the database then rests for so many times as long.
_RESTS = 4

#: Characters per line where stdout is no terminal.
_PLAIN_WIDTH = 120

#: Lines of the plan that are shown, the unfinished first; `--json` has all.
_SHOWN_SHARDS = 10

_COLOURS = {
    figures.RunState.DONE: "green",
    figures.RunState.RUNNING: "cyan",
    figures.RunState.WAITING: "yellow",
    figures.RunState.STOPPED: "yellow",
}


@dataclass(frozen=True, slots=True)
class Status:
    """The same facts in the three forms in which they are shown."""

    document: JsonObject
    tables: RenderableType
    line: str
    #: Nothing will change any more.
    is_final: bool


def statuses_of_run(snapshots: Iterable[Snapshot]) -> Iterator[Status]:
    for shot in snapshots:
        yield Status(run_document(shot), run_tables(shot), run_line(shot), not shot.run.is_open)


def statuses_of_several(runs: Sequence[Iterator[Snapshot]]) -> Iterator[Status]:
    for shots in zip(*runs, strict=True):
        document = {"runs": [run_document(shot) for shot in shots]}
        line = "; ".join(map(run_line, shots))
        yield Status(document, comparison(shots), line, not any(shot.run.is_open for shot in shots))


def statuses_of_runs(statistics: Statistics, lease_seconds: float) -> Iterator[Status]:
    while True:
        facts = statistics.runs(), statistics.workers(lease_seconds)
        yield Status(runs_document(*facts), runs_table(*facts), runs_line(*facts), is_final=False)


def show(status: Status, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(status.document, ensure_ascii=False))
    else:
        # Not cropped, so that commands in it can be copied.
        _console().print(status.tables, crop=False)


def watch(statuses: Iterator[Status], interval_seconds: float, as_json: bool) -> None:
    """Show the status again and again, until it is final or Ctrl-C, which is no error."""
    with suppress(KeyboardInterrupt):
        if as_json or not sys.stdout.isatty():
            for status in _paced(statuses, interval_seconds):
                click.echo(json.dumps(status.document, ensure_ascii=False) if as_json else status.line)
            return
        with Live(console=_console(), auto_refresh=False) as live:
            for status in _paced(statuses, interval_seconds):
                live.update(status.tables, refresh=True)


def _paced(statuses: Iterator[Status], interval_seconds: float) -> Iterator[Status]:
    while True:
        began = monotonic()
        status = next(statuses)
        took = monotonic() - began
        yield status
        if status.is_final:
            return
        sleep(max(interval_seconds, _RESTS * took))


def _console() -> Console:
    return Console(highlight=False, width=None if sys.stdout.isatty() else _PLAIN_WIDTH)


def runs_table(
    runs: Sequence[figures.RunFigures], workers: Sequence[figures.WorkerFigures]
) -> RenderableType:
    """All runs in short."""
    made = table(None, ("run", "state"), ("samples", "done", "failed", "held", "remain"), "begun")
    for run in runs:
        numbers = (run.samples, run.tally.done, run.tally.failed, run.tally.held, run.remaining)
        begun = run.created_at.astimezone().strftime("%Y-%m-%d %H:%M")
        state = Text(run.state, _COLOURS[run.state])
        made.add_row(escape(run.name), state, *map(count, numbers), begun)
    return Group(made, _alive(workers))


def runs_line(runs: Sequence[figures.RunFigures], workers: Sequence[figures.WorkerFigures]) -> str:
    """The open runs in one line, for logs."""
    words = [f"{run.name} {run.state} {run.tally.total}/{run.samples}" for run in runs if run.is_open]
    return f"{'; '.join(words) or 'no run is open'}; {_alive(workers)}"


def run_line(snapshot: Snapshot) -> str:
    """One run in one line, for logs."""
    run, throughput = snapshot.run, snapshot.activity.throughput
    return (
        f"{run.name} {run.state}: {run.tally.total}/{run.samples} samples, {run.tally.failed} failed, "
        f"{throughput.samples_per_second:.1f} samples/s, ETA {duration(snapshot.eta_seconds)}, "
        f"{short_count(throughput.tokens_per_second)} tokens/s, "
        f"{percent(throughput.tokens.prefix_hit_rate)} cached, {_alive(snapshot.activity.workers)}"
    )


def _alive(workers: Sequence[figures.WorkerFigures]) -> str:
    alive = [worker for worker in workers if worker.is_alive]
    paused = [f"; {worker.node} takes no work: {worker.fault}" for worker in alive if worker.fault]
    return "".join([f"{counted(len(alive), 'worker')} alive", *paused])


def comparison(shots: Sequence[Snapshot]) -> Table:
    """Grades and costs of several runs side by side."""
    made = table("Runs side by side", [""], [escape(shot.run.name) for shot in shots])
    for name, cell in _COMPARED.items():
        made.add_row(name, *map(cell, shots))
    return made


def _mean_overall(shot: Snapshot) -> str:
    total = sum(each.overall * each.count for each in shot.totals.grades)
    return f"{total / shot.totals.judged:.2f}" if shot.totals.judged else ""


def _tokens_per_sample(shot: Snapshot) -> str:
    return count(round(shot.kept.tokens / shot.run.tally.done)) if shot.run.tally.done else ""


#: What is compared of several runs.
_COMPARED: Mapping[str, Callable[[Snapshot], str]] = {
    "state": lambda shot: shot.run.state,
    "workflow": lambda shot: escape(shot.run.workflow),
    "captions of a sample, at most": lambda shot: count(shot.run.candidates),
    "samples done": lambda shot: count(shot.run.tally.done),
    "samples failed": lambda shot: count(shot.run.tally.failed),
    "captions judged": lambda shot: count(shot.kept.judged),
    "mean overall grade": _mean_overall,
    "captions accepted": lambda shot: count(shot.kept.accepted),
    "keep rate": lambda shot: percent(shot.kept.rate),
    "tokens per sample done": _tokens_per_sample,
    "tokens per accepted caption": lambda shot: _tokens_per_accepted(shot.kept),
    "worker time": lambda shot: duration(shot.cost.worker_seconds),
    "cost": lambda shot: usd(shot.cost.usd),
    "cost per accepted caption": lambda shot: usd(shot.cost.per(shot.accepted)),
}


@group()
def run_tables(snapshot: Snapshot) -> Iterator[RenderableType]:
    """Everything about one run."""
    yield _headline(snapshot)
    yield _stages(snapshot)
    if snapshot.totals.domains:
        yield _domains(snapshot.totals)
    if snapshot.run.shards > 1:
        yield _shards(snapshot.totals)
    if snapshot.totals.guard:
        yield _guard(snapshot.totals.guard)
    if snapshot.totals.further:
        yield _candidates(snapshot)
    yield Text("\n".join([*_cost_lines(snapshot), ""]))
    if snapshot.failures:
        yield from _failures(snapshot)


def _headline(snapshot: Snapshot) -> Text:
    run, tally, throughput = snapshot.run, snapshot.run.tally, snapshot.activity.throughput
    held = f", {count(tally.held)} held" if tally.held else ""
    pace = (
        f"{throughput.samples_per_second:.2f} samples/s, {short_count(throughput.tokens_per_second)} "
        f"tokens/s over the last {duration(throughput.seconds)}; ETA {duration(snapshot.eta_seconds)}\n"
    )
    batches = "batch" if run.running_batches == 1 else "batches"
    most = f", up to {run.candidates} captions of a sample" if run.candidates > 1 else ""
    return Text.assemble(
        *("Run ", (run.name, "bold"), " is ", (run.state, _COLOURS[run.state])),
        f"; {run.plan}, workflow {run.workflow}{most}\n",
        f"It has paused by itself: {run.pause}\n" if run.pause else "",
        f"{count(tally.total)} of {count(run.samples)} samples are finished: ",
        f"{count(tally.done)} done, {count(tally.failed)} failed{held}\n",
        pace if run.open_batches else "",
        f"{_alive(snapshot.activity.workers)}, {run.running_batches} {batches} running\n",
    )


def _stages(snapshot: Snapshot) -> Table:
    counts = ("waiting", "running", "answers", "prompt", "cached", "written", "hits")
    made = table("Samples in flight, answers and their tokens, by stage", ["stage"], counts)
    made.columns[0].no_wrap = True
    for stage in snapshot.activity.stages:
        made.add_row(stage.stage, *_stage_cells([stage], snapshot.totals))
    made.add_section()
    made.add_row("all", *_stage_cells(snapshot.activity.stages, snapshot.totals))
    return made


def _stage_cells(stages: Sequence[figures.StageFigures], totals: figures.Totals) -> list[str]:
    names = {stage.stage for stage in stages}
    usages = [usage for usage in totals.usages if usage.stage in names]
    tokens = figures.total_tokens(usages)
    counts = (
        sum(stage.waiting for stage in stages),
        sum(stage.running for stage in stages),
        sum(usage.answers for usage in usages),
    )
    of_tokens = (tokens.prompt, tokens.cached, tokens.completion)
    hits = percent(tokens.prefix_hit_rate if tokens.prompt else None)
    return [*map(count, counts), *map(_narrow_count, of_tokens), hits]


def _narrow_count(number: int) -> str:
    """Eight characters at most."""
    return count(number) if number < 1_000_000 else short_count(number)


def _domains(totals: figures.Totals) -> Table:
    made = table("Samples by domain", ["domain"], list(SampleState))
    for row in totals.domains:
        made.add_row(escape(row.domain or "(none)"), *(count(row.by_state[state]) for state in SampleState))
    return made


def _shards(totals: figures.Totals) -> Table:
    shards = sorted(totals.shards, key=lambda shard: shard.tally.total >= shard.samples)
    hidden = len(shards) - _SHOWN_SHARDS
    counts = ("shard", "rank", "samples", "in flight", "done", "failed", "held")
    made = table("Samples by shard", ["dataset"], counts)
    made.caption = f"and {hidden} more: --json has all" if hidden > 0 else None
    for shard in shards[:_SHOWN_SHARDS]:
        tally = shard.tally
        numbers = (shard.samples, shard.in_flight, tally.done, tally.failed, tally.held)
        place = f"{shard.shard_index}/{shard.num_shards}"
        made.add_row(escape(shard.dataset), place, str(shard.assign_rank), *map(count, numbers))
    return made


def _guard(counts: Sequence[figures.GuardCount]) -> Table:
    """An answer that failed ended its sample, or a further caption of it."""
    outcomes = tuple(GuardOutcome)
    heads = [outcome.replace("_", " ") for outcome in outcomes]
    made = table("Answers that broke a rule of the guard", ["agent", "rule"], [*heads, "tokens thrown away"])
    for agent, rule in dict.fromkeys((each.agent, each.rule) for each in counts):
        found = [each for each in counts if (each.agent, each.rule) == (agent, rule)]
        answers = {each.outcome: each.answers for each in found}
        tokens = sum((each.tokens for each in found), figures.Tokens())
        cells = [*(answers.get(outcome, 0) for outcome in outcomes), tokens.prompt + tokens.completion]
        made.add_row(escape(agent), rule, *map(count, cells))
    return made


def _candidates(snapshot: Snapshot) -> Table:
    """What it brought to write captions again, and what it cost."""
    made = table(
        "Captions written again", [""], ["judged", "accepted", "keep rate", "tokens", "per accepted caption"]
    )
    most = max(each.candidate for each in snapshot.totals.further)
    names = ("the first of each sample", f"the best of up to {most}")
    for name, kept in zip(names, (snapshot.first_kept, snapshot.kept), strict=True):
        counts = map(count, (kept.judged, kept.accepted))
        made.add_row(name, *counts, percent(kept.rate), count(kept.tokens), _tokens_per_accepted(kept))
    again = count(max(each.samples for each in snapshot.totals.further))
    made.caption = f"{again} samples got another caption"
    return made


def _tokens_per_accepted(kept: Kept) -> str:
    return "" if kept.tokens_per_accepted is None else count(round(kept.tokens_per_accepted))


def _cost_lines(snapshot: Snapshot) -> Iterator[str]:
    cost, economy, judged = snapshot.cost, snapshot.totals.economy, snapshot.totals.judged
    if economy.samples:
        computed = f"{economy.computed_per_sample:,.0f}"
        yield f"Prompt tokens computed per sample: {computed}; {_against_least(economy)}"
    if judged:
        share = percent(snapshot.accepted / judged)
        yield f"Accepted captions: {count(snapshot.accepted)} of {count(judged)} judged, {share}"
    if own_judge := own_judge_text(figures.own_judges(snapshot.totals.usages)):
        yield own_judge
    if snapshot.totals.text:
        yield text_line(snapshot.totals.text)
    if snapshot.totals.claims:
        yield claims_line(snapshot.totals.claims)
    yield f"Worker time: {duration(cost.worker_seconds)}"
    yield (
        f"Cost: {usd(cost.usd)}; per 100 samples {usd(snapshot.usd_per_100_samples)}; "
        f"per accepted caption {usd(cost.per(snapshot.accepted))}"
    )
    if cost.unpriced:
        file = cost.prices.file
        remedy = f"add it to {file}"
        if cost.prices.is_packaged:
            remedy = f"copy {file}, add it there, and name the copy with --prices"
        yield f"No price is known for {', '.join(cost.unpriced)}: {remedy}"


def _against_least(economy: figures.PromptEconomy) -> str:
    least = economy.minimum_per_sample
    if least is None:
        return "with each prefix once: unknown, as nothing was cached"
    if economy.computed < economy.minimum:
        return (
            f"fewer than with each prefix once, {least:,.0f}, as samples share some or had them cached before"
        )
    return f"with each prefix once: {least:,.0f}"


def _failures(snapshot: Snapshot) -> Iterator[RenderableType]:
    made = table("Failed samples", ["kind"], ["samples"], "stages", "for example")
    for failure in snapshot.failures:
        stages = ", ".join(failure.stages)
        made.add_row(failure.kind, count(failure.count), stages, escape(without_folders(failure.example)))
    yield made
    lines = [retry_line(snapshot.run, failure) for failure in snapshot.failures]
    if any(lines):
        yield Text("To try them again, once their cause is gone:")
    # Not folded, so that users can copy them.
    yield from (Text(line, overflow="ignore", no_wrap=True) for line in lines if line)
