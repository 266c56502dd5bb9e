"""Video files as the fleet reads them: in child processes, each measured once. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, lru_cache

import numpy as np
from numpy.typing import NDArray

from capflow_tasks.media.budget import MediaBudget
from capflow_tasks.media.paths import check_file
from capflow_tasks.video.decoders import Decoders
from capflow_tasks.video.player import measure_video, play_video
from capflow_tasks.video.source import VideoFacts


@cache
def shared_video_files(decoders: int) -> VideoFiles:
    """The one of this process: the stages and the engines know the same files."""
    return VideoFiles(Decoders(decoders))


#: Files whose facts are remembered.
_KNOWN_FILES = 1024


class VideoFiles:
    """Measures and plays videos in `decoders`."""

    def __init__(self, decoders: Decoders) -> None:
        self._decoders = decoders
        self._facts = lru_cache(_KNOWN_FILES)(self._measure)

    def measure(self, path: str, budget: MediaBudget) -> VideoFacts:
        """Return what is known of the file; opened only when it is new or has changed."""
        found = check_file(path, budget.max_file_bytes)
        limits = MediaBudget(
            max_file_bytes=budget.max_file_bytes,
            max_source_pixels=budget.max_source_pixels,
            timeout_seconds=budget.timeout_seconds,
        )
        return self._facts(path, limits, (found.st_size, found.st_mtime_ns))

    def play(
        self, path: str, budget: MediaBudget, facts: VideoFacts, times: Sequence[float], size: tuple[int, int]
    ) -> tuple[NDArray[np.uint8], list[float]]:
        arguments = (path, budget, facts, times, size)
        return self._decoders.run(path, budget.timeout_seconds, play_video, *arguments)

    def _measure(self, path: str, limits: MediaBudget, _state: tuple[int, int]) -> VideoFacts:
        return self._decoders.run(path, limits.timeout_seconds, measure_video, path, limits)
