"""The values that flow through Capflow: shards, media, requests, completions, results."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from enum import StrEnum
from typing import Any

#: A JSON object as read from a file or written to one.
JsonObject = dict[str, Any]


_LANGUAGES = """
ar Arabic, bg Bulgarian, bn Bengali, ca Catalan, cs Czech, da Danish, de German, el Greek,
en English, es Spanish, et Estonian, fa Persian, fi Finnish, fr French, he Hebrew, hi Hindi,
hr Croatian, hu Hungarian, id Indonesian, it Italian, ja Japanese, ko Korean, lt Lithuanian,
lv Latvian, ms Malay, nl Dutch, no Norwegian, pl Polish, pt Portuguese, ro Romanian, ru Russian,
sk Slovak, sl Slovenian, sr Serbian, sv Swedish, sw Swahili, ta Tamil, th Thai, tr Turkish,
uk Ukrainian, ur Urdu, vi Vietnamese, zh Chinese
"""
#: The languages that captions can be written in: names by ISO 639-1 code.
LANGUAGES = dict(pair.split() for pair in _LANGUAGES.split(","))


class Stage(StrEnum):
    """The five stages of a batch, in order."""

    ROUTE = "route"
    PERCEIVE = "perceive"
    REASON = "reason"
    SUMMARIZE = "summarize"
    SCORE = "score"


class Rule(StrEnum):
    """What can be wrong with an answer of free text, or of JSON by a schema, worst first."""

    EMPTY = "empty"
    THINKING = "thinking"
    REFUSAL = "refusal"
    LOOP = "loop"
    CUT_OFF = "cut_off"
    ECHO = "echo"
    MOJIBAKE = "mojibake"
    WRONG_LANGUAGE = "wrong_language"
    MARKUP = "markup"
    INVALID_JSON = "invalid_json"
    META_OPENING = "meta_opening"


class Workflow(StrEnum):
    """The workflows that have a name; others are folders of domain files."""

    #: Each domain's own agents.
    STANDARD = "standard"
    #: One call that writes the caption, and the domain's judges.
    FAST = "fast"
    #: As standard; the media are asked about each claim of a caption, and a caption that the judge finds
    #: wanting is written again.
    VERIFIED = "verified"


#: Most captions of one sample by workflow; 1 in all others.
MOST_CANDIDATES: Mapping[str, int] = {Workflow.VERIFIED: 3}


class GuardOutcome(StrEnum):
    """What became of an answer that breaks a rule."""

    #: The text was changed and is used.
    REPAIRED = "repaired"
    #: It was thrown away, and the agent was asked again.
    ASKED_AGAIN = "asked_again"
    #: It was the last attempt of an optional agent, and the sample went on without it.
    LEFT_OUT = "left_out"
    #: It was the last attempt, and the sample failed.
    FAILED = "failed"


class Modality(StrEnum):
    """Kind of a medium, or of a shard's media."""

    IMAGE = "image"
    VIDEO = "video"


@dataclass(frozen=True, slots=True)
class PlanShard:
    """One line of the split plan: samples [start_idx, end_idx) of one annotation file."""

    #: `data_name` of the plan.
    dataset: str
    #: `json_url` of the plan, made absolute.
    annotation: str
    #: Folder that media paths are relative to, absolute.
    root: str
    #: Domain of all samples of the shard; None when each sample is routed.
    task: str | None
    modality: Modality
    start_idx: int
    end_idx: int
    shard_index: int
    num_shards: int
    assign_rank: int
    #: The plan line as read, unknown keys included.
    line: JsonObject = field(default_factory=dict)
    #: Line number in the plan file, from 1.
    line_number: int = 0
    #: Digest of the annotation file where changed content makes another shard; else empty.
    version: str = ""

    @property
    def sample_count(self) -> int:
        return self.end_idx - self.start_idx


@dataclass(frozen=True, slots=True)
class Span:
    """Part of a video, in seconds from its first frame."""

    start: float
    end: float

    def __str__(self) -> str:
        return f"{clock(self.start)}-{clock(self.end)}"


def rounded(number: float | None) -> float | None:
    """Round what is written as JSON to four places."""
    return None if number is None else round(number, 4)


def clock(seconds: float) -> str:
    """Format as HH:MM:SS, with milliseconds unless they are 0."""
    total, milliseconds = divmod(round(seconds * 1000), 1000)
    text = f"{total // 3600:02}:{total // 60 % 60:02}:{total % 60:02}"
    return f"{text}.{milliseconds:03}" if milliseconds else text


@dataclass(frozen=True, slots=True)
class MediaRef:
    """One picture or video of a sample; the engine loads its pixels."""

    kind: Modality
    #: Absolute path, checked to lie inside the shard's root.
    path: str
    #: The part of the video to load; None for all of it.
    span: Span | None = None


#: What free text is sampled with where neither the domain nor the model's own recommendation says.
DEFAULT_SAMPLING = {"temperature": 0.2, "top_p": 0.9}


@dataclass(frozen=True, slots=True)
class Sampling:
    """Sampling parameters, named as in vLLM; None leaves one to the model's recommendation."""

    max_tokens: int
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    #: Most tokens of thinking before the answer; 0 for none.
    thinking_tokens: int = 0

    @property
    def named(self) -> dict[str, float]:
        """The parameters that are not left to the model, without the limits on tokens."""
        return {
            each.name: value
            for each in fields(self)
            if not each.name.endswith("_tokens") and (value := getattr(self, each.name)) is not None
        }

    @property
    def given(self) -> dict[str, float]:
        """The parameters and limits that are not left to the model."""
        thinking = {"thinking_tokens": self.thinking_tokens} if self.thinking_tokens else {}
        return {"max_tokens": self.max_tokens, **self.named, **thinking}

    def completed(self, recommended: Mapping[str, float]) -> dict[str, float]:
        """Return all parameters: those named here, else recommended, else DEFAULT_SAMPLING."""
        return {**DEFAULT_SAMPLING, **recommended, **self.named}


@dataclass(frozen=True, slots=True)
class Request:
    """One model call. The prompt is: system line, media, instruction, in this order."""

    system: str
    media: tuple[MediaRef, ...]
    instruction: str
    sampling: Sampling
    #: The only allowed answers, one token each; their probabilities are returned.
    choices: tuple[str, ...] = ()
    #: JSON schema that the answer must follow, and whether the probabilities of its tokens are wanted.
    schema: Mapping[str, Any] | None = None
    wants_tokens: bool = True
    #: What differs from the settings' media budget, by its names.
    budget: Mapping[str, float] = field(default_factory=dict)

    @property
    def has_tokens(self) -> bool:
        """Whether the answer comes with its tokens."""
        return self.schema is not None and self.wants_tokens


#: The keys of a media budget that are the minimum and the maximum of the same thing.
BUDGET_PAIRS = (
    ("min_pixels", "max_pixels"),
    ("min_frames", "max_frames"),
    ("frame_min_pixels", "frame_max_pixels"),
)


@dataclass(frozen=True, slots=True)
class Token:
    """One token of an answer."""

    text: str
    #: Probability by text, of the likeliest tokens at its place.
    probabilities: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Completion:
    """The engine's answer to one request."""

    text: str
    prompt_tokens: int
    #: Prompt tokens found in the prefix cache.
    cached_tokens: int
    completion_tokens: int
    #: "stop" or "length", as in vLLM.
    finish_reason: str
    #: From the request to the last token, queueing included.
    seconds: float
    #: Probability per choice, summing to 1; empty for free text.
    probabilities: Mapping[str, float] = field(default_factory=dict)
    #: The tokens of an answer by a schema, where they are wanted; empty where the engine does not know them.
    tokens: tuple[Token, ...] = ()
    #: The sampling parameters that were sent, the model's own recommendation included; empty where the
    #: engine does not tell.
    sampling: Mapping[str, float] = field(default_factory=dict)


#: The tool that reads text in pictures, by its package's name; its answers take no tokens, and no GPU.
TEXT_READER = "rapidocr"


@dataclass(frozen=True, slots=True)
class ToolAnswer:
    """What a tool found in a sample's media."""

    #: What other agents read of it; empty for nothing.
    text: str
    #: Everything it found, or `error`: why it found nothing.
    data: JsonObject
    #: The tool's name, and with its version.
    model: str
    engine: str
    seconds: float


@dataclass(frozen=True, slots=True)
class Result:
    """One agent's answer about one sample, as stored."""

    stage: Stage
    agent: str
    #: The answer; for scores and routes as the model wrote it.
    text: str
    #: The parsed answer: scores by dimension, probability by domain, or an object by the agent's schema.
    data: JsonObject | None
    model: str
    #: Digest of all that shapes the prompt.
    workflow: str
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    finish_reason: str
    seconds: float
    worker: str
    #: The agent's place in its workflow, from 0; -1 for what comes before all of its stage.
    position: int = 0
    #: What the guard found: `repairs`, and earlier `attempts`, each with its faults; None for nothing.
    guard: JsonObject | None = None
    #: A judge's expected grade by dimension, and their mean as `overall`; where an agent chooses an answer,
    #: the probability of each letter. None where it is not known.
    expected: dict[str, float] | None = None
    #: Which caption of the sample it wrote or graded, from 1; 1 for what all of them share.
    candidate: int = 1
    #: What tells checkpoints of one name apart, and which engine ran it: `vllm 0.32.0`; None if not known.
    revision: str | None = None
    engine: str | None = None
    #: The sampling parameters that the model was asked with, by vLLM's names; None where they are not known.
    sampling: dict[str, float] | None = None
    #: What was checked of a caption, as `quotes.py` describes it; None where nothing was.
    checks: JsonObject | None = None


@dataclass(frozen=True, slots=True)
class RefusedAnswer:
    """An answer that was thrown away."""

    stage: Stage
    agent: str
    #: The rules that it broke, worst first, each with its evidence; empty where it could not be parsed.
    faults: Mapping[Rule, str]
    outcome: GuardOutcome
    model: str
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    finish_reason: str
    seconds: float
    worker: str
    #: Which caption of the sample it was for, as in `Result`.
    candidate: int = 1


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a sample failed."""

    stage: Stage
    kind: str
    message: str
    is_retryable: bool


@dataclass(frozen=True, slots=True)
class FinishedSample:
    """A finished sample as exported."""

    index: int
    #: The annotation entry as read.
    entry: JsonObject
    domain: str | None
    #: The router's probability for `domain`; None when the domain was given.
    confidence: float | None
    #: The results of all agents, in workflow order.
    results: tuple[Result, ...]
    failure: Failure | None
    attempts: int
    #: The captions that were not chosen, with their grades, in workflow order.
    others: tuple[Result, ...] = ()
