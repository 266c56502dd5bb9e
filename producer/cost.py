"""What a run has cost so far: the price of its tokens, or of the GPU hours of its workers."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, StringConstraints, model_validator

from capflow_tasks.domains.yaml_file import Keys, read_yaml
from capflow_tasks.errors import SettingsError
from capflow_tasks.store.figures import Tokens, Usage, gpu_seconds, total_tokens, worker_seconds

#: Stands for every model that has no entry of its own.
ANY_MODEL = "*"

_Name = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]
_Usd = Annotated[float, Field(ge=0, allow_inf_nan=False)]
_Gpus = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Price(Keys):
    """The price of one model: of its tokens, or of its GPU."""

    #: USD per million tokens.
    prompt: _Usd | None = None
    #: As `prompt` where nothing is said.
    cached: _Usd | None = None
    completion: _Usd | None = None
    gpu: _Name | None = None
    #: As each worker has noted where nothing is said.
    gpus_per_worker: _Gpus | None = None

    @model_validator(mode="after")
    def _check_kind(self) -> Self:
        has_tokens = any(price is not None for price in (self.prompt, self.cached, self.completion))
        has_gpus = self.gpu is not None or self.gpus_per_worker is not None
        if has_tokens and has_gpus:
            raise ValueError("has prices of tokens and a gpu; keep one of the two")
        if has_gpus and self.gpu is None:
            raise ValueError("gpus_per_worker without gpu; add the gpu's name")
        if not has_gpus and (self.prompt is None or self.completion is None):
            raise ValueError("expected prompt and completion (USD per million tokens), or gpu; add them")
        return self

    def tokens_usd(self, tokens: Tokens) -> float:
        prompt, completion = self.prompt or 0.0, self.completion or 0.0
        cached = prompt if self.cached is None else self.cached
        return (tokens.computed * prompt + tokens.cached * cached + tokens.completion * completion) / 1e6


class _Table(Keys):
    #: USD per hour.
    gpus: dict[_Name, _Usd] = Field(default_factory=dict)
    models: dict[_Name, Price] = Field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Prices:
    file: str
    #: Whether the file is the one that Capflow ships.
    is_packaged: bool
    #: USD per hour.
    gpus: dict[str, float]
    models: dict[str, Price]

    @property
    def own_file(self) -> str | None:
        """The absolute path of the file; None for the packaged one."""
        return None if self.is_packaged else str(Path(self.file).absolute())

    def of(self, model: str) -> Price | None:
        """By the whole name, else by the last part of a path or hub name, else any model's."""
        last_part = model.rstrip("/").rpartition("/")[2]
        names = (name for name in (model, last_part, ANY_MODEL) if name in self.models)
        return self.models.get(next(names, ANY_MODEL))

    def usd(self, model: str, usages: Sequence[Usage]) -> float | None:
        """What the model's tokens or GPU-hours cost; None without a price."""
        price = self.of(model)
        if price is None:
            return None
        if price.gpu is None:
            return price.tokens_usd(total_tokens(usages))
        held = gpu_seconds(usages)
        if price.gpus_per_worker is not None:
            held = worker_seconds(usages) * price.gpus_per_worker
        return held / 3600 * self.gpus[price.gpu]


def read_prices(path: Path | None = None) -> Prices:
    """The packaged table, overridden by the one at `path`. Raises SettingsError with a line per fault."""
    packaged = files("producer") / "prices.yaml"
    shipped = read_yaml(packaged, _Table, SettingsError)
    own = read_yaml(path, _Table, SettingsError) if path else _Table()
    file = path or packaged
    gpus, models = shipped.gpus | own.gpus, shipped.models | own.models
    if unknown := {name: price.gpu for name, price in models.items() if price.gpu and price.gpu not in gpus}:
        raise SettingsError(
            "\n".join(
                f"{file}: models.{name}.gpu: no GPU {gpu!r}; add its price per hour under gpus, "
                f"or use one of: {', '.join(gpus)}"
                for name, gpu in unknown.items()
            )
        )
    return Prices(str(file), path is None, gpus, models)


@dataclass(frozen=True, slots=True)
class ModelCost:
    """What one model's answers cost."""

    model: str
    #: In which workers worked for the run, summed over the workers; and times the GPUs that each held.
    worker_seconds: float
    gpu_seconds: float
    #: None where no price is known.
    usd: float | None


@dataclass(frozen=True, slots=True)
class Cost:
    """What a run cost."""

    models: Sequence[ModelCost]
    prices: Prices

    @property
    def worker_seconds(self) -> float:
        return sum(each.worker_seconds for each in self.models)

    @property
    def unpriced(self) -> list[str]:
        """Models without a price."""
        return [each.model for each in self.models if each.usd is None]

    @property
    def usd(self) -> float | None:
        """None before the first answer, and where a model has no price: half a sum misleads."""
        known = [each.usd for each in self.models if each.usd is not None]
        return sum(known) if known and not self.unpriced else None

    def per(self, count: int) -> float | None:
        """USD for each of so many; None where it is unknown."""
        return self.usd / count if self.usd is not None and count else None


def cost_of(usages: Iterable[Usage], prices: Prices) -> Cost:
    by_model: dict[str, list[Usage]] = {}
    for usage in usages:
        by_model.setdefault(usage.model, []).append(usage)
    models = []
    for model, own in sorted(by_model.items()):
        models.append(ModelCost(model, worker_seconds(own), gpu_seconds(own), prices.usd(model, own)))
    return Cost(models, prices)
