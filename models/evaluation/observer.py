"""A model observer: how well a channelized Hotelling observer tells lesions from normal places, before and after
suppression.

Myers & Barrett (JOSA A 1987); the channels are Laguerre-Gauss functions, Gallas & Barrett (JOSA A 2003), eq. 9. A patch
g gives the channel outputs v = U' g; the observer's score is w' v with w = S^-1 (mean of v with lesions - mean of v
without), S the covariance within the two classes. Scores are cross-validated by image: no patch is scored by an
observer that saw its image.
"""

from dataclasses import dataclass

import numpy as np
from scipy.special import eval_laguerre

CHANNELS = 6  # Laguerre-Gauss channels
WIDTH_MM = 14.0  # a of the channels
PATCH_MM = 45.0  # side of a patch
FOLDS = 10  # of the cross-validation, at most; with fewer images one each
RIDGE = 1e-6  # of the mean variance, added to each variance: channels of constant patches have none
RESAMPLES = 2000  # of the bootstrap


@dataclass(frozen=True)
class Comparison:
    """AUCs of two observers on the same places, the difference after - before, and its 95 % bootstrap interval over
    images."""

    before: float
    after: float
    difference: float
    low: float
    high: float


def laguerre_gauss(side: int, width: float, count: int = CHANNELS) -> np.ndarray:
    """(count, side * side): channels j = 0, 1, ... of a square patch, orthonormal as far as the patch reaches.

    u_j(r) = sqrt(2) / a exp(-pi r^2 / a^2) L_j(2 pi r^2 / a^2); width: a, pixels.
    """
    # r is measured from the middle of the patch, which for an odd side is a pixel.
    offset = np.arange(side) - (side - 1) / 2
    r_squared = offset[None, :] ** 2 + offset[:, None] ** 2  # (side, side)
    envelope = np.sqrt(2) / width * np.exp(-np.pi * r_squared / width**2)  # (side, side)
    argument = 2 * np.pi * r_squared / width**2  # (side, side)

    channels = []
    for j in range(count):
        u_j = envelope * eval_laguerre(j, argument)
        channels.append(u_j.ravel())
    return np.stack(channels)


def outputs(image: np.ndarray, centres: np.ndarray, pixel_mm: float, count: int = CHANNELS) -> np.ndarray:
    """(n, count) channel outputs of an image, float (H, W), at centres (n, 2) of columns and rows.

    Each patch has its own mean taken out, so that the grey level of the place does not count; beyond the border the
    image goes on as at its border.
    """
    side = 2 * round(PATCH_MM / pixel_mm / 2) + 1  # odd, so that a lesion's centre is a pixel
    channels = laguerre_gauss(side, WIDTH_MM / pixel_mm, count)  # U', (count, side * side)

    # Padded by half a patch, so that centre (x, y) of the image is the patch's corner (x, y) of the padded one.
    padded = np.pad(image, side // 2, mode="edge")
    result = np.empty((len(centres), count))
    for row, (x, y) in enumerate(np.asarray(centres, int)):
        g = padded[y : y + side, x : x + side].ravel()  # (side * side,)
        result[row] = channels @ (g - g.mean())  # v = U' g
    return result


def template(present: np.ndarray, absent: np.ndarray) -> np.ndarray:
    """The Hotelling template w (c,) of channel outputs (n, c) with lesions and (m, c) without; needs two patches of
    each."""
    # S: the mean of the two classes' covariances, Hotelling's pooled within-class scatter
    covariance = (np.cov(present, rowvar=False) + np.cov(absent, rowvar=False)) / 2
    covariance = np.atleast_2d(covariance)  # (c, c); np.cov of one channel is a scalar

    # S + ridge I can be inverted. Where all patches are constant even the mean variance is 0, hence `tiny`.
    channels = len(covariance)
    total_variance = np.trace(covariance)
    ridge = RIDGE * total_variance / channels + np.finfo(float).tiny
    regularised = covariance + ridge * np.eye(channels)

    # w = S^-1 (mean with lesions - mean without)
    mean_difference = present.mean(0) - absent.mean(0)  # (c,)
    return np.linalg.solve(regularised, mean_difference)


def cross_validate(
    present: np.ndarray, absent: np.ndarray, images_present: np.ndarray, images_absent: np.ndarray, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Scores (n,) and (m,) of patches with and without lesions, each from an observer that saw no patch of the same
    image.

    images_present, images_absent: the image of each patch, any labels. ValueError where there are fewer than two
    images, or where the rest of the images does not hold two patches of each class.
    """
    # Folds are of images, not of patches: patches of one image share patient, exposure and anatomy.
    names = np.unique(np.concatenate([images_present, images_absent]))
    if len(names) < 2:
        raise ValueError(f"an observer is cross-validated by image; there is only {len(names)}")
    order = np.random.default_rng(seed).permutation(len(names))
    folds = np.array_split(names[order], min(FOLDS, len(names)))

    # Train on all other images, score the fold.
    scores_present = np.empty(len(present))
    scores_absent = np.empty(len(absent))
    for fold in folds:
        held_present = np.isin(images_present, fold)  # (n,)
        held_absent = np.isin(images_absent, fold)  # (m,)
        train_present = present[~held_present]
        train_absent = absent[~held_absent]
        if len(train_present) < 2 or len(train_absent) < 2:
            raise ValueError(
                "too few patches to train an observer on; two with lesions and two without are needed in other images"
            )
        w = template(train_present, train_absent)
        scores_present[held_present] = present[held_present] @ w
        scores_absent[held_absent] = absent[held_absent] @ w
    return scores_present, scores_absent


def auc(present: np.ndarray, absent: np.ndarray) -> float:
    """The share of pairs (one score with a lesion, one without) that are in the right order, ties counted half (Mann &
    Whitney)."""
    # For each score with a lesion: how many without lie below it, and how many below or level with it.
    ordered = np.sort(absent)
    below = np.searchsorted(ordered, present, side="left")  # (n,)
    not_above = np.searchsorted(ordered, present, side="right")  # (n,)

    # The mean of the two counts ties half; divided by m it is a share.
    twice_in_order = (below + not_above).mean()
    return float(twice_in_order / (2 * len(absent)))


def compare(
    before: tuple, after: tuple, images_present: np.ndarray, images_absent: np.ndarray, seed: int = 0
) -> Comparison:
    """before, after: (scores with lesions, scores without) of the same places; whole images are resampled, with their
    patches."""
    # The image is the unit that is drawn with replacement; its patches are not independent of each other.
    names = np.unique(np.concatenate([images_present, images_absent]))
    rows_present = [np.flatnonzero(images_present == name) for name in names]
    rows_absent = [np.flatnonzero(images_absent == name) for name in names]

    # Both observers see the same resample, so the interval is that of a paired difference.
    before_present, before_absent = before
    after_present, after_absent = after
    random = np.random.default_rng(seed)
    differences = []
    while len(differences) < RESAMPLES:
        drawn = random.integers(len(names), size=len(names))
        lesions = np.concatenate([rows_present[index] for index in drawn])
        normals = np.concatenate([rows_absent[index] for index in drawn])
        if len(lesions) == 0 or len(normals) == 0:  # a sample of images may hold no lesion
            continue
        resampled_before = auc(before_present[lesions], before_absent[normals])
        resampled_after = auc(after_present[lesions], after_absent[normals])
        differences.append(resampled_after - resampled_before)
    low, high = np.quantile(differences, (0.025, 0.975))

    auc_before = auc(before_present, before_absent)
    auc_after = auc(after_present, after_absent)
    return Comparison(
        before=auc_before,
        after=auc_after,
        difference=auc_after - auc_before,
        low=float(low),
        high=float(high),
    )
