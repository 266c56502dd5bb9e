"""How quickly frames come out of a video, next to qwen-vl-utils on the same file."""

from __future__ import annotations

from pathlib import Path
from time import perf_counter

import av
import numpy as np
from qwen_vl_utils import fetch_video

from capflow_tasks.media_budget import MediaBudget
from capflow_tasks.video import load_video

_SECONDS, _FPS, _SIZE = 60, 24, (640, 480)
_ROUNDS = 3


def measure(folder: Path) -> float:
    """Ours over theirs, in frames per second; the best of a few alternating rounds each."""
    path = folder / "clip.mp4"
    _make_clip(path)
    budget = MediaBudget(video_fps=2, video_max_frames=256)
    ours = theirs = 0.0
    for _ in range(_ROUNDS):
        began = perf_counter()
        count = len(load_video(str(path), budget).frames)
        ours = max(ours, count / (perf_counter() - began))
        began = perf_counter()
        frames = fetch_video({"video": str(path), "fps": 2, "max_frames": 256})
        theirs = max(theirs, len(frames) / (perf_counter() - began))
    return ours / theirs


def _make_clip(path: Path) -> None:
    random = np.random.default_rng(0)
    scene = np.kron(random.integers(0, 255, (30, 80, 3), dtype=np.uint8), np.ones((16, 16, 1), np.uint8))
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=_FPS, options={"preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = *_SIZE, "yuv420p"
        for number in range(_SECONDS * _FPS):
            left = number % (scene.shape[1] - _SIZE[0])
            pixels = np.ascontiguousarray(scene[: _SIZE[1], left : left + _SIZE[0]])
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, "rgb24")))
        container.mux(stream.encode())
