"""Compare predicted soft-tissue images with the truth: BSR, MSE, PSNR, LPIPS, SSIM.

    python metrics.py metrics.prediction=runs/batch_lcm_eval
    python metrics.py metrics.prediction=[runs/ldm_eval,runs/batch_lcm_eval]

reads   the images of metrics.prediction and, by the same names, of metrics.cxr and metrics.target; only what has a prediction is scored
writes  metrics.output: metrics.txt and metrics.md (the table, also printed), metrics.csv (every image), metrics.json (both),
        metrics.png (box plots), comparison.png (the first images: CXR | each prediction | truth)

Everything is brought to metrics.size x metrics.size first. The row "untouched CXR" is what doing nothing scores. Exit status 1
where a prediction could not be scored; the others are. A tiny run, seconds on a CPU (an untouched X-ray as the prediction):

    python metrics.py metrics.prediction=data/CXR metrics.size=64 metrics.output=runs/tiny
"""
import csv
import io
import json
import math
import os
import sys
from pathlib import Path

import numpy as np
from tqdm import tqdm

from models import UserError, config, images, scores, training

COMPARED = 4  # images in comparison.png


def main():
    settings = config.parse(__doc__, reads=("runs", "device", "features", "data.root", "metrics"))
    size, output = settings.metrics.size, Path(settings.metrics.output)
    if size < scores.LEAST_SIDE:
        raise UserError(f"metrics.size={size} is too small for LPIPS; at least {scores.LEAST_SIDE}")

    folders = {method: find("prediction", folder) for method, folder in name_methods(settings.metrics.prediction).items()}
    sets, faults = match(find("cxr", settings.metrics.cxr), find("target", settings.metrics.target), folders)

    values, resized = {}, 0
    if sets:
        lpips = scores.Lpips("alex", settings.features, training.pick_device(settings.device))
        values, resized = score_all(sets, size, lpips, faults)
    for fault in faults:
        print(fault, file=sys.stderr)
    if not values:
        raise UserError(f"nothing to score: no prediction has a readable CXR in {settings.metrics.cxr} and truth in "
                        f"{settings.metrics.target} by its name")

    summary = scores.summarise(values)
    heading = f"{len(values)} images at {size} x {size}" + (f", {resized} of them resized to that" if resized else "")
    write(output, heading, values, summary)
    images.write_file(output / "comparison.png", compare({name: sets[name] for name in list(values)[:COMPARED]}, size))
    print(f"{heading}\n\n{scores.table(summary)}\nwritten to {output}")
    return 1 if faults else 0


def name_methods(folders: tuple[str, ...]) -> dict[str, str]:
    """{name in the table: prediction folder}: the method that its summary.json names, else its last name; all of it where two are alike."""
    if len(set(map(os.path.abspath, folders))) < max(len(folders), 1):
        raise UserError(f"metrics.prediction={list(folders)} should be one folder, or several different ones")
    short = [method_of(Path(folder)) for folder in folders]
    return {folder if short.count(name) > 1 else name: folder for name, folder in zip(short, folders)}


def method_of(folder: Path) -> str:
    """"BS-LDM" or "GL-LCM" where an evaluation script wrote the folder, else the folder's name."""
    try:
        return str(json.loads((folder / "summary.json").read_text(encoding="utf-8"))["method"])
    except (OSError, ValueError, KeyError, TypeError):
        return folder.resolve().name


def find(key: str, folder: str) -> dict[str, Path]:
    """The images of a folder by name; UserError says which setting to change."""
    try:
        return images.find(folder)
    except UserError as error:
        raise UserError(f"{error}; set metrics.{key}") from None


def match(cxr: dict[str, Path], target: dict[str, Path], folders: dict[str, dict[str, Path]]) -> tuple[dict, list[str]]:
    """({name: (CXR, truth, {method: prediction})} of what is complete, a line for each name that is not)."""
    sets, faults = {}, []
    for name in dict.fromkeys(name for folder in folders.values() for name in folder):
        missing = [f"no prediction of {method}" for method, folder in folders.items() if name not in folder]
        missing += ["no CXR"] * (name not in cxr) + ["no truth"] * (name not in target)
        if missing:
            faults.append(f"{name} is not scored: {', '.join(missing)}")
        else:
            sets[name] = cxr[name], target[name], {method: folder[name] for method, folder in folders.items()}
    return sets, faults


def score_all(sets: dict, size: int, lpips: scores.Lpips, faults: list[str]) -> tuple[dict, int]:
    """({name: {method: {score: value}}}, how many images were resized); what cannot be read is added to the faults."""
    values, resized = {}, 0
    for name, (cxr, target, predictions) in tqdm(sets.items(), desc="scoring", unit="image", disable=None):
        try:
            pixels = [images.read(path).pixels for path in (cxr, target, *predictions.values())]
        except UserError as error:
            faults.append(f"{name} is not scored: {error}")
            continue
        resized += any(array.shape != (size, size) for array in pixels)
        cxr, truth, *results = (array if array.shape == (size, size) else images.resize(array, (size, size)) for array in pixels)
        values[name] = scores.score(cxr, truth, dict(zip(predictions, results)), lpips)
    return values, resized


def write(output: Path, heading: str, values: dict, summary: dict) -> None:
    """The table as text and Markdown, all values as CSV and JSON (what is not finite: `nan`, `inf` in CSV, null in JSON), the plot."""
    images.write_file(output / "metrics.txt", f"{heading}\n\n{scores.table(summary)}".encode())
    images.write_file(output / "metrics.md", f"{heading}\n\n{scores.table(summary, markdown=True)}".encode())
    lines = io.StringIO()
    writer = csv.writer(lines, lineterminator="\n")
    keys = [column.key for column in scores.SCORES]
    writer.writerow(["image", "method", *keys])
    writer.writerows([name, method, *(row[key] for key in keys)] for name, methods in values.items() for method, row in methods.items())
    images.write_file(output / "metrics.csv", lines.getvalue().encode())
    tree = {"settings": heading, "summary": summary, "images": values}
    images.write_file(output / "metrics.json", json.dumps(finite(tree), indent=1, allow_nan=False).encode())
    images.write_file(output / "metrics.png", plot(values, list(summary)))


def finite(tree):
    """The tree with null for what JSON has no number for."""
    if isinstance(tree, dict):
        return {key: finite(value) for key, value in tree.items()}
    return None if isinstance(tree, float) and not math.isfinite(tree) else tree


def plot(values: dict, methods: list[str]) -> bytes:
    """A PNG with one box plot a score, one box a method."""
    import matplotlib
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    figure, axes = plt.subplots(1, len(scores.SCORES), figsize=(3 * len(scores.SCORES), 4), layout="constrained")
    for axis, column in zip(axes, scores.SCORES):
        series = np.array([[row[method][column.key] * column.scale for method in methods] for row in values.values()])
        axis.boxplot([line[np.isfinite(line)] for line in series.T], tick_labels=methods)
        axis.set_title(column.heading)
        for label in axis.get_xticklabels():
            label.set(rotation=30, ha="right")
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=100)
    plt.close(figure)
    return content.getvalue()


def compare(sets: dict, size: int) -> bytes:
    """A PNG of images in rows: CXR | each method | truth."""
    from matplotlib.figure import Figure
    titles = ["CXR", *next(iter(sets.values()))[2], "truth"]
    figure = Figure(figsize=(2.6 * len(titles), 2.6 * len(sets)), layout="constrained")
    for axes, (cxr, truth, predictions) in zip(figure.subplots(len(sets), len(titles), squeeze=False), sets.values()):
        for axis, title, path in zip(axes, titles, (cxr, *predictions.values(), truth)):
            axis.imshow(images.resize(images.read(path).pixels, (size, size)), cmap="gray", vmin=0, vmax=1)
            axis.set_axis_off()
            axis.set_title(title)
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=100)
    return content.getvalue()


if __name__ == "__main__":
    config.run(main)
