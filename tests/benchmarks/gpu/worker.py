"""vLLM's worker of a GPU, for models in 8 bits: `worker_cls` among the engine's arguments names it."""

from __future__ import annotations

from typing import Any

from vllm.v1.worker.gpu_worker import Worker

from tests.benchmarks.gpu.random_weights import fill


class RandomWeightsWorker(Worker):
    """Fills the weights once they lie as the kernels want them, before anything is captured."""

    def load_model(self, **options: Any) -> None:
        super().load_model(**options)
        fill(self.model_runner.get_model().parameters())
