"""Compute the demo's synthetic pictures with NumPy; each function returns one picture, always the same."""

import numpy as np
from PIL import Image, ImageFilter


def _coloured(values: np.ndarray, stops: list[tuple[int, int, int]]) -> Image.Image:
    """Map values from 0 to 1 to a gradient through `stops`."""
    places = np.linspace(0, 1, len(stops))
    channels = [np.interp(values, places, [stop[channel] for stop in stops]) for channel in range(3)]
    return Image.fromarray(np.stack(channels, axis=-1).astype(np.uint8))


def julia_set() -> Image.Image:
    """Draw the Julia set of z² - 0.8 + 0.156 i, coloured by escape time."""
    imaginary, real = np.mgrid[-1.1:1.1:600j, -1.6:1.6:860j]
    z = real + 1j * imaginary
    escape = np.zeros(z.shape)
    for step in range(1, 120):
        inside = np.abs(z) < 4
        z[inside] = z[inside] ** 2 + (-0.8 + 0.156j)
        escape[inside] = step
    return _coloured(
        (escape / 119) ** 0.45, [(8, 10, 40), (40, 60, 160), (230, 120, 60), (255, 240, 190), (20, 10, 20)]
    )


def mountain_dusk() -> Image.Image:
    """Draw layered ridges under a low sun, in the style of image generators."""
    height, width = 560, 840
    y, x = np.mgrid[0:height, 0:width].astype(float)
    picture = np.array(_coloured(y / height, [(40, 30, 90), (190, 80, 110), (250, 170, 90)]), dtype=float)
    sun = np.clip(1 - np.hypot(x - 560, y - 250) / 60, 0, 1)[..., None]
    picture += (np.array([255, 240, 200]) - picture) * np.minimum(sun * 3, 1)
    for layer in range(5):
        ridge = (
            270
            + 62 * layer
            + sum(
                (30 / wave) * np.sin(x * 0.006 * wave * (1 + 0.3 * layer) + 2.1 * layer * wave)
                for wave in (1, 2, 3, 5, 8)
            )
        )
        shade = np.array([95, 60, 110]) * (1 - 0.19 * layer)
        picture = np.where((y > ridge)[..., None], shade, picture)
    return Image.fromarray(picture.clip(0, 255).astype(np.uint8)).filter(ImageFilter.GaussianBlur(0.8))


def stained_glass() -> Image.Image:
    """Draw coloured cells with lead lines: nearest-neighbour regions of scattered points."""
    random = np.random.default_rng(7)
    points = random.uniform((0, 0), (600, 600), (70, 2))
    y, x = np.mgrid[0:600, 0:600]
    distances = np.hypot(y[..., None] - points[:, 0], x[..., None] - points[:, 1])
    nearest = np.partition(distances, 1, axis=-1)
    cells = random.integers(40, 240, (70, 3))[np.argmin(distances, axis=-1)]
    glow = (1.15 - 0.004 * nearest[..., :1]) * np.where(nearest[..., 1:2] - nearest[..., :1] < 5, 0.08, 1)
    return Image.fromarray((cells * glow).clip(0, 255).astype(np.uint8))
