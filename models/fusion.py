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
    is_plane_mask = mask.dtype == bool and mask.ndim == 2
    if not is_plane_mask or not same_shape:
        raise ValueError(
            f"expected two images (H, W) and a boolean mask of their size, got {global_soft.shape}, "
            f"{local_soft.shape} and {mask.dtype} {mask.shape}"
        )

    if method == "none":
        return global_soft.copy()
    if method == "alpha":
        mean = (1 - blend) * global_soft + blend * local_soft
        return np.where(mask, mean, global_soft)
    lungs = drop_small_regions(mask)
    fused = poisson(global_soft, local_soft, lungs)
    return np.clip(fused, 0, 1)


def poisson(global_soft: np.ndarray, local_soft: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Gradient-domain fusion (Perez 2003, eq. 3), solved exactly: float (H, W), not clipped.

    Inside the mask's bounding box: the image whose gradient is the local image's in the eroded mask and the global
    image's elsewhere. On the box's border and outside it: the global image. A mask less than 3 pixels high or wide
    changes nothing. global_soft, local_soft: float (H, W). mask: boolean (H, W).
    """
    fused = global_soft.copy()

    # The box (h, w) around the mask. Fewer than 3 rows or columns leave no pixel inside the border.
    rows = np.flatnonzero(mask.any(1))
    columns = np.flatnonzero(mask.any(0))
    if len(rows) == 0:
        return fused
    top = rows[0]
    bottom = rows[-1]
    left = columns[0]
    right = columns[-1]
    if bottom - top < 2 or right - left < 2:
        return fused
    box_rows = slice(top, bottom + 1)
    box_columns = slice(left, right + 1)
    box = (box_rows, box_columns)

    # The mask is eroded before it is cut to the box, because cv2.erode leaves the border of an image alone.
    square = np.ones((3, 3), np.uint8)
    eroded = cv2.erode(mask.astype(np.uint8), square, iterations=EROSIONS)
    inside = eroded.astype(bool)[box]  # (h, w)

    # Perez 2003, eq. 3: Laplacian of f = div v, where v is the local image's gradient inside and the global one's
    # elsewhere. With f = global + change it is
    #     Laplacian of change = div (gradient of (local - global), inside the mask),
    # and the change is zero on the border of the box.
    global_box = global_soft[box].astype(np.float64)
    local_box = local_soft[box].astype(np.float64)
    difference = local_box - global_box
    laplacian = _masked_divergence(difference, inside)  # (h, w)
    within_border = np.s_[1:-1, 1:-1]
    change = np.zeros_like(global_box)
    change[within_border] = _solve(laplacian[within_border])

    fused[box] += change.astype(fused.dtype)
    return fused


def drop_small_regions(mask: np.ndarray, least: int = MIN_PIXELS) -> np.ndarray:
    """The boolean mask (H, W) without its connected regions of fewer than `least` pixels."""
    _, labels, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8))
    areas = np.asarray(stats)[:, cv2.CC_STAT_AREA]  # (regions,)
    area_here = areas[labels.astype(int)]  # (H, W), the size of the region that each pixel belongs to
    return mask & (area_here >= least)


def _masked_divergence(image: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """The divergence (H, W) of an image's gradient (H, W) that is kept where `inside` and zero elsewhere.

    Gradient by forward, divergence by backward differences: together the five-point Laplacian.
    """
    # Forward differences; the last row is repeated, so that its difference is 0, and so is the last column.
    last_row = image[-1:]
    last_column = image[:, -1:]
    gradient_y = np.diff(image, axis=0, append=last_row) * inside
    gradient_x = np.diff(image, axis=1, append=last_column) * inside

    # Backward differences; beyond the border the gradient is 0.
    divergence_y = np.diff(gradient_y, axis=0, prepend=0)
    divergence_x = np.diff(gradient_x, axis=1, prepend=0)
    return divergence_y + divergence_x


def _solve(laplacian: np.ndarray) -> np.ndarray:
    """The image u (H, W), zero just outside, with this five-point Laplacian: by the discrete sine transform."""
    # The Laplacian is diagonal in sines, and its eigenvalues are sums of one for each axis. None is 0, so the solution
    # is exact and unique.
    height, width = laplacian.shape
    eigenvalues = _eigenvalues(height)[:, None] + _eigenvalues(width)  # (H, W)

    # In sines the equation is a division; then back.
    coefficients = _sine_transform_2d(laplacian)
    solution = _sine_transform_2d(coefficients / eigenvalues)
    # the transform of the transform is 2 (N + 1) times the original, for each axis
    scale = 4 * (height + 1) * (width + 1)
    return solution / scale


def _sine_transform_2d(image: np.ndarray) -> np.ndarray:
    """`_sine_transform` along both axes of (H, W)."""
    along_columns = _sine_transform(image, axis=0)
    return _sine_transform(along_columns, axis=1)


def _sine_transform(image: np.ndarray, axis: int) -> np.ndarray:
    """y_k = 2 sum_n x_n sin(pi (k + 1) (n + 1) / (N + 1)) along an axis: DST-I, as scipy.fft.dst, whose import takes a
    sixth of a second."""
    # The Fourier transform of a sequence that is continued as an odd one, 0, x, 0, -x backwards, is -i times this.
    x = np.moveaxis(image, axis, -1)  # (..., N)
    count = x.shape[-1]
    zero = np.zeros_like(x[..., :1])  # (..., 1)
    backwards = x[..., ::-1]
    odd = np.concatenate([zero, x, zero, -backwards], axis=-1)  # (..., 2 N + 2)
    spectrum = np.fft.rfft(odd)  # (..., N + 2)
    y = -spectrum.imag[..., 1 : count + 1]
    return np.moveaxis(y, -1, axis)


def _eigenvalues(count: int) -> np.ndarray:
    """(N,): eigenvalues 2 cos(pi k / (N + 1)) - 2, k = 1 ... N, of u(i - 1) - 2 u(i) + u(i + 1) on N points between
    two zeros. Its eigenvectors are sin(pi k i / (N + 1))."""
    k = np.arange(1, count + 1)
    angle = np.pi * k / (count + 1)
    return 2 * np.cos(angle) - 2
