"""The whole fleet with a real model, next to others that make the very same model calls.

All of them are up from the beginning; in each round the fleet captions pictures that nobody has seen, and
then every other replays the requests that this took.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from statistics import mean

from tests.benchmarks.claims import Bench, Measured
from tests.benchmarks.fleet import Fleet, fleet
from tests.benchmarks.ray_environment import RAY, ray_python
from tests.benchmarks.scene import Round, Scene
from tests.benchmarks.workload import Replayed, RivalProcess, rival

_SAMPLES, _ROUNDS = 16, 1
_WARM_UP_SAMPLES = 4
#: Of the round that two workers share; only tokens are counted in it.
_PAIR_SAMPLES = 8
#: The first to start finds nothing in the page cache, so it is not the bare engine, which is timed.
_RIVALS = {
    "static_batches": "vllm.LLM.generate, stage by stage, media last",
    "openai_client": "vLLM's server and an asyncio client",
    "bare": "the same engine and requests, no fleet",
}


@dataclass(slots=True)
class Contest:
    """What the fleet did round by round, and what each rival took for the same."""

    scene: Scene
    rounds: list[Round] = field(default_factory=list)
    replays: dict[str, list[Replayed]] = field(default_factory=lambda: {name: [] for name in _RIVALS})

    def play(self, running: Fleet, rivals: Mapping[str, RivalProcess]) -> None:
        warm_up = self.scene.play(running, "warm-up", _WARM_UP_SAMPLES)
        for other in rivals.values():
            other.replay(warm_up.samples)
        for number in range(_ROUNDS):
            self.rounds.append(self.scene.play(running, f"round{number}", _SAMPLES))
            for name, other in rivals.items():
                self.replays[name].append(other.replay(self.rounds[-1].samples))

    def against(self, name: str) -> Measured:
        return _against(self.rounds, self.replays[name], _RIVALS[name])

    def against_ray(self) -> Measured:
        """The last round alone, with nobody else up: Ray starts an engine at every replay."""
        try:
            python = str(ray_python())
        except RuntimeError as error:
            return Measured(None, str(error))
        last = self.rounds[-1]
        with rival("ray_data", self.scene.folder, self.scene.environment, python) as (other, _):
            replayed = other.replay(last.samples)
        return _against([last], [replayed], f"{RAY}, its start not counted, no call waits for another")

    def computed_over_minimum(self, pair: Round) -> Measured:
        """The larger of what one worker and two workers computed, over the least there is."""
        least = [self.scene.least_tokens(each.samples) for each in self.rounds]
        alone = sum(each.computed_tokens for each in self.rounds) / sum(least)
        together = pair.computed_tokens / self.scene.least_tokens(pair.samples)
        baseline = (
            f"each block of 128 tokens once: {sum(least) / _SAMPLES / _ROUNDS:.0f} tokens per sample; "
            f"1 worker {alone:.3f}, 2 workers {together:.3f}"
        )
        return Measured(max(alone, together), baseline)

    def busy_share(self) -> Measured:
        seconds = sum(each.seconds for each in self.rounds)
        busy = sum(each.busy_share * each.seconds for each in self.rounds)
        return Measured(busy / seconds, "none; share of the time in which vLLM holds a request")


def measure(bench: Bench) -> Mapping[str, Measured]:
    contest = Contest(Scene(bench.folder))
    with ExitStack() as stack:
        environment = contest.scene.environment
        running = stack.enter_context(fleet(bench.folder, environment))
        rivals: dict[str, RivalProcess] = {}
        for name in _RIVALS:
            rivals[name], bare_start = stack.enter_context(rival(name, bench.folder, environment))
        worker_start = running.add_workers(1)
        contest.play(running, rivals)
        running.add_workers(1)
        pair = contest.scene.play(running, "pair", _PAIR_SAMPLES)
    return {
        "fleet_over_bare": contest.against("bare"),
        "computed_over_minimum_prompt_tokens": contest.computed_over_minimum(pair),
        "engine_busy_share": contest.busy_share(),
        "over_static_batches": contest.against("static_batches"),
        "over_openai_client": contest.against("openai_client"),
        "over_ray_data": contest.against_ray(),
        "worker_start_over_bare": Measured(
            worker_start / bare_start, f"the engine alone: {bare_start:.1f} s from the start of its process"
        ),
    }


def _against(rounds: Sequence[Round], replays: Sequence[Replayed], name: str) -> Measured:
    """Samples per second over theirs, the mean of the rounds; and their computed prompt tokens over ours."""
    ratios = [theirs.seconds / ours.seconds for ours, theirs in zip(rounds, replays, strict=True)]
    rate = _SAMPLES * len(replays) / sum(each.seconds for each in replays)
    told = [each.computed_tokens for each in replays if each.computed_tokens is not None]
    tokens = sum(told) / sum(each.computed_tokens for each in rounds)
    return Measured(
        mean(ratios),
        f"{name}: {rate:.2f} samples/s, "
        + (f"{tokens:.2f} times our computed prompt tokens; " if told else "computed tokens not told; ")
        + f"rounds {', '.join(f'{ratio:.2f}' for ratio in ratios)}",
    )
