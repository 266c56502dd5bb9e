"""Muon (Keller Jordan, 2024) in single precision; PyTorch's own takes bfloat16, slow on most CPUs."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

#: Of the quintic iteration that drives all singular values towards 1.
_A, _B, _C = 3.4445, -4.7750, 2.0315
_ITERATIONS = 5


def orthogonalized(matrices: Tensor) -> Tensor:
    """Return (matrices, rows, columns) with their singular values near 1."""
    is_tall = matrices.shape[1] > matrices.shape[2]
    found = matrices.mT if is_tall else matrices
    found = found / (found.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(_ITERATIONS):
        square = found @ found.mT
        found = _A * found + (_B * square + _C * square @ square) @ found
    return found.mT if is_tall else found


class Muon(torch.optim.Optimizer):
    """Momentum whose matrices are orthogonalized, scaled to the size of AdamW's steps."""

    def __init__(self, matrices: Iterable[Tensor], lr: float, momentum: float, weight_decay: float) -> None:
        super().__init__(matrices, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            by_shape: dict[tuple[int, ...], list[Tensor]] = {}
            for weight in group["params"]:
                by_shape.setdefault(tuple(weight.shape), []).append(weight)
            for shape, weights in by_shape.items():
                wanted = torch.stack([self._direction(weight, group["momentum"]) for weight in weights])
                rate = group["lr"] * 0.2 * max(shape) ** 0.5
                for weight, direction in zip(weights, orthogonalized(wanted), strict=True):
                    weight.mul_(1 - group["lr"] * group["weight_decay"]).add_(direction, alpha=-rate)

    def _direction(self, weight: Tensor, momentum: float) -> Tensor:
        """Return Nesterov's mean of the gradients."""
        state = self.state[weight]
        if "mean" not in state:
            state["mean"] = torch.zeros_like(weight)
        mean: Tensor = state["mean"].lerp_(weight.grad, 1 - momentum)
        return weight.grad.lerp(mean, momentum)
