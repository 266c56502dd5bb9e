"""A vLLM plugin that counts computed prompt tokens, because Ray does not report them."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from vllm.v1.metrics.loggers import StatLoggerBase

from tests.benchmarks.workload import COUNT_FILE


class PromptTokens(StatLoggerBase):
    """Count the prompt tokens not taken from the prefix cache since the engine's start."""

    def __init__(self, vllm_config: Any, engine_index: int = 0) -> None:
        self._computed = 0

    def record(self, scheduler_stats: Any, *_: Any, **__: Any) -> None:
        if scheduler_stats and (prompts := scheduler_stats.prefix_cache_stats).queries:
            self._computed += prompts.queries - prompts.hits
            Path(os.environ[COUNT_FILE]).write_text(json.dumps(self._computed))

    def log_engine_initialized(self) -> None:
        """Do nothing."""
