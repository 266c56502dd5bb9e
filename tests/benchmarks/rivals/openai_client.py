"""vLLM's OpenAI-compatible server and an asyncio client, with as many samples in flight as the fleet."""

from __future__ import annotations

import asyncio
import base64
import json
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import Event
from time import perf_counter
from typing import Any

import httpx

from capflow_tasks.lifeline import die_with_parent
from capflow_tasks.records import Request
from capflow_tasks.settings import Settings, read_settings
from tests.benchmarks.workload import IN_FLIGHT, Replayed, Sample, serve


class OpenAiClient:
    def __init__(self, url: str, settings: Settings) -> None:
        self._url = url
        self._settings = settings

    def replay(self, samples: Sequence[Sample]) -> Replayed:
        return asyncio.run(self._replay(samples))

    async def _replay(self, samples: Sequence[Sample]) -> Replayed:
        began = perf_counter()
        free = asyncio.Semaphore(IN_FLIGHT)
        async with httpx.AsyncClient(base_url=self._url, timeout=600) as client:
            found = await asyncio.gather(*(self._take_through(client, sample, free) for sample in samples))
        usages = [usage for each in found for usage in each]
        prompt = sum(usage["prompt_tokens"] for usage in usages)
        cached = sum((usage["prompt_tokens_details"] or {}).get("cached_tokens") or 0 for usage in usages)
        return Replayed(perf_counter() - began, prompt, prompt - cached)

    async def _take_through(
        self, client: httpx.AsyncClient, sample: Sample, free: asyncio.Semaphore
    ) -> list[dict[str, Any]]:
        async with free:
            return [
                usage
                for turn in sample
                for usage in await asyncio.gather(*(self._ask(client, request) for request in turn))
            ]

    async def _ask(self, client: httpx.AsyncClient, request: Request) -> dict[str, Any]:
        answer = await client.post("/v1/chat/completions", json=self._body(request))
        answer.raise_for_status()
        usage: dict[str, Any] = answer.json()["usage"]
        return usage

    def _body(self, request: Request) -> dict[str, Any]:
        pictures = [
            {"type": "image_url", "image_url": {"url": _data_url(Path(ref.path))}} for ref in request.media
        ]
        cap = None if request.schema else self._settings.max_answer_tokens
        return {
            "model": self._settings.model,
            "messages": [
                {"role": "system", "content": request.system},
                {"role": "user", "content": [*pictures, {"type": "text", "text": request.instruction}]},
            ],
            "max_tokens": min(request.sampling.max_tokens, cap or request.sampling.max_tokens),
            **request.sampling.completed({}),
            **({"structured_outputs": {"json": request.schema}} if request.schema else {}),
        }


def _data_url(path: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()


@contextmanager
def start() -> Iterator[OpenAiClient]:
    settings = read_settings()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = subprocess.Popen(_command(settings, port), preexec_fn=die_with_parent, stdin=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}"
    try:
        _wait_until_it_answers(server, url)
        yield OpenAiClient(url, settings)
    finally:
        server.terminate()
        server.wait(30)


def _command(settings: Settings, port: int) -> list[str]:
    guarded = {"backend": "xgrammar", "disable_any_whitespace": True}
    flags = {
        "model": settings.model,
        "host": "127.0.0.1",
        "port": port,
        "max-model-len": settings.max_model_len,
        "max-num-seqs": settings.max_num_seqs,
        "limit-mm-per-prompt": json.dumps({"image": settings.max_images, "video": 1}),
        "structured-outputs-config": json.dumps(guarded),
    }
    words = [word for flag, value in flags.items() for word in (f"--{flag}", str(value))]
    module = "vllm.entrypoints.openai.api_server"
    return [sys.executable, "-m", module, *words, "--enforce-eager", "--enable-prompt-tokens-details"]


def _wait_until_it_answers(server: subprocess.Popen[bytes], url: str) -> None:
    while server.poll() is None:
        try:
            if httpx.get(f"{url}/health").is_success:
                return
        except httpx.TransportError:
            Event().wait(0.1)
    raise RuntimeError(f"the server exited with {server.returncode}")


if __name__ == "__main__":
    serve(start)
