"""The vLLM engine, with a record of every prompt's token ids and of all that a vision tower receives."""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import torch
from vllm.v1.engine.async_llm import AsyncLLM

from capflow_tasks.engine import vllm_engine
from capflow_tasks.settings import Settings

#: Folder that gets `prompts.jsonl`, a line per request, and a file per call of a vision tower.
WATCHED = "TEST_WATCHED"

#: The first layer of a tower, by the end of its name. vLLM calls the module around it past its hooks.
_FIRST = ("visual.patch_embed.proj", "vision_model.embeddings.patch_embedding")


class TowerWatch:
    """Added to vLLM's workers by `worker_extension_cls`."""

    model_runner: Any

    def watch_tower(self, folder: str) -> None:
        """Save what the tower receives; a text model has none."""
        for name, module in self.model_runner.model.named_modules():
            if name.endswith(_FIRST):
                module.register_forward_pre_hook(lambda _, given: _save(Path(folder), given[0]))


def _save(folder: Path, pixels: torch.Tensor) -> None:
    number = len(list(folder.glob("*.pt")))
    torch.save(pixels.detach().float().flatten(1).clone(), folder / f"{number:04}.pt")


class WatchedLLM(AsyncLLM):
    """Writes down each request that is answered."""

    is_watched = False

    async def generate(self, prompt: Any, *arguments: Any, **options: Any) -> AsyncIterator[Any]:
        folder = os.environ[WATCHED]
        if not self.is_watched:
            self.is_watched = True
            await self.collective_rpc("watch_tower", args=(folder,))
        output = None
        async for output in super().generate(prompt, *arguments, **options):
            yield output
        if output is not None:
            line = {
                "model": self.model_config.model,
                "text": prompt["prompt"],
                "token_ids": list(output.prompt_token_ids),
            }
            with (Path(folder) / "prompts.jsonl").open("a") as file:
                file.write(json.dumps(line) + "\n")


def build(settings: Settings, model: str) -> vllm_engine.VllmEngine:
    """The engine that `CAPFLOW_ENGINE=tests.e2e.watched_engine:build` names."""
    vars(vllm_engine)["AsyncLLM"] = WatchedLLM
    watch = {"worker_extension_cls": f"{__name__}.{TowerWatch.__name__}"}
    return vllm_engine.build(settings.model_copy(update={"engine_args": settings.engine_args | watch}), model)
