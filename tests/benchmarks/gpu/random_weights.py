"""Random weights in 8 bits: vLLM's own dummy ones are nearly all zero, with which a GPU is faster."""

from __future__ import annotations

from collections.abc import Iterable

import torch

#: All bits but the highest of the exponent: no weight is NaN, and none is 2 or more.
_FINITE_BITS = 0xBF


def fill(weights: Iterable[torch.Tensor]) -> None:
    """Set each 8-bit weight to any number between -2 and 2; leave all others as they are."""
    for weight in weights:
        if weight.dtype is torch.float8_e4m3fn:
            bits = weight.detach().view(torch.uint8)
            bits.random_().bitwise_and_(_FINITE_BITS)
