"""The numbers of a reading study: detection, agreement, AFROC, and how sure they are.

Own lines rather than scikit-learn and statsmodels: kappa and McNemar's test are a few lines over NumPy and SciPy, which
are here already, and two packages more would have to be installed by everybody who only trains.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

RESAMPLES = 2000  # of the bootstrap over patients
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Counts:
    """What was found: true positives, false positives, false negatives."""

    tp: int = 0
    fp: int = 0
    fn: int = 0


def mcnemar(a: Sequence[bool], b: Sequence[bool]) -> tuple[int, int, float]:
    """(only a, only b, exact two-sided p) of paired yes and no [McNemar 1947].

    A binomial test of the pairs that differ; p is NaN where no pair differs.
    """
    only_a = 0
    only_b = 0
    for yes_a, yes_b in zip(a, b):
        if yes_a and not yes_b:
            only_a += 1
        if yes_b and not yes_a:
            only_b += 1

    differing = only_a + only_b
    if differing == 0:
        return 0, 0, math.nan
    test = stats.binomtest(only_a, differing, 0.5)
    return only_a, only_b, float(test.pvalue)


def weighted_kappa(a: Sequence[int], b: Sequence[int], levels: Sequence[int]) -> float:
    """Cohen's kappa with quadratic weights (1968): 1 - Σ w O / Σ w E, w = (i - j)², of two readers' ratings of the same
    images.

    O: how often each two levels met; E: how often they would by chance. NaN where both always gave one level.
    """
    # O: a row for each level of the first reader, a column for each of the second
    place = {level: number for number, level in enumerate(levels)}
    observed = np.zeros((len(levels), len(levels)))
    for rating_a, rating_b in zip(a, b):
        observed[place[rating_a], place[rating_b]] += 1
    total = observed.sum()
    if total == 0:
        return math.nan

    # E, and w = (i - j)^2, (levels, levels) both
    ratings_a = observed.sum(1)
    ratings_b = observed.sum(0)
    expected = np.outer(ratings_a, ratings_b) / total
    i = np.arange(len(levels))[:, None]
    j = np.arange(len(levels))[None, :]
    weights = (i - j) ** 2

    # kappa = 1 - sum of w O / sum of w E
    disagreement = float((weights * observed).sum())
    by_chance = float((weights * expected).sum())
    if by_chance == 0:
        return math.nan
    return 1 - disagreement / by_chance


def afroc_area(lesions: Sequence[float], images: Sequence[float]) -> float:
    """Area under the AFROC curve [Chakraborty and Berbaum 2004]: how often a lesion's rating is above that of the
    highest false mark of an image without lesion; equal ones count half.

    lesions: the highest rating of each lesion; images: of each image without lesion; -inf where there is no mark.
    """
    if len(lesions) == 0 or len(images) == 0:
        return math.nan
    lesion_ratings = np.asarray(lesions, float)[:, None]  # (lesions, 1)
    false_ratings = np.asarray(images, float)[None, :]  # (1, images)

    # All pairs, compared rather than subtracted: -inf equals -inf
    above = (lesion_ratings > false_ratings).mean()
    equal = (lesion_ratings == false_ratings).mean()
    return float(above + 0.5 * equal)


def interval(
    patients: int, statistic: Callable[[np.ndarray], np.ndarray], random: np.random.Generator
) -> tuple[float, float]:
    """95 % percentile interval of a statistic, by drawing as many patients as there are with replacement.

    statistic: (n, patients) places of drawn patients, a row for each draw -> (n,) values. Patients and not images or
    lesions are drawn: what is seen in one patient is no independent evidence. Draws in which the statistic is undefined
    are left out; NaN where it always is, or for a single patient.
    """
    if patients < 2:
        return math.nan, math.nan
    drawn = random.integers(patients, size=(RESAMPLES, patients))
    values = statistic(drawn)  # (RESAMPLES,)
    defined = values[np.isfinite(values)]
    if len(defined) == 0:
        return math.nan, math.nan
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(defined, (tail, 1 - tail))
    return float(low), float(high)


def quotient(parts: np.ndarray, wholes: np.ndarray) -> np.ndarray:
    """parts / wholes, NaN where there is no whole."""
    undefined = np.full(parts.shape, math.nan)
    return np.divide(parts, wholes, out=undefined, where=wholes != 0)
