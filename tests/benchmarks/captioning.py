"""The whole fleet with a real model, compared with rivals that make the same model calls.

All but Ray are up from the beginning. The fleet captions new pictures, then each rival replays its requests.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from math import inf
from time import monotonic

from tests.benchmarks.claims import OUT_OF_TIME, Bench, Measured
from tests.benchmarks.fleet import Fleet, fleet
from tests.benchmarks.ray_environment import RAY, ray_python
from tests.benchmarks.scene import Round, Scene
from tests.benchmarks.workload import COUNT_FILE, ENGINE_PER_STAGE, Replayed, RivalProcess, rival

#: Samples of the round; without `--full` as many as one contender is likely to caption in this time.
_LEAST_SAMPLES, _FULL_SAMPLES = 12, 48
_ROUND_SECONDS = 60.0
#: When other studies need their time, too, no rival but the bare engine begins later than this.
_LAST_RIVAL_SECONDS = 7 * 60.0
#: Pictures that two workers share, to count tokens; each contender warms up with some of them.
_PAIR_SAMPLES, _WARM_UP_SAMPLES = 6, 1
_RIVALS = {
    "bare": "the same engine and requests, no fleet",
    "static_batches": "vllm.LLM.generate, stage by stage, media last",
    "openai_client": "vLLM's server and an asyncio client",
}


@dataclass(frozen=True, slots=True)
class Contest:
    """What the fleet did, and what each rival needed for the same."""

    scene: Scene
    #: The round of two workers.
    pair: Round
    #: The round of one worker.
    ours: Round
    #: What time allowed, the bare engine first.
    replays: dict[str, Replayed]

    def against(self, name: str) -> Measured:
        if name not in self.replays:
            return Measured(None, OUT_OF_TIME)
        return _against(self.ours, self.replays[name], _RIVALS[name])

    def against_ray(self, has_engine_per_stage: bool) -> Measured:
        """Compare with Ray, after the other rivals have stopped, because Ray starts its own engines."""
        if len(self.replays) < len(_RIVALS):
            return Measured(None, OUT_OF_TIME)
        try:
            python = str(ray_python())
        except RuntimeError as error:
            return Measured(None, str(error))
        environment = {**self.scene.environment, COUNT_FILE: str(self.scene.folder / "ray-tokens.json")}
        engines = "one engine for all stages"
        if has_engine_per_stage:
            environment |= {ENGINE_PER_STAGE: "1"}
            engines = "an engine for each stage"
        with rival("ray_data", self.scene.folder, environment, python) as other:
            other.wait_until_ready()
            replayed = other.replay(self.ours.samples)
        return _against(self.ours, replayed, f"{RAY}, {engines}, starts not counted")

    def computed_over_minimum(self) -> Measured:
        """Return what one worker or two workers computed over the least possible, the larger of the two."""
        least = self.scene.least_tokens(self.ours.samples)
        alone = self.ours.computed_tokens / least
        together = self.pair.computed_tokens / self.scene.least_tokens(self.pair.samples)
        baseline = (
            f"each block of 128 tokens once: {least / len(self.ours.samples):.0f} tokens per sample; "
            f"1 worker {alone:.3f}, 2 workers {together:.3f}"
        )
        return Measured(max(alone, together), baseline)

    def busy_share(self) -> Measured:
        what = "none; share of the time in which vLLM holds a request"
        closing = f"without {self.ours.closing_seconds:.1f} s for the export and the end of the command"
        return Measured(self.ours.busy_share, f"{what}; {self.ours.seconds:.1f} s, {closing}")


def measure(bench: Bench) -> Mapping[str, Measured]:
    last_start = inf if bench.is_alone else monotonic() + _LAST_RIVAL_SECONDS
    with ExitStack() as stack:
        scene = Scene(bench.folder)

        def rival_of(name: str) -> RivalProcess:
            return stack.enter_context(rival(name, scene.folder, scene.environment))

        running = stack.enter_context(fleet(scene.folder, scene.environment))
        # Start two at a time, one per core; the two that are compared start together.
        bare = rival_of("bare")
        worker_start = running.add_workers(1)
        bare_start = bare.wait_until_ready()
        others = {name: rival_of(name) for name in _RIVALS if name != "bare"}
        running.add_workers(1)
        for other in others.values():
            other.wait_until_ready()
        contest = _play(scene, running, {"bare": bare, **others}, bench, last_start)
    return {
        "fleet_over_bare": contest.against("bare"),
        "computed_over_minimum_prompt_tokens": contest.computed_over_minimum(),
        "engine_busy_share": contest.busy_share(),
        "over_static_batches": contest.against("static_batches"),
        "over_openai_client": contest.against("openai_client"),
        "over_ray_data": contest.against_ray(has_engine_per_stage=bench.is_full),
        "worker_start_over_bare": Measured(
            worker_start / bare_start,
            f"the engine alone: {bare_start:.1f} s from the start of its process; both started together",
        ),
    }


def _play(
    scene: Scene, running: Fleet, rivals: Mapping[str, RivalProcess], bench: Bench, last_start: float
) -> Contest:
    """Warm up with two workers, which tells how many samples to measure, then measure one alone."""
    pair = scene.play(running, "pair", _PAIR_SAMPLES)
    running.end_newest_worker()
    for other in rivals.values():
        other.replay(pair.samples[:_WARM_UP_SAMPLES])
    likely = int(_ROUND_SECONDS / pair.seconds * _PAIR_SAMPLES)
    count = _FULL_SAMPLES if bench.is_full else min(max(likely, _LEAST_SAMPLES), _FULL_SAMPLES)
    ours = scene.play(running, "round", count)
    contest = Contest(scene, pair, ours, {})
    for name, other in rivals.items():
        if name == "bare" or monotonic() < last_start:
            contest.replays[name] = other.replay(ours.samples)
    return contest


def _against(ours: Round, theirs: Replayed, name: str) -> Measured:
    """Compare samples per second and computed prompt tokens."""
    rate = len(ours.samples) / theirs.seconds
    tokens = theirs.computed_tokens / ours.computed_tokens
    return Measured(
        theirs.seconds / ours.seconds,
        f"{name}: {rate:.2f} samples/s, {tokens:.2f} times our computed prompt tokens",
    )
