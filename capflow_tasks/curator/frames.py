"""Frames as callers of `QwenVL` hand them over, completed to what vLLM takes. Imports no torch."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

#: (mean, deviation) of red, green and blue that an encoder was trained with.
Colours = tuple[tuple[float, float, float], tuple[float, float, float]]

#: Of Qwen2.5-VL.
CLIP_COLOURS: Colours = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
#: Of Qwen3-VL.
EVEN_COLOURS: Colours = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
#: Frames per second of frames that come without saying; what NeMo Curator samples at.
SAMPLING_FPS = 2.0


def complete_video(video: Any, colours: Colours | None) -> Any:
    """Return frames, or (frames, metadata), as vLLM takes them: the same object where nothing is missing.

    Frames of 0 to 255 are normalised to `colours`, unless those are None.
    """
    frames, metadata = video if isinstance(video, tuple) else (video, None)
    if len(getattr(frames, "shape", ())) != 4:
        return video
    is_raw = str(frames.dtype).endswith("uint8")
    if metadata is not None and not (is_raw and colours):
        return video
    if is_raw and colours:
        frames = normalise(np.asarray(frames), colours)
    return frames, metadata or describe_frames(len(frames), SAMPLING_FPS)


def normalise(frames: NDArray[np.uint8], colours: Colours) -> NDArray[np.float32]:
    """Return (frames, RGB, height, width) around 0 from values of 0 to 255; RGB may also come last."""
    mean, deviation = (np.asarray(values, np.float32)[:, None, None] for values in colours)
    planes = frames if frames.shape[-1] != 3 else frames.transpose(0, 3, 1, 2)
    scaled = np.empty(planes.shape, np.float32)
    np.multiply(planes, 1 / (255 * deviation), out=scaled)
    scaled -= mean / deviation
    return scaled


def describe_frames(count: int, fps: float) -> dict[str, Any]:
    """Return what vLLM must know of `count` frames that were taken `fps` times a second."""
    return {
        "fps": fps,
        "frames_indices": list(range(count)),
        "total_num_frames": count,
        "duration": count / fps,
        "video_backend": "pyav",
        "do_sample_frames": False,
    }
