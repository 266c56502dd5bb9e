"""vLLM's AsyncLLM on an event loop in its own thread: many callers share one continuous batch."""

import asyncio
import itertools
import logging
import os
import re
from collections.abc import Coroutine, Sequence
from dataclasses import replace
from math import exp
from threading import Lock, Thread
from time import monotonic
from typing import Any

from vllm import AsyncEngineArgs, SamplingParams
from vllm import exceptions as vllm_exceptions
from vllm.platforms import current_platform
from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.exceptions import EngineDeadError

from capflow_tasks import errors
from capflow_tasks.engine.interface import Answer, EngineState
from capflow_tasks.engine.profile import ModelProfile, read_profile
from capflow_tasks.media.loader import Media, MediaLoader, Room, SentMedia
from capflow_tasks.observe import metrics
from capflow_tasks.records import Completion, Modality, Request
from capflow_tasks.settings import Settings

os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")

log = logging.getLogger(__name__)

#: How vLLM refuses a request: by ValueError up to 0.27, by its own class since.
_REFUSALS = (ValueError, TypeError, getattr(vllm_exceptions, "VLLMClientError", ValueError))
_TOO_LONG = re.compile(r"maximum (context|model) length|longer than the maximum")
#: Interval between checks that the engine is alive.
_CHECK_SECONDS = 1.0


class VllmEngine:
    """One model in this process. `generate` may be called from any number of threads."""

    def __init__(self, settings: Settings, model: str) -> None:
        self.model = model
        self._settings = settings
        self._engine_args = engine_args(settings)
        self._timeout_seconds = settings.request_timeout_seconds
        self._max_answer_tokens = settings.max_answer_tokens
        self._loop = asyncio.new_event_loop()
        self._thread = Thread(target=self._loop.run_forever, name="engine", daemon=True)
        self._request_ids = itertools.count()
        #: Both are there once the model is loaded.
        self._profile: ModelProfile
        self._media: MediaLoader
        self._llm: AsyncLLM | None = None
        self._rebuilding = Lock()
        self._sent = SentMedia()
        #: When any request was last answered, monotonic seconds.
        self._answered_at = 0.0
        #: An engine that has not answered anything within the timeout; it is replaced.
        self._hung: AsyncLLM | None = None

    def start(self) -> None:
        self._thread.start()
        try:
            self._llm = self._run(self._load())
        except errors.ServiceError:
            self.stop()
            raise

    def stop(self) -> None:
        if not self._thread.is_alive():
            return
        # on its own loop and before the loop closes, or AsyncLLM's finalizer complains
        self._run(self._unload())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    @property
    def state(self) -> EngineState:
        if self._llm is None:
            return EngineState.LOADING
        return EngineState.DEAD if self._is_dead(self._llm) else EngineState.UP

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

    def _is_dead(self, llm: AsyncLLM) -> bool:
        return llm.errored or llm is self._hung

    def _living(self) -> AsyncLLM:
        """Return the engine, rebuilt first if it died; other callers wait. Raises ServiceError."""
        with self._rebuilding:
            if self._llm is None or self._is_dead(self._llm):
                log.warning("The engine of %s died and is being rebuilt.", self.model)
                metrics.ENGINE_REBUILDS.labels(self.model).inc()
                self._run(self._unload())
                self._llm = self._run(self._load())
            return self._llm

    def _run(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()

    async def _load(self) -> AsyncLLM:
        self._sent.clear()
        try:
            if not hasattr(self, "_media"):
                self._profile = read_profile(self.model, self._engine_args)
                self._media = MediaLoader(self._settings, form=self._profile.form)
            return AsyncLLM.from_engine_args(AsyncEngineArgs(model=self.model, **self._engine_args))
        except Exception as error:
            log.debug("loading %s failed", self.model, exc_info=True)
            reason = [*str(error).strip().splitlines(), type(error).__name__][0]
            raise errors.ServiceError(
                f"the model {self.model!r} cannot be loaded: {reason}; "
                "set CAPFLOW_MODEL to a model folder, or to a hub name that this machine can reach"
            ) from error

    async def _unload(self) -> None:
        if self._llm is not None:
            self._llm.shutdown()
            # its finalizer shuts down again: harmless here, not at interpreter exit
            self._llm = None

    async def _answer_all(self, llm: AsyncLLM, requests: Sequence[Request]) -> list[Answer]:
        work = asyncio.gather(*(self._answer(llm, request) for request in requests), return_exceptions=True)
        # a request that reaches vLLM while its engine dies is never answered and never fails
        while not (await asyncio.wait([work], timeout=_CHECK_SECONDS))[0]:
            if llm.errored:
                work.cancel()
                raise errors.EngineDead
        answers = work.result()
        for answer in answers:
            if isinstance(answer, BaseException) and not isinstance(answer, errors.SampleError):
                raise answer
        return answers  # type: ignore[return-value]

    async def _answer(self, llm: AsyncLLM, request: Request) -> Completion:
        async with self._media.turn(request):
            started = monotonic()
            try:
                async with asyncio.timeout(self._timeout_seconds):
                    output = await self._ask(llm, request)
            except TimeoutError as error:
                if started > self._answered_at:
                    # no request at all was answered in that time: the engine hangs
                    self._hung = llm
                    raise errors.EngineDead("the engine hangs") from error
                raise errors.RequestTimeout(f"no answer within {self._timeout_seconds:g} s") from error
            except EngineDeadError as error:
                raise errors.EngineDead from error
            except errors.SampleError:
                raise
            except _REFUSALS as error:
                kind = errors.PromptTooLong if _TOO_LONG.search(str(error)) else errors.RequestRefused
                raise kind(str(error)) from error
            except Exception as error:
                # one request must not fail the batch that it came with
                log.warning("A request failed.", exc_info=True)
                cause = error.__cause__ or error
                raise errors.RequestFailed(f"the engine failed on this request: {cause!r}") from error
            self._answered_at = monotonic()
            return completion_of(output, request, self._answered_at - started)

    async def _ask(self, llm: AsyncLLM, request: Request) -> Any:
        """Name the media that the engine already has; send their pixels again if it has dropped them."""
        request = replace(request, media=self._profile.visible(request.media))
        text, sampling = self._text(request), sampling_params(request, self._max_answer_tokens)
        room = None  # pictures are never reduced
        if any(ref.kind is Modality.VIDEO for ref in request.media):
            tokens = len(self._profile.processor.tokenizer(text)["input_ids"])
            room = Room(llm.model_config.max_model_len, tokens, sampling.max_tokens or 0)
        media = await self._media.load(request, room, self._sent)
        try:
            output = await self._complete(llm, prompt_of(text, media), sampling)
        except EngineDeadError:
            raise
        except Exception:
            if all(each.value is not None for each in media):
                raise
            log.debug("Sending the media again.", exc_info=True)
            self._sent.forget(media)
            media = await self._media.load(request, room)
            output = await self._complete(llm, prompt_of(text, media), sampling)
        self._sent.add(media)
        return output

    async def _complete(self, llm: AsyncLLM, prompt: Any, sampling: SamplingParams) -> Any:
        outputs = llm.generate(prompt, sampling, f"capflow-{next(self._request_ids)}")
        # leaving the loop early, as at a timeout, aborts the request in the engine
        return [output async for output in outputs][-1]

    def _text(self, request: Request) -> str:
        """Render system line, media, instruction: a sample's calls differ only in the instruction."""
        system: Any = [{"type": "text", "text": request.system}]
        user: Any = [{"type": ref.kind.value} for ref in request.media]
        user.append({"type": "text", "text": request.instruction})
        if not self._profile.sees:
            # the templates of text models leave out a list of parts
            system, user = request.system, request.instruction
        messages = [{"role": "system", "content": system}, {"role": "user", "content": user}]
        text: str = self._profile.processor.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True
        )
        return text


def build(settings: Settings, model: str) -> VllmEngine:
    """Build the engine that `CAPFLOW_ENGINE=vllm` names."""
    if current_platform.is_cpu():
        # otherwise the engine core compiles one line for 20 s when first asked for probabilities
        os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")
    return VllmEngine(settings, model)


def engine_args(settings: Settings) -> dict[str, Any]:
    """Return the arguments of vLLM's engine; `CAPFLOW_ENGINE_ARGS` overrides the others."""
    names = ("max_model_len", "max_num_seqs", "gpu_memory_utilization", "dtype", "quantization")
    chosen = {name: getattr(settings, name) for name in names}
    return {
        "tensor_parallel_size": settings.tensor_parallel_size,
        "limit_mm_per_prompt": {"image": settings.max_images, "video": 1},
        # without this a model may fill a JSON answer with blanks until it is cut off
        "structured_outputs_config": {"backend": "xgrammar", "disable_any_whitespace": True},
        # one letter per domain; vLLM allows 20 log-probabilities by default
        "max_logprobs": 26,
        "enable_prefix_caching": True,
        # statistics only feed vLLM's own metrics
        "disable_log_stats": settings.metrics_port is None,
        # compiling gains nothing on a CPU
        "enforce_eager": current_platform.is_cpu(),
        **{name: value for name, value in chosen.items() if value is not None},
        **settings.engine_args,
    }


def sampling_params(request: Request, max_answer_tokens: int | None) -> SamplingParams:
    """Translate the request's sampling; `max_answer_tokens` caps free text only."""
    sampling, constraint = request.sampling, None
    max_tokens = min(sampling.max_tokens, max_answer_tokens or sampling.max_tokens)
    if request.choices:
        constraint = StructuredOutputsParams(choice=list(request.choices))
    elif request.schema is not None:
        constraint = StructuredOutputsParams(json=dict(request.schema))
    return SamplingParams(
        # a constrained answer that is cut off is useless
        max_tokens=sampling.max_tokens if constraint else max_tokens,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        repetition_penalty=sampling.repetition_penalty,
        logprobs=len(request.choices) or None,
        structured_outputs=constraint,
        output_kind=RequestOutputKind.FINAL_ONLY,
    )


def prompt_of(text: str, media: Sequence[Media]) -> dict[str, Any]:
    """Return vLLM's prompt; media without pixels are only named.

    Each kind is a list with one item per placeholder: given None instead of a list, vLLM silently drops it.
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
    """Translate vLLM's finished output; a choice's probability is that of its letter as the first token."""
    answer = output.outputs[0]
    first = answer.logprobs[0].values() if request.choices else ()
    found = {entry.decoded_token.strip(): exp(entry.logprob) for entry in first}
    allowed = {choice: found.get(choice, 0.0) for choice in request.choices}
    total = sum(allowed.values())
    return Completion(
        text=answer.text,
        prompt_tokens=len(output.prompt_token_ids),
        cached_tokens=output.num_cached_tokens or 0,
        completion_tokens=len(answer.token_ids),
        finish_reason=answer.finish_reason or "",
        seconds=seconds,
        probabilities={choice: value / total for choice, value in allowed.items()},
    )
