"""A run's status as one JSON object, and the command that tries its failures again."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from capflow_tasks.errors import BadEntry
from capflow_tasks.records import JsonObject, Stage
from capflow_tasks.store.figures import (
    FailureKind,
    RunFigures,
    StageFigures,
    Tokens,
    Usage,
    WorkerFigures,
    grade_histograms,
    total_tokens,
)
from producer.status.snapshot import Snapshot


def retry_line(run: RunFigures, failure: FailureKind) -> str | None:
    """Return the command that tries these failures again; None where a retry is useless."""
    is_scoring = Stage.SCORE in run.stages and Stage.SUMMARIZE not in run.stages
    if failure.kind == BadEntry.kind or is_scoring:
        # A bad entry must be corrected first; `capflow score` itself tries failures again.
        return None
    return shlex.join(["capflow", "retry", run.name, "--kind", failure.kind])


def runs_document(runs: Sequence[RunFigures], workers: Sequence[WorkerFigures]) -> JsonObject:
    """All runs in short."""
    return {"runs": [_run(run) for run in runs], "workers": _workers(workers)}


def run_document(snapshot: Snapshot) -> JsonObject:
    run, totals, cost = snapshot.run, snapshot.totals, snapshot.cost
    activity, throughput = snapshot.activity, snapshot.activity.throughput
    return {
        **_run(run),
        "eta_seconds": _rounded(snapshot.eta_seconds),
        "pace": {
            "seconds": _rounded(throughput.seconds),
            "samples_per_second": _rounded(throughput.samples_per_second),
            "tokens_per_second": _rounded(throughput.tokens_per_second),
            "prefix_hit_rate": _rounded(throughput.tokens.prefix_hit_rate),
        },
        "workers": _workers(activity.workers),
        "by_shard": [_flat(shard) for shard in totals.shards],
        "by_domain": [{"domain": each.domain, **each.by_state} for each in totals.domains],
        "by_stage": [_stage(stage, totals.usages) for stage in activity.stages],
        "tokens": _tokens(total_tokens(totals.usages))
        | {
            "computed_prompt_per_sample": _rounded(totals.economy.computed_per_sample),
            "minimum_prompt_per_sample": _rounded(totals.economy.minimum_per_sample),
        },
        "grades": {
            "judged": totals.judged,
            "accepted": snapshot.accepted,
            "histograms": grade_histograms(totals.grades),
        },
        "cost": {
            "usd": cost.usd,
            "usd_per_100_samples": snapshot.usd_per_100_samples,
            "usd_per_accepted_caption": cost.per(snapshot.accepted),
            "models": [
                {"model": each.model, "usd": each.usd, "worker_seconds": _rounded(each.worker_seconds)}
                for each in cost.models
            ],
            "unpriced_models": cost.unpriced,
            "prices": cost.prices.file,
        },
        "failures": [{**asdict(each), "retry": retry_line(run, each)} for each in snapshot.failures],
    }


def _run(run: RunFigures) -> JsonObject:
    shown = _flat(run)
    # `state` says it.
    del shown["id"], shown["is_stopped"]
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


def _stage(figures: StageFigures, usages: Sequence[Usage]) -> JsonObject:
    own = [usage for usage in usages if usage.stage is figures.stage]
    return {
        "stage": figures.stage,
        **{str(state): count for state, count in figures.by_state.items()},
        "answers": sum(usage.answers for usage in own),
        "seconds": _rounded(sum(usage.seconds for usage in own)),
        **_tokens(total_tokens(own)),
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


def _rounded(number: float | None) -> float | None:
    return None if number is None else round(number, 4)
