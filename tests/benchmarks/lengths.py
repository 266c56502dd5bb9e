"""How long answers are: as unequal as real ones, and the same for every contender.

Random weights hardly ever end a text by themselves, so each request gets a limit from a log-normal
distribution. It depends on the request's media and agent alone.
"""

from __future__ import annotations

import random
from dataclasses import replace
from math import exp, log
from pathlib import Path
from statistics import NormalDist

from capflow_tasks.records import Request

#: Median and 95th percentile of real answers, tokens.
REALISTIC = (180, 600)
_P95 = NormalDist().inv_cdf(0.95)
#: Characters of an instruction that tell the agents apart; what follows may hold answers.
_NAMED = 40


def with_length(request: Request, median: float, p95: float) -> Request:
    """Return the request with a limit of its own; unchanged if its answer ends by itself."""
    if request.choices or request.schema is not None:
        return request
    media = [Path(ref.path).name for ref in request.media]
    draw = random.Random(f"{media} {request.system} {request.instruction[:_NAMED]}")
    tokens = exp(draw.gauss(log(median), log(p95 / median) / _P95))
    limited = replace(request.sampling, max_tokens=max(1, min(round(tokens), request.sampling.max_tokens)))
    return replace(request, sampling=limited)
