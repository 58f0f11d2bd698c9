"""Folders of predictions -> scores of every image -> tables, tests and pictures. What metrics.py and the ablations call.

    scored = report.score_folders({"LEG": "runs/leg", "CFG": "runs/cfg"}, "data/CXR", "data/BS", masks="data/Mask")
    print(report.write(scored, "runs/guidance", seed=0))
"""
import csv
import io
import itertools
import json
import math
import os
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from .. import images, scores
from ..data import lists
from ..runtime.files import UserError
from . import pictures, statistics
from .tables import Table, latex, markdown, text

MOST_THREADS = 16   # that work on images beside each other, each with at most 0.3 GB at 1024 x 1024 and one method
COMPARED = 4        # images in comparison.png
ABSENT = "—"        # in a table, what is not known


# --- Scoring -----------------------------------------------------------------------------------------------------------------

@dataclass(frozen=True)
class Case:
    """The files of one image. predictions: {method: path}."""
    cxr: Path
    truth: Path
    mask: Path | None
    predictions: dict[str, Path]


@dataclass(frozen=True)
class Scored:
    """What `score_folders` found. values: {image: {method: {score's key: value}}}, the untouched CXR first; cases: the files of
    these images; faults: a line for each file that could not be used; size: the side at which was scored; resized: how many images
    were brought to it; masked: how many had a lung mask.
    """
    values: dict[str, dict[str, dict[str, float]]]
    cases: dict[str, Case]
    faults: list[str]
    size: int
    resized: int
    masked: int

    @property
    def heading(self) -> str:
        rule = f", {self.resized} of them resized to that (area average where a side shrinks, cubic where it grows)"
        return f"{len(self.values)} images at {self.size} x {self.size}{rule if self.resized else ''}"

    @property
    def groups(self) -> dict[str, tuple[scores.Score, ...]]:
        """{title: columns} of the tables; the lungs only where there are masks."""
        groups = {"Scores as published": scores.PUBLISHED, "Further scores": scores.BESIDE}
        return groups | ({"Scores inside the lungs": scores.IN_LUNGS} if self.masked else {})

    @property
    def methods(self) -> list[str]:
        """The untouched CXR, then the methods."""
        return list(next(iter(self.values.values())))

    def series(self, method: str, key: str) -> np.ndarray:
        """A score of every image, in the images' order."""
        return np.array([row[method][key] for row in self.values.values()])


def score_folders(folders: dict[str, str | Path], cxr, target, *, masks=None, names: Iterable[str] | None = None, size: int = 1024,
                  device: str | torch.device = "cpu", features: str | None = None) -> Scored:
    """Score the images of {method: folder of predictions} that have, by the same name, a CXR, a truth and a prediction of every method.

    cxr, target: folders. masks: folder of lung masks. names: only these images. size: the side of the square to which all are
    brought. features: see models/features.py. What is missing or unreadable is a fault and the rest is scored; UserError for a
    missing or empty folder, a size that is too small, or where nothing is left to score.
    """
    if size < scores.LEAST_SIDE:
        raise UserError(f"metrics.size={size} is too small for LPIPS; at least {scores.LEAST_SIDE}")
    if scores.REFERENCE in folders:
        raise UserError(f"'{scores.REFERENCE}' names the row of the CXR itself; give the predictions another name")
    found = {method: _find("prediction", folder) for method, folder in folders.items()}
    cases, faults = _match(_find("cxr", cxr), _find("target", target), _find("masks", masks) if masks else {}, found, names)
    values, resized, masked = {}, 0, 0
    lpips = scores.Lpips("alex", features, device) if cases else None
    results = _ahead(lambda case: _score(case, size, lpips), cases.values())
    for name, future in tqdm(zip(cases, results), total=len(cases), desc="scoring", unit="image", disable=None):
        try:
            row, stack, changed, trouble = future.result()
        except UserError as error:
            faults.append(f"{name} is not scored: {error}")
            continue
        values[name] = row if stack is None else scores.add_lpips(row, stack[0], stack[1:], lpips)
        resized += changed
        masked += cases[name].mask is not None and not trouble
        faults += [f"{name} is not scored inside the lungs: {fault}" for fault in trouble]
    if not values:
        raise UserError(f"nothing to score: no prediction has a readable CXR in {cxr} and truth in {target} by its name "
                        f"({lists.some(faults, '; ')})")
    return Scored(values, {name: cases[name] for name in values}, faults, size, resized, masked)


def name_methods(folders: Iterable[str]) -> dict[str, str]:
    """{name in the tables: prediction folder}: the method that its summary.json names, else its last name; all of it where two are alike."""
    folders = tuple(folders)
    if len(set(map(os.path.abspath, folders))) < max(len(folders), 1):
        raise UserError(f"metrics.prediction={list(folders)} should be one folder, or several different ones")
    short = [str(_summary(folder).get("method") or Path(folder).resolve().name) for folder in folders]
    return {folder if short.count(name) > 1 else name: folder for name, folder in zip(short, folders)}


def masks_beside(cxr) -> Path | None:
    """The folder Mask/ beside the folder of the CXRs, where it holds images."""
    folder = Path(cxr).resolve().parent / "Mask"
    return folder if folder.is_dir() and any(path.suffix.lower() in images.SUFFIXES for path in folder.iterdir()) else None


def _summary(folder) -> dict:
    """What an evaluation script left in its folder about its run; empty where it did not."""
    try:
        summary = json.loads((Path(folder) / "summary.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return summary if isinstance(summary, dict) else {}


def _find(key: str, folder) -> dict[str, Path]:
    try:
        return images.find(folder)
    except UserError as error:
        raise UserError(f"{error}; set metrics.{key}") from None


def _match(cxr: dict, target: dict, masks: dict, folders: dict[str, dict[str, Path]], names) -> tuple[dict[str, Case], list[str]]:
    """({name: files} of what is complete, a line for each name that is not)."""
    cases, faults = {}, []
    for name in dict.fromkeys(name for folder in folders.values() for name in folder) if names is None else names:
        missing = [f"no prediction of {method}" for method, folder in folders.items() if name not in folder]
        missing += ["no CXR"] * (name not in cxr) + ["no truth"] * (name not in target)
        if missing:
            faults.append(f"{name} is not scored: {', '.join(missing)}")
        else:
            cases[name] = Case(cxr[name], target[name], masks.get(name), {method: folder[name] for method, folder in folders.items()})
    return cases, faults


def _score(case: Case, size: int, lpips: scores.Lpips) -> tuple[dict, np.ndarray | None, bool, list[str]]:
    """(the image's scores, what LPIPS still waits for, whether any image was resized, faults of the mask).

    On a CPU LPIPS is computed here too: images beside each other keep the cores busier than one network call on all of them. A GPU
    gets (2 + methods, S, S) from one thread: truth, CXR, predictions.
    """
    pixels = [images.read(path).pixels for path in (case.truth, case.cxr, *case.predictions.values())]
    changed = any(array.shape != (size, size) for array in pixels)
    stack = np.stack([array if array.shape == (size, size) else images.resize(array, (size, size)) for array in pixels])
    mask, faults = None, []
    if case.mask is not None:
        try:
            mask = images.resize_mask(images.read_mask(case.mask), (size, size))
        except UserError as error:
            faults.append(str(error))
    row = scores.pixel_scores(stack[1], stack[0], dict(zip(case.predictions, stack[2:])), mask)
    if lpips.device.type == "cpu":
        return scores.add_lpips(row, stack[0], stack[1:], lpips), None, changed, faults
    return row, stack, changed, faults


def _ahead(work: Callable, items: Iterable) -> Iterator[Future]:
    """work(item) of each item, in order, by threads that are a few items ahead: memory does not grow with the number of items."""
    before = torch.get_num_threads()  # the cores that this process may use
    threads = min(MOST_THREADS, before)
    with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        waiting: deque[Future] = deque()
        try:
            for item in items:
                waiting.append(pool.submit(work, item))
                if len(waiting) > threads:
                    yield waiting.popleft()
            while waiting:
                yield waiting.popleft()
        finally:
            for future in waiting:
                future.cancel()
            torch.set_num_threads(before)


# --- Tables ------------------------------------------------------------------------------------------------------------------

def summarise(scored: Scored, seed: int = 0) -> dict[str, dict[str, dict[str, float]]]:
    """{method: {score's key: what statistics.describe says}}. seed: of the bootstrap."""
    return {method: {column.key: statistics.describe(scored.series(method, column.key), seed)
                     for columns in scored.groups.values() for column in columns} for method in scored.methods}


def compare_methods(scored: Scored) -> list[dict]:
    """Every score of every two methods: {"score", "a", "b", "difference", "pairs", "p", "p_holm"}, Holm over the pairs of a score."""
    found = []
    for column in itertools.chain(*scored.groups.values()):
        tests = [{"score": column.key, "a": a, "b": b, **statistics.signed_rank(scored.series(a, column.key), scored.series(b, column.key))}
                 for a, b in itertools.combinations(scored.methods[1:], 2)]
        found += [test | {"p_holm": p} for test, p in zip(tests, statistics.holm([test["p"] for test in tests]))]
    return found


def costs(folders: dict[str, str | Path]) -> dict[str, dict]:
    """{method: what its summary.json says of sampler, steps, parameters, seconds an image and memory}, where it does."""
    keys = ("sampler", "steps", "parameters", "seconds", "seconds_after_warm_up", "peak_memory", "peak_memory_of", "device", "precision",
            "batch_size")
    known = {method: {key: summary[key] for key in keys if key in summary}
             for method, summary in ((method, _summary(folder)) for method, folder in folders.items())}
    return {method: cost for method, cost in known.items() if "seconds" in cost}


def quality_tables(scored: Scored, summary: dict) -> list[Table]:
    """The seeds' tables: mean ± population standard deviation, a row a method, the best of several methods marked."""
    tables = []
    for title, columns in scored.groups.items():
        rows = [[method, *(_cell(summary[method][column.key], column) for column in columns)] for method in scored.methods]
        best = {(i, j) for j, column in enumerate(columns, 1) for i in _best(scored.methods, column, summary)}
        tables.append(Table(title, ["method", *(column.heading for column in columns)], rows, best, _undefined(scored, columns, summary)))
    tables[0].notes.insert(0, "mean ± population standard deviation over images; the untouched CXR is what doing nothing scores")
    return tables


def interval_table(scored: Scored, summary: dict) -> Table:
    rows = []
    for column in itertools.chain(*scored.groups.values()):
        cells = (summary[method][column.key] for method in scored.methods)
        rows.append([_label(column), *(_number(cell["mean"] * column.scale) + f" [{_number(cell['low'] * column.scale)}, "
                                       f"{_number(cell['high'] * column.scale)}]" for cell in cells)])
    return Table("95 % intervals of the means", ["score", *scored.methods], rows,
                 notes=[f"bias-corrected and accelerated bootstrap over images, {statistics.RESAMPLES} resamples"])


def comparison_table(scored: Scored, tests: list[dict]) -> Table:
    columns = {column.key: column for column in itertools.chain(*scored.groups.values())}
    rows = [[_label(columns[test["score"]]), test["a"], test["b"], _number(test["difference"] * columns[test["score"]].scale),
             str(test["pairs"]), _number(test["p"], ".2g"), _number(test["p_holm"], ".2g")] for test in tests]
    notes = ["Wilcoxon's signed-rank test, two-sided; Holm's correction over all pairs of methods of a score"]
    if any(math.isnan(test["p"]) for test in tests):
        notes.append(f"{ABSENT}: undefined, fewer than {statistics.LEAST_PAIRS} images differ")
    return Table("Paired tests between methods", ["score", "A", "B", "mean of A - B", "images", "p", "p (Holm)"], rows, notes=notes)


def cost_table(costs: dict[str, dict]) -> Table:
    """The seed's table of cost, from what `costs` gives."""
    rows, notes, kinds = [], [], {}
    for method, cost in costs.items():
        cost = dict.fromkeys(("sampler", "steps", "parameters", "device", "precision", "batch_size", "peak_memory_of"), ABSENT) | cost
        parameters, memory = (cost.get(key) for key in ("parameters", "peak_memory"))
        rows.append([method, str(cost["sampler"]), str(cost["steps"] or ABSENT), ABSENT if parameters == ABSENT else f"{parameters / 1e6:.1f} M",
                     f"{cost['seconds']:.2f}", f"{memory / 2 ** 30:.2f} GiB" if memory else ABSENT])
        where = f"{cost['device']}, {cost['precision']}, batches of {cost['batch_size']}, memory {cost['peak_memory_of']}"
        kinds.setdefault(where, []).append(method)
        if not cost.get("seconds_after_warm_up"):
            notes.append(f"{method}: its only batch was timed, warm-up included")
    notes = ["median over images, the first batch left out", *(f"{', '.join(methods)}: {where}" for where, methods in kinds.items()), *notes]
    return Table("Cost of an image", ["method", "sampler", "steps", "parameters", "time (s)", "peak memory"], rows, notes=notes)


def _cell(cell: dict, column: scores.Score) -> str:
    return f"{_number(cell['mean'] * column.scale)} ± {_number(cell['std'] * column.scale)}" if cell["count"] else ABSENT


def _number(value: float, form: str = ".3f") -> str:
    return format(value, form) if math.isfinite(value) else ABSENT


def _label(column: scores.Score) -> str:
    return f"lungs: {column.label}" if column in scores.IN_LUNGS else column.label


def _best(methods: list[str], column: scores.Score, summary: dict) -> list[int]:
    """The places of the best of several methods, all of them where the table shows them alike; never of the untouched CXR."""
    shown = {i: round(summary[method][column.key]["mean"] * column.scale, 3) for i, method in enumerate(methods)
             if method != scores.REFERENCE and summary[method][column.key]["count"]}
    best = (max if column.larger_is_better else min)(shown.values(), default=None)
    return [i for i, mean in shown.items() if mean == best] if len(methods) > 2 else []


def _undefined(scored: Scored, columns: Iterable[scores.Score], summary: dict) -> list[str]:
    """A line for what the means of these columns leave out."""
    found: dict[tuple, list[str]] = {}
    for column in columns:
        gap = "no mask" if column in scores.IN_LUNGS else "no bone"
        if column in scores.IN_LUNGS and column.key.startswith("BSR"):
            gap = "no bone or no mask"
        for method in summary:
            values = scored.series(method, column.key)
            for reason, count in (("equal images", int(np.isposinf(values).sum())), (gap, int(np.isnan(values).sum()))):
                if count:
                    found.setdefault((column.key, count, reason), []).append(method)
    return [f"{', '.join(methods) if len(methods) < len(summary) else 'every method'}: {key.removesuffix('_lungs')} is undefined for {count} "
            f"of {len(scored.values)} images ({reason}), left out of its mean" for (key, count, reason), methods in found.items()]


# --- Files -------------------------------------------------------------------------------------------------------------------

def write(scored: Scored, output, folders: dict[str, str | Path] | None = None, seed: int = 0) -> str:
    """All files into the folder `output`; returns the tables of quality and cost as text, for the terminal.

    folders: as given to `score_folders`, for the cost that their summary.json tell. seed: of the bootstrap. Writes metrics.txt,
    .md, .tex (all tables), .csv (every image), .json (all), .png (box plots), comparison.png, examples_<method>.png.
    """
    output, summary, tests, cost = Path(output), summarise(scored, seed), compare_methods(scored), costs(folders or {})
    shown = quality_tables(scored, summary) + ([cost_table(cost)] if cost else [])
    write_tables(output / "metrics", scored.heading, shown + [interval_table(scored, summary)] + ([comparison_table(scored, tests)] if tests else []))
    keys = [column.key for columns in scored.groups.values() for column in columns]
    lines = io.StringIO()
    writer = csv.writer(lines, lineterminator="\n")
    writer.writerow(["image", "method", *keys])
    writer.writerows([name, method, *(row[key] for key in keys)] for name, rows in scored.values.items() for method, row in rows.items())
    images.write_file(output / "metrics.csv", lines.getvalue().encode())
    tree = {"settings": scored.heading, "summary": summary, "tests": tests, "cost": cost, "images": scored.values}
    images.write_file(output / "metrics.json", json.dumps(_finite(tree), indent=1, allow_nan=False).encode())
    write_pictures(scored, output)
    return "\n".join([scored.heading + "\n", *map(text, shown)])


def write_tables(stem, heading: str, tables: list[Table]) -> None:
    """<stem>.txt, <stem>.md and <stem>.tex; the heading stands before the first table."""
    stem = Path(stem)
    images.write_file(stem.with_suffix(".txt"), "\n".join([heading + "\n", *map(text, tables)]).encode())
    images.write_file(stem.with_suffix(".md"), "\n".join([heading + "\n", *map(markdown, tables)]).encode())
    intro = f"% {heading}\n% \\input this into a document with \\usepackage{{booktabs,graphicx}}\n"
    parts = [latex(table, f"tab:{re.sub('[^a-z0-9]+', '-', table.title.lower()).strip('-')}") for table in tables]
    images.write_file(stem.with_suffix(".tex"), "\n".join([intro, *parts]).encode())


def write_pictures(scored: Scored, output: Path) -> None:
    """metrics.png: box plots; comparison.png: the first images with every method; examples_<method>.png: best, median and worst by MSE."""
    groups = [{_label(column): {method: scored.series(method, column.key) * column.scale for method in scored.methods} for column in columns}
              for columns in scored.groups.values()]
    images.write_file(output / "metrics.png", pictures.boxes(groups))
    rows = []
    for case in itertools.islice(scored.cases.values(), COMPARED):
        rows.append({title: _pixels(path, scored.size) for title, path in {"CXR": case.cxr, **case.predictions, "truth": case.truth}.items()})
    images.write_file(output / "comparison.png", pictures.side_by_side(rows))
    for method in scored.methods[1:]:
        rows = {}
        for rank, name in extremes(scored, method).items():
            case = scored.cases[name]
            psnr = scored.values[name][method]["PSNR"]
            files = case.cxr, case.predictions[method], case.truth
            rows[f"{rank}: {name}\nPSNR {psnr:.1f} dB"] = tuple(_pixels(path, scored.size) for path in files)
        images.write_file(output / f"examples_{re.sub(r'[^A-Za-z0-9.-]+', '_', method)}.png", pictures.examples(rows))


def extremes(scored: Scored, method: str) -> dict[str, str]:
    """{"best", "median", "worst": image} of a method by MSE, each image once."""
    order = sorted(scored.values, key=lambda name: scored.values[name][method]["MSE"])
    ranks = {order[len(order) // 2]: "median", order[-1]: "worst", order[0]: "best"}
    return {rank: name for rank in ("best", "median", "worst") for name in order if ranks.get(name) == rank}


def quality_against_cost(points: dict[str, list[pictures.Point]], path, cost: str = "seconds an image", quality: str = "PSNR (dB)") -> None:
    """A PNG of {method: [pictures.Point(cost, quality, low, high, label)]}, one line a method. cost, quality: names of the axes."""
    images.write_file(Path(path), pictures.trade_off(points, cost, quality))


def _pixels(path: Path, size: int) -> np.ndarray:
    return images.resize(images.read(path).pixels, (size, size))


def _finite(tree):
    """The tree with null for what JSON has no number for."""
    if isinstance(tree, dict):
        return {key: _finite(value) for key, value in tree.items()}
    if isinstance(tree, list):
        return [_finite(value) for value in tree]
    return None if isinstance(tree, float) and not math.isfinite(tree) else tree
