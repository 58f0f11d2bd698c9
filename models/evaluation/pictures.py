"""Figures of arrays and numbers as PNG bytes, sized for a page of a paper."""

import io
import math
import textwrap
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, StrMethodFormatter

PAGE = 7.2  # width of a page's text, inches
LEAST_COLUMN = 0.72  # width of an image among many, inches; more than ten of them make a picture wider than a page
DPI = 200  # dots an inch
POINTS = 72  # points an inch
SMALL = 8  # size of titles and labels, points
LETTER = 0.56  # mean width of a letter, of the size
TINY = 7  # size of ticks and legends, points
BRIGHTEST = 0.995  # quantile of an overlay that gets the brightest colour
OPACITY = 0.8  # of that colour
LEAST_SPAN = 0.01  # of a difference's colours, grey levels of 1: less is rounding
MOST_POINTS = 1000  # of a box plot
JITTER = 0.15  # points of a box plot are moved sideways by up to so much, to be told apart


class Point(NamedTuple):
    """One run in a plot of quality against cost. low, high: its interval, NaN if there is none; label: what to write
    beside it."""

    cost: float
    quality: float
    low: float = math.nan
    high: float = math.nan
    label: str = ""


def png(figure: Figure) -> bytes:
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=DPI)
    return content.getvalue()


def boxes(groups: list[dict[str, dict[str, Iterable[float]]]]) -> bytes:
    """A row of box plots for each group {title: {method: values}}: median, quartiles, and the finite values
    as points (all of them up to MOST_POINTS)."""
    # Groups may have different numbers of scores; the figure is as wide as the longest.
    columns = max(len(group) for group in groups)
    methods = list(next(iter(groups[0].values())))
    longest_name = max(len(method) for method in methods)
    figure = Figure(figsize=(PAGE, 1.6 * len(groups) + 0.05 * longest_name), layout="constrained")
    grid = figure.subplots(len(groups), columns, squeeze=False)
    rng = np.random.default_rng(0)  # of the points' places sideways
    for group, axes in zip(groups, grid):
        for (title, series), axis in zip(group.items(), axes):
            # one box for each method
            finite = []
            for values in series.values():
                every = np.asarray(values)
                finite.append(every[np.isfinite(every)])
            axis.boxplot(finite, widths=0.6, showfliers=False, medianprops={"color": "tab:red"})
            # Every image is a point, since the quartiles of few images say little. Outliers are among the points; the
            # box plot draws none of its own.
            for place, values in enumerate(finite, 1):
                points = _some(values)
                sideways = place + rng.uniform(-JITTER, JITTER, points.size)
                axis.plot(sideways, points, ".", color="tab:blue", alpha=0.4, markersize=2.5)

            # titles; the methods' names stand below the last row only
            axis.set_title(title.replace(": ", ":\n"), fontsize=TINY)
            axis.tick_params(axis="y", labelsize=TINY)
            names = methods if group is groups[-1] else []
            axis.set_xticks(
                range(1, len(finite) + 1), names, rotation=40, ha="right", rotation_mode="anchor", fontsize=TINY
            )

        # places that a shorter group leaves empty
        for axis in axes[len(group) :]:
            axis.set_axis_off()
    return png(figure)


def _some(values: np.ndarray) -> np.ndarray:
    """At most MOST_POINTS of values (n,): of more, evenly chosen by rank, smallest and largest among them."""
    if values.size <= MOST_POINTS:
        return values
    ranks = np.linspace(0, values.size - 1, MOST_POINTS).round().astype(int)
    return np.sort(values)[ranks]


def side_by_side(rows: Iterable[dict[str, np.ndarray]]) -> bytes:
    """Rows of grey images {title: (H, W) in [0, 1]}, the same titles in each."""
    rows = list(rows)
    titles = list(rows[0])
    width = max(PAGE, len(titles) * LEAST_COLUMN)
    side = width / len(titles)  # inches

    # a title that is wider than its column would run into the next one
    letters = int(side * POINTS / (LETTER * SMALL))
    titles = [textwrap.fill(title, letters, break_long_words=False) for title in titles]
    further_lines = max(title.count("\n") for title in titles)

    height = len(rows) * side + 0.3 + 1.2 * further_lines * SMALL / POINTS
    figure = Figure(figsize=(width, height), layout=_narrow_gaps())
    grid = figure.subplots(len(rows), len(titles), squeeze=False)
    for axes, row in zip(grid, rows):
        for axis, pixels in zip(axes, row.values()):
            _show_grey(axis, pixels)
            axis.set_axis_off()

    # all rows have the same columns, so titles stand once
    for axis, title in zip(grid[0], titles):
        axis.set_title(title, fontsize=SMALL)
    return png(figure)


def examples(rows: dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]) -> bytes:
    """A row for each of {label: (cxr, prediction, target)}, arrays (H, W) in [0, 1], with the signed difference
    prediction - target.

    The differences of all rows have one scale of colours.
    """
    differences = []
    spans = [LEAST_SPAN]
    for _, prediction, target in rows.values():
        difference = prediction - target  # (H, W), signed: red is too bright, blue too dark
        differences.append(difference)
        spans.append(float(np.percentile(np.abs(difference), 99.5)))  # a few pixels at an edge should not pale the rest
    span = max(spans)

    # Three grey images and the coloured difference, all of one size.
    side = (PAGE - 0.6) / 4  # inches; the rest is the colour bar's
    figure = Figure(figsize=(PAGE, len(rows) * side + 0.25), layout=_narrow_gaps())
    grid = figure.subplots(len(rows), 4, squeeze=False)
    for axes, (label, pictures), difference in zip(grid, rows.items(), differences):
        for axis, pixels in zip(axes, pictures):
            _show_grey(axis, pixels)
        # symmetric limits, so that no difference is the colour map's white
        coloured = axes[3].imshow(difference, cmap="RdBu_r", vmin=-span, vmax=span)
        for axis in axes:
            axis.set(xticks=[], yticks=[])  # not set_axis_off, which would hide the row's label too
            axis.spines[:].set_visible(False)
        axes[0].set_ylabel(label, fontsize=SMALL)
    for axis, title in zip(grid[0], ("CXR", "prediction", "truth", "prediction − truth")):
        axis.set_title(title, fontsize=SMALL)

    # One scale of colours for all rows, else a small error of one image looks as large as a big one of another.
    bar = figure.colorbar(coloured, ax=grid[:, 3], shrink=0.8, aspect=30, extend="both")
    bar.ax.tick_params(labelsize=TINY)
    return png(figure)


def overlay(grey: np.ndarray, values: np.ndarray, label: str) -> bytes:
    """Values (H, W) of 0 and more in colour on an image (H, W) in [0, 1]: the larger, the brighter and the less
    transparent."""
    height, width = values.shape
    figure = Figure(figsize=(PAGE, (PAGE - 1) * height / width), layout="constrained")
    axis = figure.subplots()
    _show_grey(axis, grey)
    # Scaled to a high quantile: a few extreme pixels would leave the rest black.
    top = max(float(np.quantile(values, BRIGHTEST)), 1e-6)  # 1e-6: values may all be 0
    opacity = np.clip(values / top, 0, 1) * OPACITY
    coloured = axis.imshow(values, cmap="inferno", vmin=0, vmax=top, alpha=opacity)
    axis.set_axis_off()
    bar = figure.colorbar(coloured, extend="max")
    bar.set_label(label, fontsize=SMALL)
    bar.ax.tick_params(labelsize=TINY)
    return png(figure)


def trade_off(series: dict[str, list[Point]], cost: str, quality: str) -> bytes:
    """Quality against cost, one line for each of {method: points}; cost, quality: names of the axes.

    The cost has a logarithmic scale if it spans more than tenfold.
    """
    figure = Figure(figsize=(PAGE / 2, PAGE / 2.6), layout="constrained")
    axis = figure.subplots()
    costs = []
    for name, points in series.items():
        # errorbar takes distances from the point, while a Point has the interval's ends
        x, y, low, high, labels = zip(*sorted(points))
        below = np.abs(np.subtract(low, y))  # NaN draws nothing
        above = np.abs(np.subtract(high, y))
        axis.errorbar(x, y, yerr=(below, above), marker="o", markersize=3.5, capsize=2, linewidth=1, label=name)
        for point, label in zip(zip(x, y), labels):
            axis.annotate(label, point, xytext=(4, -9), textcoords="offset points", fontsize=TINY)
        costs += x

    if min(costs) > 0 and max(costs) > 10 * min(costs):
        axis.set_xscale("log")
        axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axis.xaxis.set_minor_formatter(NullFormatter())  # matplotlib's own labels minor ticks if few decades are shown
    else:
        axis.xaxis.set_major_locator(MaxNLocator(6))
    axis.set_xlabel(cost, fontsize=SMALL)
    axis.set_ylabel(quality, fontsize=SMALL)
    axis.tick_params(labelsize=TINY)
    axis.grid(alpha=0.3)
    axis.margins(0.12)  # room for the labels beside the outermost points
    figure.legend(fontsize=TINY, loc="outside upper center", ncols=3, frameon=False)
    return png(figure)


def _show_grey(axis: Axes, pixels: np.ndarray) -> None:
    axis.imshow(pixels, cmap="gray", vmin=0, vmax=1)


def _narrow_gaps() -> ConstrainedLayoutEngine:
    """A layout with little room between pictures."""
    return ConstrainedLayoutEngine(w_pad=0.02, h_pad=0.02, wspace=0.01, hspace=0.01)
