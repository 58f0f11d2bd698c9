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

from .. import images, pipelines, scores
from ..comparison.base import TASK_SPECIFIC, UNIVERSAL
from ..runtime import ownership
from ..runtime.files import replacing
from ..viewing.page import MOST_IMAGES
from . import pictures, report_page, statistics
from .findings import Finding
from .record import read_summary
from .scoring import Scored
from .tables import Table, latex, markdown, text

RECORD = "metrics.json"  # all numbers; its presence says that the other files are ours
COMPARED = 4  # images in comparison.png
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


# --- Numbers ----------------------------------------------------------------------------------------------------------


def summarise(scored: Scored, seed: int = 0) -> dict[str, dict[str, dict[str, float]]]:
    """{method: {score's key: what statistics.describe says}}. seed: of the bootstrap."""
    summary: dict[str, dict] = {}
    for method in scored.methods:
        summary[method] = {}
        for column in scored.columns:
            summary[method][column.key] = statistics.describe(scored.series(method, column.key), seed)
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


# --- Tables -----------------------------------------------------------------------------------------------------------


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
        row = [_label(column)]
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
        rows.append([_label(column), test["a"], test["b"], difference, str(test["pairs"]), p, p_holm])
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


def _label(column: scores.Score) -> str:
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


# --- Files ------------------------------------------------------------------------------------------------------------


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
    examples_<method>.png. page: write report.html, and the copies of the images that it shows, as well, of
    up to MOST_IMAGES images; found: the findings drawn there.
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
            group[_label(column)] = series
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
