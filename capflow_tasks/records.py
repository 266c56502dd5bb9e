"""What flows through Capflow, defined once. Knows nothing of Celery, SQL or the engine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

#: A JSON object as it came from, or goes to, a file.
JsonObject = dict[str, Any]


class Stage(StrEnum):
    """The five stages of a chain, in order."""

    ROUTE = "route"
    PERCEIVE = "perceive"
    REASON = "reason"
    SUMMARIZE = "summarize"
    SCORE = "score"


class Modality(StrEnum):
    """What a sample's media is."""

    IMAGE = "image"
    VIDEO = "video"


@dataclass(frozen=True, slots=True)
class PlanShard:
    """One line of the split plan: samples [start_idx, end_idx) of one annotation file."""

    #: `data_name` of the plan.
    dataset: str
    #: `json_url` of the plan, made absolute.
    annotation: str
    #: Folder that every media path is taken from, absolute.
    root: str
    #: Domain for all samples of the shard, None when each is to be routed.
    task: str | None
    modality: Modality
    start_idx: int
    end_idx: int
    shard_index: int
    num_shards: int
    assign_rank: int
    #: The plan line as it was read, unknown keys included.
    line: JsonObject = field(default_factory=dict)
    #: Line of the plan file where the shard stands, from 1.
    line_number: int = 0
    #: Digest of what the annotation file holds, where another content makes it another shard; else empty.
    version: str = ""

    @property
    def sample_count(self) -> int:
        return self.end_idx - self.start_idx


@dataclass(frozen=True, slots=True)
class Span:
    """A stretch of a video, in seconds from its first frame."""

    start: float
    end: float

    def __str__(self) -> str:
        return f"{clock(self.start)}-{clock(self.end)}"


def clock(seconds: float) -> str:
    """HH:MM:SS, with milliseconds where there are some."""
    total, milliseconds = divmod(round(seconds * 1000), 1000)
    text = f"{total // 3600:02}:{total // 60 % 60:02}:{total % 60:02}"
    return f"{text}.{milliseconds:03}" if milliseconds else text


@dataclass(frozen=True, slots=True)
class MediaRef:
    """One picture or video of a sample; the engine loads the pixels."""

    kind: Modality
    #: Absolute path, already known to lie inside the shard's root.
    path: str
    #: The only part of a video that is wanted; None for all of it.
    span: Span | None = None


@dataclass(frozen=True, slots=True)
class Sampling:
    """How an answer is drawn; the names are vLLM's."""

    max_tokens: int
    temperature: float = 0.2
    top_p: float = 0.9
    repetition_penalty: float = 1.0


@dataclass(frozen=True, slots=True)
class Request:
    """One model call. The prompt is: system line, media, instruction, in this order."""

    system: str
    media: tuple[MediaRef, ...]
    instruction: str
    sampling: Sampling
    #: The only answers allowed, one token each; their probabilities are returned.
    choices: tuple[str, ...] = ()
    #: JSON schema that the answer must follow.
    schema: Mapping[str, Any] | None = None
    #: What differs from the settings' media budget, by its names.
    budget: Mapping[str, float] = field(default_factory=dict)


#: The keys of a media budget that are the minimum and the maximum of the same thing.
BUDGET_PAIRS = (
    ("min_pixels", "max_pixels"),
    ("min_frames", "max_frames"),
    ("frame_min_pixels", "frame_max_pixels"),
)


@dataclass(frozen=True, slots=True)
class Completion:
    """What the engine gave for one request."""

    text: str
    prompt_tokens: int
    #: Prompt tokens that the prefix cache spared.
    cached_tokens: int
    completion_tokens: int
    #: "stop" or "length", as vLLM says it.
    finish_reason: str
    #: From hand-over to the last token, queueing included.
    seconds: float
    #: Probability per choice, summing to 1; empty for free text.
    probabilities: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Result:
    """What one agent said about one sample, as stored."""

    stage: Stage
    agent: str
    #: The answer as text; for scores and routes the raw answer.
    text: str
    #: The parsed answer: scores by dimension, or probability by domain.
    data: JsonObject | None
    model: str
    #: Digest of everything that shaped the prompt.
    workflow: str
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    finish_reason: str
    seconds: float
    worker: str
    #: The agent's place in its workflow, from 0.
    position: int = 0


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a sample has no caption."""

    stage: Stage
    kind: str
    message: str
    is_retryable: bool


@dataclass(frozen=True, slots=True)
class FinishedSample:
    """A sample that has come to its end, as the exporter sees it."""

    index: int
    #: The annotation entry as it was read.
    entry: JsonObject
    domain: str | None
    #: Probability the router gave to `domain`; None when the domain was given.
    confidence: float | None
    #: What every agent said, in workflow order.
    results: tuple[Result, ...]
    failure: Failure | None
    attempts: int
