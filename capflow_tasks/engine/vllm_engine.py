"""vLLM's AsyncLLM on an event loop of its own thread: many callers, one continuous batch."""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import re
from collections import OrderedDict
from collections.abc import Coroutine, Iterable, Mapping, Sequence
from math import exp
from threading import Lock, Thread
from time import monotonic
from typing import Any

from transformers import AutoProcessor
from vllm import SamplingParams
from vllm import exceptions as vllm_exceptions
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.platforms import current_platform
from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.exceptions import EngineDeadError

from capflow_tasks.engine.interface import Answer, EngineState
from capflow_tasks.errors import (
    EngineDead,
    PromptTooLong,
    RequestFailed,
    RequestRefused,
    RequestTimeout,
    SampleError,
    ServiceError,
)
from capflow_tasks.media.loader import LoadedMedia, MediaLoader, Room
from capflow_tasks.observe import metrics
from capflow_tasks.records import Completion, Modality, Request
from capflow_tasks.settings import Settings


def sampling_params(request: Request, max_answer_tokens: int | None) -> SamplingParams:
    """How vLLM is to answer; free text is cut at `max_answer_tokens` at the latest."""
    sampling, constraint = request.sampling, _constraint(request)
    # A constrained answer that is cut off is none.
    cap = max_answer_tokens if constraint is None else None
    return SamplingParams(
        max_tokens=min(sampling.max_tokens, cap or sampling.max_tokens),
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        repetition_penalty=sampling.repetition_penalty,
        logprobs=len(request.choices) or None,
        structured_outputs=constraint,
        output_kind=RequestOutputKind.FINAL_ONLY,
    )


def prompt_of(text: str, media: Sequence[LoadedMedia]) -> dict[str, Any]:
    """The chat's text and its media; those without pixels are named only.

    Each kind is a list of as many items as there are placeholders: vLLM drops a picture without a word where
    None stands for the list.
    """
    if not media:
        return {"prompt": text}
    data: dict[str, list[Any]] = {}
    uuids: dict[str, list[str]] = {}
    for each in media:
        data.setdefault(each.kind.value, []).append(each.value)
        uuids.setdefault(each.kind.value, []).append(each.key)
    return {"prompt": text, "multi_modal_data": data, "multi_modal_uuids": uuids}


def completion_of(output: Any, request: Request, seconds: float) -> Completion:
    """What vLLM's finished output says."""
    answer = output.outputs[0]
    return Completion(
        text=answer.text,
        prompt_tokens=len(output.prompt_token_ids),
        cached_tokens=output.num_cached_tokens or 0,
        completion_tokens=len(answer.token_ids),
        finish_reason=answer.finish_reason or "",
        seconds=seconds,
        probabilities=_probabilities(answer.logprobs, request.choices),
    )


def _probabilities(logprobs: Any, choices: Sequence[str]) -> dict[str, float]:
    """Probability per choice, from the log-probabilities of the first token, summing to 1."""
    if not choices:
        return {}
    found = {entry.decoded_token.strip(): exp(entry.logprob) for entry in logprobs[0].values()}
    allowed = {choice: found.get(choice, 0.0) for choice in choices}
    total = sum(allowed.values())
    return {choice: value / total for choice, value in allowed.items()}


def _constraint(request: Request) -> StructuredOutputsParams | None:
    if request.choices:
        return StructuredOutputsParams(choice=list(request.choices))
    if request.schema is not None:
        return StructuredOutputsParams(json=dict(request.schema))
    return None


#: Keys kept, most recently used; some 200 bytes each.
_MOST = 100_000


class SentMedia:
    """Keys of media that the engine has answered about, with the tokens that each costs."""

    def __init__(self) -> None:
        self._tokens: OrderedDict[str, int] = OrderedDict()

    def tokens(self, key: str) -> int | None:
        """The tokens of media that need not be sent again, else None."""
        if key in self._tokens:
            self._tokens.move_to_end(key)
        return self._tokens.get(key)

    def add(self, media: Iterable[LoadedMedia]) -> None:
        self._tokens.update((each.key, each.tokens) for each in media)
        while len(self._tokens) > _MOST:
            self._tokens.popitem(last=False)

    def forget(self, media: Iterable[LoadedMedia]) -> None:
        for each in media:
            self._tokens.pop(each.key, None)

    def clear(self) -> None:
        self._tokens.clear()


# vLLM reads its environment when it is imported.
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")


log = logging.getLogger(__name__)

#: One letter per domain; vLLM allows 20 log-probabilities unless told otherwise.
MAX_CHOICES = 26

#: How vLLM refuses a request: a ValueError up to 0.27, a class of its own since.
_REFUSALS = (ValueError, TypeError, getattr(vllm_exceptions, "VLLMClientError", ValueError))
_TOO_LONG = re.compile(r"maximum (context|model) length|longer than the maximum")


#: Between two looks whether the engine lives, seconds.
_LOOK_SECONDS = 1.0


class VllmEngine:
    """One model in this process. `generate` may be called from any number of threads."""

    def __init__(
        self,
        model: str,
        engine_args: Mapping[str, Any],
        media: MediaLoader,
        timeout_seconds: float,
        max_answer_tokens: int | None = None,
    ) -> None:
        self.model = model
        self._engine_args = engine_args
        self._media = media
        self._timeout_seconds = timeout_seconds
        self._max_answer_tokens = max_answer_tokens
        self._loop = asyncio.new_event_loop()
        self._thread = Thread(target=self._loop.run_forever, name="engine", daemon=True)
        self._request_ids = itertools.count()
        self._llm: AsyncLLM | None = None
        self._rebuilding = Lock()
        self._sent = SentMedia()
        #: When any request was answered last, monotonic seconds.
        self._answered_at = 0.0
        #: An engine that has given no answer for too long; it is replaced.
        self._hung: AsyncLLM | None = None

    def start(self) -> None:
        self._thread.start()
        try:
            self._processor = AutoProcessor.from_pretrained(self.model)
            self._llm = self._run(self._load())
        except Exception as error:
            self.stop()
            log.debug("loading %s failed", self.model, exc_info=True)
            raise ServiceError(_load_failure(self.model, error)) from error

    def stop(self) -> None:
        if not self._thread.is_alive():
            return
        # On its own loop and before that ends, or AsyncLLM's finalizer complains.
        self._run(self._unload())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    @property
    def state(self) -> EngineState:
        llm = self._llm
        if llm is None:
            return EngineState.LOADING
        return EngineState.DEAD if llm.errored or llm is self._hung else EngineState.UP

    @property
    def cache_tokens(self) -> int | None:
        """Tokens that the KV cache holds; None before the engine is up."""
        if self._llm is None:
            return None
        cache = self._llm.vllm_config.cache_config
        return (cache.num_gpu_blocks or 0) * cache.block_size or None

    def generate(self, requests: Sequence[Request]) -> list[Answer]:
        llm = self._living()
        answers: list[Answer] = self._run(self._answer_all(llm, requests))
        return answers

    def _living(self) -> AsyncLLM:
        """The engine, rebuilt first if it has died; whoever comes meanwhile waits. Raises ServiceError."""
        with self._rebuilding:
            if self._llm is None or self._llm.errored or self._llm is self._hung:
                log.warning("the engine of %s died and is rebuilt", self.model)
                metrics.ENGINE_REBUILDS.labels(self.model).inc()
                self._run(self._unload())
                try:
                    self._llm = self._run(self._load())
                except Exception as error:
                    raise ServiceError(_load_failure(self.model, error)) from error
            return self._llm

    def _run(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()

    async def _load(self) -> AsyncLLM:
        self._sent.clear()
        return AsyncLLM.from_engine_args(AsyncEngineArgs(model=self.model, **self._engine_args))

    async def _unload(self) -> None:
        if self._llm is not None:
            self._llm.shutdown()
            # Its finalizer shuts down once more; here that is harmless, at interpreter exit it is not.
            self._llm = None

    async def _answer_all(self, llm: AsyncLLM, requests: Sequence[Request]) -> list[Answer]:
        work = asyncio.gather(*(self._answer(llm, request) for request in requests), return_exceptions=True)
        # A request that reaches vLLM while its engine dies is never answered and never fails.
        while not (await asyncio.wait([work], timeout=_LOOK_SECONDS))[0]:
            if llm.errored:
                work.cancel()
                raise EngineDead
        answers = work.result()
        for answer in answers:
            if isinstance(answer, BaseException) and not isinstance(answer, SampleError):
                raise answer
        return answers  # type: ignore[return-value]

    async def _answer(self, llm: AsyncLLM, request: Request) -> Completion:
        async with self._media.turn(request):
            return await self._answer_now(llm, request)

    async def _answer_now(self, llm: AsyncLLM, request: Request) -> Completion:
        started = monotonic()
        sampling = sampling_params(request, self._max_answer_tokens)
        try:
            async with asyncio.timeout(self._timeout_seconds):
                output = await self._ask(llm, request, sampling)
        except TimeoutError as error:
            if started > self._answered_at:
                # Not one answer to anybody in all that time: the engine hangs.
                self._hung = llm
                raise EngineDead("the engine hangs") from error
            raise RequestTimeout(f"no answer within {self._timeout_seconds:g} s") from error
        except EngineDeadError as error:
            raise EngineDead from error
        except SampleError:
            raise
        except _REFUSALS as error:
            kind = PromptTooLong if _TOO_LONG.search(str(error)) else RequestRefused
            raise kind(str(error)) from error
        except Exception as error:
            # One request must not end the batch that it came with.
            log.warning("a request failed", exc_info=True)
            raise RequestFailed(f"the engine failed on this request: {error.__cause__ or error!r}") from error
        self._answered_at = monotonic()
        return completion_of(output, request, self._answered_at - started)

    async def _ask(self, llm: AsyncLLM, request: Request, sampling: SamplingParams) -> Any:
        """Name the media that the engine has; send their pixels once more when it has dropped them."""
        text = self._text(request)
        room = self._room(llm, request, text, sampling)
        media = await self._media.load(request, room, self._sent.tokens)
        try:
            output = await self._complete(llm, prompt_of(text, media), sampling)
        except EngineDeadError:
            raise
        except Exception:
            if all(each.value is not None for each in media):
                raise
            log.debug("media are sent once more", exc_info=True)
            self._sent.forget(media)
            media = await self._media.load(request, room)
            output = await self._complete(llm, prompt_of(text, media), sampling)
        self._sent.add(media)
        return output

    async def _complete(self, llm: AsyncLLM, prompt: Any, sampling: SamplingParams) -> Any:
        outputs = llm.generate(prompt, sampling, f"capflow-{next(self._request_ids)}")
        # Leaving early, as at the deadline, aborts the request in the engine.
        return [output async for output in outputs][-1]

    def _text(self, request: Request) -> str:
        """System line, media, instruction: the calls of one sample share all but the instruction."""
        parts = [{"type": ref.kind.value} for ref in request.media]
        messages = [
            {"role": "system", "content": [{"type": "text", "text": request.system}]},
            {"role": "user", "content": [*parts, {"type": "text", "text": request.instruction}]},
        ]
        text: str = self._processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        return text

    def _room(self, llm: AsyncLLM, request: Request, text: str, sampling: SamplingParams) -> Room | None:
        """What is left for a video; pictures are never cut down, so nobody counts for them."""
        if all(ref.kind is not Modality.VIDEO for ref in request.media):
            return None
        tokens = len(self._processor.tokenizer(text)["input_ids"])
        return Room(llm.model_config.max_model_len, tokens, sampling.max_tokens or 0)


def build(settings: Settings, model: str) -> VllmEngine:
    """The engine that `CAPFLOW_ENGINE=vllm` names."""
    if current_platform.is_cpu():
        # The engine core would spend 20 s to compile one line when it is first asked for probabilities.
        os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")
    return VllmEngine(
        model,
        _engine_args(settings),
        MediaLoader(settings),
        settings.request_timeout_seconds,
        settings.max_answer_tokens,
    )


def _engine_args(settings: Settings) -> dict[str, Any]:
    chosen = {
        "max_model_len": settings.max_model_len,
        "max_num_seqs": settings.max_num_seqs,
        "gpu_memory_utilization": settings.gpu_memory_utilization,
        "dtype": settings.dtype,
        "quantization": settings.quantization,
    }
    return {
        "tensor_parallel_size": settings.tensor_parallel_size,
        "limit_mm_per_prompt": {"image": settings.max_images, "video": 1},
        # Without this a model may fill a JSON answer with blanks until it is cut off.
        "structured_outputs_config": {"backend": "xgrammar", "disable_any_whitespace": True},
        "max_logprobs": MAX_CHOICES,
        "enable_prefix_caching": True,
        # They are counted for vLLM's own metrics.
        "disable_log_stats": settings.metrics_port is None,
        # There is nothing to compile for on a CPU, only time to lose.
        "enforce_eager": current_platform.is_cpu(),
        **{name: value for name, value in chosen.items() if value is not None},
        **settings.engine_args,
    }


def _load_failure(model: str, error: Exception) -> str:
    reason = str(error).strip().splitlines()
    return (
        f"the model {model!r} cannot be loaded: {reason[0] if reason else type(error).__name__}; "
        "set CAPFLOW_MODEL to a model folder, or to a hub name that this machine can reach"
    )
