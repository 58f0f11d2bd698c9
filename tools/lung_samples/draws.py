"""Draws and shapes of the spoiled samples. Positions and lengths are in units of the image's sides, x to the right and
y downwards, except where px is said.
"""

import cv2
import numpy as np
from numpy.random import Generator


def chance(random: Generator, probability: float) -> bool:
    """True with this probability."""
    return random.random() < probability


def log_uniform(random: Generator, low: float, high: float) -> float:
    """From low to high, uniform in the logarithm."""
    return np.exp(random.uniform(np.log(low), np.log(high)))


def smooth(random: Generator, shape: tuple[int, int], grains: int) -> np.ndarray:
    """Smooth noise of unit variance with about `grains` grains along a side."""
    coarse = random.standard_normal((grains, grains)).astype(np.float32)
    return cv2.resize(coarse, shape[::-1], interpolation=cv2.INTER_CUBIC)


def unit_grid(shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """x and y of each pixel, in units of the image's sides."""
    height, width = shape
    rows, columns = np.mgrid[:height, :width].astype(np.float32)
    return columns / width, rows / height


def blob(random: Generator, shape: tuple[int, int], centre, radii, edge: float = 0.3) -> np.ndarray:
    """1 inside a wobbly ellipse, 0 outside.

    centre, radii: (x, y). edge: how soft the rim is at most.
    """
    # Place along the two axes of an ellipse that lies at any angle, in units of its radii
    x, y = unit_grid(shape)
    tilt = random.uniform(0, np.pi)
    cos = np.cos(tilt)
    sin = np.sin(tilt)
    dx = x - centre[0]
    dy = y - centre[1]
    along = (cos * dx + sin * dy) / radii[0]
    across = (cos * dy - sin * dx) / radii[1]
    radius = np.hypot(along, across)  # 1 at the rim

    # A logistic step at the rim, which is moved by smooth noise; the exponent is bounded so that nothing overflows.
    wobble = 0.15 * smooth(random, shape, 5)
    softness = 0.02 + edge * random.random()
    exponent = (radius + wobble - 1) / softness
    return 1 / (1 + np.exp(np.clip(exponent, -30, 30)))
