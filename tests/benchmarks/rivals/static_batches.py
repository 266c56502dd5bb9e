"""The scripts' way: stage after stage over the whole set, in static batches through `vllm.LLM.generate`.

System prompt first, then the text, and the media last, as `captionpipeline.py` orders them, so the calls of a
sample share no prefix with its media.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from time import perf_counter
from typing import Any

from transformers import AutoProcessor
from vllm import LLM

from capflow_tasks.engine.vllm_engine import engine_args, sampling_params
from capflow_tasks.media.budget import budget_of
from capflow_tasks.media.decoders import shared_video_files
from capflow_tasks.media.loader import load_media
from capflow_tasks.records import Request
from capflow_tasks.settings import read_settings
from tests.benchmarks.workload import IN_FLIGHT, Replayed, Sample, serve, stages_of


class StaticBatches:
    def __init__(self) -> None:
        self._settings = read_settings()
        self._budget = budget_of(self._settings)
        self._videos = shared_video_files(1)
        self._processor = AutoProcessor.from_pretrained(self._settings.model)
        self._llm = LLM(self._settings.model, **engine_args(self._settings, self._settings.model))

    def replay(self, samples: Sequence[Sample]) -> Replayed:
        began = perf_counter()
        outputs = []
        for stage in stages_of(samples):
            for start in range(0, len(stage), IN_FLIGHT):
                outputs += self._generate(stage[start : start + IN_FLIGHT])
        prompt = sum(len(output.prompt_token_ids) for output in outputs)
        cached = sum(output.num_cached_tokens or 0 for output in outputs)
        return Replayed(perf_counter() - began, prompt, prompt - cached)

    def _generate(self, requests: Sequence[Request]) -> list[Any]:
        sampling = [sampling_params(request, self._settings.max_answer_tokens, {}) for request in requests]
        prompts: Any = [self._prompt(request) for request in requests]
        outputs: list[Any] = self._llm.generate(prompts, sampling, use_tqdm=False)
        return outputs

    def _prompt(self, request: Request) -> dict[str, Any]:
        parts = [{"type": ref.kind.value} for ref in request.media]
        messages = [
            {"role": "system", "content": [{"type": "text", "text": request.system}]},
            {"role": "user", "content": [{"type": "text", "text": request.instruction}, *parts]},
        ]
        text = self._processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        media: dict[str, list[Any]] = {}
        for ref in request.media:
            loaded = load_media(ref, self._budget, self._videos)
            media.setdefault(ref.kind.value, []).append(loaded.value)
        return {"prompt": text, "multi_modal_data": media}


@contextmanager
def start() -> Iterator[StaticBatches]:
    yield StaticBatches()


if __name__ == "__main__":
    serve(start)
