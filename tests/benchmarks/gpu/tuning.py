"""What may make the engine faster: named sets of vLLM's arguments, which go into CAPFLOW_ENGINE_ARGS."""

from __future__ import annotations

from collections.abc import Iterable

from capflow_tasks.records import JsonObject

#: Without one vLLM chooses: chunked prefill is on, and steps are of 8,192 tokens or so.
TUNINGS: dict[str, JsonObject] = {
    "long-steps": {"max_num_batched_tokens": 16384},
    "longest-steps": {"max_num_batched_tokens": 32768},
    "whole-prefills": {"enable_chunked_prefill": False, "max_num_batched_tokens": 32768},
    "few-requests": {"max_num_seqs": 64},
    "many-requests": {"max_num_seqs": 512},
    "fp8-cache": {"kv_cache_dtype": "fp8"},
    "vision-graphs": {"compilation_config": {"cudagraph_mm_encoder": True}},
    "vision-compiled": {"compilation_config": {"compile_mm_encoder": True}},
    # Only with several GPUs per model, by CAPFLOW_TENSOR_PARALLEL_SIZE.
    "vision-data-parallel": {"mm_encoder_tp_mode": "data"},
}


def engine_args(model: JsonObject, names: Iterable[str], further: JsonObject) -> JsonObject:
    """What the model needs; then the tunings in their order, and what is given by hand above all."""
    found = model
    for arguments in (*(TUNINGS[name] for name in names), further):
        found = laid_over(found, arguments)
    return found


def laid_over(below: JsonObject, above: JsonObject) -> JsonObject:
    """Arguments that are objects themselves are merged by their keys."""
    both = {name for name in below.keys() & above.keys() if isinstance(below[name], dict)}
    return below | above | {name: below[name] | above[name] for name in both}
