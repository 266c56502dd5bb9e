"""A run's status for people: tables for a terminal, one line for a log."""

from collections.abc import Iterator, Sequence

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from capflow_tasks.store.figures import (
    RunFigures,
    RunState,
    StageFigures,
    Totals,
    WorkerFigures,
    total_tokens,
)
from capflow_tasks.store.states import SampleState
from producer.console import count, duration, percent, short_count, table, usd, workers_text
from producer.cost import Cost
from producer.status.document import retry_line
from producer.status.snapshot import Snapshot

#: Lines of the plan that are shown, the unfinished first; `--json` has all.
_SHOWN_SHARDS = 10

_COLOURS = {
    RunState.DONE: "green",
    RunState.RUNNING: "cyan",
    RunState.WAITING: "yellow",
    RunState.STOPPED: "yellow",
}


def runs_table(runs: Sequence[RunFigures], workers: Sequence[WorkerFigures]) -> RenderableType:
    """All runs in short."""
    made = table(None, ("run", "state"), ("samples", "done", "failed", "held", "remain"), "begun")
    for run in runs:
        numbers = (run.samples, run.tally.done, run.tally.failed, run.tally.held, run.remaining)
        begun = run.created_at.astimezone().strftime("%Y-%m-%d %H:%M")
        state = Text(run.state, _COLOURS[run.state])
        made.add_row(escape(run.name), state, *map(count, numbers), begun)
    return Group(made, _alive(workers))


def runs_line(runs: Sequence[RunFigures], workers: Sequence[WorkerFigures]) -> str:
    """The open runs in one line, for logs."""
    words = [f"{run.name} {run.state} {run.tally.total}/{run.samples}" for run in runs if run.is_open]
    return f"{'; '.join(words) or 'no run is open'}; {_alive(workers)}"


def run_tables(snapshot: Snapshot) -> RenderableType:
    """Everything about one run."""
    return Group(*_parts(snapshot))


def run_line(snapshot: Snapshot) -> str:
    """One run in one line, for logs."""
    run, throughput = snapshot.run, snapshot.activity.throughput
    return (
        f"{run.name} {run.state}: {run.tally.total}/{run.samples} samples, {run.tally.failed} failed, "
        f"{throughput.samples_per_second:.1f} samples/s, ETA {duration(snapshot.eta_seconds)}, "
        f"{short_count(throughput.tokens_per_second)} tokens/s, "
        f"{percent(throughput.tokens.prefix_hit_rate)} cached, {_alive(snapshot.activity.workers)}"
    )


def _alive(workers: Sequence[WorkerFigures]) -> str:
    return f"{workers_text(sum(worker.is_alive for worker in workers))} alive"


def _parts(snapshot: Snapshot) -> Iterator[RenderableType]:
    yield _headline(snapshot)
    yield _stages(snapshot)
    if snapshot.totals.domains:
        yield _domains(snapshot.totals)
    if snapshot.run.shards > 1:
        yield _shards(snapshot.totals)
    yield _cost(snapshot)
    if snapshot.failures:
        yield _failures(snapshot)


def _headline(snapshot: Snapshot) -> Text:
    run, tally, throughput = snapshot.run, snapshot.run.tally, snapshot.activity.throughput
    held = f", {count(tally.held)} held" if tally.held else ""
    text = Text.assemble(
        "Run ", (run.name, "bold"), " is ", (run.state, _COLOURS[run.state]), f"; {run.plan}\n"
    )
    text.append(f"{count(tally.total)} of {count(run.samples)} samples are finished: ")
    text.append(f"{count(tally.done)} done, {count(tally.failed)} failed{held}\n")
    if run.open_batches:
        text.append(
            f"{throughput.samples_per_second:.2f} samples/s, {short_count(throughput.tokens_per_second)} "
            f"tokens/s over the last {duration(throughput.seconds)}; ETA {duration(snapshot.eta_seconds)}\n"
        )
    batches = "batch" if run.running_batches == 1 else "batches"
    return text.append(f"{_alive(snapshot.activity.workers)}, {run.running_batches} {batches} running\n")


def _stages(snapshot: Snapshot) -> Table:
    counts = ("waiting", "running", "answers", "prompt tokens", "cached", "completion", "prefix hits")
    made = table("Samples in flight and answers, by stage", ["stage"], counts)
    for figures in snapshot.activity.stages:
        made.add_row(figures.stage, *_stage_cells([figures], snapshot.totals))
    made.add_section()
    made.add_row("all", *_stage_cells(snapshot.activity.stages, snapshot.totals))
    return made


def _stage_cells(stages: Sequence[StageFigures], totals: Totals) -> list[str]:
    names = {figures.stage for figures in stages}
    usages = [usage for usage in totals.usages if usage.stage in names]
    tokens = total_tokens(usages)
    counts = (
        sum(figures.waiting for figures in stages),
        sum(figures.running for figures in stages),
        sum(usage.answers for usage in usages),
        tokens.prompt,
        tokens.cached,
        tokens.completion,
    )
    return [*map(count, counts), percent(tokens.prefix_hit_rate if tokens.prompt else None)]


def _domains(totals: Totals) -> Table:
    made = table("Samples by domain", ["domain"], list(SampleState))
    for row in totals.domains:
        made.add_row(escape(row.domain or "(none)"), *(count(row.by_state[state]) for state in SampleState))
    return made


def _shards(totals: Totals) -> Table:
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


def _cost(snapshot: Snapshot) -> Text:
    cost, totals = snapshot.cost, snapshot.totals
    economy = totals.economy
    text = Text()
    if economy.samples:
        least = economy.minimum_per_sample
        text.append(f"Prompt tokens computed per sample: {economy.computed_per_sample:,.0f}; at the least, ")
        text.append("each prefix once: ")
        text.append(f"{'unknown, as nothing was cached' if least is None else f'{least:,.0f}'}\n")
    if totals.judged:
        text.append(f"Accepted captions: {count(snapshot.accepted)} of {count(totals.judged)} judged, ")
        text.append(f"{percent(snapshot.accepted / totals.judged)}\n")
    text.append(f"Worker time: {duration(cost.worker_seconds)}\n")
    text.append(f"Cost: {usd(cost.usd)}; per 100 samples {usd(snapshot.usd_per_100_samples)}; ")
    text.append(f"per accepted caption {usd(cost.per(snapshot.accepted))}\n")
    if cost.unpriced:
        text.append(f"No price is known for {', '.join(cost.unpriced)}: {_price_remedy(cost)}\n")
    return text


def _price_remedy(cost: Cost) -> str:
    if cost.prices.is_packaged:
        return f"copy {cost.prices.file}, add it there, and name the copy with --prices"
    return f"add it to {cost.prices.file}"


def _failures(snapshot: Snapshot) -> Group:
    made = table("Failed samples", ["kind"], ["samples"], "stages", "for example")
    for failure in snapshot.failures:
        stages = ", ".join(failure.stages)
        made.add_row(failure.kind, count(failure.count), stages, escape(failure.example))
    lines = [retry_line(snapshot.run, failure) for failure in snapshot.failures]
    # Not folded, so that users can copy them.
    typed = [Text(line, overflow="ignore", no_wrap=True) for line in lines if line]
    return Group(made, *([Text("To try them again:")] if typed else []), *typed)
