"""The settings: environment variables named CAPFLOW_*, read where a process starts and handed down."""

import ipaddress
import os
import re
from collections.abc import Collection, Iterator
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import parse_qs, urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict
from pydantic_settings import SettingsError as UnparsableSetting

from capflow_tasks.errors import SettingsError, redacted
from capflow_tasks.records import LANGUAGES, Rule, Stage


def _psycopg_dialect(url: str | None) -> str | None:
    """Check the URL and name the installed driver in it."""
    if url is None:
        return None
    scheme, separator, rest = url.partition("://")
    is_known = scheme in ("postgres", "postgresql", "postgresql+psycopg") and separator
    if not is_known or not _has_sound_port(url):
        raise ValueError("expected postgresql://user:password@host:5432/database")
    thresholds = parse_qs(urlsplit(url).query).get("prepare_threshold", [])
    if len(thresholds) > 1 or not all(each == "none" or each.isdecimal() for each in thresholds):
        raise ValueError("prepare_threshold must be one number of executions, or none")
    return f"postgresql+psycopg://{rest}"


def _redis_url(url: str | None) -> str | None:
    schemes = ("redis", "rediss", "redis+socket", "sentinel")
    if url is not None and (url.partition("://")[0] not in schemes or not _has_sound_port(url)):
        raise ValueError("expected redis://:password@host:6379/0")
    return url


def _has_sound_port(url: str) -> bool:
    try:
        urlsplit(url).port  # noqa: B018 - raises when the port is no number
    except ValueError:
        return False
    return True


def _remote_places(words: str | None) -> str | None:
    for word in (words or "").split():
        place = urlsplit(word)
        if place.scheme in ("http", "https", "s3", "gs", "hf") and place.netloc and _has_sound_port(word):
            continue
        try:
            ipaddress.ip_network(word)
        except ValueError:
            raise ValueError(
                f"{word} is no address; expected one such as https://cdn.example.org, s3://bucket or "
                "10.1.0.0/16, separated by blanks"
            ) from None
    return words


def _known_language(code: str) -> str:
    if code not in LANGUAGES:
        raise ValueError(f"expected one of: {', '.join(LANGUAGES)}")
    return code


LogLevel = Annotated[
    Literal["DEBUG", "INFO", "WARNING", "ERROR"],
    BeforeValidator(lambda value: value.upper() if isinstance(value, str) else value),
]
#: None when blank.
OptionalText = Annotated[
    str | None, BeforeValidator(lambda value: None if isinstance(value, str) and not value.strip() else value)
]
OptionalSecret = Annotated[
    SecretStr | None,
    BeforeValidator(lambda value: None if isinstance(value, str) and not value.strip() else value),
]
BrokerUrl = Annotated[OptionalText, AfterValidator(_redis_url)]
DatabaseUrl = Annotated[OptionalText, AfterValidator(_psycopg_dialect)]


#: Share of a GPU's memory that vLLM may use. Its own default is 0.90 in 0.25 and 0.92 in 0.32.
GPU_MEMORY_SHARE = 0.9


class Settings(BaseSettings):
    """Each field is read from the environment variable CAPFLOW_<FIELD>; mappings are JSON objects."""

    model_config = SettingsConfigDict(env_prefix="CAPFLOW_", extra="ignore", frozen=True)

    home: Path = Field(Path(".capflow"), description="folder of the embedded services and their logs")
    database_url: DatabaseUrl = Field(None, description="PostgreSQL 15 or newer; embedded when unset")
    broker_url: BrokerUrl = Field(None, description="Redis; embedded, with a worker, when unset")
    domains: Path | None = Field(None, description="folder of further or other domain files")

    model: str = Field("Qwen/Qwen2.5-VL-7B-Instruct", description="model folder or hub name")
    queue_models: dict[str, str] = Field({}, description="model of a queue, by queue name")
    stage_queues: dict[Stage, str] = Field({}, description="queue of a stage, by stage; else gpu")
    engine: str = Field("vllm", description="vllm, openai (a server), or module:factory of another engine")
    queue_engines: dict[str, str] = Field({}, description="engine of a queue, by queue name")
    openai_base_url: OptionalText = Field(
        None, description="server of the engine openai: http://host:8000/v1"
    )
    openai_api_key: OptionalSecret = Field(None, description="key for that server")
    openai_requests: int = Field(
        64, ge=1, le=1000, description="requests in flight to that server, per model"
    )
    openai_video: Literal["frames", "vllm"] = Field("frames", description="videos as pictures, or as vLLM's")
    openai_body: dict[str, Any] = Field({}, description="further fields of each request; null removes one")
    max_model_len: Annotated[int, Field(ge=256)] | Literal["auto"] | None = Field(
        None,
        description="longest prompt with its answer, tokens; auto for what fits; else what workflows need",
    )
    max_num_seqs: int | None = Field(None, ge=1, description="requests in one engine step")
    tensor_parallel_size: int = Field(1, ge=1, description="GPUs per model")
    gpu_memory_utilization: float | None = Field(None, gt=0, le=1, description="share of the GPU's memory")
    queue_gpu_memory: dict[str, Annotated[float, Field(gt=0, le=1)]] = Field(
        {},
        description="share of the GPU's memory for a queue's model, where a worker has several; else equal",
    )
    dtype: OptionalText = Field(None, description="number format of the weights, as vLLM names it")
    quantization: OptionalText = Field(None, description="quantization of the weights, as vLLM names it: fp8")
    engine_args: dict[str, Any] = Field({}, description="further AsyncEngineArgs of vLLM; objects are merged")
    engine_start_seconds: float = Field(
        3600, gt=0, description="deadline for loading a model, also again, seconds; then the worker exits"
    )
    language: Annotated[str, AfterValidator(_known_language)] = Field(
        "en", description="language of the captions, ISO 639-1, unless a domain file names another"
    )
    answer_attempts: int = Field(3, ge=1, description="attempts at an answer that the guard refuses")
    guard_off: tuple[Rule, ...] = Field((), description="rules of the guard to leave out, as a JSON list")
    max_answer_tokens: int | None = Field(None, ge=1, description="longest free-text answer, tokens")
    request_timeout_seconds: float = Field(600, gt=0, description="deadline for one model call, seconds")

    min_pixels: int = Field(256 * 28 * 28, ge=28 * 28, description="smallest picture for the model, pixels")
    max_pixels: int = Field(1280 * 28 * 28, ge=28 * 28, description="largest picture for the model, pixels")
    video_fps: float = Field(2.0, gt=0, description="frames taken per second of video")
    video_max_frames: int = Field(64, ge=2, description="most frames taken from one video")
    video_total_pixels: int = Field(8192 * 28 * 28, ge=28 * 28, description="all frames of one video, pixels")
    video_window_frames: int = Field(256, ge=4, description="frames of one window of a long video")
    video_max_windows: int = Field(64, ge=1, description="most windows of one video; then they get longer")
    video_decoders: int = Field(4, ge=1, description="videos decoded at once, each in its own process")
    videos_in_flight: int = Field(16, ge=1, description="requests with a video in the engine at once")
    max_media_mib: int = Field(4096, ge=1, description="largest media file, MiB")
    max_source_pixels: int = Field(
        150_000_000, ge=1, description="largest picture or frame as stored, pixels"
    )
    max_images: int = Field(4, ge=1, description="most pictures in one sample")
    max_videos: int = Field(1, ge=0, le=1, description="most videos in one sample; 0 for pictures only")
    media_cache_mib: int = Field(1024, ge=0, description="decoded media cached for a sample's next call, MiB")
    ocr_processes: int = Field(
        2, ge=0, description="pictures whose text is read at once, each in its own process; 0: none is read"
    )
    media_threads: int = Field(4, ge=1, description="media files decoded at once")
    media_timeout_seconds: float = Field(120, gt=0, description="deadline for reading a media file, seconds")

    remote_media: Annotated[OptionalText, AfterValidator(_remote_places)] = Field(
        None, description="hosts, buckets and private networks that media may be fetched from; blanks between"
    )
    remote_cache_mib: int = Field(10_240, ge=1, description="copies of remote media below CAPFLOW_HOME, MiB")

    concurrency: int = Field(128, ge=1, description="most batches that one worker has open")
    lease_seconds: float = Field(45, gt=0, description="how long a silent worker keeps its batches, seconds")
    queue_seconds: float = Field(
        7 * 86400, gt=0, description="how long a batch may wait in a queue before it is sent again, seconds"
    )
    drain_seconds: float = Field(60, ge=0, description="how long a stopping worker may work on, seconds")
    database_seconds: float = Field(600, gt=0, description="how long to wait for the database, seconds")
    max_rss_mib: int | None = Field(None, ge=1, description="memory above which a worker is restarted, MiB")
    max_tries: int = Field(3, ge=1, description="dead engines or workers before a batch is split")
    max_attempts: int = Field(3, ge=1, description="tries of a sample whose failure may pass")
    retry_seconds: float = Field(5, ge=0, description="wait before the second try, then doubled, seconds")
    mixed_workers: bool = Field(
        False, description="1 to let a worker start that differs from the others of its queues"
    )
    surge_samples: int = Field(
        64,
        ge=0,
        description="latest samples of which most must fail alike to pause a worker or run; 0: never",
    )
    log_level: LogLevel = Field("INFO", description="DEBUG, INFO, WARNING or ERROR")
    log_format: Literal["text", "json"] = Field("text", description="format of a worker's log: text or json")
    log_text: bool = Field(False, description="1 to log every answer of the model")
    metrics_port: int | None = Field(None, ge=0, le=65535, description="port of a worker's pages; 0 for any")
    metrics_host: str = Field("0.0.0.0", description="address of /metrics, /healthz and /readyz")

    @property
    def knows_models(self) -> bool:
        """Whether the models that answer are those named here, not those of a fleet or of another engine."""
        return self.broker_url is None and self.engine in ("vllm", "openai")

    def queue_of(self, stage: Stage) -> str:
        return self.stage_queues.get(stage, "gpu")

    def model_of(self, queue: str) -> str:
        return self.queue_models.get(queue, self.model)

    def engine_of(self, queue: str) -> str:
        return self.queue_engines.get(queue, self.engine)

    def sharing_gpu(self, queue: str, models: int) -> "Settings":
        """Return the settings for a queue's model in a worker with so many models on one GPU."""
        share = self.queue_gpu_memory.get(queue)
        if share is None and models > 1:
            share = (self.gpu_memory_utilization or GPU_MEMORY_SHARE) / models
        return self if share is None else self.model_copy(update={"gpu_memory_utilization": share})

    def check_shares(self, queues: Collection[str]) -> None:
        """Raise SettingsError when the models of these queues ask for more than the GPU that they share."""
        if (share := sum(self.queue_gpu_memory.get(queue, 0) for queue in queues)) > 1:
            raise SettingsError(
                f"CAPFLOW_QUEUE_GPU_MEMORY: the shares of {', '.join(queues)} add up to {share:g} of the "
                "GPU's memory; lower one, or give each queue a worker of its own"
            )

    @property
    def queues(self) -> tuple[str, ...]:
        """The queues that stages are sent to, `gpu` first."""
        return tuple(dict.fromkeys(["gpu", *(self.queue_of(stage) for stage in Stage)]))


_PREFIX = "CAPFLOW_"
#: How much alike two names are, from 0 to 1, before one is taken for a misspelling of the other.
_LIKENESS = 0.75


@cache
def read_settings() -> Settings:
    """Read the settings from the environment. Raises SettingsError with one line per unusable variable."""
    try:
        settings = Settings()
    except ValidationError as error:
        raise SettingsError("\n".join(_explain(problem) for problem in error.errors())) from None
    except UnparsableSetting as error:
        field = re.search(r'field "(\w+)"', str(error))
        name = _PREFIX + field[1].upper() if field else str(error)
        raise SettingsError(f'{name}: not JSON; expected an object such as {{"key": "value"}}') from None
    if conflicts := list(_conflicts(settings)):
        raise SettingsError("\n".join(conflicts))
    return settings


def _conflicts(settings: Settings) -> Iterator[str]:
    """Yield a line for each setting that contradicts another."""
    least, most = settings.min_pixels, settings.max_pixels
    if least > most:
        yield f"CAPFLOW_MIN_PIXELS={least} is above CAPFLOW_MAX_PIXELS={most}; change one of them"
    length, answer = settings.max_model_len, settings.max_answer_tokens
    if isinstance(length, int) and answer is not None and answer >= length:
        yield (
            f"CAPFLOW_MAX_ANSWER_TOKENS={answer} leaves no room for a prompt in "
            f"CAPFLOW_MAX_MODEL_LEN={length}; lower the one or raise the other"
        )
    for name in ("queue_models", "queue_engines", "queue_gpu_memory"):
        for queue in getattr(settings, name).keys() - set(settings.queues):
            yield (
                f"CAPFLOW_{name.upper()}: no stage is sent to the queue {queue!r}, only to "
                f"{', '.join(settings.queues)}; correct the name, or CAPFLOW_STAGE_QUEUES"
            )


#: What pydantic says less plainly, by its type of error.
_EXPECTED = {
    "int_parsing": "expected a whole number",
    "int_from_float": "expected a whole number",
    "float_parsing": "expected a number",
    "bool_parsing": "expected 1 or 0",
    "greater_than": "expected more than {gt:g}",
    "greater_than_equal": "expected {ge:g} or more",
    "less_than_equal": "expected {le:g} or less",
}


def _explain(problem: Any) -> str:
    field, *keys = map(str, problem["loc"])
    name = ".".join([_PREFIX + field.upper(), *keys])
    value = redacted(repr(problem["input"]))
    said = _EXPECTED.get(problem["type"], problem["msg"].removeprefix("Value error, "))
    return f"{name}={value}: {said.format(**problem.get('ctx', {}))}"


def check_environment(also_known: Collection[str] = ()) -> None:
    """Raise SettingsError with one line per misspelt CAPFLOW_* variable.

    `also_known` are variables that are no settings, such as those of command options. A name that resembles
    no known one is left alone: scripts around Capflow use the prefix too.
    """
    known = {_PREFIX + name.upper() for name in Settings.model_fields}.union(also_known)
    problems = [
        f"{name}: there is no such variable; did you mean {near[0]}?"
        for name in sorted(os.environ)
        if name.startswith(_PREFIX) and name not in known and (near := _similar(name, known))
    ]
    if problems:
        raise SettingsError("\n".join(problems))


def _similar(name: str, known: Collection[str]) -> list[str]:
    names = [each.removeprefix(_PREFIX) for each in known]
    found = get_close_matches(name.removeprefix(_PREFIX), names, n=1, cutoff=_LIKENESS)
    return [_PREFIX + each for each in found]
