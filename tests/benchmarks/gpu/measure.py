"""The fleet on one GPU: samples per hour and what they took; and other ways to run the same requests."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from transformers import AutoProcessor

from capflow_tasks.media.budget import budget_of
from capflow_tasks.media.pictures import count_tokens, fit_image
from capflow_tasks.media.player import VideoFacts
from capflow_tasks.media.video import plan_frames
from capflow_tasks.records import JsonObject, Modality
from capflow_tasks.settings import Settings
from capflow_tasks.store.figures import Tokens, Usage
from capflow_tasks.store.statistics import Statistics
from tests.benchmarks.claims import Bench, Goal, Measured, Row, Study, rows_of
from tests.benchmarks.fleet import Fleet, fleet
from tests.benchmarks.gpu.card import Card, watched_card
from tests.benchmarks.gpu.load import FRAMES, Load
from tests.benchmarks.gpu.summary import PUBLISHED, RIVALS
from tests.benchmarks.journal import JOURNALS, LENGTHS
from tests.benchmarks.minimum import BLOCK_TOKENS, PromptCost
from tests.benchmarks.scene import Round, play
from tests.benchmarks.workload import RivalProcess, rival
from tests.checkpoints import NOISE_RULES

_BATCH = 8
_GPU_BLOCK_TOKENS = 16


@dataclass(frozen=True, slots=True)
class Setup:
    """What to measure, and how."""

    #: Name of the model, for the claims.
    name: str
    #: Its folder.
    model: Path
    load: Load
    #: vLLM's arguments.
    engine_args: JsonObject
    in_flight: int
    #: Samples of each kind to caption, at most.
    samples: Mapping[Modality, int]
    #: Time that those of a kind may take, by the warm-up's pace.
    minutes: float
    rivals: Sequence[str]
    #: Samples that each rival replays.
    rival_samples: int
    is_on_cpu: bool = False

    def claim(self, kind: Modality, name: str) -> str:
        return f"{self.name}_{kind}{name}"

    def fleet_goals(self, kind: Modality) -> dict[str, Goal]:
        goals = {
            "s_per_hour": Goal(PUBLISHED[kind] if self.name == "72b" else None),
            "_prefix_hit_rate": Goal(),
            "_computed_over_minimum": Goal(1.1, is_ceiling=True),
            "_engine_busy_share": Goal(0.95),
            "_requests_in_engine": Goal(),
            "_card_busy_share": Goal(),
            "_peak_gib": Goal(),
        }
        return {self.claim(kind, name): goal for name, goal in goals.items()}

    def rival_goals(self, rival: str) -> dict[str, Goal]:
        goal = Goal(0.97 if rival == "bare" else 1)
        return {self.claim(kind, f"_over_{rival}"): goal for kind in self.samples}

    def environment(self, folder: Path) -> dict[str, str]:
        """Return the variables of the fleet and its rivals; `folder` has the journals."""
        return {
            "CAPFLOW_MODEL": str(self.model),
            "CAPFLOW_ENGINE": "tests.benchmarks.journal:build",
            "CAPFLOW_OCR_PROCESSES": "0",
            LENGTHS: ",".join(map(str, self.load.answer)),
            "CAPFLOW_ENGINE_ARGS": json.dumps(self.engine_args),
            "CAPFLOW_MAX_MODEL_LEN": "16384",
            "CAPFLOW_MAX_NUM_SEQS": str(self.in_flight),
            # Random weights write answers that are refused now and then; no sample waits for a second try.
            "CAPFLOW_MAX_ATTEMPTS": "1",
            "CAPFLOW_GUARD_OFF": NOISE_RULES,
            "CAPFLOW_VIDEO_MAX_FRAMES": str(FRAMES),
            "CAPFLOW_VIDEOS_IN_FLIGHT": str(self.in_flight),
            "CAPFLOW_MEDIA_CACHE_MIB": "8192",
            "CAPFLOW_LOG_LEVEL": "WARNING",
            "HF_HUB_OFFLINE": "1",
            "BENCH_IN_FLIGHT": str(self.in_flight),
            JOURNALS: str(folder / "journals"),
            **({"TORCHDYNAMO_DISABLE": "1", "VLLM_CPU_KVCACHE_SPACE": "1"} if self.is_on_cpu else {}),
        }

    def least_tokens(self, kind: Modality, measured: Round) -> int:
        """Return the prompt tokens that a perfect prefix cache would have computed."""
        budget = budget_of(Settings(video_max_frames=FRAMES))
        if kind is Modality.IMAGE:
            media_tokens = count_tokens(fit_image(*self.load.picture, budget), budget)
        else:
            facts = VideoFacts(FRAMES, 0.0, FRAMES / budget.fps, *self.load.frame)
            media_tokens = plan_frames(facts, budget).tokens
        block_tokens = BLOCK_TOKENS if self.is_on_cpu else _GPU_BLOCK_TOKENS
        processor = AutoProcessor.from_pretrained(self.model)
        return PromptCost(processor, media_tokens, block_tokens).minimum(measured.samples)


@dataclass(frozen=True, slots=True)
class Take:
    """One run of the fleet."""

    round: Round
    #: Captioned and judged; failed samples do not count as work done.
    samples: int
    failed: int
    usage: list[Usage]

    @property
    def per_hour(self) -> float:
        """Samples per hour from the first request to the last answer, filling and draining included."""
        return self.samples / self.round.seconds * 3600


def measure(setup: Setup, folder: Path) -> list[Row]:
    """Measure the fleet, then each rival on the fleet's requests; one engine at a time has the card."""
    (folder / "journals").mkdir()
    bench, takes = Bench(folder), dict[Modality, Take]()
    rows: list[Row] = []
    with watched_card() as card, fleet(folder, setup.environment(folder)) as running:
        running.add_workers(1)
        for kind in setup.samples:
            study = partial(_measure_fleet, setup, running, kind, card, takes)
            rows += rows_of(Study(setup.fleet_goals(kind), study), bench)
    for name in setup.rivals:
        rows += rows_of(Study(setup.rival_goals(name), partial(_measure_rival, setup, name, takes)), bench)
    return rows


def _measure_fleet(
    setup: Setup, running: Fleet, kind: Modality, card: Card, takes: dict[Modality, Take], bench: Bench
) -> dict[str, Measured]:
    """Caption samples of this kind, and add what was done to `takes`."""
    warm_up = _caption(running, bench.folder, setup, kind, first=0, count=setup.in_flight)
    affordable = round(warm_up.per_hour * setup.minutes / 60)
    count = max(min(setup.samples[kind], affordable), 1)
    takes[kind] = _caption(running, bench.folder, setup, kind, first=setup.in_flight, count=count)
    figures = _figures(setup, kind, takes[kind], card)
    return {setup.claim(kind, name): measured for name, measured in figures}


def _caption(running: Fleet, folder: Path, setup: Setup, kind: Modality, first: int, count: int) -> Take:
    name = f"{kind}-{first}"
    entries = setup.load.entries(kind, folder / "media", first, count)
    measured = play(running, folder, name, entries, _BATCH, kind)
    statistics = Statistics(running.engine)
    (run,) = statistics.runs(name=name)
    if not run.tally.done:
        raise RuntimeError(f"all {run.tally.failed} samples of {name} failed")
    return Take(measured, run.tally.done, run.tally.failed, statistics.usage(run.id))


def _figures(setup: Setup, kind: Modality, take: Take, card: Card) -> Iterator[tuple[str, Measured]]:
    measured = take.round
    tokens = sum((usage.tokens for usage in take.usage), Tokens())
    per_answer = ", ".join(f"{each.stage} {each.tokens.completion / each.answers:.0f}" for each in take.usage)
    ended = f"{take.samples} in {measured.seconds:.0f} s, {take.failed} failed"
    yield "s_per_hour", Measured(take.per_hour, f"{ended}; {card.name}; tokens per answer: {per_answer}")
    prompts = f"of {tokens.prompt / take.samples:,.0f} prompt tokens per sample"
    yield "_prefix_hit_rate", Measured(tokens.prefix_hit_rate, prompts)
    least = setup.least_tokens(kind, measured)
    per_sample = f"{least / take.samples:,.0f} tokens per sample"
    yield "_computed_over_minimum", Measured(measured.computed_tokens / least, per_sample)
    yield (
        "_engine_busy_share",
        Measured(measured.busy_share, "share of the time in which vLLM has a request"),
    )
    most = f"mean; at most {setup.in_flight} run in one engine step, the others wait in the engine"
    yield "_requests_in_engine", Measured(measured.mean_requests, most)
    share = card.busy_share(measured.start, measured.end)
    yield "_card_busy_share", Measured(share, "nvidia-smi: share of the time in which a kernel runs")
    yield "_peak_gib", Measured(card.peak_gib(), "nvidia-smi; vLLM takes all it may use for its cache")


def _measure_rival(
    setup: Setup, name: str, takes: Mapping[Modality, Take], bench: Bench
) -> dict[str, Measured]:
    with rival(name, bench.folder, setup.environment(bench.folder)) as other:
        other.wait_until_ready()
        return {
            setup.claim(kind, f"_over_{name}"): _against(other, name, takes.get(kind), setup.rival_samples)
            for kind in setup.samples
        }


def _against(other: RivalProcess, name: str, take: Take | None, count: int) -> Measured:
    """Compare samples per hour for the same requests."""
    if take is None:
        return Measured(None, "the fleet failed")
    *others, last = take.round.samples
    samples = others[:count] or [last]
    # The first request compiles kernels; no measured time includes that.
    other.replay([last])
    theirs = other.replay(samples)
    rate = len(samples) / theirs.seconds * 3600
    computed = f"{theirs.computed_tokens:,} of {theirs.prompt_tokens:,} prompt tokens computed"
    return Measured(take.per_hour / rate, f"{RIVALS[name]}: {rate:,.0f} per hour, {computed}")
