"""Ray Data LLM: the same requests as rows of one data set, stage after stage, through its own vLLM engine.

Ray starts an engine for every pass over a data set, and a stage whose prompts hold the answers of the one
before needs a pass of its own. With `ENGINE_PER_STAGE` it is done that way. Otherwise there is one pass and
one engine for all stages, which favours Ray: no call waits for another, as if all texts were known in
advance. Starts never count, and the media come first.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

import ray
from PIL import Image
from ray.data.llm import build_processor, vLLMEngineProcessorConfig
from transformers import AutoProcessor

from capflow_tasks.records import Request
from capflow_tasks.settings import Settings, read_settings
from tests.benchmarks.workload import (
    COUNT_FILE,
    ENGINE_PER_STAGE,
    IN_FLIGHT,
    Replayed,
    Sample,
    serve,
    stages_of,
)

#: Batches at a time; Ray's default.
_BATCHES = 8
#: Variables that Ray's actors need.
_PASSED_ON = ("HF_HUB_OFFLINE", "TORCHDYNAMO_DISABLE", "VLLM_CPU_KVCACHE_SPACE", "PYTHONPATH", COUNT_FILE)


class RayData:
    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._templates = AutoProcessor.from_pretrained(settings.model)

    def replay(self, samples: Sequence[Sample]) -> Replayed:
        stages = stages_of(samples)
        passes = stages if ENGINE_PER_STAGE in os.environ else [list(chain(*stages))]
        found = [self._pass(requests) for requests in passes]
        return Replayed(
            sum(each.seconds for each in found),
            sum(each.prompt_tokens for each in found),
            sum(each.computed_tokens for each in found),
        )

    def _pass(self, requests: Sequence[Request]) -> Replayed:
        """Time one pass by vLLM's own clock, from the first request to the last answer, without the start."""
        rows = [self._row(request) for request in requests]
        processor = build_processor(self._config(), preprocess=_with_picture, postprocess=_tokens_of)
        found = processor(ray.data.from_items(rows)).take_all()
        seconds = max(row["ended"] for row in found) - min(row["queued"] for row in found)
        prompt = sum(int(row["prompt_tokens"]) for row in found)
        return Replayed(seconds, prompt, json.loads(Path(os.environ[COUNT_FILE]).read_text()))

    def _row(self, request: Request) -> dict[str, Any]:
        messages = [
            {"role": "system", "content": [{"type": "text", "text": request.system}]},
            {
                "role": "user",
                "content": [{"type": "image"}, {"type": "text", "text": request.instruction}],
            },
        ]
        prompt = self._templates.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        cap = None if request.schema else self._settings.max_answer_tokens
        sampling: dict[str, Any] = {
            "max_tokens": min(request.sampling.max_tokens, cap or request.sampling.max_tokens),
            **request.sampling.completed({}),
        }
        return {
            "prompt": prompt,
            "picture": request.media[0].path,
            "sampling": sampling,
            # As text, because Ray would give all rows the keys of all schemas.
            "schema": _json(request.schema),
        }

    def _config(self) -> vLLMEngineProcessorConfig:
        return vLLMEngineProcessorConfig(
            model_source=self._settings.model,
            engine_kwargs={
                "max_model_len": self._settings.max_model_len,
                "max_num_seqs": self._settings.max_num_seqs,
                "limit_mm_per_prompt": {"image": self._settings.max_images, "video": 1},
                "structured_outputs_config": {"backend": "xgrammar", "disable_any_whitespace": True},
                "enable_prefix_caching": True,
                "enforce_eager": True,
                # so that answers carry their times
                "disable_log_stats": False,
            },
            # Together as many calls in flight as the fleet's samples make when they are perceived.
            batch_size=2 * IN_FLIGHT // _BATCHES,
            max_concurrent_batches=_BATCHES,
            concurrency=1,
            chat_template_stage=False,
            tokenize_stage=False,
            detokenize_stage=False,
            log_engine_metrics=False,
            runtime_env={"env_vars": {name: os.environ[name] for name in _PASSED_ON if name in os.environ}},
        )


def _json(schema: Any) -> str:
    return json.dumps(schema) if schema else ""


def _with_picture(row: dict[str, Any]) -> dict[str, Any]:
    sampling = dict(row["sampling"])
    if row["schema"]:
        sampling["structured_outputs"] = {"json": row["schema"]}
    with Image.open(row["picture"]) as picture:
        return {
            "prompt": row["prompt"],
            "sampling_params": sampling,
            "multimodal_data": {"image": picture.convert("RGB")},
        }


def _tokens_of(row: dict[str, Any]) -> dict[str, Any]:
    clock = row["metrics"]
    return {
        "prompt_tokens": row["num_input_tokens"],
        "queued": clock["queued_ts"],
        "ended": clock["last_token_ts"],
    }


@contextmanager
def start() -> Iterator[RayData]:
    # Ray starts engines only on nodes with a GPU, so claim one.
    ray.init(num_gpus=1, include_dashboard=False, logging_level="WARNING")
    ray.data.DataContext.get_current().enable_progress_bars = False
    yield RayData(read_settings())
    ray.shutdown()


if __name__ == "__main__":
    serve(start)
