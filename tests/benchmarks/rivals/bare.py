"""The fleet's engine alone: each thread takes one sample through its turns."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from time import perf_counter

from capflow_tasks.engine.vllm_engine import VllmEngine, build
from capflow_tasks.records import Completion
from capflow_tasks.settings import read_settings
from tests.benchmarks.workload import IN_FLIGHT, Replayed, Sample, serve


class Bare:
    def __init__(self, engine: VllmEngine) -> None:
        self._engine = engine

    def replay(self, samples: Sequence[Sample]) -> Replayed:
        began = perf_counter()
        with ThreadPoolExecutor(IN_FLIGHT) as threads:
            answers = [each for sample in threads.map(self._take_through, samples) for each in sample]
        prompt, cached = (
            sum(answer.prompt_tokens for answer in answers),
            sum(answer.cached_tokens for answer in answers),
        )
        return Replayed(perf_counter() - began, prompt, prompt - cached)

    def _take_through(self, sample: Sample) -> list[Completion]:
        answers = [answer for turn in sample for answer in self._engine.generate(turn)]
        assert all(isinstance(answer, Completion) for answer in answers), answers
        return [answer for answer in answers if isinstance(answer, Completion)]


@contextmanager
def start() -> Iterator[Bare]:
    settings = read_settings()
    engine = build(settings, settings.model)
    engine.start()
    yield Bare(engine)
    engine.stop()


if __name__ == "__main__":
    serve(start)
