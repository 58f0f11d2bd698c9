"""Scores of every image -> tables, tests and pictures. What metrics.py and the ablations write.

scored = scoring.score_folders({"LEG": "runs/leg", "CFG": "runs/cfg"}, "data/CXR", "data/BS", masks="data/Mask")
print(report.write(scored, "runs/guidance", seed=0))
"""

import csv
import itertools
import json
import math
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from .. import images
from ..runtime import ownership
from ..runtime.files import replacing
from ..viewing.page import MOST_IMAGES
from . import pictures, report_page
from .findings import Finding
from .report_numbers import compare_methods, costs, extremes, method_groups, summarise
from .report_tables import (
    ablation_tables,
    comparison_table,
    cost_table,
    interval_table,
    quality_tables,
    score_label,
)
from .scoring import Scored
from .tables import Table, latex, markdown, text

RECORD = "metrics.json"  # all numbers; its presence says that the other files are ours
COMPARED = 4  # images in comparison.png


def write(
    scored: Scored,
    output,
    folders: Mapping[str, str | Path] | None = None,
    seed: int = 0,
    *,
    page: bool = True,
    found: Sequence[Finding] = (),
) -> str:
    """All files into the folder `output`; returns the tables of quality and cost as text, for the terminal.

    folders: as given to `score_folders`, for the cost that their summary.json tell. seed: of the bootstrap. Writes
    metrics.txt, .md, .tex (all tables), .csv (every image), .json (all), .png (box plots), comparison.png,
    examples_<method>.png. page: write report.html, and the copies of the images that it shows, as well, of up
    to MOST_IMAGES images; found: the findings drawn there.
    """
    output = Path(output)
    # asked again, now that the files that were read are known
    refuse_foreign(output, scored.methods[1:], _inputs(scored), "metrics.output")

    # numbers
    summary = summarise(scored, seed)
    tests = compare_methods(scored)
    cost = costs(folders or {})

    # all numbers; first, since this file is the record by which a later run knows the others as its own
    tree = {"settings": scored.heading, "summary": summary, "tests": tests, "cost": cost}
    write_record(output / RECORD, tree, scored)

    # tables
    shown = quality_tables(scored, summary, method_groups(folders or {}))
    if cost:
        shown.append(cost_table(cost))
    shown += ablation_tables(scored, summary, folders or {})
    every_table = [*shown, interval_table(scored, summary)]
    if tests:
        every_table.append(comparison_table(scored, tests))
    write_tables(output / "metrics", scored.heading, every_table)

    # every image
    write_csv(output / "metrics.csv", scored)
    write_pictures(scored, output)
    report_page.remove(output)
    if page and len(scored.values) > MOST_IMAGES:
        print(f"note: no {report_page.REPORT}, as it shows at most {MOST_IMAGES} images", file=sys.stderr)
    elif page:
        report_page.write(scored, output, every_table, found)
    return _document(scored.heading, [text(table) for table in shown])


def refuse_foreign(
    output: Path, methods: list[str], inputs: Iterable[Path], setting: str, further: Sequence[str] = ()
) -> None:
    """Raise UserError if `write` would replace a file that is read or that no run of metrics.py has written, or cannot
    write.

    methods: as `write` names its pictures. inputs: files that are read. setting: the one that names `output`.
    further: names of files that metrics.py writes beside those of `write`.
    """
    try:
        tree = json.loads((output / RECORD).read_text(encoding="utf-8"))
        recorded = list(tree["summary"])
        own = [*_file_names(recorded), *further]
    except (OSError, ValueError, KeyError, TypeError):  # no record, or somebody else's metrics.json
        own = []

    # our own files may be replaced; inputs and files of others may not
    results = [output / name for name in (*_file_names(methods), *further)]
    ownership.refuse_foreign(results, inputs, [output / name for name in own], setting)
    ownership.require_writable(output)


def _inputs(scored: Scored) -> Iterator[Path]:
    """The files that were read, but for the masks."""
    for files in scored.files.values():
        yield files.cxr
        yield files.target
        yield from files.predictions.values()


def _file_names(methods: list[str]) -> list[str]:
    """What metrics.py and the ablations write for these methods."""
    # the trade-off pictures are an ablation's alone, but any run may replace them
    names = [f"metrics.{suffix}" for suffix in ("txt", "md", "tex", "csv", "json", "png")]
    names += ["comparison.png", "quality_seconds.png", "quality_steps.png", report_page.REPORT, report_page.COPIES]
    for method in methods:
        names.append(_examples_name(method))
    return names


def _examples_name(method: str) -> str:
    # a method's name may hold blanks, slashes or a path
    words = re.sub(r"[^A-Za-z0-9.-]+", "_", method)
    return f"examples_{words}.png"


def write_tables(stem, heading: str, tables: list[Table]) -> None:
    """<stem>.txt, <stem>.md and <stem>.tex; the heading stands before the first table."""
    stem = Path(stem)
    plain = _document(heading, [text(table) for table in tables])
    images.write_file(stem.with_suffix(".txt"), plain.encode())
    marked = _document(heading, [markdown(table) for table in tables])
    images.write_file(stem.with_suffix(".md"), marked.encode())
    # the heading is a comment in LaTeX: the paper has its own words for it
    printed = [f"% {heading}\n% \\input this into a document with \\usepackage{{booktabs,graphicx}}\n"]
    for table in tables:
        # the title as a label that \ref takes
        words = re.sub("[^a-z0-9]+", "-", table.title.lower()).strip("-")
        printed.append(latex(table, f"tab:{words}"))
    images.write_file(stem.with_suffix(".tex"), "\n".join(printed).encode())


def write_record(path: Path, tree: dict, scored: Scored) -> None:
    """A tree and, under "images", the scores of every image as one file of JSON."""
    # Image by image: as one text, and as the objects from which json makes it, they would take three times the memory
    # of the scores themselves.
    start = json.dumps(_finite(tree), indent=1, allow_nan=False).removesuffix("\n}")
    with replacing(path) as temporary, open(temporary, "w", encoding="utf-8") as file:
        file.write(f'{start},\n "images": {{')
        separator = ""
        for name, row in scored.values.items():
            scores_text = json.dumps(_finite(row), indent=1, allow_nan=False).replace("\n", "\n  ")
            file.write(f"{separator}\n  {json.dumps(name)}: {scores_text}")
            separator = ","
        file.write("\n }\n}")


def write_csv(path: Path, scored: Scored) -> None:
    """A row for each image and method."""
    keys = [column.key for column in scored.columns]
    # line by line, as in `write_record`
    with replacing(path) as temporary, open(temporary, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["image", "method", *keys])
        for name, methods in scored.values.items():
            for method, row in methods.items():
                writer.writerow([name, method, *(row[key] for key in keys)])


def write_pictures(scored: Scored, output: Path) -> None:
    """metrics.png: box plots; comparison.png: the first images with every method; examples_<method>.png: best, median
    and worst."""
    # box plots, a row for each table
    groups = []
    for columns in scored.groups.values():
        group = {}
        for column in columns:
            series = {method: scored.series(method, column.key) * column.scale for method in scored.methods}
            group[score_label(column)] = series
        groups.append(group)
    images.write_file(output / "metrics.png", pictures.boxes(groups))

    # the first images with every method
    rows = []
    for name in itertools.islice(scored.values, COMPARED):
        files = scored.files[name]
        titled = {"CXR": files.cxr, **files.predictions, "truth": files.target}
        rows.append({title: _pixels(path, scored.size) for title, path in titled.items()})
    images.write_file(output / "comparison.png", pictures.side_by_side(rows))

    # each method's best, median and worst image by MSE
    for method in scored.methods[1:]:
        examples = {}
        for rank, name in extremes(scored, method).items():
            files = scored.files[name]
            psnr = scored.values[name][method]["PSNR"]
            label = f"{rank}: {name}\nPSNR {psnr:.1f} dB"
            paths = (files.cxr, files.predictions[method], files.target)
            examples[label] = tuple(_pixels(path, scored.size) for path in paths)
        images.write_file(output / _examples_name(method), pictures.examples(examples))


def quality_against_cost(
    points: dict[str, list[pictures.Point]], path, cost: str = "seconds an image", quality: str = "PSNR (dB)"
) -> None:
    """A PNG of {method: [pictures.Point(cost, quality, low, high, label)]}, one line a method. cost, quality: names of
    the axes."""
    images.write_file(Path(path), pictures.trade_off(points, cost, quality))


def _document(heading: str, tables: list[str]) -> str:
    """The heading, then the tables, with an empty line before each."""
    return "\n".join([heading + "\n", *tables])


def _pixels(path: Path, size: int) -> np.ndarray:
    return images.resize(images.read(path).pixels, (size, size))


def _finite(tree):
    """The tree with null for what JSON has no number for."""
    if isinstance(tree, dict):
        return {key: _finite(value) for key, value in tree.items()}
    if isinstance(tree, list):
        return [_finite(value) for value in tree]
    # infinite PSNR and undefined BSR: JSON has neither inf nor NaN, and strict readers refuse Python's
    if isinstance(tree, float) and not math.isfinite(tree):
        return None
    return tree
