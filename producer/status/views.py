"""The commands to type next, for a run as it was started."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from capflow_tasks.errors import BadEntry
from capflow_tasks.records import JsonObject, Stage
from capflow_tasks.store.figures import (
    FailureKind,
    RunFigures,
    RunState,
    StageFigures,
    Tokens,
    WorkerFigures,
    grade_histograms,
)
from capflow_tasks.store.states import BatchState, SampleState
from producer.amounts import count, duration, percent, short_count, usd
from producer.run import name_of_run
from producer.status.cost import Cost
from producer.status.snapshot import Details, Snapshot

#: What `--output` is when nobody gives it, seen from the working directory.
_DEFAULT_OUTPUT = Path("Output/Caption")


def retry_line(run: RunFigures, failure: FailureKind) -> str | None:
    """The capflow-retry that tries these failures again; None where no retry can help or be typed.

    It says again what the run was asked for: a retry with other stages would broaden the run.
    """
    if failure.kind == BadEntry.kind or run.stages == (Stage.SCORE,):
        # An entry is to be mended first; what capflow-score made has no plan.
        return None
    words = ["capflow-retry", run.plan, "--kind", failure.kind]
    if run.name != name_of_run(Path(run.plan)):
        words += ["--run", run.name]
    if Path(run.output) != _DEFAULT_OUTPUT.absolute():
        words += ["--output", run.output]
    if run.stages != tuple(Stage):
        words += ["--stages", ",".join(run.stages)]
    if run.min_confidence:
        words += ["--min-confidence", f"{run.min_confidence:g}"]
    if run.pin_ranks:
        words.append("--pin-ranks")
    return shlex.join(words)


def runs_document(runs: Sequence[RunFigures], workers: Sequence[WorkerFigures]) -> JsonObject:
    """All runs in short."""
    return {"runs": [_run(run) for run in runs], "workers": _workers(workers)}


def document(snapshot: Snapshot) -> JsonObject:
    run, pace, details = snapshot.run, snapshot.pace, snapshot.details
    return {
        **_run(run),
        "eta_seconds": _rounded(snapshot.eta_seconds),
        "pace": {
            "seconds": _rounded(pace.seconds),
            "samples_per_second": _rounded(pace.samples_per_second),
            "tokens_per_second": _rounded(pace.tokens_per_second),
            "prefix_hit_rate": _rounded(pace.tokens.prefix_hit_rate),
        },
        "workers": _workers(snapshot.workers),
        "by_shard": [_flat(shard) for shard in details.shards],
        "by_domain": [{"domain": each.domain, **each.by_state} for each in details.domains],
        "by_stage": [_stage(stage, details) for stage in snapshot.stages],
        "tokens": _tokens(details.tokens)
        | {
            "computed_prompt_per_sample": _rounded(details.economy.computed_per_sample),
            "minimum_prompt_per_sample": _rounded(details.economy.minimum_per_sample),
        },
        "grades": {
            "judged": details.judged,
            "accepted": snapshot.accepted,
            "histograms": grade_histograms(details.grades),
        },
        "cost": _cost(snapshot),
        "failures": [{**asdict(each), "retry": retry_line(run, each)} for each in snapshot.failures],
    }


def _run(run: RunFigures) -> JsonObject:
    shown = _flat(run)
    del shown["id"]
    return shown | {
        "state": run.state,
        "remaining": run.remaining,
        "created_at": run.created_at.isoformat(timespec="seconds"),
    }


def _flat(figures: Any) -> JsonObject:
    """The fields, with those of the tally among them."""
    fields: JsonObject = asdict(figures)
    tally: JsonObject = fields.pop("tally")
    return fields | tally


def _stage(figures: StageFigures, details: Details) -> JsonObject:
    usages = [usage for usage in details.usages if usage.stage is figures.stage]
    return {
        "stage": figures.stage,
        **{state: figures.by_state[state] for state in BatchState if state in figures.by_state},
        "answers": sum(usage.answers for usage in usages),
        "seconds": _rounded(sum(usage.seconds for usage in usages)),
        **_tokens(sum((usage.tokens for usage in usages), Tokens())),
    }


def _tokens(tokens: Tokens) -> JsonObject:
    return {
        "prompt_tokens": tokens.prompt,
        "cached_tokens": tokens.cached,
        "completion_tokens": tokens.completion,
        "prefix_hit_rate": _rounded(tokens.prefix_hit_rate),
    }


def _workers(workers: Sequence[WorkerFigures]) -> list[Mapping[str, Any]]:
    return [
        asdict(worker)
        | {
            "started_at": worker.started_at.isoformat(timespec="seconds"),
            "silent_seconds": _rounded(worker.silent_seconds),
        }
        for worker in workers
    ]


def _cost(snapshot: Snapshot) -> JsonObject:
    cost: Cost = snapshot.cost
    return {
        "usd": cost.usd,
        "usd_per_100_samples": snapshot.usd_per_100_samples,
        "usd_per_accepted_caption": cost.per(snapshot.accepted),
        "models": [
            {"model": each.model, "usd": each.usd, "worker_seconds": _rounded(each.worker_seconds)}
            for each in cost.models
        ],
        "unpriced_models": cost.unpriced,
        "prices": cost.prices_file,
    }


def _rounded(number: float | None) -> float | None:
    return None if number is None else round(number, 4)


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
    table = _table(None, ("run", "state"), ("samples", "done", "failed", "held", "remain"), "begun")
    for run in runs:
        numbers = (run.samples, run.tally.done, run.tally.failed, run.tally.held, run.remaining)
        begun = run.created_at.astimezone().strftime("%Y-%m-%d %H:%M")
        table.add_row(escape(run.name), _state(run.state), *map(count, numbers), begun)
    return Group(table, workers_words(workers))


def runs_line(runs: Sequence[RunFigures], workers: Sequence[WorkerFigures]) -> str:
    """The same in one line, for logs: what is not done."""
    words = [f"{run.name} {run.state} {run.tally.total}/{run.samples}" for run in runs if run.is_open]
    return f"{'; '.join(words) or 'no run is open'}; {workers_words(workers)}"


def snapshot_tables(snapshot: Snapshot) -> RenderableType:
    """Everything about one run."""
    return Group(*_parts(snapshot))


def snapshot_line(snapshot: Snapshot) -> str:
    """The same in one line, for logs."""
    run, pace = snapshot.run, snapshot.pace
    return (
        f"{run.name} {run.state}: {run.tally.total}/{run.samples} samples, {run.tally.failed} failed, "
        f"{pace.samples_per_second:.1f} samples/s, ETA {duration(snapshot.eta_seconds)}, "
        f"{short_count(pace.tokens_per_second)} tokens/s, {percent(pace.tokens.prefix_hit_rate)} cached, "
        f"{workers_words(snapshot.workers)}"
    )


def workers_words(workers: Sequence[WorkerFigures]) -> str:
    alive = sum(worker.is_alive for worker in workers)
    return f"{alive} {'worker' if alive == 1 else 'workers'} alive"


def _parts(snapshot: Snapshot) -> Iterator[RenderableType]:
    yield _headline(snapshot)
    yield _stages(snapshot)
    if snapshot.details.domains:
        yield _domains(snapshot.details)
    if snapshot.run.shards > 1:
        yield _shards(snapshot)
    yield _expense(snapshot)
    if snapshot.failures:
        yield _failures(snapshot)


def _headline(snapshot: Snapshot) -> Text:
    run, tally = snapshot.run, snapshot.run.tally
    held = f", {count(tally.held)} held" if tally.held else ""
    text = Text.assemble(
        "Run ", (run.name, "bold"), " is ", (run.state, _COLOURS[run.state]), f"; {run.plan}\n"
    )
    text.append(f"{count(tally.total)} of {count(run.samples)} samples have come to their end: ")
    text.append(f"{count(tally.done)} done, {count(tally.failed)} failed{held}\n")
    if run.open_batches:
        text.append(f"{_pace_words(snapshot)}\n")
    return text.append(f"{workers_words(snapshot.workers)}, {run.running_batches} batches running\n")


def _pace_words(snapshot: Snapshot) -> str:
    pace = snapshot.pace
    return (
        f"{pace.samples_per_second:.2f} samples/s, {short_count(pace.tokens_per_second)} tokens/s "
        f"over the last {duration(pace.seconds)}; ETA {duration(snapshot.eta_seconds)}"
    )


def _stages(snapshot: Snapshot) -> Table:
    counts = ("waiting", "running", "answers", "prompt tokens", "cached", "completion", "prefix hits")
    table = _table("Samples in flight and answers, by stage", ["stage"], counts)
    for figures in snapshot.stages:
        table.add_row(figures.stage, *_stage_cells([figures], snapshot.details))
    table.add_section()
    table.add_row("all", *_stage_cells(snapshot.stages, snapshot.details))
    return table


def _stage_cells(stages: Sequence[StageFigures], details: Details) -> list[str]:
    names = {figures.stage for figures in stages}
    usages = [usage for usage in details.usages if usage.stage in names]
    tokens = sum((usage.tokens for usage in usages), Tokens())
    counts = (
        sum(figures.waiting for figures in stages),
        sum(figures.running for figures in stages),
        sum(usage.answers for usage in usages),
        tokens.prompt,
        tokens.cached,
        tokens.completion,
    )
    return [*map(count, counts), percent(tokens.prefix_hit_rate if tokens.prompt else None)]


def _domains(details: Details) -> Table:
    table = _table("Samples by domain", ["domain"], list(SampleState))
    for row in details.domains:
        table.add_row(escape(row.domain or "(none)"), *(count(row.by_state[state]) for state in SampleState))
    return table


def _shards(snapshot: Snapshot) -> Table:
    shards = sorted(snapshot.details.shards, key=lambda shard: shard.tally.total >= shard.samples)
    hidden = len(shards) - _SHOWN_SHARDS
    counts = ("shard", "rank", "samples", "in flight", "done", "failed", "held")
    table = _table("Samples by shard", ["dataset"], counts)
    table.caption = f"and {hidden} more: --json has all" if hidden > 0 else None
    for shard in shards[:_SHOWN_SHARDS]:
        tally = shard.tally
        numbers = (shard.samples, shard.in_flight, tally.done, tally.failed, tally.held)
        place = f"{shard.shard_index}/{shard.num_shards}"
        table.add_row(escape(shard.dataset), place, str(shard.assign_rank), *map(count, numbers))
    return table


def _expense(snapshot: Snapshot) -> Text:
    cost, details = snapshot.cost, snapshot.details
    economy = details.economy
    text = Text()
    if economy.samples:
        text.append(f"Prompt tokens computed per sample: {economy.computed_per_sample:,.0f}; ")
        text.append(f"at the least, each prefix once: {_whole(economy.minimum_per_sample)}\n")
    if details.judged:
        text.append(f"Accepted captions: {count(snapshot.accepted)} of {count(details.judged)} judged, ")
        text.append(f"{percent(snapshot.accepted / details.judged)}\n")
    text.append(f"Worker time: {duration(cost.worker_seconds)}\n")
    text.append(f"Cost: {usd(cost.usd)}; per 100 samples {usd(snapshot.usd_per_100_samples)}; ")
    text.append(f"per accepted caption {usd(cost.per(snapshot.accepted))}\n")
    if cost.unpriced:
        text.append(f"No price is known for {', '.join(cost.unpriced)}: {_price_remedy(cost)}\n")
    return text


def _whole(number: float | None) -> str:
    return "unknown, as nothing was cached" if number is None else f"{number:,.0f}"


def _price_remedy(cost: Cost) -> str:
    if cost.is_packaged:
        return f"copy {cost.prices_file}, add it there, and name the copy with --prices"
    return f"add it to {cost.prices_file}"


def _failures(snapshot: Snapshot) -> Group:
    table = _table("Failed samples", ["kind"], ["samples"], "stages", "for example")
    for failure in snapshot.failures:
        stages = ", ".join(failure.stages)
        table.add_row(failure.kind, count(failure.count), stages, escape(failure.example))
    lines = [retry_line(snapshot.run, failure) for failure in snapshot.failures]
    # Not folded: it is there to be copied.
    typed = [Text(line, overflow="ignore", no_wrap=True) for line in lines if line]
    return Group(table, *([Text("To try them again:")] if typed else []), *typed)


def _table(title: str | None, texts: Sequence[str], numbers: Sequence[str], *last: str) -> Table:
    table = Table(title=title, title_justify="left", caption_justify="left")
    for name in texts:
        table.add_column(name, overflow="fold")
    for name in numbers:
        table.add_column(name, justify="right")
    for name in last:
        table.add_column(name, overflow="fold")
    return table


def _state(state: RunState) -> Text:
    return Text(state, _COLOURS[state])
