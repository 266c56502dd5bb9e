"""A snapshot as a JSON object, for programs. Units are in the names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from capflow_tasks.records import JsonObject
from capflow_tasks.state import BatchState
from capflow_tasks.store.figures import RunFigures, StageFigures, Tokens, WorkerFigures, grade_histograms
from producer.status.cost import Cost
from producer.status.remedies import retry_line
from producer.status.snapshot import Details, Snapshot


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
