"""report.html beside the tables of metrics.py: scores, box plots and tests, joined to a viewer of all images.

What it looks like and does stands in models/viewing; here is what is put into it. The page of an evaluation is
index_page.py.
"""

import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from .. import images, scores
from ..runtime.files import write_text
from ..viewing import page
from .findings import Finding
from .report_tables import score_label
from .results import THUMB, fitted
from .score_table import ImageFiles
from .scoring import Scored
from .tables import Table

REPORT = "report.html"
COPIES = "report_files"  # beside the report: copies of the images as a browser shows them


def write(scored: Scored, output: Path, tables: Sequence[Table], found: Iterable[Finding] = ()) -> None:
    """report.html: the images of every method in the viewer, box plots whose dots lead to them, and the tables.

    Beside it `report_files/` holds copies of 8 bits, without loss, their longer side at most the size at which was
    scored: a browser would show a file of 12 bits black, and a DICOM not at all. found: findings to draw, in pixels of
    the CXRs.
    """
    # CXR, truth, then the methods; the row of the untouched CXR is the CXR's layer
    layers = [{"title": "CXR", "folder": f"{COPIES}/cxr/"}, {"title": "truth", "folder": f"{COPIES}/truth/"}]
    methods = [{"title": scored.methods[0], "layer": 0}]
    for number, method in enumerate(scored.methods[1:], 1):
        methods.append({"title": method, "layer": len(layers)})
        layers.append({"title": method, "folder": f"{COPIES}/{number}/"})
    data = {
        "title": f"Scores of {', '.join(scored.methods[1:])}",
        "subtitle": scored.heading,
        "layers": layers,
        "methods": methods,
        "scores": [
            page.score(column.key, score_label(column), column.scale, _better(column)) for column in scored.columns
        ],
        "plots": True,
        "tables": [_as_data(table) for table in tables],
    }
    pieces = page.pieces("results", data, _entries(scored, output / COPIES, found))
    write_text(output / REPORT, pieces)


def _entries(scored: Scored, folder: Path, found: Iterable[Finding]) -> Iterator[dict]:
    """What the page says of each image, after its copies are written into the folder.

    The copies' files are numbered, as no name that a system refuses may get in the way of a USB stick.
    """
    # a finding belongs to the image of its name
    by_image: dict[str, list[Finding]] = {}
    for finding in found:
        by_image.setdefault(finding.image, []).append(finding)

    keys = [column.key for column in scored.columns]
    for number, (name, row) in enumerate(scored.values.items()):
        file = f"{number:06}.png"
        shape, zoom = _write_copies(scored.files[name], folder, file, scored.size)
        yield {
            "name": name,
            "width": shape[1],
            "height": shape[0],
            "file": file,
            "thumb": f"{COPIES}/thumbs/{file}",
            "values": [[row[method][key] for key in keys] for method in scored.methods],
            "findings": [_drawn(finding, zoom) for finding in by_image.get(name, ())],
        }


def remove(output: Path) -> None:
    """Take an earlier report away: its numbers and images are not those of this run."""
    (output / REPORT).unlink(missing_ok=True)
    if (output / COPIES).exists():
        shutil.rmtree(output / COPIES)


def _write_copies(files: ImageFiles, folder: Path, file: str, side: int) -> tuple[tuple[int, int], float]:
    """Copies of an image's files, all of one shape: ((H, W), size of the copy over that of the CXR)."""
    cxr = images.read(files.cxr).pixels
    # never larger than the X-ray: a browser enlarges as well
    shape = fitted(cxr.shape, min(side, max(cxr.shape)))
    images.write(folder / "cxr" / file, images.resize(cxr, shape))
    images.write(folder / "truth" / file, images.resize(images.read(files.target).pixels, shape))
    result = cxr
    for number, path in enumerate(files.predictions.values(), 1):
        result = images.read(path).pixels
        images.write(folder / str(number) / file, images.resize(result, shape))
    images.write(folder / "thumbs" / file, images.resize(result, fitted(shape, THUMB)))
    return shape, max(shape) / max(cxr.shape)


def _drawn(finding: Finding, zoom: float) -> dict:
    """A finding in pixels of a copy, which are counted from their centres."""
    return {
        "x": (finding.x + 0.5) * zoom - 0.5,
        "y": (finding.y + 0.5) * zoom - 0.5,
        "diameter": finding.diameter * zoom,
        "label": finding.label,
    }


def _as_data(table: Table) -> dict:
    return {
        "title": table.title,
        "headings": table.headings,
        "rows": table.rows,
        "best": sorted(table.best),
        "notes": table.notes,
    }


def _better(column: scores.Score) -> str:
    return "larger" if column.larger_is_better else "smaller"
