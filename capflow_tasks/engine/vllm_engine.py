"""vLLM's AsyncLLM on an event loop in its own thread: many callers share one continuous batch."""

import asyncio
import itertools
import logging
import multiprocessing
import os
import re
from collections.abc import Coroutine, Mapping, Sequence
from concurrent.futures import wait
from dataclasses import replace
from threading import Lock, Thread
from time import monotonic
from typing import Any

from vllm import AsyncEngineArgs, SamplingParams
from vllm import __version__ as vllm_version
from vllm import exceptions as vllm_exceptions
from vllm.logger import DEFAULT_LOGGING_CONFIG
from vllm.platforms import current_platform
from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams
from vllm.usage.usage_lib import UsageContext
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.exceptions import EngineDeadError

from capflow_tasks import errors
from capflow_tasks.engine import chat, demand, load_failures
from capflow_tasks.engine.interface import Answer, EngineState
from capflow_tasks.engine.profile import ModelProfile, read_profile
from capflow_tasks.engine.revision import revision_of
from capflow_tasks.media.loader import Media, MediaLoader, Room, SentMedia
from capflow_tasks.observe import metrics
from capflow_tasks.records import Completion, Modality, Request
from capflow_tasks.settings import GPU_MEMORY_SHARE, Settings

os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
# a process with Celery's threads must not fork: a lock that one of them holds stays locked in the child
os.environ.setdefault("VLLM_WORKER_MULTIPROC_METHOD", "spawn")

log = logging.getLogger(__name__)

#: How vLLM refuses a request: by ValueError up to 0.27, by its own class since.
_REFUSALS = (ValueError, TypeError, getattr(vllm_exceptions, "VLLMClientError", ValueError))
_TOO_LONG = re.compile(r"maximum (context|model) length|longer than the maximum")
#: Interval between checks that the engine is alive.
_CHECK_SECONDS = 1.0


class VllmEngine:
    """One model in this process. `generate` may be called from any number of threads."""

    version = f"vllm {vllm_version}"
    #: None before the model is loaded.
    revision: str | None = None

    def __init__(self, settings: Settings, model: str) -> None:
        self.model = model
        self._settings = settings
        self._engine_args = engine_args(settings, model)
        self._start_seconds = settings.engine_start_seconds
        self._timeout_seconds = settings.request_timeout_seconds
        self._max_answer_tokens = settings.max_answer_tokens
        self._loop = asyncio.new_event_loop()
        self._thread = Thread(target=self._loop.run_forever, name="engine", daemon=True)
        self._request_ids = itertools.count()
        #: All three are there once the model is loaded; `_recommended` is its own choice of sampling.
        self._profile: ModelProfile
        self._media: MediaLoader
        self._chat: chat.Chat
        self._recommended: Mapping[str, float]
        self._llm: AsyncLLM | None = None
        self._rebuilding = Lock()
        #: Why no engine can be had any more.
        self._failure: errors.ServiceError | None = None
        #: Whether the loop's thread hangs in a load that was given up.
        self._is_stuck = False
        self._sent = SentMedia()
        #: When any request was last answered, monotonic seconds.
        self._answered_at = 0.0
        #: An engine that has not answered anything within the timeout; it is replaced.
        self._hung: AsyncLLM | None = None

    def start(self) -> None:
        self._thread.start()
        try:
            self._llm = self._load_in_time()
        except errors.ServiceError:
            self.stop()
            raise

    def stop(self) -> None:
        if not self._thread.is_alive() or self._is_stuck:
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
        blocks = (cache.num_gpu_blocks or 0) * cache.block_size
        # layers of several kinds share the blocks of a hybrid model; vLLM 0.25 has no figure for it
        return getattr(cache, "kv_cache_size_tokens", None) or blocks or None

    @property
    def max_requests(self) -> int | None:
        """Requests in one engine step; None before the engine is up."""
        return None if self._llm is None else self._llm.vllm_config.scheduler_config.max_num_seqs

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
                if self._failure is not None:
                    raise self._failure
                self._run(self._unload())
                self._llm = self._load_in_time()
            return self._llm

    def _run(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()

    def _load_in_time(self) -> AsyncLLM:
        """Load the model; other callers get the same ServiceError when that fails."""
        loading = asyncio.run_coroutine_threadsafe(self._load(), self._loop)
        try:
            return loading.result(self._start_seconds)
        except TimeoutError:
            self._failure = errors.ServiceError(
                f"the model {self.model!r} was not loaded within {self._start_seconds:g} s; "
                "set CAPFLOW_ENGINE_START_SECONDS higher, or see this worker's log for what it waits for"
            )
        except errors.ServiceError as error:
            self._failure = error
        if not loading.done():
            for process in multiprocessing.active_children():
                process.kill()  # the loop's thread may wait for them
            wait([loading], timeout=_CHECK_SECONDS)
            self._is_stuck = not loading.done()
        raise self._failure

    async def _load(self) -> AsyncLLM:
        self._sent.clear()
        with load_failures.core_errors(DEFAULT_LOGGING_CONFIG) as log_of_core:
            try:
                if not hasattr(self, "_media"):
                    self._profile = read_profile(self.model, self._engine_args)
                    self._media = MediaLoader(self._settings, form=self._profile.form)
                    self._chat = chat.Chat(self._profile.processor, sees=bool(self._profile.sees))
                arguments = AsyncEngineArgs(model=self.model, **self._engine_args)
                # a batch job's throughput counts, not its first token: vLLM then takes larger steps
                llm = AsyncLLM.from_engine_args(arguments, usage_context=UsageContext.LLM_CLASS)
            except Exception as error:
                log.debug("loading %s failed", self.model, exc_info=True)
                said = load_failures.explain(self.model, error, log_of_core.read_text())
                raise errors.ServiceError(said) from error
        self._recommended = llm.model_config.get_diff_sampling_param()
        self.revision = revision_of(self.model, self._engine_args.get("revision"))
        return llm

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
                    outputs = await self._ask(llm, request)
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
            answer = completion_of(outputs, request, self._answered_at - started)
            return replace(
                answer, sampling=sent_sampling(request, self._max_answer_tokens, self._recommended)
            )

    async def _ask(self, llm: AsyncLLM, request: Request) -> Sequence[Any]:
        """Return vLLM's output, after that of the thinking if the request asks for some.

        The thinking is a call of its own, so that its budget is exact, and a letter or JSON follows it
        whatever vLLM knows of the model.
        """
        request = replace(request, media=self._profile.visible(request.media))
        prompt, outputs = self._chat.render(request), []
        room = self._room(llm, request, prompt)
        if self._chat.thinks(request):
            sampling = thinking_params(request, self._chat.thinking_end, self._recommended)
            outputs.append(await self._send(llm, request, room, prompt, sampling))
            prompt = self._chat.closed(prompt, outputs[0].outputs[0].text)
        sampling = sampling_params(request, self._max_answer_tokens, self._recommended)
        return [*outputs, await self._send(llm, request, room, prompt, sampling)]

    def _room(self, llm: AsyncLLM, request: Request, prompt: str) -> Room | None:
        """Return what the prompt leaves for videos; None without one, as pictures are never reduced."""
        if not any(ref.kind is Modality.VIDEO for ref in request.media):
            return None
        tokens = len(self._profile.processor.tokenizer(prompt)["input_ids"])
        answer = sampling_params(request, self._max_answer_tokens, {}).max_tokens or 0
        thinking = request.sampling.thinking_tokens if self._chat.thinks(request) else 0
        return Room(llm.model_config.max_model_len, tokens, thinking + answer)

    async def _send(
        self, llm: AsyncLLM, request: Request, room: Room | None, text: str, sampling: SamplingParams
    ) -> Any:
        """Name the media that the engine already has; send their pixels again if it has dropped them."""
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


def build(settings: Settings, model: str) -> VllmEngine:
    """Build the engine that `CAPFLOW_ENGINE=vllm` names."""
    if current_platform.is_cpu():
        # otherwise the engine core compiles one line for 20 s when first asked for probabilities
        os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")
    return VllmEngine(settings, model)


def engine_args(settings: Settings, model: str) -> dict[str, Any]:
    """Return the arguments of vLLM's engine; `CAPFLOW_ENGINE_ARGS` overrides the others, key by key.

    docs/how-to/size-a-fleet.md gives the reason for each.
    """
    names = ("max_num_seqs", "gpu_memory_utilization", "dtype", "quantization")
    chosen = {name: getattr(settings, name) for name in names}
    if not current_platform.is_cpu():
        chosen["gpu_memory_utilization"] = settings.gpu_memory_utilization or GPU_MEMORY_SHARE
    if settings.tensor_parallel_size > 1:
        # each GPU encodes whole pictures, so none waits for the others
        chosen["mm_encoder_tp_mode"] = "data"
    ours = {
        "tensor_parallel_size": settings.tensor_parallel_size,
        "max_model_len": demand.context_of(settings, demand.read_config(model, may_download=True)),
        "limit_mm_per_prompt": demand.demand_of(settings).media_limits,
        "structured_outputs_config": {
            "backend": "xgrammar",
            # without this a model may fill a JSON answer with blanks until it is cut off
            "disable_any_whitespace": True,
            # thinking has ended before: a reasoning parser that waits for its end lets any token pass
            "enable_in_reasoning": True,
        },
        # one letter per domain; vLLM allows 20 log-probabilities by default
        "max_logprobs": 26,
        "enable_prefix_caching": True,
        # statistics only feed vLLM's own metrics
        "disable_log_stats": settings.metrics_port is None,
        # compiling gains nothing on a CPU
        "enforce_eager": current_platform.is_cpu(),
        **{name: value for name, value in chosen.items() if value is not None},
    }
    return ours | {name: _merged(ours.get(name), value) for name, value in settings.engine_args.items()}


def _merged(ours: Any, theirs: Any) -> Any:
    return {**ours, **theirs} if isinstance(ours, dict) and isinstance(theirs, dict) else theirs


def sampling_params(
    request: Request, max_answer_tokens: int | None, recommended: Mapping[str, float]
) -> SamplingParams:
    """Translate the request's sampling; `max_answer_tokens` and `recommended` are for free text only."""
    sampling, constraint = request.sampling, None
    max_tokens = min(sampling.max_tokens, max_answer_tokens or sampling.max_tokens)
    if request.choices:
        constraint = StructuredOutputsParams(choice=list(request.choices))
    elif request.schema is not None:
        constraint = StructuredOutputsParams(json=dict(request.schema))
    return SamplingParams(
        # a constrained answer that is cut off is useless
        max_tokens=sampling.max_tokens if constraint else max_tokens,
        logprobs=chat.ALTERNATIVES if request.has_tokens else len(request.choices) or None,
        structured_outputs=constraint,
        output_kind=RequestOutputKind.FINAL_ONLY,
        # a penalty meant for prose would distort letters and grades
        **_sampled(request, {} if constraint else recommended),
    )


def sent_sampling(
    request: Request, max_answer_tokens: int | None, recommended: Mapping[str, float]
) -> dict[str, float]:
    """Return what `sampling_params` names, to be stored with the answer."""
    params = sampling_params(request, max_answer_tokens, recommended)
    names = _sampled(request, recommended if params.structured_outputs is None else {})
    return {name: getattr(params, name) for name in ("max_tokens", *names)}


def thinking_params(request: Request, end: str, recommended: Mapping[str, float]) -> SamplingParams:
    """Return the sampling of the thinking before the answer: it stops at `end`, or at its budget."""
    return SamplingParams(
        max_tokens=request.sampling.thinking_tokens,
        stop=[end],
        # of some models `end` is one
        skip_special_tokens=False,
        output_kind=RequestOutputKind.FINAL_ONLY,
        **_sampled(request, recommended),
    )


def _sampled(request: Request, recommended: Mapping[str, float]) -> dict[str, Any]:
    return request.sampling.completed({key: recommended[key] for key in recommended if key != "max_tokens"})


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


def completion_of(outputs: Sequence[Any], request: Request, seconds: float) -> Completion:
    """Translate vLLM's finished outputs; the last is the answer. Raises BadAnswer."""
    answer = outputs[-1].outputs[0]
    places = answer.logprobs or ()
    likely = [[(each.decoded_token, each.logprob) for each in place.values()] for place in places]
    texts = [place[token_id].decoded_token for token_id, place in zip(answer.token_ids, places, strict=False)]
    return Completion(
        text=answer.text if request.choices else chat.answer_of(answer.text),
        prompt_tokens=len(outputs[0].prompt_token_ids),
        cached_tokens=outputs[0].num_cached_tokens or 0,
        completion_tokens=sum(len(output.outputs[0].token_ids) for output in outputs),
        finish_reason=answer.finish_reason or "",
        seconds=seconds,
        probabilities=chat.choice_probabilities(likely[0] if likely else (), request.choices)
        if request.choices
        else {},
        tokens=tuple(map(chat.token, texts, likely)) if request.has_tokens else (),
    )
