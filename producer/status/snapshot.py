"""What is known of one run at one moment, and the same as a JSON object."""

import shlex
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from time import monotonic
from typing import Any

from capflow_tasks.errors import REFUSED_KINDS
from capflow_tasks.records import JsonObject, Stage, rounded
from capflow_tasks.store import figures
from capflow_tasks.store.statistics import Statistics
from producer.cost import Cost, Prices, cost_of
from producer.reading.caption_files import NO_DOMAIN, Minimums, Scores

#: The share of time that may be spent on the slow questions.
_SHARE_OF_TIME = 0.05


@dataclass(frozen=True, slots=True)
class Kept:
    """How many captions are good enough, and what they took."""

    #: Captions that a judge has graded, and those with at least the grades that are asked for.
    judged: int
    accepted: int
    #: Of all prompts and answers.
    tokens: int

    @property
    def rate(self) -> float | None:
        return self.accepted / self.judged if self.judged else None

    @property
    def tokens_per_accepted(self) -> float | None:
        return self.tokens / self.accepted if self.accepted else None


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One run at one moment."""

    run: figures.RunFigures
    activity: figures.Activity
    failures: Sequence[figures.FailureKind]
    totals: figures.Totals
    kept: Kept
    #: The same with the first caption of each sample alone.
    first_kept: Kept
    cost: Cost

    @property
    def accepted(self) -> int:
        return self.kept.accepted

    @property
    def eta_seconds(self) -> float | None:
        """None where no sample was finished lately."""
        return self.activity.eta_seconds(self.run.remaining)

    @property
    def usd_per_100_samples(self) -> float | None:
        each = self.cost.per(self.run.tally.done)
        return None if each is None else 100 * each


def snapshots(
    statistics: Statistics, run_id: int, prices: Prices, minimums: Minimums, lease_seconds: float
) -> Iterator[Snapshot]:
    """Yield what is known of the run, each time it is asked for.

    The longer the slow questions take, the less often they are asked.
    """
    totals, next_totals_at = None, 0.0
    while True:
        (run,) = statistics.runs(run_id=run_id)
        began = monotonic()
        if totals is None or began >= next_totals_at:
            totals = statistics.totals(run_id)
            next_totals_at = monotonic() + (monotonic() - began) / _SHARE_OF_TIME
        yield Snapshot(
            run=run,
            activity=statistics.activity(run_id, lease_seconds),
            failures=statistics.failures(run_id),
            totals=totals,
            kept=kept_of(totals, minimums),
            first_kept=first_kept_of(totals, minimums),
            cost=cost_of(totals.usages, prices),
        )


def kept_of(totals: figures.Totals, minimums: Minimums) -> Kept:
    tokens = figures.total_tokens(totals.usages)
    return Kept(totals.judged, accepted_of(totals.grades, minimums), tokens.prompt + tokens.completion)


def first_kept_of(totals: figures.Totals, minimums: Minimums) -> Kept:
    """Return the same as if no caption had been written again."""
    kept = kept_of(totals, minimums)
    if not totals.further:
        return kept
    spent = sum((each.tokens for each in totals.further), figures.Tokens())
    judged = sum(each.count for each in totals.first_grades)
    accepted = accepted_of(totals.first_grades, minimums)
    return Kept(judged, accepted, kept.tokens - spent.prompt - spent.completion)


def accepted_of(grades: Sequence[figures.GradeCount], minimums: Minimums) -> int:
    """How many captions are good enough."""
    return sum(
        each.count
        for each in grades
        if not minimums.missed(Scores(each.domain or NO_DOMAIN, {**each.dimensions, "overall": each.overall}))
    )


def retry_line(run: figures.RunFigures, failure: figures.FailureKind) -> str | None:
    """Return the command that tries these failures again; None where a retry is useless."""
    is_scoring = Stage.SCORE in run.stages and Stage.SUMMARIZE not in run.stages
    if failure.kind in REFUSED_KINDS or is_scoring:
        # A bad entry must be corrected first; `capflow score` itself tries failures again.
        return None
    return shlex.join(["capflow", "retry", run.name, "--kind", failure.kind])


def runs_document(runs: Sequence[figures.RunFigures], workers: Sequence[figures.WorkerFigures]) -> JsonObject:
    """All runs in short."""
    return {"runs": [_run(run) for run in runs], "workers": _workers(workers)}


def run_document(snapshot: Snapshot) -> JsonObject:
    run, totals, cost = snapshot.run, snapshot.totals, snapshot.cost
    activity, throughput = snapshot.activity, snapshot.activity.throughput
    return {
        **_run(run),
        "eta_seconds": rounded(snapshot.eta_seconds),
        "pace": {
            "seconds": rounded(throughput.seconds),
            "samples_per_second": rounded(throughput.samples_per_second),
            "tokens_per_second": rounded(throughput.tokens_per_second),
            "prefix_hit_rate": rounded(throughput.tokens.prefix_hit_rate),
        },
        "workers": _workers(activity.workers),
        "by_shard": [_flat(shard) for shard in totals.shards],
        "by_domain": [{"domain": each.domain, **each.by_state} for each in totals.domains],
        "by_stage": [_stage(stage, totals.usages) for stage in activity.stages],
        "by_model": [
            _model(model, totals.usages) for model in sorted({each.model for each in totals.usages})
        ],
        "tokens": _tokens(figures.total_tokens(totals.usages))
        | {
            "computed_prompt_per_sample": rounded(totals.economy.computed_per_sample),
            "minimum_prompt_per_sample": rounded(totals.economy.minimum_per_sample),
        },
        "grades": {
            "judged": totals.judged,
            "accepted": snapshot.accepted,
            "histograms": figures.grade_histograms(totals.grades),
            "own_judges": figures.own_judges(totals.usages),
        },
        "guard": [_guard(each) for each in totals.guard],
        "text": _text(totals.text),
        "claims": _claims(totals.claims),
        "written_again": {
            "captions": [
                {"candidate": each.candidate, "samples": each.samples, **_tokens(each.tokens)}
                for each in totals.further
            ],
            "first": _kept(snapshot.first_kept),
            "best": _kept(snapshot.kept),
        },
        "cost": {
            "usd": cost.usd,
            "usd_per_100_samples": snapshot.usd_per_100_samples,
            "usd_per_accepted_caption": cost.per(snapshot.accepted),
            "models": [
                {
                    "model": each.model,
                    "usd": each.usd,
                    "worker_seconds": rounded(each.worker_seconds),
                    "gpu_seconds": rounded(each.gpu_seconds),
                }
                for each in cost.models
            ],
            "unpriced_models": cost.unpriced,
            "prices": cost.prices.file,
        },
        "failures": [{**asdict(each), "retry": retry_line(run, each)} for each in snapshot.failures],
    }


def _run(run: figures.RunFigures) -> JsonObject:
    shown = _flat(run)
    # `state` says it.
    del shown["id"], shown["is_stopped"]
    return shown | {
        "state": run.state,
        "remaining": run.remaining,
        "created_at": run.created_at.isoformat(timespec="seconds"),
    }


def _flat(values: Any) -> JsonObject:
    """The fields, with those of the tally among them."""
    fields: JsonObject = asdict(values)
    tally: JsonObject = fields.pop("tally")
    return fields | tally


def _stage(stage: figures.StageFigures, usages: Sequence[figures.Usage]) -> JsonObject:
    own = [usage for usage in usages if usage.stage is stage.stage]
    return {
        "stage": stage.stage,
        **{str(state): count for state, count in stage.by_state.items()},
        "answers": sum(usage.answers for usage in own),
        "seconds": rounded(sum(usage.seconds for usage in own)),
        **_tokens(figures.total_tokens(own)),
    }


def _model(model: str, usages: Sequence[figures.Usage]) -> JsonObject:
    own = [usage for usage in usages if usage.model == model]
    return {
        "model": model,
        "answers": sum(usage.answers for usage in own),
        **_tokens(figures.total_tokens(own)),
    }


def _guard(found: figures.GuardCount) -> JsonObject:
    tokens = found.tokens
    return {
        "agent": found.agent,
        "rule": found.rule,
        "outcome": found.outcome,
        "answers": found.answers,
        "prompt_tokens": tokens.prompt,
        "cached_tokens": tokens.cached,
        "completion_tokens": tokens.completion,
    }


def _text(text: figures.TextFigures | None) -> JsonObject | None:
    if text is None:
        return None
    shares = {"quote_support": text.quote_support, "text_coverage": text.text_coverage}
    return asdict(text) | {name: rounded(share) for name, share in shares.items()}


def _claims(claims: figures.ClaimFigures | None) -> JsonObject | None:
    return {**asdict(claims), "tokens": _tokens(claims.tokens)} if claims else None


def _kept(kept: Kept) -> JsonObject:
    return {
        **asdict(kept),
        "keep_rate": rounded(kept.rate),
        "tokens_per_accepted": rounded(kept.tokens_per_accepted),
    }


def _tokens(tokens: figures.Tokens) -> JsonObject:
    return {
        "prompt_tokens": tokens.prompt,
        "cached_tokens": tokens.cached,
        "completion_tokens": tokens.completion,
        "prefix_hit_rate": rounded(tokens.prefix_hit_rate),
    }


def _workers(workers: Sequence[figures.WorkerFigures]) -> list[JsonObject]:
    return [
        asdict(worker)
        | {
            "started_at": worker.started_at.isoformat(timespec="seconds"),
            "silent_seconds": rounded(worker.silent_seconds),
        }
        for worker in workers
    ]
