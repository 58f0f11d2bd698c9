"""The insertion test: real nodules are put into the lungs of X-rays, and what suppression leaves of them is measured.

    nodules = insertion.read_nodules("nodules.npz")
    rows = insertion.test(method, cxr, "scan", nodules)
    print(insertion.table({"GL-LCM": rows}))

Each nodule is added to the X-ray at a known place. The method runs with and without it; the slope of (result with -
result without) on what was added is 1 if the nodule survives whole and 0 if it is taken for bone. No truth is needed,
so any X-ray and any weights do.
"""

import csv
import dataclasses
import io
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch

from .. import images, lungs
from ..runtime import processes, seeding
from ..runtime.files import UserError
from .cases import Case, read_target
from .tables import Table, text

FILES = ("insertion.txt", "insertion.csv")  # what `evaluate` writes

SIDE_MM = 400.0  # mm that an X-ray's side shows where nobody says; a 35 x 43 cm cassette, about
LUNG_HU = -850.0  # Hounsfield units of the lung that a nodule displaces
RATE = 0.25  # growth of log(g / (1 - g)) of a grey level g per cm of water: 6 % of the scale at g = 0.5
SUPPORT = 0.05  # a nodule reaches as far as this share of the most that it adds
MARGIN = 1.0  # of the nodule's diameter, around it: the ground that the slope is measured against
TOGETHER = 4  # nodules in one run of the method, far from each other
APART_MM = 60.0  # between the centres of nodules that are put in together
TRIES = 200  # places that are tried for a nodule among others
RIB_MM = 8.0  # sigma of the blur that bone is compared with to tell ribs from gaps
FINE_MM = 1.5  # sigma of the blur that takes noise out of the bone before
INSIDE_MM = 4.0  # centres lie at least so deep inside the lungs
WORST = 0.1  # share of the nodules that the column "worst tenth" stands for
LARGE_LOSS = 0.2  # a nodule that lost more than this counts as lost


@dataclass(frozen=True, eq=False)
class Nodule:
    """name; water: (h, w) float32, cm of water that it adds, in pixels of 1 mm as a radiograph from the front shows
    them."""

    name: str
    water: np.ndarray

    @property
    def diameter(self) -> float:
        """mm, of the disc with the nodule's area."""
        return float(2 * np.sqrt((self.water > SUPPORT * self.water.max()).sum() / np.pi))


@dataclass(frozen=True)
class Row:
    """One nodule at one place. x, y: pixels; diameter: mm; contrast: the most that it added, of the grey scale; slope:
    share kept."""

    image: str
    nodule: str
    x: int
    y: int
    diameter: float
    over_bone: bool
    contrast: float
    slope: float


# --- Nodules ----------------------------------------------------------------------------------------------------------


def read_nodules(path) -> list[Nodule]:
    """The nodules of an .npz file (<name>_hu, int (D, H, W) of 1 mm voxels with axes z, y, x, beside <name>_mask), or
    of a folder of them.

    Raises UserError where there is none.
    """
    path = Path(path)
    # in natural order, 2 before 10, as the order decides which nodule goes into which X-ray
    files = sorted(path.glob("*.npz"), key=lambda file: images.natural(file.name)) if path.is_dir() else [path]
    found = []
    for file in files:
        try:
            with np.load(file, allow_pickle=False) as arrays:
                names = sorted((key.removesuffix("_hu") for key in arrays if key.endswith("_hu")), key=images.natural)
                found += [Nodule(name, project(arrays[f"{name}_hu"], arrays[f"{name}_mask"])) for name in names]
        except (OSError, ValueError, KeyError) as error:
            raise UserError(f"cannot read the nodules of {file}: {error}") from None
    if not found:
        raise UserError(
            f"no nodules in {path}; expected an .npz file with arrays <name>_hu and <name>_mask, "
            "or a folder of such files"
        )
    return found


def project(hounsfield: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """(D, H, W) of 1 mm voxels -> (D, W) float32, cm of water that the nodule adds along each ray from the back to the
    front."""
    # HU / 1000 is density relative to water, less that of the lung which the nodule displaces.
    extra = np.clip((hounsfield.astype(np.float32) - LUNG_HU) / 1000, 0, None) * (mask > 0)  # g / cm^3
    return extra.sum(1) / 10  # (D, W): along y, from back to front; mm -> cm


def insert(cxr: np.ndarray, water: np.ndarray) -> np.ndarray:
    """The X-ray, float (H, W) in [0, 1], behind so many cm of water more: log(g / (1 - g)) grows by RATE per cm, black
    stays black.

    The tone curve of a display is unknown; where it is a logistic function of the log exposure, this is what more
    tissue does. Its slope, g (1 - g), makes a nodule fainter where the image is nearly black or white, and keeps the
    detail that lies over it.
    """
    # g' / (1 - g') = exp(RATE * water) * g / (1 - g), solved for g'
    odds = np.exp(RATE * water)
    return cxr * odds / (1 - cxr + cxr * odds)


# --- Places -----------------------------------------------------------------------------------------------------------


def ribs(bone: np.ndarray, side_mm: float = SIDE_MM) -> tuple[np.ndarray, np.ndarray]:
    """(on ribs, between them), bool (S, S) each; bone: (S, S), CXR - soft tissue, true or estimated. What is neither
    lies at edges."""
    pixel = side_mm / len(bone)  # mm
    # A band-pass: what is brighter than its surroundings on the scale of a rib, without the noise of single pixels.
    excess = cv2.GaussianBlur(bone, (0, 0), FINE_MM / pixel) - cv2.GaussianBlur(bone, (0, 0), RIB_MM / pixel)
    # a quarter of a standard deviation on either side of 0 is neither: a nodule there would lie half on a rib
    spread = float(np.std(excess)) / 4
    return excess > spread, excess < -spread


def places(
    mask: np.ndarray, bone: np.ndarray, nodules: list[Nodule], seed: str, side_mm: float = SIDE_MM
) -> list[tuple]:
    """[(nodule, x, y, over_bone), ...]: seeded centres inside the lungs, ribs and gaps in turn, APART_MM from each
    other.

    mask: bool (S, S), the lungs; bone: as in `ribs`. A nodule for which there is no room is left out.
    """
    random = seeding.place_generator(seed)
    pixel = side_mm / len(mask)
    deep = cv2.distanceTransform(mask.astype(np.uint8), cv2.DIST_L2, 5) * pixel > INSIDE_MM
    candidates = [np.argwhere(deep & region) for region in ribs(bone, side_mm)]
    taken = []
    for number, nodule in enumerate(nodules):
        over_bone = number % 2 == 0
        open_places = candidates[0 if over_bone else 1]
        # by rejection: draw any allowed pixel until one is far enough from those that are taken
        for _ in range(TRIES if len(open_places) else 0):
            y, x = (int(value) for value in random.choice(open_places))
            if all(np.hypot(x - other[1], y - other[2]) * pixel >= APART_MM for other in taken):
                taken.append((nodule, x, y, over_bone))
                break
    return taken


def water_map(nodule: Nodule, x: int, y: int, size: int, side_mm: float = SIDE_MM) -> np.ndarray:
    """cm of water (size, size) of a nodule with its middle at column x, row y."""
    scale = size / side_mm  # pixels per mm
    height, width = nodule.water.shape

    # nodule's pixels (1 mm) -> image's pixels, the middle of one onto (x, y)
    move = np.array([[scale, 0, x - scale * (width - 1) / 2], [0, scale, y - scale * (height - 1) / 2]])
    # Where the image is coarser than the nodule it is smoothed by half an image pixel first, against aliasing.
    wide = cv2.GaussianBlur(nodule.water, (0, 0), max(0.3, 0.5 / scale)) if scale < 1 else nodule.water
    return np.maximum(cv2.warpAffine(wide, move, (size, size), flags=cv2.INTER_LINEAR), 0)


# --- The test ---------------------------------------------------------------------------------------------------------

Method = Callable[[np.ndarray, str], np.ndarray]  # (X-ray float32 (S, S) in [0, 1], name) -> soft tissue, likewise


def of_pipeline(pipeline, mask: np.ndarray | None = None) -> Method:
    """A pipeline as `test` calls it. mask: bool (S, S), the lungs, for GL-LCM; None: found in each X-ray."""

    def method(cxr: np.ndarray, name: str) -> np.ndarray:
        signed = images.to_signed(torch.from_numpy(cxr.astype(np.float32)))[None, None]  # (1, 1, S, S)
        result = pipeline(signed, [name], None if mask is None else [mask])
        return images.to_unit(result)[0, 0].numpy()

    return method


def test(
    method: Method,
    cxr: np.ndarray,
    name: str,
    nodules: list[Nodule],
    mask: np.ndarray | None = None,
    target: np.ndarray | None = None,
    seed: int = 0,
    side_mm: float = SIDE_MM,
) -> list[Row]:
    """Put nodules into one X-ray and measure what the method leaves of each: a row per nodule that found room.

    cxr: float (S, S) in [0, 1]. mask: bool (S, S), the lungs; None: found. target: the true soft tissue, which tells
    where ribs are; None: the method's own result does. Places are functions of (seed, name). The same noise is used
    with and without nodules.
    """
    # The reference of every difference: the same name gives the same noise.
    without = method(cxr, name)
    mask = lungs.lung_mask(cxr) if mask is None else mask
    bone = (cxr - (without if target is None else target)).astype(np.float32)
    rows = []
    for number, start in enumerate(range(0, len(nodules), TOGETHER)):
        # Several nodules share one run of the method, which is what costs; they are far from each other.
        placed = places(mask, bone, nodules[start : start + TOGETHER], f"{seed}/{name}/{number}", side_mm)
        if not placed:
            continue

        waters = [water_map(nodule, x, y, len(cxr), side_mm) for nodule, x, y, _ in placed]
        with_nodules = insert(cxr, np.sum(waters, axis=0))
        change = method(with_nodules, name) - without

        # each nodule is measured by what it alone adds, in its own surroundings
        for (nodule, x, y, over_bone), water in zip(placed, waters):
            added = insert(cxr, water) - cxr
            contrast = float(added.max())
            kept = slope(change, added)
            rows.append(Row(name, nodule.name, x, y, nodule.diameter, over_bone, contrast, kept))
    return rows


def slope(change: np.ndarray, added: np.ndarray) -> float:
    """Least-squares slope of the change of a result on what was added to the X-ray, with an intercept, on the nodule
    and its surroundings."""
    # With an intercept: a change of brightness all over, as from a residual tone curve, is no loss of the nodule.
    window = surroundings(added)
    x = added[window].astype(np.float64)
    y = change[window].astype(np.float64)
    x = x - x.mean()
    return float((x * y).sum() / (x * x).sum())


def surroundings(added: np.ndarray) -> tuple[slice, slice]:
    """The square around a nodule with MARGIN of its width on each side, cut off at the image's border."""
    rows, columns = np.nonzero(added > SUPPORT * added.max())
    width = max(np.ptp(rows), np.ptp(columns)) + 1
    margin = int(np.ceil(MARGIN * width))

    def widened(places: np.ndarray) -> slice:
        return slice(max(0, int(places.min()) - margin), int(places.max()) + margin + 1)

    return widened(rows), widened(columns)


def evaluate(
    pipeline,
    cases: list[Case],
    output: Path,
    *,
    size: int,
    nodules: list[Nodule],
    count: int,
    seed: int = 0,
    title: str = "method",
) -> str:
    """Put `count` nodules into each X-ray of a run and write FILES into its folder; returns the table as text.

    cases: their masks and targets are used if there are any. size: side of the network's images, at which all is
    measured. Every X-ray gets the next nodules of the list, which starts again at its end. title: the method's
    name in the table. Several processes share the X-rays; the first of them writes.
    """
    # this process's share of the X-rays
    rows_of: dict[int, list[Row]] = {}
    for number in range(processes.rank(), len(cases), processes.world_size()):
        case = cases[number]
        scan = images.read(case.path, case.limits).pixels
        cxr = images.to_network(scan, size)  # (1, S, S)
        pixels = images.to_unit(cxr)[0].numpy()
        if case.mask is None:
            mask = lungs.lung_mask(pixels)
        else:
            mask = images.mask_to_network(images.read_mask_of(case.mask, scan.shape), size)
        target = None
        if case.target is not None:
            target = images.to_unit(images.to_network(read_target(case).pixels, size))[0].numpy()
        # by the X-ray's number in the whole list, so that the number of processes changes nothing
        own = [nodules[(number * count + place) % len(nodules)] for place in range(count)]
        rows_of[number] = test(of_pipeline(pipeline, mask), pixels, case.name, own, mask, target, seed)

    # all rows, in the order of the X-rays
    everyone: dict[int, list[Row]] = {}
    for share in processes.all_gather_objects(rows_of):
        everyone |= share
    rows = []
    for number in sorted(everyone):
        rows += everyone[number]
    written = text(table({title: rows}))
    if processes.rank() == 0:
        for name, content in zip(FILES, (written, _as_csv(rows))):
            images.write_file(output / name, content.encode())
    return written


# --- The table --------------------------------------------------------------------------------------------------------


def summary(rows: Iterable[Row]) -> dict[str, float]:
    """What the table shows of a method's rows; NaN where there is no row."""
    rows = list(rows)
    slopes = np.array([row.slope for row in rows])
    on_ribs = np.array([row.slope for row in rows if row.over_bone])
    between = np.array([row.slope for row in rows if not row.over_bone])
    return {
        "nodules": len(rows),
        "median": _quantile(slopes, 0.5),
        "worst tenth": _quantile(slopes, WORST),
        "median on ribs": _quantile(on_ribs, 0.5),
        "median between ribs": _quantile(between, 0.5),
        "lost": float(np.mean(slopes < 1 - LARGE_LOSS)) if len(rows) else float("nan"),
    }


def table(methods: dict[str, list[Row]]) -> Table:
    """A row per method of {method: rows of `test`, of all X-rays together}."""
    headings = [
        "method",
        "nodules",
        "median",
        "worst tenth",
        "median on ribs",
        "median between ribs",
        "lost more than a fifth",
    ]
    title = "Inserted nodules: slope of (result with - result without) on what was added; 1: all kept"
    shown = Table(title, headings, [])
    for method, rows in methods.items():
        values = summary(rows)  # nodules, four slopes, lost: in the headings' order
        count, *slopes, lost = values.values()
        shown.rows.append([method, str(count), *(f"{value:.3f}" for value in slopes), f"{100 * lost:.0f} %"])
    return shown


def _as_csv(rows: list[Row]) -> str:
    lines = io.StringIO()
    writer = csv.writer(lines, lineterminator="\n")
    writer.writerow([field.name for field in dataclasses.fields(Row)])
    writer.writerows(dataclasses.astuple(row) for row in rows)
    return lines.getvalue()


def _quantile(values: np.ndarray, share: float) -> float:
    return float(np.quantile(values, share)) if len(values) else float("nan")
