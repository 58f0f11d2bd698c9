"""What was measured of known findings, as tables, a CSV of every finding, and a picture of the crops that lost most."""

import csv
import io
import math
from pathlib import Path

import numpy as np

from .. import images
from . import insertion, pictures
from .findings import UNTOUCHED, Result
from .tables import Table, markdown, text

FILES = ("findings.txt", "findings.md", "findings.csv", "findings.png")  # what `write` writes
CROPS = 12  # findings in the picture
ABSENT = "—"  # in a table, what is not known


def tables(result: Result) -> list[Table]:
    """What is kept of the findings, and what the observer sees, a row per method."""
    # What is left of each finding. The notes say why a table of observers may be missing.
    contrasts = Table(
        f"Findings ({len(result.rows[UNTOUCHED])}): contrast in the result over that in the CXR",
        ["method", "median kept", "quartiles", "lost more than a fifth", "CNR before", "CNR after", "slope on target"],
        [],
        notes=result.notes,
    )
    for method, rows in result.rows.items():
        kept = np.array([row.kept for row in rows])
        # faint findings have no share that could be told
        kept = kept[np.isfinite(kept)]
        lost = float(np.mean(kept < 1 - insertion.LARGE_LOSS)) if len(kept) else math.nan
        noise_before = _median([row.noise_before for row in rows])
        noise_after = _median([row.noise_after for row in rows])
        slope = _median([row.slope for row in rows])
        contrasts.rows.append(
            [
                method,
                _number(_median(kept)),
                _quartiles(kept),
                _percent(lost),
                _number(noise_before),
                _number(noise_after),
                _number(slope),
            ]
        )

    # What an observer makes of them.
    observers = Table(
        "Channelized Hotelling observer: AUC of findings against normal places in the lungs, "
        "95 % interval of the difference",
        ["method", "AUC", "difference from the untouched CXR", "interval"],
        [],
    )
    for method, comparison in result.observers.items():
        # a difference from itself says nothing
        if method == UNTOUCHED:
            observers.rows.append([method, _number(comparison.after), ABSENT, ABSENT])
        else:
            observers.rows.append(
                [
                    method,
                    _number(comparison.after),
                    f"{comparison.difference:+.3f}",
                    f"{comparison.low:+.3f} to {comparison.high:+.3f}",
                ]
            )
    return [contrasts, observers] if result.observers else [contrasts]


def write(result: Result, output) -> str:
    """Write findings.txt, findings.md, findings.csv (every finding in every method) and findings.png (crops, worst
    first) into a folder; the text of the tables.
    """
    output = Path(output)
    shown = tables(result)
    written = "\n".join(text(table) for table in shown)
    images.write_file(output / "findings.txt", written.encode())
    images.write_file(output / "findings.md", "\n".join(markdown(table) for table in shown).encode())
    images.write_file(output / "findings.csv", _rows_as_csv(result).encode())
    images.write_file(output / "findings.png", pictures.side_by_side(crops_worst_first(result)))
    return written


def crops_worst_first(result: Result) -> list[dict[str, np.ndarray]]:
    """The CROPS findings that lost most in any method, {CXR, each method, target: (CROP_SIZE, CROP_SIZE)} each."""
    methods = [method for method in result.rows if method != UNTOUCHED]
    # A finding is as bad as its worst method. One without a share goes last: inf is no loss.
    shares = []
    for method in methods:
        shares.append([row.kept for row in result.rows[method]])
    kept = np.array(shares)  # (methods, findings)
    worst = np.where(np.isfinite(kept), kept, np.inf).min(0)  # (findings,)
    order = np.argsort(worst, kind="stable")[:CROPS]

    # a column that is black for every finding, as without any target, is no column
    known = []
    for label, crops in result.crops.items():
        if any(crop.any() for crop in crops):
            known.append(label)
    rows = []
    for place in order:
        rows.append({label: result.crops[label][place] for label in known})
    return rows


def _rows_as_csv(result: Result) -> str:
    """Every finding in every method, a row each."""
    lines = io.StringIO()
    writer = csv.writer(lines, lineterminator="\n")
    writer.writerow(
        [
            "image",
            "x",
            "y",
            "diameter",
            "label",
            "method",
            "contrast_before",
            "contrast_after",
            "kept",
            "cnr_before",
            "cnr_after",
            "slope_on_target",
        ]
    )
    for method, rows in result.rows.items():
        for row in rows:
            finding = row.finding
            writer.writerow(
                [
                    finding.image,
                    finding.x,
                    finding.y,
                    finding.diameter,
                    finding.label,
                    method,
                    row.before,
                    row.after,
                    row.kept,
                    row.noise_before,
                    row.noise_after,
                    row.slope,
                ]
            )
    return lines.getvalue()


def _median(values) -> float:
    finite = np.asarray(values, float)
    finite = finite[np.isfinite(finite)]
    return float(np.median(finite)) if len(finite) else math.nan


def _quartiles(values: np.ndarray) -> str:
    if len(values) == 0:
        return ABSENT
    low, high = np.quantile(values, (0.25, 0.75))
    return f"{low:.3f} to {high:.3f}"


def _number(value: float) -> str:
    return f"{value:.3f}" if math.isfinite(value) else ABSENT


def _percent(value: float) -> str:
    return f"{100 * value:.0f} %" if math.isfinite(value) else ABSENT
