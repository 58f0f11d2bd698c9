"""Fusion of the global and the local soft-tissue image under a lung mask (GL-LCM), in floating point.

Fusion in the autoencoder's latent space is in pipelines.py, where the latents are.
"""

import cv2
import numpy as np

METHODS = ("poisson", "alpha", "none")
MIN_PIXELS = 100  # connected regions of a mask with fewer pixels are dropped
EROSIONS = 3  # of the mask by 3 x 3 pixels, so that no gradient across its border is copied


def fuse(
    global_soft: np.ndarray, local_soft: np.ndarray, mask: np.ndarray, method: str = "poisson", blend: float = 0.5
) -> np.ndarray:
    """One soft-tissue image from two, (H, W) each.

    global_soft, local_soft: float in [0, 1]. mask: boolean, true in the lungs. Returns float in [0, 1].
    method: "poisson", see `poisson`; "alpha": in the mask the mean in which the local image has the weight `blend`;
    "none": the global image.
    Raises ValueError for another method, for shapes that differ or a mask that is not boolean.
    """
    if method not in METHODS:
        raise ValueError(f"unknown fusion '{method}'; there are {', '.join(METHODS)}")
    same_shape = global_soft.shape == local_soft.shape == mask.shape
    if mask.dtype != bool or mask.ndim != 2 or not same_shape:
        raise ValueError(
            f"expected two images (H, W) and a boolean mask of their size, got {global_soft.shape}, "
            f"{local_soft.shape} and {mask.dtype} {mask.shape}"
        )

    if method == "none":
        return global_soft.copy()
    if method == "alpha":
        mean = (1 - blend) * global_soft + blend * local_soft
        return np.where(mask, mean, global_soft)
    fused = poisson(global_soft, local_soft, drop_small_regions(mask))
    return np.clip(fused, 0, 1)


def poisson(global_soft: np.ndarray, local_soft: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Gradient-domain fusion (Perez 2003, eq. 3), solved exactly: float (H, W), not clipped.

    Inside the mask's bounding box: the image whose gradient is the local image's in the eroded mask and the global
    image's elsewhere. On the box's border and outside it: the global image. A mask less than 3 pixels high or wide
    changes nothing. global_soft, local_soft: float (H, W). mask: boolean (H, W).
    """
    # Fewer than 3 rows or columns leave no pixel inside the border.
    rows = np.flatnonzero(mask.any(1))
    columns = np.flatnonzero(mask.any(0))
    if not len(rows) or rows[-1] - rows[0] < 2 or columns[-1] - columns[0] < 2:
        return global_soft.copy()
    box = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]

    # eroded before it is cut to the box, because cv2.erode leaves the border of an image alone
    eroded = cv2.erode(mask.astype(np.uint8), np.ones((3, 3), np.uint8), iterations=EROSIONS)
    inside = eroded.astype(bool)[box]

    # The global image satisfies the equation outside the mask, so only the change to it has to be solved for: its
    # Laplacian is the divergence of the masked gradient of (local - global), and it is zero on the border.
    base = global_soft[box].astype(np.float64)
    difference = local_soft[box].astype(np.float64) - base
    laplacian = _masked_divergence(difference, inside)
    change = np.zeros_like(base)
    change[1:-1, 1:-1] = _solve(laplacian[1:-1, 1:-1])

    fused = global_soft.copy()
    fused[box] += change.astype(fused.dtype)
    return fused


def drop_small_regions(mask: np.ndarray, least: int = MIN_PIXELS) -> np.ndarray:
    """The boolean mask (H, W) without its connected regions of fewer than `least` pixels."""
    _, labels, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8))
    areas = np.asarray(stats)[:, cv2.CC_STAT_AREA]  # (regions,)
    return mask & (areas[labels.astype(int)] >= least)


def _masked_divergence(image: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """The divergence (H, W) of an image's gradient (H, W) that is kept where `inside` and zero elsewhere.

    Gradient by forward, divergence by backward differences: together the five-point Laplacian.
    """
    # Repeating the last row makes its forward difference 0.
    gradient_y = np.diff(image, axis=0, append=image[-1:]) * inside
    gradient_x = np.diff(image, axis=1, append=image[:, -1:]) * inside
    return np.diff(gradient_y, axis=0, prepend=0) + np.diff(gradient_x, axis=1, prepend=0)


def _solve(laplacian: np.ndarray) -> np.ndarray:
    """The image u (H, W), zero just outside, with this five-point Laplacian: by the discrete sine transform."""
    height, width = laplacian.shape
    # The Laplacian is diagonal in sines: eigenvalue 2 cos(pi k / (N + 1)) - 2 for each side, k = 1 ... N. The two add
    # up, and none is 0, so the solution is exact and unique.
    along_y = 2 * np.cos(np.pi * np.arange(1, height + 1) / (height + 1)) - 2  # (H,)
    along_x = 2 * np.cos(np.pi * np.arange(1, width + 1) / (width + 1)) - 2  # (W,)
    eigenvalues = along_y[:, None] + along_x
    from scipy import fft  # imported here, since BS-LDM needs none and it takes half a second

    return np.asarray(fft.idstn(np.asarray(fft.dstn(laplacian, type=1)) / eigenvalues, type=1))
