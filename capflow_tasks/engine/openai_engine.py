"""A model on a server that speaks OpenAI's API: vLLM's, SGLang's, a gateway, a cloud. Imports no vLLM."""

import asyncio
import itertools
import logging
import re
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import fields, replace
from email.utils import parsedate_to_datetime
from functools import partial
from threading import Thread
from time import monotonic, time
from typing import Any

import openai
from openai import APIConnectionError, APIError, APIStatusError
from openai.types.chat import ChatCompletion
from openai.types.chat.chat_completion import Choice
from openai.types.chat.chat_completion_token_logprob import ChatCompletionTokenLogprob
from tenacity import (
    AsyncRetrying,
    RetryCallState,
    retry_if_exception,
    stop_before_delay,
    wait_random_exponential,
)

from capflow_tasks.engine.chat import (
    ALTERNATIVES,
    answer_of,
    choice_probabilities,
    neutralizer,
    numbered,
    token,
)
from capflow_tasks.engine.interface import Answer, EngineState
from capflow_tasks.errors import (
    CapflowError,
    EngineDead,
    NoProbabilities,
    PromptTooLong,
    RequestFailed,
    RequestRefused,
    RequestTimeout,
    SampleError,
    ServiceError,
    SettingsError,
)
from capflow_tasks.media.data_urls import Parts, encode_media
from capflow_tasks.media.loader import MediaLoader
from capflow_tasks.records import Completion, JsonObject, Request, Token
from capflow_tasks.settings import Settings

log = logging.getLogger(__name__)

#: Statuses of a server that takes no requests now; 409 and 425 are a gateway's "not yet".
_BUSY = {408, 409, 425, 429, 502, 503}
#: Statuses that every request would get: wrong key, nothing left to pay with, no such model or path.
_UNUSABLE = {401, 402, 404}
#: httpx's names for a connection that never was: the server is away. Any other broke during the request.
_UNCONNECTED = {"ConnectError", "ConnectTimeout", "PoolTimeout"}
#: How servers say that a prompt is longer than their model's context.
_TOO_LONG = re.compile(r"context[ _](length|window|size)|maximum model length|too (long|many tokens)", re.I)
#: Tries of a request that the server fails on, or at which it breaks the connection.
_TRIES = 3
_CONNECT_SECONDS = 10.0
_START_SECONDS = 30.0
#: Log-probabilities that every server with any may be asked for.
_TOP_LOGPROBS = 20
_SHOWN_CHARACTERS = 500
#: Sampling parameters that every server knows; an unknown one is an error to OpenAI itself.
_OPENAI_SAMPLING = {"temperature", "top_p", "presence_penalty", "frequency_penalty"}
#: Makes special tokens plain text, as far as they are known without the server's tokenizer.
_plain = neutralizer()


class OpenAiEngine:
    """One model on one server. `generate` may be called from any number of threads."""

    def __init__(self, settings: Settings, model: str, url: str, key: str) -> None:
        self.model = model
        self._url, self._key = url, key
        self._fields = settings.openai_body
        self._max_answer_tokens = settings.max_answer_tokens
        self._timeout_seconds = settings.request_timeout_seconds
        encode = partial(encode_media, splits_videos=settings.openai_video == "frames")
        self._media = MediaLoader(settings, load=encode)
        self._slots = asyncio.Semaphore(settings.openai_requests)
        self._loop = asyncio.new_event_loop()
        self._thread = Thread(target=self._loop.run_forever, name="engine", daemon=True)
        timeout = openai.Timeout(None, connect=_CONNECT_SECONDS)
        self._client = openai.AsyncOpenAI(base_url=url, api_key=key, timeout=timeout, max_retries=0)
        #: Whether the server is vLLM's, which takes more than OpenAI's; None before the start.
        self._is_vllm: bool | None = None
        #: The server's name, with a version where it tells one; None before the start.
        self.version: str | None = None
        #: Why the server takes no requests; None while it does.
        self._away: str | None = None
        #: When any request was last answered, monotonic seconds.
        self._answered_at = 0.0

    def start(self) -> None:
        self._thread.start()
        try:
            self._run(self._find_model())
        except CapflowError:
            self.stop()
            raise

    def stop(self) -> None:
        if not self._thread.is_alive():
            return
        self._run(self._client.close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    @property
    def state(self) -> EngineState:
        if self._is_vllm is None:
            return EngineState.LOADING
        return EngineState.DEAD if self._away else EngineState.UP

    def generate(self, requests: Sequence[Request]) -> list[Answer]:
        answers: list[Answer] = self._run(self._answer_all(requests))
        return answers

    def _run(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()

    async def _find_model(self) -> None:
        """Check that the server has the model. Raises ServiceError."""
        try:
            served = [each async for each in self._client.with_options(timeout=_START_SECONDS).models.list()]
            owners = {each.id: each.owned_by for each in served}
        except APIStatusError as error:
            remedy = (
                "set CAPFLOW_OPENAI_API_KEY" if error.status_code in (401, 403) else "it often ends in /v1"
            )
            raise self._unusable(f"{self._said(error)}; {remedy}") from None
        except APIError as error:
            raise self._unusable(f"it cannot be reached: {self._said(error)}; start it") from None
        except Exception as error:  # another kind of server may answer anything
            raise self._unusable(f"its list of models cannot be read: {error!r}") from error
        if self.model not in owners:
            names = ", ".join(sorted(owners)) or "none"
            raise self._unusable(f"it has no model {self.model!r}; set CAPFLOW_MODEL to one of: {names}")
        self._is_vllm = owners[self.model] == "vllm"
        self.version = await self._vllm_version() if self._is_vllm else f"server of {owners[self.model]}"

    async def _vllm_version(self) -> str:
        """Ask vLLM's server for its version; a gateway before it may not know."""
        url = f"{self._url.rstrip('/').removesuffix('/v1')}/version"
        try:
            said = await self._client.with_options(timeout=_START_SECONDS).get(url, cast_to=dict[str, str])
            return f"vllm {said['version']}"
        except (APIError, LookupError, TypeError, ValueError):
            return "vllm"

    async def _answer_all(self, requests: Sequence[Request]) -> list[Answer]:
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(self._answer(request)) for request in requests]
        except BaseExceptionGroup as errors:
            # the batch is given back: nobody waits for its other answers
            raise errors.exceptions[0] from None
        return [task.result() for task in tasks]

    async def _answer(self, request: Request) -> Answer:
        """Return the completion or the sample's error. Raises ServiceError and EngineDead."""
        async with self._media.turn(request), self._slots:
            started = monotonic()
            try:
                async with asyncio.timeout(self._timeout_seconds):
                    answer = await self._ask(request)
                self._answered_at = monotonic()
                found = completion_of(answer, request, self._answered_at - started)
                return replace(found, sampling=self._sent_sampling(request))
            except TimeoutError as error:
                return self._late(started, error)
            except SampleError as error:
                return error
            except CapflowError:
                raise
            except Exception as error:
                # one request must not fail the batch that it came with
                log.warning("A request failed.", exc_info=True)
                return RequestFailed(f"the answer cannot be read: {error!r}")

    def _late(self, started: float, error: TimeoutError) -> SampleError:
        if self._away:
            raise self._unusable(self._away) from error
        if started > self._answered_at:
            raise EngineDead(f"{self._url} has answered nothing for {self._timeout_seconds:g} s") from error
        return RequestTimeout(f"no answer within {self._timeout_seconds:g} s")

    async def _ask(self, request: Request) -> ChatCompletion:
        """Send the request until it is answered, with growing waits while the server is away or busy."""
        media: list[Parts] = [each.value for each in await self._media.load(request, room=None)]
        body = {**self._body(request), **_io_kwargs(media), **self._fields}
        try:
            answer: ChatCompletion = await self._retrying()(self._send, messages_of(request, media), body)
        except APIError as error:
            # not from the error, whose text may quote the key
            raise self._translated(error) from None
        if self._away:
            log.info("%s takes requests again", self._url)
            self._away = None
        return answer

    def _retrying(self) -> AsyncRetrying:
        """Return what sends one request again: while the server is away, or a few times if it fails."""
        is_late, failures = stop_before_delay(self._timeout_seconds), itertools.count(1)
        return AsyncRetrying(
            retry=retry_if_exception(_may_pass),
            wait=_wait_seconds,
            stop=lambda state: (
                is_late(state) or (not _is_away(_error_of(state)) and next(failures) >= _TRIES)
            ),
            before_sleep=self._note_trouble,
            reraise=True,
        )

    async def _send(self, messages: list[Any], body: JsonObject) -> ChatCompletion:
        fields = {name: value for name, value in body.items() if value is not None}
        return await self._client.chat.completions.create(
            model=self.model, messages=messages, extra_body=fields
        )

    def _body(self, request: Request) -> JsonObject:
        """Return the fields of the request besides its messages; None leaves one out."""
        sampling, is_free = request.sampling, not request.choices and request.schema is None
        # a letter is the first token
        thinking_tokens = 0 if request.choices else sampling.thinking_tokens
        max_tokens = min(sampling.max_tokens, self._max_answer_tokens or sampling.max_tokens)
        body: JsonObject = {
            # a constrained answer that is cut off is useless
            "max_tokens": thinking_tokens + (max_tokens if is_free else sampling.max_tokens),
            # what the domain leaves to the model, the server knows
            **{
                name: value
                for name, value in sampling.named.items()
                if self._is_vllm or name in _OPENAI_SAMPLING
            },
        }
        if self._is_vllm:
            thinks = thinking_tokens > 0
            body["chat_template_kwargs"] = {"enable_thinking": thinks, "thinking": thinks}
        if request.choices:
            body |= {"logprobs": True, "top_logprobs": _TOP_LOGPROBS}
            body["structured_outputs"] = {"choice": list(request.choices)} if self._is_vllm else None
        elif request.schema is not None:
            schema = {"name": "answer", "schema": dict(request.schema), "strict": True}
            body["response_format"] = {"type": "json_schema", "json_schema": schema}
            if self._is_vllm and request.has_tokens:
                body |= {"logprobs": True, "top_logprobs": ALTERNATIVES}
        return body

    def _sent_sampling(self, request: Request) -> dict[str, float]:
        """Return the sampling parameters of the request; the server knows the others."""
        body = {**self._body(request), **self._fields}
        return {each.name: body[each.name] for each in fields(request.sampling) if each.name in body}

    def _translated(self, error: APIError) -> CapflowError:
        """Return who is to blame: the server for nothing, the server's state, or this request."""
        said = self._said(error)
        if _is_away(error):
            return self._unusable(f"it has taken no request for a while: {said}")
        if isinstance(error, APIConnectionError):
            return EngineDead(f"{self._url} broke the connection {_TRIES} times: {said}")
        status = error.status_code if isinstance(error, APIStatusError) else 500
        if status in _UNUSABLE or error.code == "insufficient_quota":
            return self._unusable(said)
        if status >= 500:
            return RequestFailed(f"the server failed on this request: {said}")
        is_too_long = status == 413 or error.code == "context_length_exceeded" or _TOO_LONG.search(said)
        return (PromptTooLong if is_too_long else RequestRefused)(said)

    def _unusable(self, reason: str) -> ServiceError:
        return ServiceError(f"the server of CAPFLOW_OPENAI_BASE_URL, {self._url}, cannot be used: {reason}")

    def _said(self, error: APIError) -> str:
        """Return what the server said, in short, without the key."""
        body = error.body if isinstance(error.body, dict) else {}
        text = str(body.get("message") or error.__cause__ or error.message)
        status = f"{error.status_code}: " if isinstance(error, APIStatusError) else ""
        return status + text.replace(self._key, "***")[:_SHOWN_CHARACTERS]

    def _note_trouble(self, state: RetryCallState) -> None:
        error = _error_of(state)
        log.debug("trying again in %.1f s: %s", state.upcoming_sleep, self._said(error))
        if _is_away(error) and not isinstance(error, openai.RateLimitError) and not self._away:
            self._away = self._said(error)
            log.warning("%s takes no requests and is asked again: %s", self._url, self._away)


def build(settings: Settings, model: str) -> OpenAiEngine:
    """Build the engine that `CAPFLOW_ENGINE=openai` names. Raises SettingsError."""
    if settings.openai_base_url is None:
        raise SettingsError(
            "CAPFLOW_ENGINE=openai needs CAPFLOW_OPENAI_BASE_URL, such as http://host:8000/v1"
        )
    # servers without a key take any
    key = settings.openai_api_key.get_secret_value().strip() if settings.openai_api_key else "no-key"
    if not (key.isascii() and key.isprintable() and key):
        raise SettingsError("CAPFLOW_OPENAI_API_KEY holds characters that no key has; copy it again")
    # they log every request, the second with its media
    for name in ("httpx", "httpx2", "openai"):
        logging.getLogger(name).setLevel(logging.WARNING)
    return OpenAiEngine(settings, model, settings.openai_base_url, key)


def messages_of(request: Request, media: Sequence[Parts]) -> list[Any]:
    """Return system line, media, instruction: a sample's calls differ only in the instruction."""
    shown = numbered([each.content for each in media])
    # models that see nothing want a string
    system, instruction = _plain(request.system), _plain(request.instruction)
    content = [*shown, {"type": "text", "text": instruction}] if shown else instruction
    return [{"role": "system", "content": system}, {"role": "user", "content": content}]


def _io_kwargs(media: Sequence[Parts]) -> JsonObject:
    return {"media_io_kwargs": next((each.io_kwargs for each in media if each.io_kwargs), None)}


def completion_of(answer: ChatCompletion, request: Request, seconds: float) -> Completion:
    """Translate the server's answer. Raises RequestRefused, BadAnswer and NoProbabilities."""
    choice, usage = answer.choices[0], answer.usage
    if choice.message.refusal or choice.finish_reason == "content_filter":
        raise RequestRefused(f"the server refuses: {choice.message.refusal or 'its content filter'}")
    details = usage.prompt_tokens_details if usage else None
    return Completion(
        # the server may leave the thinking in its answer
        text=answer_of(choice.message.content or ""),
        prompt_tokens=usage.prompt_tokens if usage else 0,
        cached_tokens=(details.cached_tokens or 0) if details else 0,
        completion_tokens=usage.completion_tokens if usage else 0,
        # some servers send null, whatever the type says
        finish_reason=choice.finish_reason or "",  # type: ignore[unreachable]
        seconds=seconds,
        probabilities=_probabilities(choice, request.choices),
        tokens=_tokens(choice) if request.has_tokens else (),
    )


def _tokens(choice: Choice) -> tuple[Token, ...]:
    found = (choice.logprobs and choice.logprobs.content) or []
    return tuple(token(each.token, _pairs(each)) for each in found)


def _pairs(place: ChatCompletionTokenLogprob) -> list[tuple[str, float]]:
    return [(each.token, each.logprob) for each in place.top_logprobs]


def _probabilities(choice: Choice, choices: Sequence[str]) -> Mapping[str, float]:
    """Return the probability of each choice as the first token, summing to 1."""
    if not choices:
        return {}
    tokens = (choice.logprobs and choice.logprobs.content) or []
    if not tokens or not tokens[0].top_logprobs:
        raise NoProbabilities
    return choice_probabilities(_pairs(tokens[0]), choices)


def _is_away(error: BaseException) -> bool:
    """Whether the server takes no requests now, for which no request is to blame."""
    if isinstance(error, APIStatusError):
        return error.status_code in _BUSY and error.code != "insufficient_quota"
    return isinstance(error, APIConnectionError) and type(error.__cause__).__name__ in _UNCONNECTED


def _may_pass(error: BaseException) -> bool:
    """Whether the same request may be answered a moment later."""
    if isinstance(error, APIStatusError):
        return _is_away(error) or error.status_code >= 500
    return isinstance(error, APIConnectionError)


def _wait_seconds(state: RetryCallState) -> float:
    """Return what the server's Retry-After asks for, else a random wait that grows with each try."""
    error = _error_of(state)
    wait = wait_random_exponential(0.5, max=30)(state)
    asked = error.response.headers.get("retry-after") if isinstance(error, APIStatusError) else None
    return max(wait, _seconds(asked)) if asked else wait


def _seconds(retry_after: str) -> float:
    """Read a Retry-After header: seconds, or a date; 0 for anything else."""
    try:
        if retry_after.strip().isdecimal():
            return float(retry_after)
        return max(0.0, parsedate_to_datetime(retry_after).timestamp() - time())
    except ValueError:
        return 0.0


def _error_of(state: RetryCallState) -> APIError:
    error = state.outcome.exception() if state.outcome else None
    assert isinstance(error, APIError)
    return error
