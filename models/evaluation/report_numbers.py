"""Scores of every image -> means, intervals and tests; what else the tables say of a method."""

import itertools
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from .. import pipelines
from ..comparison.base import TASK_SPECIFIC, UNIVERSAL
from . import statistics
from .scoring import Scored
from .summary import read_summary

# What the table of cost takes from an evaluation's summary.json.
COST_KEYS = (
    "sampler",
    "steps",
    "parameters",
    "operations",
    "seconds",
    "seconds_after_warm_up",
    "peak_memory",
    "peak_memory_of",
    "device",
    "precision",
    "batch_size",
)


def summarise(scored: Scored, seed: int = 0) -> dict[str, dict[str, dict[str, float]]]:
    """{method: {score's key: what statistics.describe says}}. seed: of the bootstrap."""
    # all at once: the bootstrap's draws are the same for every score of as many images
    places = [(method, column.key) for method in scored.methods for column in scored.columns]
    described = statistics.describe_each([scored.series(*place) for place in places], seed)

    summary: dict[str, dict] = {method: {} for method in scored.methods}
    for (method, key), numbers in zip(places, described):
        summary[method][key] = numbers
    return summary


def compare_methods(scored: Scored) -> list[dict]:
    """Every score of every two methods, the untouched CXR among them.

    A list of {"score", "a", "b", "difference", "pairs", "p", "p_holm"}: Holm's correction is over the pairs of a score.
    """
    every = []
    for column in scored.columns:
        tests = []
        # the untouched CXR is a method too: a difference from doing nothing is the first to ask for
        for a, b in itertools.combinations(scored.methods, 2):
            test = statistics.signed_rank(scored.series(a, column.key), scored.series(b, column.key))
            tests.append({"score": column.key, "a": a, "b": b, **test})

        # the family of hypotheses is the pairs of one score, since each score asks a question of its own
        corrected = statistics.holm([test["p"] for test in tests])
        for test, p in zip(tests, corrected):
            test["p_holm"] = p
        every += tests
    return every


def costs(folders: Mapping[str, str | Path]) -> dict[str, dict]:
    """{method: COST_KEYS of its folder's summary.json}, of the methods whose summary tells the seconds."""
    known = {}
    for method, folder in folders.items():
        summary = read_summary(folder)
        # without seconds there is no row: other programs' predictions bring no summary, or one without a cost
        if "seconds" in summary:
            known[method] = {key: summary[key] for key in COST_KEYS if key in summary}
    return known


def method_groups(folders: Mapping[str, str | Path]) -> dict[str, str]:
    """{method: group of the papers' tables} of the methods whose folder's summary.json tells it."""
    # the two methods of this project do not write theirs down
    own = {method.title: TASK_SPECIFIC for method in pipelines.METHODS.values()}
    known = {}
    for method, folder in folders.items():
        summary = read_summary(folder)
        group = summary.get("group") or own.get(str(summary.get("method")))
        if group in (UNIVERSAL, TASK_SPECIFIC):
            known[method] = group
    return known


def extremes(scored: Scored, method: str) -> dict[str, str]:
    """{"best", "median", "worst": image} of a method by MSE, each image once."""
    # MSE rather than PSNR, which is infinite for equal images; the order is the same
    names = list(scored.values)
    order = [names[place] for place in np.argsort(scored.series(method, "MSE"), kind="stable")]
    # of few images one may have several of these ranks: the best comes first, the median last
    ranks = {"best": order[0]}
    if len(order) > 1:
        ranks["worst"] = order[-1]
    middle = order[len(order) // 2]
    if middle not in ranks.values():
        ranks["median"] = middle
    return {rank: ranks[rank] for rank in ("best", "median", "worst") if rank in ranks}
