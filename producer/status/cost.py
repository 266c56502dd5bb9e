"""What a run has cost so far: tokens at their price, or the hours of the GPUs that were at it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from capflow_tasks.store.figures import Tokens, Usage, worker_spans
from producer.status.prices import GpuPrice, Price, Prices


@dataclass(frozen=True, slots=True)
class ModelCost:
    """What one model's answers cost."""

    model: str
    tokens: Tokens
    #: From each worker's first request to its last answer, summed over the workers.
    worker_seconds: float
    price: Price | None

    @property
    def usd(self) -> float | None:
        """None where no price is known."""
        match self.price:
            case None:
                return None
            case GpuPrice():
                return self.worker_seconds * self.price.usd_per_worker_second
            case price:
                tokens = self.tokens
                prompts = tokens.computed * price.prompt + tokens.cached * price.cached
                return prompts + tokens.completion * price.completion


@dataclass(frozen=True, slots=True)
class Cost:
    """What a run cost."""

    models: Sequence[ModelCost]
    #: The price table, and whether it is the one that is shipped.
    prices_file: str
    is_packaged: bool

    @property
    def worker_seconds(self) -> float:
        return sum(each.worker_seconds for each in self.models)

    @property
    def unpriced(self) -> list[str]:
        """Models that have no price."""
        return [each.model for each in self.models if each.usd is None]

    @property
    def usd(self) -> float | None:
        """None before the first answer, and where a model has no price: half a sum misleads."""
        parts = [each.usd for each in self.models]
        known = [part for part in parts if part is not None]
        return sum(known) if parts and len(known) == len(parts) else None

    def per(self, count: int) -> float | None:
        """USD for each of so many; None where nobody can say."""
        return self.usd / count if self.usd is not None and count else None


def cost_of(usages: Iterable[Usage], prices: Prices) -> Cost:
    usages = list(usages)
    spans = worker_spans(usages)
    models = sorted({usage.model for usage in usages})
    return Cost(
        [
            ModelCost(
                model=model,
                tokens=sum((usage.tokens for usage in usages if usage.model == model), Tokens()),
                worker_seconds=sum(span.seconds for span in spans if span.model == model),
                price=prices.of(model),
            )
            for model in models
        ],
        prices.file,
        prices.is_packaged,
    )
