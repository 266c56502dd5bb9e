"""How far the router's confidence can be trusted: measured on samples whose domain is known, and put right.

The confidence of modern networks is mostly too high. One number, the temperature, puts it right without
changing any choice: each probability is raised to the power 1/T (Guo et al. 2017, "On Calibration of Modern
Neural Networks").
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import exp, log

from capflow_tasks.captioning.answers import softened
from capflow_tasks.errors import UserError, WorkflowError
from capflow_tasks.records import FinishedSample, Stage

#: A temperature from fewer samples says little.
FEWEST_SAMPLES = 50
_BINS = 10
#: The temperatures that are tried.
_COLDEST, _HOTTEST, _STEPS = 0.1, 10.0, 60
#: Below this a probability counts as so much, lest one wrong choice decides all.
_LEAST = 1e-6


@dataclass(frozen=True, slots=True)
class Routed:
    """One sample's probabilities by domain, as the model gave them, and its true domain."""

    shares: Mapping[str, float]
    truth: str

    def outcome(self, temperature: float) -> tuple[float, bool]:
        """Return the confidence in the likeliest domain, and whether that is the true one."""
        shares = softened(self.shares, temperature)
        likeliest = max(shares, key=shares.__getitem__)
        return shares[likeliest], likeliest == self.truth


@dataclass(frozen=True, slots=True)
class Bin:
    """Samples whose confidence is alike."""

    samples: int
    #: Means over them.
    confidence: float
    right: float


@dataclass(frozen=True, slots=True)
class Calibration:
    """The confidence before, and with the temperature that fits these samples best."""

    temperature: float
    #: By confidence, without and with the temperature.
    before: list[Bin]
    after: list[Bin]
    #: Expected calibration error: how far confidence and share of right choices are apart, on the mean.
    error_before: float
    #: Each half of the samples with the temperature of the other half.
    error_after: float


def labelled(samples: Iterable[FinishedSample], key: str, domain_named: Callable[[str], str]) -> list[Routed]:
    """Return the routed samples whose entry names their domain under the key. Raises UserError."""
    found: list[Routed] = []
    for sample in samples:
        label = sample.entry.get(key)
        shares = [result.data for result in sample.results if result.stage is Stage.ROUTE and result.data]
        if not (isinstance(label, str) and shares):
            continue
        try:
            found.append(Routed(shares[-1], domain_named(label)))
        except WorkflowError as error:
            raise UserError(f'sample {sample.index}: "{key}": {error}') from error
    if len(found) < FEWEST_SAMPLES:
        raise UserError(
            f'{len(found)} routed samples name their domain under "{key}", {FEWEST_SAMPLES} are the fewest; '
            "caption a plan of such entries without `task` with `--stages route`, or name another --label"
        )
    return found


def calibrate(samples: Sequence[Routed]) -> Calibration:
    halves = samples[::2], samples[1::2]
    fitted = [fit(half) for half in reversed(halves)]
    crossed = [each.outcome(heat) for half, heat in zip(halves, fitted, strict=True) for each in half]
    temperature = fit(samples)
    before = [each.outcome(1.0) for each in samples]
    return Calibration(
        temperature=round(temperature, 3),
        before=reliability(before),
        after=reliability([each.outcome(temperature) for each in samples]),
        error_before=calibration_error(before),
        error_after=calibration_error(crossed),
    )


def fit(samples: Sequence[Routed]) -> float:
    """Return the temperature with which the true domains are likeliest."""

    def surprise(temperature: float) -> float:
        return -sum(
            log(max(softened(each.shares, temperature).get(each.truth, 0.0), _LEAST)) for each in samples
        )

    low, high = log(_COLDEST), log(_HOTTEST)
    tried = [exp(low + (high - low) * step / _STEPS) for step in range(_STEPS + 1)]
    return min(tried, key=surprise)


def reliability(outcomes: Sequence[tuple[float, bool]]) -> list[Bin]:
    """Group outcomes by confidence, in ten equal steps from 0 to 1; steps without samples are left out."""
    steps: dict[int, list[tuple[float, bool]]] = {}
    for outcome in outcomes:
        steps.setdefault(min(int(outcome[0] * _BINS), _BINS - 1), []).append(outcome)
    return [_bin(steps[step]) for step in sorted(steps)]


def _bin(outcomes: Sequence[tuple[float, bool]]) -> Bin:
    count = len(outcomes)
    confidence, right = (sum(column) / count for column in zip(*outcomes, strict=True))
    return Bin(count, confidence, right)


def calibration_error(outcomes: Sequence[tuple[float, bool]]) -> float:
    apart = sum(each.samples * abs(each.confidence - each.right) for each in reliability(outcomes))
    return apart / len(outcomes)
