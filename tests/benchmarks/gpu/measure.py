"""The fleet on one GPU: samples per hour and what they took; and the scripts' way on the same card."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from capflow_tasks.records import Modality
from tests.benchmarks.claims import Goal, Measured
from tests.benchmarks.fleet import Fleet, fleet
from tests.benchmarks.gpu.card import CardWatch, watching
from tests.benchmarks.gpu.scene import GpuScene, Setup, Take
from tests.benchmarks.workload import rival

#: Samples per hour with the 72B model on one H200 (arXiv 2510.12126).
PUBLISHED = {("72b", Modality.IMAGE): 2542.0, ("72b", Modality.VIDEO): 245.0}
_RIVALS = {
    "static_batches": "vllm.LLM.generate, stage by stage, media last",
    "bare": "the same engine and requests, no fleet",
}


@dataclass(frozen=True, slots=True)
class Order:
    """What to measure of one kind of media."""

    #: The model and its tunings, as the claims are named.
    label: str
    kind: Modality
    #: At most so many samples,
    samples: int
    #: and no more than the warm-up says fit into this time.
    minutes: float
    rivals: Sequence[str]
    #: How many of the samples the rivals replay.
    rival_samples: int

    def claim(self, name: str) -> str:
        return f"{self.label}_{self.kind}{name}"

    @property
    def goals(self) -> dict[str, Goal]:
        """The claims in the table's order."""
        published = PUBLISHED.get((self.label.partition("+")[0], self.kind))
        goals = {
            "s_per_hour": Goal(published),
            "_prefix_hit_rate": Goal(),
            "_computed_over_minimum": Goal(1.1, is_ceiling=True),
            "_engine_busy_share": Goal(0.95),
            "_card_busy_share": Goal(),
            "_peak_gib": Goal(),
            **{f"_over_{name}": Goal(0.98 if name == "bare" else 1) for name in self.rivals},
        }
        return {self.claim(name): goal for name, goal in goals.items()}


def measure(folder: Path, setup: Setup, order: Order) -> Mapping[str, Measured]:
    """One engine at a time has the card: the fleet's first, then each rival's on what the fleet asked."""
    scene = GpuScene(folder, setup)
    with watching() as card:
        with fleet(folder, scene.environment) as running:
            running.add_workers(1)
            take = _take(scene, running, setup.in_flight, order)
        found = dict(_figures(scene, take, order.kind, card))
    for name in order.rivals:
        found[f"_over_{name}"] = _against(scene, take, name, order.rival_samples)
    return {order.claim(name): measured for name, measured in found.items()}


def _take(scene: GpuScene, running: Fleet, in_flight: int, order: Order) -> Take:
    warm_up = scene.play(running, f"warm-up-{order.kind}", order.kind, in_flight)
    affordable = round(warm_up.per_hour * order.minutes / 60)
    return scene.play(running, order.kind, order.kind, max(min(order.samples, affordable), 1))


def _figures(scene: GpuScene, take: Take, kind: Modality, card: CardWatch) -> Iterator[tuple[str, Measured]]:
    tokens, least, seconds = take.tokens, scene.least_tokens(kind, take), take.round.seconds
    ended = f"{take.samples} in {seconds:.0f} s, {take.failed} failed"
    sizes = f"{ended}; {card.name}; tokens per answer: {take.answer_tokens}"
    yield "s_per_hour", Measured(take.per_hour, sizes)
    prompts = f"of {tokens.prompt / take.samples:,.0f} prompt tokens per sample"
    yield "_prefix_hit_rate", Measured(tokens.prefix_hit_rate, prompts)
    ratio = take.round.computed_tokens / least
    yield "_computed_over_minimum", Measured(ratio, f"{least / take.samples:,.0f} tokens per sample")
    busy = "share of the time in which vLLM has a request"
    yield "_engine_busy_share", Measured(take.round.busy_share, busy)
    share = card.busy_share(take.round.start, take.round.end)
    yield "_card_busy_share", Measured(share, "nvidia-smi: share of the time in which a kernel runs")
    yield "_peak_gib", Measured(card.peak_gib(), "nvidia-smi; vLLM takes all it is allowed for its cache")


def _against(scene: GpuScene, take: Take, name: str, limit: int) -> Measured:
    """Samples per hour over theirs, for the same requests."""
    *others, last = take.round.samples
    samples = others[:limit] or [last]
    with rival(name, scene.folder, scene.environment) as other:
        other.wait_until_ready()
        # What is compiled at the first request is in nobody's time; then this sample is cached.
        other.replay([last])
        theirs = other.replay(samples)
    rate = len(samples) / theirs.seconds * 3600
    computed = f"{theirs.computed_tokens:,} of {theirs.prompt_tokens:,} prompt tokens computed"
    return Measured(take.per_hour / rate, f"{_RIVALS[name]}: {rate:,.0f} per hour, {computed}")
