"""Estimates what a plan will cost and how long it will take, from the latest run with the same model."""

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace

from capflow_tasks.records import PlanShard, Stage
from capflow_tasks.settings import Settings
from capflow_tasks.store.figures import Rates, Tokens, Usage, total_tokens
from capflow_tasks.store.states import CandidatePolicy
from capflow_tasks.store.statistics import Statistics
from producer.console import counted, duration, short_count, usd
from producer.cost import Prices, cost_of

#: Runs that are looked at, the newest first.
_RUNS = 20


@dataclass(frozen=True, slots=True)
class PlanEstimate:
    """What the samples of a plan may take."""

    #: The run that tells it, its models, and how many workers it had.
    run: str
    models: Collection[str]
    workers: int
    samples: int
    seconds: float
    tokens: int
    #: None where a model has no price.
    usd: float | None

    def __str__(self) -> str:
        cost = f" and {usd(self.usd)}" if self.usd is not None else ""
        return (
            f"{counted(self.samples, 'sample')} may take {duration(self.seconds)}, "
            f"{short_count(self.tokens)} tokens{cost}, as run {self.run} did "
            f"({', '.join(sorted(self.models))}; {counted(self.workers, 'worker')})"
        )


def models_of(settings: Settings, stages: Sequence[Stage]) -> set[str] | None:
    """Return the models that will answer; None where only the fleet's workers know."""
    if not settings.knows_models:
        return None
    return {settings.model_of(settings.queue_of(stage)) for stage in stages}


def estimate(
    statistics: Statistics,
    shards: Sequence[PlanShard],
    left: int,
    asked: tuple[str, Sequence[Stage], CandidatePolicy],
    models: Collection[str] | None,
    prices: Prices,
) -> PlanEstimate | None:
    """Estimate what so many samples of the shards take; None where no earlier run tells it.

    A run tells it if its workflow, stages and candidates are those `asked` for, and its models the same,
    where they are known. Reads the results of 1,000 batches of one run.
    """
    for run in statistics.runs()[:_RUNS] if left else ():
        policy = CandidatePolicy(run.candidates, run.min_overall, run.token_budget)
        if not run.tally.done or (run.workflow, run.stages, policy) != asked:
            continue
        rates = statistics.rates(run.id)
        usages = [usage for domain in rates.domains for usage in domain.usages]
        used = {usage.model for usage in usages}
        if not usages or (models is not None and used != models):
            continue
        scaled = list(_scaled(rates, left, _shares(rates, shards)))
        tokens = total_tokens(scaled)
        return PlanEstimate(
            run=run.name,
            models=used,
            workers=len({usage.worker for usage in usages}),
            samples=left,
            seconds=rates.fleet_seconds * left / rates.samples,
            tokens=tokens.prompt + tokens.completion,
            usd=cost_of(scaled, prices).usd,
        )
    return None


def _shares(rates: Rates, shards: Sequence[PlanShard]) -> dict[str | None, float]:
    """Return each domain's share of the samples: as shards' tasks say, the rest as in that run."""
    named = Counter[str | None]()
    known = {domain.name for domain in rates.domains}
    for shard in shards:
        named[shard.task if shard.task in known else None] += shard.sample_count
    total, rest = named.total(), named.pop(None, 0)
    return {
        domain.name: (named[domain.name] + rest * domain.samples / rates.samples) / total
        for domain in rates.domains
    }


def _scaled(rates: Rates, samples: int, shares: dict[str | None, float]) -> Iterator[Usage]:
    """Yield the usages as if so many samples had taken as much."""
    for domain in rates.domains:
        times = samples * shares[domain.name] / domain.samples
        for usage in domain.usages:
            counts = (usage.tokens.prompt, usage.tokens.cached, usage.tokens.completion)
            yield replace(
                usage,
                tokens=Tokens(*(round(count * times) for count in counts)),
                worked_seconds=usage.worked_seconds * samples / rates.samples,
            )
