"""The fleet's engine, with answers whose lengths differ as those of real models do.

`CAPFLOW_ENGINE=tests.benchmarks.gpu.lengths:build` starts a worker with it. Random weights hardly ever end a
text, so each request gets a maximum of its own, drawn from its contents: the same for all contenders.
"""

from __future__ import annotations

import os
import random
from collections.abc import Sequence
from dataclasses import replace
from math import exp, log
from pathlib import Path
from statistics import NormalDist

from capflow_tasks.engine.interface import Answer
from capflow_tasks.records import Request
from capflow_tasks.settings import Settings
from tests.benchmarks.journal import JOURNALS, JournallingEngine

#: Median and 95th percentile of an answer's tokens, "180,600".
LENGTHS = "BENCH_ANSWER_TOKENS"
_P95 = NormalDist().inv_cdf(0.95)


class UnequalAnswers(JournallingEngine):
    """Limits each free text; the journal has the requests as the engine got them."""

    def generate(self, requests: Sequence[Request]) -> list[Answer]:
        median, p95 = map(float, os.environ[LENGTHS].split(","))
        return super().generate([with_length(request, median, p95) for request in requests])


def with_length(request: Request, median: float, p95: float) -> Request:
    """Return the request with a log-normal maximum of tokens; unchanged if its answer ends by itself."""
    if request.choices or request.schema is not None:
        return request
    media = [Path(ref.path).name for ref in request.media]
    draw = random.Random(f"{media} {request.system} {request.instruction[:40]}")
    tokens = exp(draw.gauss(log(median), log(p95 / median) / _P95))
    limited = replace(request.sampling, max_tokens=max(1, min(round(tokens), request.sampling.max_tokens)))
    return replace(request, sampling=limited)


def build(settings: Settings, model: str) -> UnequalAnswers:
    from capflow_tasks.engine.vllm_engine import build as build_vllm

    return UnequalAnswers(build_vllm(settings, model), Path(os.environ[JOURNALS]) / f"{os.getpid()}.pickle")
