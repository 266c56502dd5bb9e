"""What answers about known scenes are worth; used on any engine's answers."""

from collections import Counter
from collections.abc import Mapping, Sequence

from producer.evaluation.measures import Overlap as Overlap
from world.facts import Scene, read


def overlap(caption: str, scene: Scene) -> Overlap:
    """Count the statements of a caption that are facts of the scene, word for word."""
    said, true = Counter(read(caption)), Counter(map(str, scene.facts))
    return Overlap((said & true).total(), said.total(), true.total())


def calibration_error(
    probabilities: Sequence[Mapping[str, float]], truths: Sequence[str], bins: int = 10
) -> float:
    """Return the expected calibration error: how far confidence is from accuracy, by ranges of confidence."""
    sums = [[0.0, 0.0, 0] for _ in range(bins)]
    for each, truth in zip(probabilities, truths, strict=True):
        best = max(each, key=each.__getitem__)
        found = sums[min(int(each[best] * bins), bins - 1)]
        found[0] += each[best]
        found[1] += best == truth
        found[2] += 1
    return sum(abs(confidence - right) for confidence, right, _ in sums) / len(truths)


def area_under_curve(good: Sequence[float], bad: Sequence[float]) -> float:
    """Return the chance that a good one has the higher score than a bad one, a tie counting half."""
    wins = sum((high > low) + (high == low) / 2 for high in good for low in bad)
    return wins / (len(good) * len(bad))
