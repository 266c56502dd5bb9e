"""A stage for the fleet with a real model: pictures that nobody has seen, and what captioning them took."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from time import monotonic

from transformers import AutoProcessor

from tests.benchmarks.fleet import Fleet, write_plan
from tests.benchmarks.journal import JOURNALS, Exchange, Turn, busy_share, read_journals
from tests.benchmarks.minimum import PromptCost
from tests.benchmarks.workload import IN_FLIGHT, samples_of
from tests.benchmarks.workload import Sample as Calls
from tests.checkpoints import small_checkpoint
from tests.datasets import draw_picture

_BATCH = 2
#: As large as most photographs are sent: 36 x 28 tokens.
_PICTURE, _PICTURE_TOKENS = (1008, 784), 1008
_TASKS = ("Natural", "Structure & Math", "Infographic & Document", "UI & Interaction", "Code & Programming")


@dataclass(frozen=True, slots=True)
class Round:
    """What the fleet did with its pictures."""

    #: When the first request reached an engine.
    start: float
    #: When the last batch had come to its end.
    end: float
    #: What the command took after that, to export and to end.
    closing_seconds: float
    records: Sequence[Exchange | Turn]

    @property
    def seconds(self) -> float:
        return self.end - self.start

    @property
    def busy_share(self) -> float:
        return busy_share(self.records, self.start, self.end)

    @property
    def exchanges(self) -> list[Exchange]:
        return [record for record in self.records if isinstance(record, Exchange)]

    @property
    def samples(self) -> list[Calls]:
        """The requests that it took, by sample."""
        return samples_of(self.exchanges)

    @property
    def computed_tokens(self) -> int:
        """Prompt tokens that no cache spared, also of answers that were refused."""
        return sum(exchange.computed_tokens for exchange in self.exchanges)


class Scene:
    """Pictures, plans and what all engines have in common."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._drawn = 0
        self._journals = folder / "journals"
        self._journals.mkdir()
        self.environment = {
            "CAPFLOW_MODEL": str(small_checkpoint()),
            "CAPFLOW_ENGINE": "tests.benchmarks.journal:build",
            "CAPFLOW_MAX_MODEL_LEN": "8192",
            "CAPFLOW_MAX_ANSWER_TOKENS": "32",
            "CAPFLOW_CONCURRENCY": str(IN_FLIGHT // _BATCH),
            # Random weights now and then say what no caption may be; nobody is to wait for a second attempt.
            "CAPFLOW_MAX_ATTEMPTS": "1",
            "CAPFLOW_LOG_LEVEL": "WARNING",
            "HF_HUB_OFFLINE": "1",
            "TORCHDYNAMO_DISABLE": "1",
            "VLLM_CPU_KVCACHE_SPACE": "1",
            JOURNALS: str(self._journals),
        }

    def play(self, running: Fleet, name: str, count: int) -> Round:
        """Have the fleet caption so many new pictures."""
        media = self.folder / "media"
        entries = []
        for number in range(self._drawn, self._drawn + count):
            draw_picture(media / f"{number}.png", number, _PICTURE)
            entries.append({"image": f"{number}.png", "task": _TASKS[number % len(_TASKS)]})
        self._drawn += count
        plan = write_plan(self.folder / f"{name}.jsonl", entries, media)
        began = monotonic()
        stretch = running.run(plan, "--batch-size", str(_BATCH))
        records = read_journals(self._journals, began)
        start = min(record.started for record in records if isinstance(record, Exchange))
        return Round(start, stretch.steady.end, stretch.closing_seconds, records)

    def least_tokens(self, samples: Sequence[Calls]) -> int:
        """What a perfect prefix cache would have computed of their prompts."""
        processor = AutoProcessor.from_pretrained(self.environment["CAPFLOW_MODEL"])
        return PromptCost(processor, _PICTURE_TOKENS).minimum(samples)
