"""Global-local fusion of two soft-tissue images under a lung mask (GL-LCM), in floating point.

Fusion in the autoencoder's latent is not here but where the latents are (pipelines.py).
"""
import cv2
import numpy as np
from scipy import fft

MIN_PIXELS = 100  # smaller parts of a mask are dropped
EROSIONS = 3      # of the mask, 3x3, before gradients are taken over


def fuse(global_soft: np.ndarray, local_soft: np.ndarray, mask: np.ndarray, method: str = "poisson", weight: float = 0.5) -> np.ndarray:
    """One image of two: float (H, W) in [0, 1] each, boolean mask (H, W), true in the lungs -> float (H, W) in [0, 1].

    method: "poisson"; "alpha": the mean weighted by `weight` for the local image, in the mask; "none": the global image.
    Raises ValueError for another method, other shapes or a mask that is not boolean.
    """
    if method not in ("poisson", "alpha", "none"):
        raise ValueError(f"unknown fusion '{method}'; there are poisson, alpha, none")
    if mask.dtype != bool or not global_soft.shape == local_soft.shape == mask.shape or mask.ndim != 2:
        raise ValueError(f"expected two images (H, W) and a boolean mask of their size, got {global_soft.shape}, "
                         f"{local_soft.shape} and {mask.dtype} {mask.shape}")
    if method == "none":
        return global_soft.copy()
    if method == "alpha":
        return np.where(mask, (1 - weight) * global_soft + weight * local_soft, global_soft)
    return np.clip(poisson(global_soft, local_soft, drop_small_parts(mask)), 0, 1)


def poisson(global_soft: np.ndarray, local_soft: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Gradient-domain fusion (Perez 2003, eq. 3): inside the mask's bounding box the image whose gradient is the local one's
    in the eroded mask and the global one's elsewhere, with the global image on the box's border and outside.

    Solved exactly by the discrete sine transform of the five-point Laplacian. Not clipped.
    """
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows) or rows[-1] - rows[0] < 2 or columns[-1] - columns[0] < 2:
        return global_soft.copy()
    box = np.s_[rows[0]:rows[-1] + 1, columns[0]:columns[-1] + 1]
    inside = cv2.erode(mask.astype(np.uint8), np.ones((3, 3), np.uint8), iterations=EROSIONS).astype(bool)[box]
    base = global_soft[box].astype(np.float64)
    change = np.zeros_like(base)  # what has to be added to the global image: zero on the border
    change[1:-1, 1:-1] = _solve(_divergence(local_soft[box].astype(np.float64) - base, inside)[1:-1, 1:-1])
    fused = global_soft.copy()
    fused[box] += change.astype(fused.dtype)
    return fused


def drop_small_parts(mask: np.ndarray, least: int = MIN_PIXELS) -> np.ndarray:
    """The mask without its connected parts of fewer than `least` pixels."""
    _, labels, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8))
    return mask & (stats[labels, cv2.CC_STAT_AREA] >= least)


def _divergence(difference: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """The divergence of the gradient of (local - global) kept inside the mask: forward, then backward differences."""
    along_y = np.diff(difference, axis=0, append=difference[-1:]) * inside
    along_x = np.diff(difference, axis=1, append=difference[:, -1:]) * inside
    return np.diff(along_y, axis=0, prepend=0) + np.diff(along_x, axis=1, prepend=0)


def _solve(laplacian: np.ndarray) -> np.ndarray:
    """u (H, W), zero just outside, with the given five-point Laplacian."""
    height, width = laplacian.shape
    eigenvalues = (2 * np.cos(np.pi * np.arange(1, height + 1) / (height + 1)) - 2)[:, None] \
        + (2 * np.cos(np.pi * np.arange(1, width + 1) / (width + 1)) - 2)
    return fft.idstn(fft.dstn(laplacian, type=1) / eigenvalues, type=1)
