"""What drawn patients and CTs share: textures, warps, blurs and steps; the morphology of masks in a plane."""

import cv2
import numpy as np

from .. import images
from ..runtime.seeding import detail_generator

SMALL = 128  # side at which wide blurs are computed, pixels
LEAST_SIGMA = 0.35  # of a blur, pixels; OpenCV would read a smaller one as none


def texture(seed: int, name: str, size: int, grains: int) -> np.ndarray:
    """Unit noise, float32 (size, size), of `grains` grains a side: the same picture at every size."""
    random = detail_generator(seed, name)
    noise = random.standard_normal((grains, grains), np.float32)
    # Grains finer than a pixel are averaged, as a detector would, instead of being sampled.
    interpolation = cv2.INTER_AREA if size < grains else cv2.INTER_CUBIC
    return cv2.resize(noise, (size, size), interpolation=interpolation)


def elastic_maps(seed: int, waves: int, bend: float, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Maps of cv2.remap, float32 (size, size) each, for a smooth warp that vanishes at the borders.

    Each displacement is a sum of products of sines, `waves` along either axis, with normal coefficients of deviation
    `bend` in units of the side.
    """
    random = detail_generator(seed, "elastic")

    # sin(pi m x) for x from 0 to 1 along a side: 0 at the borders, so the frame stays.
    index = np.arange(size, dtype=np.float32)
    orders = np.arange(1, waves + 1)
    m = orders[:, None]  # (waves, 1)
    phase = np.pi * m * (index + 0.5) / size  # (waves, size)
    sines = np.sin(phase)

    # d(x, y) = sum over m, n of c_mn sin(pi m y) sin(pi n x), a table c for each direction
    across_coefficients = random.normal(0, bend, (waves, waves))
    down_coefficients = random.normal(0, bend, (waves, waves))
    across_share = sines.T @ across_coefficients @ sines  # (size, size), in units of the side
    down_share = sines.T @ down_coefficients @ sines

    # cv2.remap wants the place that each pixel is taken from.
    from_x = index[None, :] + size * across_share
    from_y = index[:, None] + size * down_share
    return from_x.astype(np.float32), from_y.astype(np.float32)


def blur(picture: np.ndarray, sigma: float) -> np.ndarray:
    """Gaussian blur of (S, S) by a sigma in units of the side; a wide one at reduced size."""
    return images.blur(picture, sigma, SMALL, LEAST_SIGMA)


def smooth_step(value: np.ndarray, start: float, end: float) -> np.ndarray:
    """0 up to `start`, 1 from `end` on, and a cubic without kinks between."""
    # Smoothstep 3 s^2 - 2 s^3 of the share s of the way
    way = end - start
    covered = value - start
    share = np.clip(covered / way, 0, 1)
    return share * share * (3 - 2 * share)


# --- Masks, bool (H, W) each; an element is a structuring element of OpenCV -------------------------------------------


def disc(radius: float) -> np.ndarray:
    """A round structuring element of OpenCV's morphology; its radius in pixels, rounded, is at least 1."""
    # Odd, so that it has a middle and moves nothing.
    whole_radius = max(1, round(radius))
    side = 2 * whole_radius + 1
    return cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (side, side))


def square(side: int) -> np.ndarray:
    """A square structuring element of OpenCV's morphology."""
    return np.ones((side, side), np.uint8)


def grown(mask: np.ndarray, element: np.ndarray) -> np.ndarray:
    """The mask with a rim as wide as the element reaches."""
    pixels = mask.astype(np.uint8)
    result = cv2.dilate(pixels, element)
    return result.astype(bool)


def eroded(mask: np.ndarray, element: np.ndarray) -> np.ndarray:
    """The mask without a rim as wide as the element reaches."""
    pixels = mask.astype(np.uint8)
    result = cv2.erode(pixels, element)
    return result.astype(bool)


def opened(mask: np.ndarray, element: np.ndarray, iterations: int = 1) -> np.ndarray:
    """The mask without what is thinner than the element."""
    pixels = mask.astype(np.uint8)
    result = cv2.morphologyEx(pixels, cv2.MORPH_OPEN, element, iterations=iterations)
    return result.astype(bool)


def closed(mask: np.ndarray, element: np.ndarray, iterations: int = 1) -> np.ndarray:
    """The mask with its gaps that are thinner than the element."""
    pixels = mask.astype(np.uint8)
    result = cv2.morphologyEx(pixels, cv2.MORPH_CLOSE, element, iterations=iterations)
    return result.astype(bool)


def convex_hull(mask: np.ndarray) -> np.ndarray:
    """The smallest convex shape around a mask that is not empty."""
    rows_and_columns = np.argwhere(mask)
    x_and_y = rows_and_columns[:, ::-1]
    points = x_and_y.astype(np.int32)  # (n, 2)
    corners = cv2.convexHull(points)
    empty = np.zeros(mask.shape, np.uint8)
    hull = cv2.fillConvexPoly(empty, corners, 1)
    return hull.astype(bool)
