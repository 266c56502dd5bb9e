"""How fast frames are decoded, compared with qwen-vl-utils on the same file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from time import perf_counter
from typing import Any

import av
import numpy as np
import torch
from qwen_vl_utils import fetch_video
from qwen_vl_utils.vision_process import VIDEO_READER_BACKENDS, smart_nframes

from capflow_tasks.media.budget import MediaBudget
from capflow_tasks.media.video import load_video
from tests.benchmarks.claims import Bench, Measured

_SECONDS, _FPS, _SIZE = 60, 24, (640, 480)
_ROUNDS = 2


def measure(bench: Bench) -> Mapping[str, Measured]:
    """Compare frames per second, by the best of a few alternating rounds."""
    path = bench.folder / "clip.mp4"
    _make_clip(path)
    # Its reader for machines without decord and torchcodec calls a function that torchvision has removed.
    VIDEO_READER_BACKENDS["torchvision"] = _read_whole
    budget = MediaBudget(fps=2, max_frames=256)
    ours = theirs = 0.0
    for _ in range(_ROUNDS):
        began = perf_counter()
        count = len(load_video(str(path), budget).frames)
        ours = max(ours, count / (perf_counter() - began))
        began = perf_counter()
        frames = fetch_video({"video": str(path), "fps": 2, "max_frames": 256})
        theirs = max(theirs, len(frames) / (perf_counter() - began))
    baseline = f"qwen_vl_utils.fetch_video: {theirs:.0f} frames/s (ours {ours:.0f})"
    return {"decode_over_fetch_video": Measured(ours / theirs, baseline)}


def _read_whole(wanted: dict[str, Any]) -> tuple[torch.Tensor, dict[str, Any], float]:
    """Decode every frame, then choose, as torchvision's `read_video` under qwen-vl-utils did."""
    with av.open(wanted["video"]) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    count = smart_nframes(wanted, total_frames=len(frames), video_fps=_FPS)
    chosen = np.linspace(0, len(frames) - 1, count).round().astype(int)
    video = torch.from_numpy(np.stack([frames[number] for number in chosen])).permute(0, 3, 1, 2)
    metadata = {"fps": _FPS, "frames_indices": chosen, "total_num_frames": len(frames), "video_backend": "av"}
    return video, metadata, count / len(frames) * _FPS


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
