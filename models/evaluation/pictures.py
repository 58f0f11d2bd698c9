"""Figures of arrays and numbers as PNG bytes, sized for a page of a paper."""
import io
import math
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, StrMethodFormatter

PAGE = 7.2          # width of a page's text, inches
DPI = 200           # dots an inch
SMALL, TINY = 8, 7  # points
BRIGHTEST = 0.995   # quantile of an overlay that gets the brightest colour
OPACITY = 0.8       # of that colour
LEAST_SPAN = 0.01   # of a difference's colours, grey levels of 1: less is rounding


class Point(NamedTuple):
    """One run in a plot of quality against cost. low, high: its interval, where there is one; label: what to write beside it."""
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
    """A row of box plots for each group {title: {method: values}}: median, quartiles, and every finite value as a point."""
    columns = max(map(len, groups))
    longest = max(len(name) for group in groups for series in group.values() for name in series)
    figure = Figure(figsize=(PAGE, 1.6 * len(groups) + 0.05 * longest), layout="constrained")
    spread = np.random.default_rng(0)  # sideways, for points to be told apart
    for group, axes in zip(groups, figure.subplots(len(groups), columns, squeeze=False)):
        for (title, series), axis in zip(group.items(), axes):
            finite = [np.asarray(values)[np.isfinite(values)] for values in series.values()]
            axis.boxplot(finite, widths=0.6, showfliers=False, medianprops={"color": "tab:red"})
            for place, values in enumerate(finite, 1):
                axis.plot(place + spread.uniform(-0.15, 0.15, values.size), values, ".", color="tab:blue", alpha=0.4, markersize=2.5)
            axis.set_title(title.replace(": ", ":\n"), fontsize=TINY)
            axis.tick_params(axis="y", labelsize=TINY)
            axis.set_xticks(range(1, len(finite) + 1), series if group is groups[-1] else [], rotation=40, ha="right", rotation_mode="anchor",
                            fontsize=TINY)
        for axis in axes[len(group):]:
            axis.set_axis_off()
    return png(figure)


def side_by_side(rows: Iterable[dict[str, np.ndarray]]) -> bytes:
    """Rows of grey images {title: (H, W) in [0, 1]}, the same titles in each."""
    rows = list(rows)
    side = PAGE / len(rows[0])
    figure = Figure(figsize=(PAGE, len(rows) * side + 0.3), layout="constrained")
    _pad(figure)
    grid = figure.subplots(len(rows), len(rows[0]), squeeze=False)
    for axes, row in zip(grid, rows):
        for axis, pixels in zip(axes, row.values()):
            axis.imshow(pixels, cmap="gray", vmin=0, vmax=1)
            axis.set_axis_off()
    for axis, title in zip(grid[0], rows[0]):
        axis.set_title(title, fontsize=SMALL)
    return png(figure)


def examples(rows: dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]) -> bytes:
    """A row for each of {label: (cxr, prediction, truth)}, arrays (H, W) in [0, 1], and the signed difference, on one scale for all."""
    differences = [prediction - truth for _, prediction, truth in rows.values()]
    span = max(LEAST_SPAN, *(float(np.percentile(np.abs(difference), 99.5)) for difference in differences))
    side = (PAGE - 0.6) / 4
    figure = Figure(figsize=(PAGE, len(rows) * side + 0.25), layout="constrained")
    _pad(figure)
    grid = figure.subplots(len(rows), 4, squeeze=False)
    for axes, (label, pictures), difference in zip(grid, rows.items(), differences):
        for axis, pixels in zip(axes, pictures):
            axis.imshow(pixels, cmap="gray", vmin=0, vmax=1)
        shown = axes[3].imshow(difference, cmap="RdBu_r", vmin=-span, vmax=span)
        for axis in axes:
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set_visible(False)
        axes[0].set_ylabel(label, fontsize=SMALL)
    for axis, title in zip(grid[0], ("CXR", "prediction", "truth", "prediction − truth")):
        axis.set_title(title, fontsize=SMALL)
    bar = figure.colorbar(shown, ax=grid[:, 3], shrink=0.8, aspect=30, extend="both")
    bar.ax.tick_params(labelsize=TINY)
    return png(figure)


def overlay(grey: np.ndarray, values: np.ndarray, label: str) -> bytes:
    """Values (H, W) of 0 and more in colour on an image (H, W) in [0, 1]: the larger, the brighter and the less transparent."""
    height, width = values.shape
    figure = Figure(figsize=(PAGE, (PAGE - 1) * height / width), layout="constrained")
    axis = figure.subplots()
    axis.imshow(grey, cmap="gray", vmin=0, vmax=1)
    top = max(float(np.quantile(values, BRIGHTEST)), 1e-6)
    shown = axis.imshow(values, cmap="inferno", vmin=0, vmax=top, alpha=np.clip(values / top, 0, 1) * OPACITY)
    axis.set_axis_off()
    bar = figure.colorbar(shown, extend="max")
    bar.set_label(label, fontsize=SMALL)
    bar.ax.tick_params(labelsize=TINY)
    return png(figure)


def taken_away(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """The difference of two images (H, W) in [0, 1] as one: bright where something was taken away, grey where nothing was."""
    return np.clip(0.5 + before - after, 0, 1)


def trade_off(series: dict[str, list[Point]], cost: str, quality: str) -> bytes:
    """Quality against cost, one line for each of {method: points}; the cost on a logarithmic scale where it spans more than tenfold."""
    figure = Figure(figsize=(PAGE / 2, PAGE / 2.6), layout="constrained")
    axis = figure.subplots()
    for name, points in series.items():
        points = sorted(points)
        x, y, low, high, labels = zip(*points)
        below, above = (np.abs(np.subtract(end, y)) for end in (low, high))  # NaN draws nothing
        axis.errorbar(x, y, yerr=(below, above), marker="o", markersize=3.5, capsize=2, linewidth=1, label=name)
        for place, label in zip(zip(x, y), labels):
            axis.annotate(label, place, xytext=(4, -9), textcoords="offset points", fontsize=TINY)
    costs = [point.cost for points in series.values() for point in points]
    if min(costs) > 0 and max(costs) > 10 * min(costs):
        axis.set_xscale("log")
        axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axis.xaxis.set_minor_formatter(NullFormatter())  # in its place, matplotlib labels them where few decades are shown
    else:
        axis.xaxis.set_major_locator(MaxNLocator(6))
    axis.set_xlabel(cost, fontsize=SMALL)
    axis.set_ylabel(quality, fontsize=SMALL)
    axis.tick_params(labelsize=TINY)
    axis.grid(alpha=0.3)
    axis.margins(0.12)
    figure.legend(fontsize=TINY, loc="outside upper center", ncols=3, frameon=False)
    return png(figure)


def _pad(figure: Figure) -> None:
    """Little room between pictures."""
    figure.get_layout_engine().set(w_pad=0.02, h_pad=0.02, wspace=0.01, hspace=0.01)
