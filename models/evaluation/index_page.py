"""index.html beside the images of an evaluation: the page on which they are looked through.

What it looks like and does stands in models/viewing; here is what is put into it. The page of scores is report_page.py.
"""

import math
import struct
from pathlib import Path

from ..runtime.files import write_text
from ..viewing import page
from .results import Output, strip_height
from .summary import INDEX, recorded_names

COLUMNS = ("CXR", "result", "truth", "taken away")  # of a panel with a truth, see results.write_result
TAKEN_AWAY = 3  # its last; not shown, as the viewer's difference can be windowed
SAME_SHAPE = 0.01  # difference of the logarithms of two ratios of sides that rounding to pixels explains
PNG_HEADER = 24  # bytes up to the end of a PNG's width and height
# what summary.json says of every image, as the list shows it: {key: (label, scale, better)}
FIGURES = {
    "psnr": ("PSNR (dB)", 1, "larger"),
    "mean_change": ("mean change (%)", 100, ""),
    "mean_deviation": ("deviation of samples (%)", 100, ""),
    "seconds_per_image": ("seconds", 1, ""),
}


def write(output: Output, summary: dict) -> Path:
    """index.html beside the results of an evaluation, from its summary. Returns the page's path.

    All images that the summary knows are on it. What the page shows are the panels, so that the folder is all it needs.
    """
    figures = {key: FIGURES[key] for key in FIGURES if isinstance(summary.get(key), dict)}
    layers = [{"title": title, "folder": ""} for title in COLUMNS[:TAKEN_AWAY]]
    deviation = len(layers)
    layers.append({"title": "deviation", "folder": "deviation/"})

    # images whose panel is there; one may have been deleted by hand
    entries = []
    for name in recorded_names(summary):
        panel = _png_size(output.folder / "panels" / f"{name}.png")
        result = _png_size(output.result(name))
        if panel is None or result is None:
            continue
        entry = _panel_entry(name, panel, result)
        entry["values"] = [[summary[key].get(name) for key in figures]]
        if (output.folder / "deviation" / f"{name}.png").is_file():
            entry["further"] = [deviation]
        entries.append(entry)
    if not any("further" in entry for entry in entries):
        layers.pop()
    if not any(len(entry["layers"]) == len(COLUMNS) for entry in entries):
        # without any truth its layer would be an empty pane
        layers = [layer for layer in layers if layer["title"] != "truth"]
        for entry in entries:
            if "further" in entry:
                entry["further"] = [len(layers) - 1]

    data = {
        "title": f"{summary.get('method', 'results')}: {output.folder.resolve().name}",
        "subtitle": _about(summary),
        "layers": layers,
        "panels": "panels/",
        "methods": [{"title": "result", "layer": 1}],
        "scores": [page.score(key, *description) for key, description in figures.items()],
    }
    place = output.folder / INDEX
    write_text(place, page.pieces("results", data, entries))
    return place


def _panel_entry(name: str, panel: tuple[int, int], result: tuple[int, int]) -> dict:
    """What the page says of an image. panel, result: (width, height) of its files."""
    width, height = panel
    # With a truth a panel has a column more. The record does not say which image had one, but the result's shape does.
    layers: list[int | None] = [0, 1, 2, None]
    if _mismatch(panel, len(COLUMNS) - 1, result) < _mismatch(panel, len(COLUMNS), result):
        layers = [0, 1, None]
    column = width // len(layers)
    strip = strip_height(column)
    return {
        "name": name,
        "width": column,
        "height": height - strip,
        "file": page.link(f"{name}.png"),
        "thumb": page.link(f"thumbs/{name}.png"),
        "layers": layers,
        "strip": strip,
    }


def _mismatch(panel: tuple[int, int], columns: int, result: tuple[int, int]) -> float:
    """How far the shape of an image is from that of a panel's column; 0 where the panel has so many columns."""
    column = panel[0] / columns
    height = panel[1] - strip_height(int(column))
    upright = abs(math.log(column / height) - math.log(result[0] / result[1]))
    # A file may hold its image lying on its side, as its EXIF orientation says. That is the rarer case, and so counts
    # only if it is as good as exact.
    turned = abs(math.log(column / height) + math.log(result[0] / result[1]))
    return upright if upright < SAME_SHAPE or turned > SAME_SHAPE else turned + SAME_SHAPE


def _about(summary: dict) -> str:
    """A line about a run: sampler and steps, machine, date."""
    steps = f"{summary['steps']} steps" if summary.get("steps") else ""
    parts = [summary.get("sampler"), steps, summary.get("precision"), summary.get("date")]
    return ", ".join(str(part) for part in parts if part)


def _png_size(path: Path) -> tuple[int, int] | None:
    """(width, height) from a PNG's header; None where there is no such file."""
    try:
        with open(path, "rb") as file:
            header = file.read(PNG_HEADER)
    except OSError:
        return None
    if len(header) < PNG_HEADER:
        return None
    # signature (8 bytes), length and name of the first chunk (8), then both as big-endian integers
    width, height = struct.unpack(">II", header[16:24])
    return width, height
