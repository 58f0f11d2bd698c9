"""What many values say: mean and spread, the uncertainty of the mean, whether two methods differ."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import stats
from scipy.special import ndtr, ndtri

RESAMPLES = 9999  # of the bootstrap
RESAMPLE_NUMBERS = 1 << 19  # drawn at a time, so that memory does not grow with the images
CONFIDENCE = 0.95
LEAST_PAIRS = 6  # that differ; with 5 the smallest two-sided p-value of the signed-rank test is 2 / 2^5 = 0.06


def describe(values, seed: int = 0) -> dict[str, float]:
    """{"mean", "std", "count", "undefined", "low", "high"} of the finite values; NaN if there are too few of them.

    std: of the population, as published. low, high: the 95 % interval of the mean. count, undefined: how many values
    are finite, how many are not (no bone, no mask, the infinite PSNR of equal images). seed: of the bootstrap.
    """
    return describe_each([values], seed)[0]


def describe_each(series: Sequence[Any], seed: int = 0) -> list[dict[str, float]]:
    """What `describe` says of each of several series of values, in less time than one by one."""
    lengths = []
    samples = []
    for values in series:
        every = np.asarray(values, np.float64)
        lengths.append(every.size)
        samples.append(every[np.isfinite(every)])

    described = []
    for length, finite, (low, high) in zip(lengths, samples, bootstrap_each(samples, seed)):
        mean = math.nan
        std = math.nan
        if finite.size:
            mean = float(finite.mean())
            std = float(finite.std())
        described.append(
            {
                "mean": mean,
                "std": std,
                "count": int(finite.size),
                "undefined": int(length - finite.size),
                "low": low,
                "high": high,
            }
        )
    return described


def bootstrap(values: np.ndarray, seed: int = 0) -> tuple[float, float]:
    """The 95 % interval of the mean of values (n,): bias-corrected and accelerated bootstrap (Efron 1987). NaN for
    fewer than two.

    The equations are those of Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 14.
    As scipy.stats.bootstrap, whose acceleration takes the mean of all values but one n times: a time that grows with
    the square of n.
    """
    return bootstrap_each([values], seed)[0]


def bootstrap_each(samples: Sequence[np.ndarray], seed: int = 0) -> list[tuple[float, float]]:
    """What `bootstrap` gives for each of several samples (n,). Those of one size are drawn from alike, since the draws
    depend on seed and size alone and take most of the time."""
    of_size: dict[int, list[int]] = {}  # size -> places in `samples`
    for place, values in enumerate(samples):
        of_size.setdefault(values.size, []).append(place)

    limits = [(math.nan, math.nan)] * len(samples)
    for size, places in of_size.items():
        if size < 2:
            continue
        group = [samples[place] for place in places]
        for place, values, means in zip(places, group, _resampled_means(group, seed)):
            limits[place] = _limits(values, means)
    return limits


def _limits(values: np.ndarray, means: np.ndarray) -> tuple[float, float]:
    """The interval of the mean of values (n,) with the means of their resamples (RESAMPLES,)."""
    if np.ptp(values) == 0:  # equal values: the acceleration would be 0 / 0
        return float(values[0]), float(values[0])
    mean = values.mean()

    # BCa rather than percentiles: few images and skewed scores (BSR has an upper bound) bias the plain interval
    # bias: z_0 = Phi^-1 of the share of resamples below the mean (14.14)
    z_0 = ndtri((np.mean(means < mean) + np.mean(means <= mean)) / 2)
    # acceleration a = sum U^3 / 6 (sum U^2)^1.5, where the influence U of a value on the mean is its distance (14.15)
    influence = values - mean
    a = np.sum(influence**3) / (6 * np.sum(influence**2) ** 1.5)

    # the two quantiles, moved by both (14.10)
    limits = []
    for level in ((1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2):
        z = z_0 + ndtri(level)
        moved = ndtr(z_0 + z / (1 - a * z))
        limits.append(float(np.quantile(means, moved)) if math.isfinite(moved) else math.nan)
    return limits[0], limits[1]


def _resampled_means(samples: Sequence[np.ndarray], seed: int) -> np.ndarray:
    """(k, RESAMPLES) means of as many values as each of k samples (n,) has, drawn from it with replacement; all samples
    from the same places."""
    size = samples[0].size
    rng = np.random.default_rng(seed)
    batch = max(1, RESAMPLE_NUMBERS // size)
    means = np.empty((len(samples), RESAMPLES))
    for start in range(0, RESAMPLES, batch):
        count = min(batch, RESAMPLES - start)
        places = rng.integers(0, size, (count, size))
        for row, values in zip(means, samples):
            row[start : start + count] = values[places].mean(1)
    return means


def signed_rank(a, b) -> dict[str, float]:
    """{"difference", "pairs", "p"}: the mean of a - b over the pairs that are finite in both, their number, and
    Wilcoxon's two-sided p.

    Pairs without a difference are left out of the test (Wilcoxon 1945). p is NaN if fewer than LEAST_PAIRS remain.
    """
    # Paired by image: images differ more from each other than methods do on one image.
    with np.errstate(invalid="ignore"):  # inf - inf is NaN, and left out like inf itself
        difference = np.asarray(a, np.float64) - np.asarray(b, np.float64)
    difference = difference[np.isfinite(difference)]
    mean = math.nan
    if difference.size:
        mean = float(difference.mean())

    # Ranks of the differences, not a t-test: scores of few images are seldom normally distributed.
    changed = difference[difference != 0]
    p = math.nan
    if changed.size >= LEAST_PAIRS:
        test: Any = stats.wilcoxon(changed)  # scipy's own types know no pvalue
        p = float(test.pvalue)
    return {"difference": mean, "pairs": int(difference.size), "p": p}


def holm(p_values) -> list[float]:
    """The p-values, corrected for their number by Holm's step-down method (1979). NaN stays and does not count."""
    p = np.asarray(p_values, np.float64)
    adjusted = np.full(p.shape, math.nan)
    defined = np.flatnonzero(np.isfinite(p))
    order = defined[np.argsort(p[defined], kind="stable")]  # places of the p-values, the smallest first
    hypotheses_left = np.arange(order.size, 0, -1)  # m, m - 1, ..., 1
    steps = p[order] * hypotheses_left
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1)  # no corrected p-value below the one before it
    return adjusted.tolist()
