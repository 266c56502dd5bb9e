"""The fleet with a real model: captions new media, and records what that took."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from time import monotonic

from transformers import AutoProcessor

from capflow_tasks.records import JsonObject, Modality
from tests.benchmarks.fleet import Fleet, write_plan
from tests.benchmarks.journal import (
    JOURNALS,
    LENGTHS,
    Exchange,
    Turn,
    busy_share,
    mean_requests,
    read_journals,
)
from tests.benchmarks.minimum import PromptCost
from tests.benchmarks.workload import IN_FLIGHT, samples_of
from tests.benchmarks.workload import Sample as Calls
from tests.checkpoints import NOISE_RULES, small_checkpoint
from tests.datasets import draw_picture

#: Domains of pictures, in turn.
TASKS = ("Natural", "Structure & Math", "Infographic & Document", "UI & Interaction", "Code & Programming")
_BATCH = 4
#: As large as most photographs are sent: 36 x 28 tokens.
_PICTURE, _PICTURE_TOKENS = (1008, 784), 1008


@dataclass(frozen=True, slots=True)
class Round:
    """What the fleet did with its media."""

    #: When the first request reached an engine.
    start: float
    #: When the last batch had finished.
    end: float
    #: From then until the command ended: the last export.
    closing_seconds: float
    records: Sequence[Exchange | Turn]

    @property
    def seconds(self) -> float:
        return self.end - self.start

    @property
    def busy_share(self) -> float:
        return busy_share(self.records, self.start, self.end)

    @property
    def mean_requests(self) -> float:
        return mean_requests(self.records, self.start, self.end)

    @property
    def samples(self) -> list[Calls]:
        """The requests, by sample."""
        return samples_of([record for record in self.records if isinstance(record, Exchange)])

    @property
    def computed_tokens(self) -> int:
        """Prompt tokens not taken from a cache, those of refused answers included."""
        return sum(record.computed_tokens for record in self.records if isinstance(record, Exchange))


def play(
    running: Fleet,
    folder: Path,
    name: str,
    entries: Sequence[JsonObject],
    batch_size: int,
    kind: Modality = Modality.IMAGE,
) -> Round:
    """Have the fleet caption the entries, whose media are in `folder/media`."""
    plan = write_plan(folder / f"{name}.jsonl", entries, folder / "media", modality=kind.value)
    began = monotonic()
    stretch = running.run(plan, "--batch-size", str(batch_size))
    records = read_journals(folder / "journals", began)
    start = min(record.started for record in records if isinstance(record, Exchange))
    return Round(start, stretch.steady.end, stretch.closing_seconds, records)


class Scene:
    """Pictures, plans and what all engines have in common."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._drawn = 0
        journals = folder / "journals"
        journals.mkdir()
        self.environment = {
            "CAPFLOW_MODEL": str(small_checkpoint()),
            "CAPFLOW_ENGINE": "tests.benchmarks.journal:build",
            "CAPFLOW_OCR_PROCESSES": "0",
            "CAPFLOW_MAX_MODEL_LEN": "8192",
            "CAPFLOW_GUARD_OFF": NOISE_RULES,
            "CAPFLOW_MAX_NUM_SEQS": str(IN_FLIGHT),
            # Random weights write answers that are refused now and then; no sample waits for a second try.
            "CAPFLOW_MAX_ATTEMPTS": "1",
            "CAPFLOW_LOG_LEVEL": "WARNING",
            "HF_HUB_OFFLINE": "1",
            "TORCHDYNAMO_DISABLE": "1",
            "VLLM_CPU_KVCACHE_SPACE": "1",
            # A tenth of real ones, so that a CPU ends in time.
            LENGTHS: "18,60",
            JOURNALS: str(journals),
        }

    def play(self, running: Fleet, name: str, count: int) -> Round:
        """Have the fleet caption this many new pictures."""
        entries = []
        for number in range(self._drawn, self._drawn + count):
            draw_picture(self.folder / "media" / f"{number}.png", number, _PICTURE)
            entries.append({"image": f"{number}.png", "task": TASKS[number % len(TASKS)]})
        self._drawn += count
        return play(running, self.folder, name, entries, _BATCH)

    def least_tokens(self, samples: Sequence[Calls]) -> int:
        """Return the prompt tokens that a perfect prefix cache would have computed."""
        processor = AutoProcessor.from_pretrained(self.environment["CAPFLOW_MODEL"])
        return PromptCost(processor, _PICTURE_TOKENS).minimum(samples)
