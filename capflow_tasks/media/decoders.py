"""Decodes videos in child processes, so that a codec that crashes or hangs harms only its own file."""

from collections.abc import Sequence
from functools import cache, lru_cache

import numpy as np
from numpy.typing import NDArray

from capflow_tasks.media import paths, player
from capflow_tasks.media.budget import MediaBudget
from capflow_tasks.media.children import ChildProcesses
from capflow_tasks.media.player import VideoFacts


class VideoFiles(ChildProcesses):
    """Measures and plays videos in at most `count` child processes. Thread-safe."""

    child_name = "decoder"
    does = "decodes videos"
    done = "decoded"

    def __init__(self, count: int) -> None:
        super().__init__(count)
        self._facts = lru_cache(1024)(self._measure)

    def measure(self, path: str, budget: MediaBudget) -> VideoFacts:
        """Return the facts of the file, which is opened only if it is new or has changed."""
        found = paths.check_file(path, budget.max_file_bytes)
        limits = MediaBudget(
            max_file_bytes=budget.max_file_bytes,
            max_source_pixels=budget.max_source_pixels,
            timeout_seconds=budget.timeout_seconds,
        )
        return self._facts(path, limits, (found.size, found.mtime_ns))

    def _measure(self, path: str, limits: MediaBudget, _state: tuple[int, int]) -> VideoFacts:
        return self.run(path, limits.timeout_seconds, player.measure, path, limits)

    def play(
        self, path: str, budget: MediaBudget, facts: VideoFacts, times: Sequence[float], size: tuple[int, int]
    ) -> tuple[NDArray[np.uint8], list[float]]:
        return self.run(path, budget.timeout_seconds, player.play, path, budget, facts, times, size)


#: The shared instance of this process: stages and engines measure each file once.
shared_video_files = cache(VideoFiles)
