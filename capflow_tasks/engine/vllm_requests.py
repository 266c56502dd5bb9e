"""A request in vLLM's terms, and vLLM's output in ours. Knows nothing of engines or threads."""

from __future__ import annotations

from collections.abc import Sequence
from math import exp
from typing import Any

from vllm import SamplingParams
from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams

from capflow_tasks.media.loader import LoadedMedia
from capflow_tasks.records import Completion, Request


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
