"""The fleet on the GPU: its surroundings, and what it takes to caption media that nobody has seen."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from time import monotonic

from transformers import AutoProcessor

from capflow_tasks.media.budget import budget_of
from capflow_tasks.media.pictures import image_tokens, video_tokens
from capflow_tasks.records import JsonObject, Modality
from capflow_tasks.settings import Settings
from capflow_tasks.store.figures import Tokens, Usage
from capflow_tasks.store.statistics import Statistics
from tests.benchmarks.fleet import Fleet, write_plan
from tests.benchmarks.gpu.lengths import write_domains
from tests.benchmarks.gpu.load import FRAMES, Load
from tests.benchmarks.journal import JOURNALS, Exchange, read_journals
from tests.benchmarks.minimum import BLOCK_TOKENS, PromptCost
from tests.benchmarks.scene import Round

BATCH = 8
_GPU_BLOCK_TOKENS = 16
_CONTEXT_TOKENS = 16384
#: FlashInfer is not among the packages that are brought along.
_ON_GPU = {"VLLM_USE_FLASHINFER_SAMPLER": "0"}
_ON_CPU = {"TORCHDYNAMO_DISABLE": "1", "VLLM_CPU_KVCACHE_SPACE": "1"}


@dataclass(frozen=True, slots=True)
class Take:
    """One run of the fleet."""

    round: Round
    #: Captioned and judged; those that failed are not work done.
    samples: int
    failed: int
    usage: list[Usage]

    @property
    def per_hour(self) -> float:
        """Samples from the first request to the last answer; filling and draining the engine are in it."""
        return self.samples / self.round.seconds * 3600

    @property
    def tokens(self) -> Tokens:
        return sum((usage.tokens for usage in self.usage), Tokens())

    @property
    def answer_tokens(self) -> str:
        """Tokens of an answer in the mean, by stage."""
        return ", ".join(f"{each.stage} {each.tokens.completion / each.answers:.0f}" for each in self.usage)


@dataclass(frozen=True, slots=True)
class Setup:
    """What is run, and how."""

    #: Folder of the model.
    model: Path
    load: Load
    #: Of vLLM, as CAPFLOW_ENGINE_ARGS.
    engine_args: JsonObject
    #: Samples that have begun and not ended, for everybody.
    in_flight: int
    is_on_cpu: bool = False

    def environment(self, folder: Path) -> dict[str, str]:
        """What the fleet and its rivals are told; `folder` has the domain files and the journals."""
        return {
            "CAPFLOW_MODEL": str(self.model),
            "CAPFLOW_DOMAINS": str(folder / "domains"),
            "CAPFLOW_ENGINE": "tests.benchmarks.journal:build",
            "CAPFLOW_ENGINE_ARGS": json.dumps(self.engine_args),
            "CAPFLOW_MAX_MODEL_LEN": str(_CONTEXT_TOKENS),
            "CAPFLOW_CONCURRENCY": str(max(self.in_flight // BATCH, 1)),
            "CAPFLOW_VIDEO_MAX_FRAMES": str(FRAMES),
            "CAPFLOW_VIDEOS_IN_FLIGHT": str(self.in_flight),
            "CAPFLOW_MEDIA_CACHE_MIB": "8192",
            "CAPFLOW_LOG_LEVEL": "WARNING",
            "HF_HUB_OFFLINE": "1",
            "BENCH_IN_FLIGHT": str(self.in_flight),
            JOURNALS: str(folder / "journals"),
            **(_ON_CPU if self.is_on_cpu else _ON_GPU),
        }

    @property
    def block_tokens(self) -> int:
        """Tokens that vLLM's cache keeps or forgets together."""
        return BLOCK_TOKENS if self.is_on_cpu else _GPU_BLOCK_TOKENS

    def media_tokens(self, kind: Modality) -> int:
        budget = budget_of(Settings(video_max_frames=FRAMES))
        if kind is Modality.IMAGE:
            return image_tokens(*self.load.picture, budget)
        return video_tokens(*self.load.frame, FRAMES, budget)


class GpuScene:
    """Plans and media for one model, and what captioning them took."""

    def __init__(self, folder: Path, setup: Setup) -> None:
        self.folder = folder
        self._setup = setup
        self._drawn = 0
        (folder / "journals").mkdir(exist_ok=True)
        write_domains(folder / "domains", setup.load.tokens)
        self.environment = setup.environment(folder)

    def play(self, running: Fleet, name: str, kind: Modality, count: int) -> Take:
        """Have the fleet caption so many new pictures or clips."""
        media = self.folder / "media"
        entries = self._setup.load.entries(kind, media, self._drawn, count)
        self._drawn += count
        plan = write_plan(self.folder / f"{name}.jsonl", entries, media, modality=kind.value)
        began = monotonic()
        stretch = running.run(plan, "--batch-size", str(BATCH))
        records = read_journals(self.folder / "journals", began)
        start = min(record.started for record in records if isinstance(record, Exchange))
        statistics = Statistics(running.engine)
        (run,) = statistics.runs(name=name)
        if not run.tally.done:
            raise RuntimeError(f"all {run.tally.failed} samples of {name} failed")
        made = Round(start, stretch.steady.end, stretch.closing_seconds, records)
        return Take(made, run.tally.done, run.tally.failed, statistics.usage(run.id))

    def least_tokens(self, kind: Modality, take: Take) -> int:
        """What a perfect prefix cache would have computed of the prompts."""
        processor = AutoProcessor.from_pretrained(self._setup.model)
        cost = PromptCost(processor, self._setup.media_tokens(kind), self._setup.block_tokens)
        return cost.minimum(take.round.samples)
