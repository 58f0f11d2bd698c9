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
    log_low = np.log(low)
    log_high = np.log(high)
    logarithm = random.uniform(log_low, log_high)
    return np.exp(logarithm)


def smooth(random: Generator, shape: tuple[int, int], grains: int) -> np.ndarray:
    """Smooth noise of unit variance with about `grains` grains along a side."""
    height, width = shape
    coarse = random.standard_normal((grains, grains)).astype(np.float32)
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)


def unit_grid(shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """x and y of each pixel, in units of the image's sides."""
    height, width = shape
    rows, columns = np.mgrid[:height, :width].astype(np.float32)  # (H, W) each
    x = columns / width
    y = rows / height
    return x, y


def blob(random: Generator, shape: tuple[int, int], centre, radii, edge: float = 0.3) -> np.ndarray:
    """1 inside a wobbly ellipse, 0 outside.

    centre, radii: (x, y). edge: how soft the rim is at most.
    """
    # Place along the two axes of an ellipse that lies at any angle, in units of its radii
    x, y = unit_grid(shape)
    centre_x, centre_y = centre
    radius_along, radius_across = radii
    tilt = random.uniform(0, np.pi)
    cos = np.cos(tilt)
    sin = np.sin(tilt)
    dx = x - centre_x
    dy = y - centre_y
    along = (cos * dx + sin * dy) / radius_along
    across = (cos * dy - sin * dx) / radius_across
    radius = np.hypot(along, across)  # 1 at the rim

    # A logistic step 1 / (1 + exp(t)) at the rim, which is moved by smooth noise
    wobble = 0.15 * smooth(random, shape, 5)
    softness = 0.02 + edge * random.random()
    outside = radius + wobble - 1  # how far, below 0 inside
    t = np.clip(outside / softness, -30, 30)  # bounded, so that nothing overflows
    return 1 / (1 + np.exp(t))
