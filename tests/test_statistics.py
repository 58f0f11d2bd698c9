"""Means, intervals and paired tests against worked examples, enumeration and simulation."""

import itertools
import math
import tracemalloc

import numpy as np
import pytest
from scipy import stats

from models.evaluation import statistics


def test_holm_worked_by_hand():
    # sorted 0.005, 0.01, 0.03, 0.04: times 4, 3, 2, 1 = 0.02, 0.03, 0.06, 0.04; none below its forerunner
    assert statistics.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert statistics.holm([0.6, 0.5]) == [1, 1] and statistics.holm([]) == []
    assert statistics.holm([0.02, math.nan, 0.03]) == pytest.approx([0.04, math.nan, 0.04], nan_ok=True)


def test_signed_rank_is_the_exact_distribution_over_all_signs():
    difference = np.array([0.5, -0.1, 0.9, 1.3, 0.4, 0.7, -0.2, 1.1])
    ranks = np.argsort(np.argsort(np.abs(difference))) + 1
    observed = ranks[difference > 0].sum()
    sums = [np.dot(ranks, signs) for signs in itertools.product((0, 1), repeat=difference.size)]
    expected = 2 * min(np.mean(np.array(sums) >= observed), np.mean(np.array(sums) <= observed))
    found = statistics.signed_rank(3 + difference, np.full(8, 3.0))
    assert (
        found["p"] == pytest.approx(expected)
        and found["pairs"] == 8
        and found["difference"] == pytest.approx(difference.mean())
    )
    assert statistics.signed_rank(np.full(8, 3.0), 3 + difference)["p"] == pytest.approx(expected)


def test_signed_rank_is_undefined_for_few_or_equal_pairs():
    assert math.isnan(statistics.signed_rank([1, 2, 3, 4, 5], [0, 0, 0, 0, 0])["p"])
    assert statistics.signed_rank([1, 2, 3, 4, 5, 6], [0] * 6)["p"] == pytest.approx(2 / 2**6)
    equal = statistics.signed_rank(np.arange(9), np.arange(9))
    assert math.isnan(equal["p"]) and equal["difference"] == 0
    gaps = statistics.signed_rank([math.inf, math.nan, 1, 2], [math.inf, 1, math.nan, 1])
    assert gaps["pairs"] == 1 and gaps["difference"] == 1 and math.isnan(gaps["p"])


@pytest.mark.slow
def test_the_interval_covers_the_mean_as_often_as_it_says(monkeypatch):
    monkeypatch.setattr(statistics, "RESAMPLES", 500)
    draws = np.random.default_rng(0).gamma(4, 0.5, (200, 40))  # mean 2, skewed
    inside = [low <= 2 <= high for low, high in (statistics.bootstrap(sample) for sample in draws)]
    assert 0.88 <= np.mean(inside) <= 0.99


@pytest.mark.parametrize("count", [2, 3, 7, 60])
def test_the_interval_is_scipys(count):
    values = np.random.default_rng(count).exponential(size=count)
    expected = stats.bootstrap(
        (values,), np.mean, n_resamples=statistics.RESAMPLES, method="BCa", rng=np.random.default_rng(5)
    ).confidence_interval
    assert statistics.bootstrap(values, seed=5) == pytest.approx((expected.low, expected.high), rel=1e-9)


def test_series_described_together_are_those_described_alone(monkeypatch):
    monkeypatch.setattr(statistics, "RESAMPLES", 300)
    g = np.random.default_rng(2)
    series = [g.normal(size=9), g.exponential(size=9), np.array([1, math.inf, 2, 5]), np.ones(9), np.array([3.0]), []]
    together = statistics.describe_each(series, seed=4)
    for values, found in zip(series, together):
        assert found == pytest.approx(statistics.describe(values, seed=4), rel=0, abs=0, nan_ok=True)
    assert together[2]["count"] == 3 and together[2]["undefined"] == 1
    assert together[0]["low"] < together[0]["mean"] < together[0]["high"]


def test_the_interval_of_many_images_takes_little_memory(monkeypatch):
    """And no time that grows with their square, as all means of all but one would."""
    monkeypatch.setattr(statistics, "RESAMPLES", 600)
    values = np.random.default_rng(0).normal(30, 2, 20_000)
    tracemalloc.start()
    low, high = statistics.bootstrap(values)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert low < 30 < high and peak < 40 * 2**20


def test_interval_is_seeded_close_to_the_normal_one_and_sane_at_its_ends():
    values = np.random.default_rng(1).normal(30, 2, 100)
    low, high = statistics.bootstrap(values, seed=3)
    error = 1.96 * values.std() / 10
    assert (low, high) == statistics.bootstrap(values, seed=3) != statistics.bootstrap(values, seed=4)
    assert (low, high) == pytest.approx((values.mean() - error, values.mean() + error), abs=0.1 * error)
    assert statistics.bootstrap(np.full(5, 0.5)) == (0.5, 0.5)
    assert all(map(math.isnan, statistics.bootstrap(np.array([1.0]))))


def test_describe_leaves_out_and_counts_what_is_not_finite():
    found = statistics.describe([1, math.nan, 3, math.inf])
    assert {key: found[key] for key in ("mean", "std", "count", "undefined")} == {
        "mean": 2,
        "std": 1,
        "count": 2,
        "undefined": 2,
    }
    nothing = statistics.describe([math.nan, math.nan])
    assert math.isnan(nothing["mean"]) and math.isnan(nothing["low"]) and nothing["count"] == 0
