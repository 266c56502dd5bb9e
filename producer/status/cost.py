"""What a run has cost so far: tokens at their price, or the hours of the GPUs that were at it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Annotated

from pydantic import Field, StringConstraints, model_validator

from capflow_tasks.domains.yaml_file import Keys, read_yaml
from capflow_tasks.errors import SettingsError
from capflow_tasks.store.figures import Tokens, Usage, worker_spans

#: Stands for every model that has no entry of its own.
ANY_MODEL = "*"

_MILLION = 1_000_000

_Name = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]
_Usd = Annotated[float, Field(ge=0, allow_inf_nan=False)]
_Gpus = Annotated[float, Field(gt=0, allow_inf_nan=False)]

_TOKEN_KEYS = ("prompt", "cached", "completion")
_GPU_KEYS = ("gpu", "gpus_per_worker")


class _Model(Keys):
    prompt: _Usd | None = None
    cached: _Usd | None = None
    completion: _Usd | None = None
    gpu: _Name | None = None
    gpus_per_worker: _Gpus | None = None

    @model_validator(mode="after")
    def _be_one_of_two(self) -> _Model:
        has_tokens = any(getattr(self, key) is not None for key in _TOKEN_KEYS)
        has_gpus = any(getattr(self, key) is not None for key in _GPU_KEYS)
        if has_tokens and has_gpus:
            raise ValueError("has prices of tokens and a gpu; keep one of the two")
        if has_gpus and self.gpu is None:
            raise ValueError("gpus_per_worker without gpu; add the gpu's name")
        if not has_gpus and (self.prompt is None or self.completion is None):
            raise ValueError("expected prompt and completion (USD per million tokens), or gpu; add them")
        return self


class _Table(Keys):
    gpus: dict[_Name, _Usd] = Field(default_factory=dict)
    models: dict[_Name, _Model] = Field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class TokenPrice:
    """USD per token."""

    prompt: float
    cached: float
    completion: float


@dataclass(frozen=True, slots=True)
class GpuPrice:
    gpu: str
    gpus_per_worker: float
    usd_per_gpu_hour: float

    @property
    def usd_per_worker_second(self) -> float:
        return self.usd_per_gpu_hour * self.gpus_per_worker / 3600


Price = TokenPrice | GpuPrice


@dataclass(frozen=True, slots=True)
class Prices:
    file: str
    #: Whether the file is the one that is shipped.
    is_packaged: bool
    models: Mapping[str, Price]

    def of(self, model: str) -> Price | None:
        """By the whole name, else by the last part of a path or hub name, else any model's."""
        last_part = model.rstrip("/").rpartition("/")[2]
        names = (name for name in (model, last_part, ANY_MODEL) if name in self.models)
        name = next(names, None)
        return None if name is None else self.models[name]


def read_prices(path: Path | None = None) -> Prices:
    """The table at `path` laid over the packaged one. Raises SettingsError with a line per fault."""
    packaged = files("producer.status") / "prices.yaml"
    ours = read_yaml(packaged, _Table, SettingsError)
    if path is None:
        return Prices(str(packaged), True, _priced(packaged, ours.gpus, ours.models))
    theirs = read_yaml(path, _Table, SettingsError)
    return Prices(str(path), False, _priced(path, ours.gpus | theirs.gpus, ours.models | theirs.models))


def _priced(file: Traversable, gpus: Mapping[str, float], models: Mapping[str, _Model]) -> dict[str, Price]:
    unknown = [name for name, model in models.items() if model.gpu is not None and model.gpu not in gpus]
    if unknown:
        raise SettingsError(
            "\n".join(
                f"{file}: models.{name}.gpu: no GPU {models[name].gpu!r}; add its price per hour under gpus, "
                f"or use one of: {', '.join(gpus)}"
                for name in unknown
            )
        )
    return {name: _price(model, gpus) for name, model in models.items()}


def _price(model: _Model, gpus: Mapping[str, float]) -> Price:
    if model.gpu is not None:
        return GpuPrice(model.gpu, model.gpus_per_worker or 1.0, gpus[model.gpu])
    prompt, completion = model.prompt or 0.0, model.completion or 0.0
    cached = prompt if model.cached is None else model.cached
    return TokenPrice(prompt / _MILLION, cached / _MILLION, completion / _MILLION)


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
