"""Volumes of a CT resized, averaged and smoothed, and the connected pieces of their masks.

A volume is (D, H, W) with axes as in `xray`: volume[:, row] is an axial slice (D, W).
"""

import math

import cv2
import numpy as np
from scipy import ndimage

Spacing = tuple[float, float, float]  # mm along D, H, W
UNIT = 1e-4  # of the values of the volumes that rays are sent through
MOST = 6.0  # of these values: 6 / UNIT still fits uint16


# --- Masks ------------------------------------------------------------------------------------------------------------


def components(mask: np.ndarray) -> tuple[np.ndarray, int]:
    """(the number of each voxel's connected component, 0 outside; how many there are)."""
    number = np.zeros(mask.shape, np.int32)
    count = ndimage.label(mask, output=number)
    return number, int(count)  # pyright: ignore[reportArgumentType]  (an int, where there is an output)


def largest(mask: np.ndarray) -> np.ndarray:
    """The largest connected component of a mask."""
    number, count = components(mask)
    if not count:
        return mask
    voxels = np.bincount(number.ravel(), minlength=2)
    of_components = voxels[1:]  # without the outside
    return number == 1 + np.argmax(of_components)


def holes_filled(plane: np.ndarray) -> np.ndarray:
    """bool (D, W): an axial slice's mask without holes."""
    return np.asarray(ndimage.binary_fill_holes(plane), bool)


def enlarge(mask: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """bool (d, h, w) -> bool (D, H, W) = shape, smooth inside the axial slices."""
    depth, height, width = shape
    small_height = mask.shape[1]
    nearest_row = np.arange(height) * small_height // height
    nearest_row = np.minimum(nearest_row, small_height - 1)
    large = np.empty(shape, bool)
    for row in range(height):
        plane = mask[:, nearest_row[row]].astype(np.float32)  # (d, w)
        share = cv2.resize(plane, (width, depth), interpolation=cv2.INTER_LINEAR)  # (D, W)
        large[:, row] = share > 0.5
    return large


# --- Values -----------------------------------------------------------------------------------------------------------


def between(volume: np.ndarray, rows: int) -> np.ndarray:
    """(D, H, W) -> float32 (D, rows, W): cubic between the axial slices."""
    planes = []
    for plane in volume:
        size = (plane.shape[1], rows)  # width first, as OpenCV has it
        planes.append(cv2.resize(plane.astype(np.float32), size, interpolation=cv2.INTER_CUBIC))
    return np.stack(planes)


def smooth(volume: np.ndarray, sigma: float) -> np.ndarray:
    """Gaussian blur of (D, rows, W), in voxels."""
    planes = np.stack([cv2.GaussianBlur(plane, (0, 0), sigma) for plane in volume])
    return ndimage.gaussian_filter1d(planes, sigma, axis=0, truncate=3, output=planes)


def mean_slices(volume: np.ndarray, count: int) -> np.ndarray:
    """Mean of each `count` slices along D, as uint16 in UNIT."""
    # Empty slices behind the last one, so that every mean has as many
    missing = -len(volume) % count
    padded = np.pad(volume, ((0, missing), (0, 0), (0, 0)))
    grouped = padded.reshape(-1, count, *padded.shape[1:])  # (D / count, count, rows, W)
    means = np.clip(grouped.mean(1), 0, MOST)
    return np.rint(means / UNIT).astype(np.uint16)


def shrink(mask: np.ndarray, count: int) -> np.ndarray:
    """bool (D, H, W) -> uint16 shares (d, H, w) in UNIT, about `count` voxels in one along front-back and
    left-right."""
    depth, height, width = mask.shape
    size = (math.ceil(width / count), math.ceil(depth / count))  # width first, as OpenCV has it
    planes = []
    for row in range(height):
        plane = mask[:, row].astype(np.float32)  # (D, W)
        share = cv2.resize(plane, size, interpolation=cv2.INTER_AREA)  # (d, w)
        planes.append(np.rint(share / UNIT))
    return np.stack(planes, 1).astype(np.uint16)
