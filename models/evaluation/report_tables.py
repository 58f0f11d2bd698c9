"""Scores of every image -> the tables of metrics.py and of the ablations."""

import json
import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from .. import scores
from ..comparison.base import TASK_SPECIFIC, UNIVERSAL
from . import statistics
from .report_numbers import COST_KEYS
from .scoring import Scored
from .summary import read_summary
from .tables import Table

ABSENT = "—"  # in a table, what is not known
INFINITE = "∞"  # the PSNR of results that all equal the truth
MILLION = 1e6  # parameters are counted in millions
TERA = 1e12  # operations are counted in 10^12
GIB = 2**30  # bytes

# The ablations of GL-LCM's paper: {setting: (title, {value: its name there}, in the paper's order)}.
ABLATIONS = {
    "guidance": (
        "Ablation: guidance",
        {"vanilla": "Vanilla Guidance", "cfg": "CFG", "leg_shared": "LEG, shared estimate", "leg": "LEG"},
    ),
    "fusion": (
        "Ablation: fusion",
        {"none": "✗", "alpha": "α-Fusion", "autoencoder": "AE Fusion", "poisson": "Poisson Fusion"},
    ),
}
ABLATION_SCORES = ("PSNR", "LPIPS")  # its columns


def quality_tables(scored: Scored, summary: dict, groups: dict[str, str] | None = None) -> list[Table]:
    """The seeds' tables: mean ± population standard deviation, a row for each method, the best of several methods
    marked.

    groups: {method: its group}, as of `method_groups`. If there are both, universal methods come before task-specific
    ones, each under a heading; methods without a group stay between the untouched CXR and them.
    """
    groups = groups or {}
    both = len(set(groups.values())) > 1
    ranks = {UNIVERSAL: 1, TASK_SPECIFIC: 2} if both else {}
    methods = sorted(scored.methods, key=lambda method: ranks.get(groups.get(method, ""), 0))  # stable
    headings_at = {}
    for i, method in enumerate(methods):
        group = groups.get(method, "")
        if group in ranks and group not in headings_at.values():
            headings_at[i] = group

    tables = []
    for title, columns in scored.groups.items():
        rows = []
        # the cells, a row for each method
        for method in methods:
            row = [method]
            for column in columns:
                row.append(_mean_and_spread(scored.series(method, column.key), summary[method][column.key], column))
            rows.append(row)

        # where the bold cells stand
        best = set()
        for j, column in enumerate(columns, 1):  # column 0 holds the methods' names
            best |= {(methods.index(scored.methods[i]), j) for i in _best(scored, column, summary)}
        headings = ["method", *(column.heading for column in columns)]
        tables.append(Table(title, headings, rows, best, _undefined(scored, columns, summary), headings_at))

    # said once, above what the first table leaves out
    how_to_read = "mean ± population standard deviation over images; the untouched CXR is what doing nothing scores"
    tables[0].notes.insert(0, how_to_read)
    return tables


def ablation_tables(scored: Scored, summary: dict, folders: Mapping[str, str | Path]) -> list[Table]:
    """The papers' two ablation tables, guidance and fusion, of GL-LCM's results that differ in that setting alone."""
    tables = []
    columns = [column for column in scored.columns if column.key in ABLATION_SCORES]
    for key, (title, names) in ABLATIONS.items():
        # {all other settings: {value: method}}, by what each evaluation recorded
        families: dict[str, dict[str, str]] = {}
        for method, folder in folders.items():
            record = read_summary(folder)
            settings = dict(record.get("settings", {}))
            if settings.get(key) in names:
                value = settings.pop(key)
                settings["eval"] = {k: v for k, v in settings.get("eval", {}).items() if k != "output"}
                rest = json.dumps([settings, sorted(record.get("weights", {}).values())], sort_keys=True, default=str)
                families.setdefault(rest, {})[value] = method

        for family in families.values():
            if len(family) < 2:
                continue
            rows = []
            means = []
            for value in names:
                if value in family:
                    method = family[value]
                    cells = summary[method]
                    row = [_mean_and_spread(scored.series(method, c.key), cells[c.key], c) for c in columns]
                    rows.append([names[value], *row])
                    means.append([round(cells[c.key]["mean"] * c.scale, 3) for c in columns])
            best = set()
            for j, column in enumerate(columns):
                series = [row[j] for row in means]
                top = max(series) if column.larger_is_better else min(series)
                best |= {(i, j + 1) for i, mean in enumerate(series) if mean == top}
            tables.append(Table(title, [key, *(column.heading for column in columns)], rows, best))
    return tables


def interval_table(scored: Scored, summary: dict) -> Table:
    """The means with their bootstrap intervals: a row for each score, a column for each method."""
    rows = []
    # scores as rows here: a column for each score would be too many, as wide as an interval is
    for column in scored.columns:
        row = [score_label(column)]
        for method in scored.methods:
            cell = summary[method][column.key]
            mean, low, high = (_number(cell[key] * column.scale) for key in ("mean", "low", "high"))
            row.append(f"{mean} [{low}, {high}]")
        rows.append(row)
    note = f"bias-corrected and accelerated bootstrap over images, {statistics.RESAMPLES} resamples"
    return Table("95 % intervals of the means", ["score", *scored.methods], rows, notes=[note])


def comparison_table(scored: Scored, tests: list[dict]) -> Table:
    """The paired tests, from what `compare_methods` gives."""
    columns = {column.key: column for column in scored.columns}
    rows = []
    for test in tests:
        column = columns[test["score"]]
        difference = _number(test["difference"] * column.scale)
        p = _number(test["p"], ".2g")
        p_holm = _number(test["p_holm"], ".2g")
        rows.append([score_label(column), test["a"], test["b"], difference, str(test["pairs"]), p, p_holm])
    notes = ["Wilcoxon's signed-rank test, two-sided; Holm's correction over all pairs of methods of a score"]

    # a dash for p needs its reason: of so few pairs no p could fall below 0.05
    if any(math.isnan(test["p"]) for test in tests):
        notes.append(f"{ABSENT}: undefined, fewer than {statistics.LEAST_PAIRS} images differ")
    headings = ["score", "A", "B", "mean of A - B", "images", "p", "p (Holm)"]
    return Table("Paired tests between methods", headings, rows, notes=notes)


def cost_table(costs: dict[str, dict]) -> Table:
    """The seed's table of cost, from what `costs` gives."""
    rows = []
    machines: dict[str, list[str]] = {}  # {how it was measured: methods}
    warm_up_notes = []
    for method, cost in costs.items():
        # what the summary lacks is a dash, never a zero
        parameters = _millions(cost["parameters"]) if "parameters" in cost else ABSENT
        memory = f"{cost['peak_memory'] / GIB:.2f} GiB" if "peak_memory" in cost else ABSENT
        known = dict.fromkeys(COST_KEYS, ABSENT) | cost
        steps = str(known["steps"] or ABSENT)
        sampler = str(known["sampler"] or ABSENT).upper()
        operations = f"{cost['operations'] / TERA:.3g}" if "operations" in cost else ABSENT
        rows.append([method, sampler, steps, parameters, operations, f"{known['seconds']:.2f}", memory])

        # Times compare only on equal terms, so each way of measuring is told once, with the methods it is true of.
        machine = f"{known['device']}, {known['precision']}"
        machine += f", batches of {known['batch_size']}, memory {known['peak_memory_of']}"
        machines.setdefault(machine, []).append(method)
        if not cost.get("seconds_after_warm_up"):
            warm_up_notes.append(f"{method}: its only batch was timed, warm-up included")
    notes = ["time: median over images, the first batch left out"]
    if any("operations" in cost for cost in costs.values()):
        notes.append("operations: 10¹² per image, two for a multiplication and its addition, by torch's FLOP counter")
    for machine, methods in machines.items():
        notes.append(f"{', '.join(methods)}: {machine}")
    headings = ["method", "sampler", "steps", "parameters", "operations (10¹²)", "time (s)", "peak memory"]
    return Table("Cost of an image", headings, rows, notes=notes + warm_up_notes)


def _millions(count: int) -> str:
    """436900000 -> "436.9 M"; below a million with three digits: 9985 -> "0.010 M"."""
    millions = count / MILLION
    return f"{millions:.1f} M" if millions >= 1 else f"{millions:.3f} M"


def _mean_and_spread(values: np.ndarray, cell: dict, column: scores.Score) -> str:
    """values: of every image; cell: what statistics.describe says of them."""
    # PSNR of exact results: no mean of finite values exists, but "not known" would be wrong too
    if _all_infinite(values):
        return INFINITE
    if not cell["count"]:
        return ABSENT
    return f"{_number(cell['mean'] * column.scale)} ± {_number(cell['std'] * column.scale)}"


def _number(value: float, form: str = ".3f") -> str:
    return format(value, form) if math.isfinite(value) else ABSENT


def score_label(column: scores.Score) -> str:
    """How a table's heading names a score."""
    return f"lungs: {column.label}" if column in scores.IN_LUNGS else column.label


def _all_infinite(values: np.ndarray) -> bool:
    """Whether a method's PSNR is infinite for every image that has one: all of its results equal the truth."""
    defined = values[~np.isnan(values)]
    return defined.size > 0 and bool(np.isposinf(defined).all())


def _best(scored: Scored, column: scores.Score, summary: dict) -> list[int]:
    """The places of the best of several methods, all of them if the table shows them alike.

    Nobody is the best who does not beat the untouched CXR. Nobody is either if a method has infinite values beside
    finite ones: the means are then over different images (MSE compares them).
    """
    if len(scored.methods) <= 2:  # the untouched CXR and one method
        return []
    shown = {}
    # what the table shows of each method; two means that are printed alike share the mark
    for i, method in enumerate(scored.methods):
        values = scored.series(method, column.key)
        cell = summary[method][column.key]
        if _all_infinite(values):
            shown[i] = math.inf
        elif np.isposinf(values).any():  # finite beside infinite
            return []
        elif cell["count"]:
            shown[i] = round(cell["mean"] * column.scale, 3)
    reference = shown.pop(0, None)  # the untouched CXR comes first
    if not shown:
        return []

    best = max(shown.values()) if column.larger_is_better else min(shown.values())
    # the best that does not beat doing nothing gets no mark
    if reference is not None:
        beaten = best > reference if column.larger_is_better else best < reference
        if not beaten:
            return []
    return [i for i, mean in shown.items() if mean == best]


def _undefined(scored: Scored, columns: tuple[scores.Score, ...], summary: dict) -> list[str]:
    """A line for what the means of these columns leave out."""
    # methods that leave out the same number of images for the same reason share a line
    shared: dict[tuple[str, int, str], list[str]] = {}
    for column in columns:
        # NaN has one of two causes: BSR divides by the bone's energy, the lungs' scores need a mask
        in_lungs = column in scores.IN_LUNGS
        gap = "no mask" if in_lungs else "no bone"
        if in_lungs and column.key.startswith("BSR"):
            gap = "no bone or no mask"
        for method in summary:
            values = scored.series(method, column.key)

            # infinite and missing values are counted apart, as they have different reasons
            infinite = int(np.isposinf(values).sum())
            missing = int(np.isnan(values).sum())
            if infinite:
                shared.setdefault((column.key, infinite, "equal images"), []).append(method)
            if missing:
                shared.setdefault((column.key, missing, gap), []).append(method)
    lines = []
    for (key, count, reason), methods in shared.items():
        who = "every method" if len(methods) == len(summary) else ", ".join(methods)
        score = key.removesuffix("_lungs")
        total = len(scored.values)
        lines.append(f"{who}: {score} is undefined for {count} of {total} images ({reason}), left out of its mean")
    return lines
