"""vLLM's GPU worker with random 8-bit weights; `worker_cls` among the engine's arguments names it.

vLLM's own dummy weights in 8 bits are nearly all zero, which makes a GPU faster than it is.
"""

from __future__ import annotations

from typing import Any

import torch
from vllm.v1.worker.gpu_worker import Worker

#: All bits but the highest of the exponent: no weight is NaN, and none is 2 or more.
_FINITE_BITS = 0xBF


class RandomWeightsWorker(Worker):
    def load_model(self, **options: Any) -> None:
        """Fill the 8-bit weights with numbers between -2 and 2, before anything is captured."""
        super().load_model(**options)
        for weight in self.model_runner.get_model().parameters():
            if weight.dtype is torch.float8_e4m3fn:
                bits = weight.detach().view(torch.uint8)
                bits.random_().bitwise_and_(_FINITE_BITS)
