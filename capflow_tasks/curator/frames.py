"""Frames as NeMo Curator's releases prepare them, and as vLLM takes them."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from capflow_tasks.records import JsonObject

#: (mean, deviation) of red, green and blue in an encoder's training.
Colours = tuple[tuple[float, float, float], tuple[float, float, float]]
CLIP_COLOURS: Colours = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
EVEN_COLOURS: Colours = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


def raw_frames(frames: Any, colours: Colours) -> NDArray[np.uint8]:
    """Return frames as (frames, height, width, RGB) of 0 to 255.

    `frames` are an array or tensor, RGB last or second, of 0 to 255 or normalised to `colours`: floats are
    normalised if any is below 0, or if none is above 4 and not all are whole.
    """
    if hasattr(frames, "detach"):  # a tensor; numpy has no bfloat16
        frames = frames.detach().cpu()
        frames = (frames.float() if frames.is_floating_point() else frames).numpy()
    planes = frames if frames.shape[-1] == 3 else frames.transpose(0, 2, 3, 1)
    if planes.dtype == np.uint8:
        return np.ascontiguousarray(planes)
    if planes.size and (planes.min() < 0 or (planes.max() <= 4 and (planes % 1).any())):
        mean, deviation = (np.asarray(values, np.float32) for values in colours)
        planes = (planes * deviation + mean) * 255
    return np.ascontiguousarray(planes.round().clip(0, 255).astype(np.uint8))


def pixel_params(factor: int) -> dict[str, int]:
    """Return the options that NeMo Curator gives the processor from release 1.3 on."""
    token = factor * factor
    return {
        "image_factor": factor,
        "min_pixels": 4 * token,
        "max_pixels": 16384 * token,
        "video_min_pixels": 128 * token,
        "video_max_pixels": 768 * token,
        "video_total_pixels": 24576 * token,
    }


def resizing(shape: Sequence[int], factor: int, *, is_total: bool) -> JsonObject | None:
    """Return the processor's options that make frames of (T, H, W, RGB) fit; None if they fit already.

    A frame has at most 768 tokens, the video 24,576, as in NeMo Curator and qwen-vl-utils; a token is a
    square of `factor` pixels a side in two frames. `is_total`: the processor limits all frames
    together.
    """
    count, height, width, _ = shape
    token = factor * factor
    most = int(max(min(768, 24576 * 2 / max(count, 1)), 128 * 1.05) * token)
    if height % factor == 0 and width % factor == 0 and height * width <= most:
        return None
    frames = count if is_total else 1
    least, most = 4 * token * frames, most * frames
    return {
        "do_resize": True,
        "size": {"shortest_edge": least, "longest_edge": most},
        # the same: those that the engine was given would take precedence over `size`
        "min_pixels": least,
        "max_pixels": most,
    }


def normalise(frames: NDArray[np.uint8], colours: Colours) -> NDArray[np.float32]:
    """Return values of 0 to 255 as (frames, RGB, height, width) around 0; RGB may also come last."""
    mean, deviation = (np.asarray(values, np.float32)[:, None, None] for values in colours)
    planes = frames if frames.shape[-1] != 3 else frames.transpose(0, 3, 1, 2)
    scaled = np.empty(planes.shape, np.float32)
    np.multiply(planes, 1 / (255 * deviation), out=scaled)
    scaled -= mean / deviation
    return scaled


def describe_frames(count: int, fps: float) -> JsonObject:
    """Return vLLM's metadata for `count` frames that were sampled at `fps`."""
    return {
        "fps": fps,
        "frames_indices": list(range(count)),
        "total_num_frames": count,
        "duration": count / fps,
        "video_backend": "pyav",
        "do_sample_frames": False,
    }
