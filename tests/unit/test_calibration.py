"""The router's confidence, measured and put right."""

import random

import pytest

from capflow_tasks.captioning.answers import softened
from capflow_tasks.errors import UserError
from producer.calibration import Routed, calibrate, calibration_error, fit, labelled, reliability


def routed(count: int, temperature: float, seed: int = 1) -> list[Routed]:
    """Draw samples of a router whose probabilities would be right at this temperature."""
    draw = random.Random(seed)
    found = []
    for _ in range(count):
        shares = softened({name: draw.random() for name in "ABC"}, 0.3)
        right = softened(shares, temperature)
        (truth,) = draw.choices(list(right), list(right.values()))
        found.append(Routed(shares, truth))
    return found


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_the_temperature_is_found(temperature: float) -> None:
    assert fit(routed(3000, temperature)) == pytest.approx(temperature, rel=0.15)


def test_confidence_that_was_too_high_is_put_right_without_changing_a_choice() -> None:
    samples = routed(3000, 3.0)
    found = calibrate(samples)

    assert found.error_before > 0.1
    assert found.error_after < 0.03
    assert sum(each.samples for each in found.after) == 3000
    choices = [(each.outcome(1.0)[1], each.outcome(found.temperature)[1]) for each in samples]
    assert all(before == after for before, after in choices)


def test_the_error_is_the_mean_distance_of_confidence_and_share_of_right_choices() -> None:
    outcomes = [(0.92, True), (0.94, False), (0.55, True), (0.51, True)]
    low, high = reliability(outcomes)

    assert (low.samples, low.right) == (2, 1.0)
    assert high.confidence == pytest.approx(0.93)
    # by hand: half of the samples are 1 - 0.53 apart, the other half 0.93 - 0.5
    assert calibration_error(outcomes) == pytest.approx((0.47 + 0.43) / 2)


def test_too_few_labelled_samples_are_refused_with_what_helps() -> None:
    with pytest.raises(UserError, match=r'0 routed samples name their domain under "label".*--stages route'):
        labelled([], "label", str)
