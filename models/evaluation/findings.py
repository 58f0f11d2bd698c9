"""What bone suppression does to findings that are known: contrast kept, contrast to noise, a model observer's AUC,
crops.

    found = findings.read("findings.csv")
    measured = findings.measure({"GL-LCM": "runs/batch_lcm_eval"}, "data/CXR", found)
    print(findings_tables.write(measured, "runs/metrics"))

Contrast: the mean within 0.35 diameters of the centre less the mean of the ring from 0.75 to 1.2 diameters. Everything
is measured in the X-ray's own pixels; results and targets of another size are brought to it.
"""

import csv
import math
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np

from .. import images, lungs, scores
from ..data import lists
from ..runtime import seeding
from ..runtime.files import UserError
from . import insertion, observer

INSIDE = 0.35  # diameters: radius of the disc whose mean is a finding's grey level
RING = (0.75, 1.2)  # diameters: radii of the ring that it is compared with
WHOLE = 0.5  # diameters: radius of the disc in which the result is regressed on the target
LEAST_CONTRAST = 0.005  # of the grey scale; the share kept of a fainter finding would be noise
NORMAL_PLACES = 4  # places without finding that the observer is shown in each X-ray
AWAY_MM = 40.0  # from a normal place to the nearest finding and to the next normal place
TRIES = 100  # draws of a normal place before it is left out
CROP_SIZE = 160  # pixels, side of a crop in the picture
CROP_REACH = 3.0  # diameters, side of a crop in the X-ray; at least CROP_LEAST
CROP_LEAST = 48  # pixels
UNTOUCHED = scores.REFERENCE
Responses = dict[str, tuple[list[np.ndarray], list[np.ndarray]]]  # {method: channel outputs (with finding, without)}
COLUMNS = {"image": ("image", "image_id", "name"), "label": ("label", "class_name")}
POINT = ("x", "y", "diameter")
BOX = ("x_min", "y_min", "x_max", "y_max")  # VinDr's columns


@dataclass(frozen=True)
class Finding:
    """image: name without ending; x, y: centre, and diameter, in pixels of that image; label: what it is."""

    image: str
    x: float
    y: float
    diameter: float
    label: str = ""


@dataclass(frozen=True)
class Measured:
    """A finding in one method's result: contrast in the X-ray and in the result, contrast to noise in both, slope of
    the result on the target inside the finding (NaN without target).
    """

    finding: Finding
    before: float
    after: float
    noise_before: float
    noise_after: float
    slope: float

    @property
    def kept(self) -> float:
        """The share of the contrast that is left; NaN where there was too little to tell."""
        return self.after / self.before if abs(self.before) >= LEAST_CONTRAST else math.nan


@dataclass
class Result:
    """What `measure` found. rows: {method: a Measured for each finding}, in one order for all methods; observers:
    {method: Comparison with the untouched CXR}; crops: {method or "CXR" or "target": squares (CROP_SIZE, CROP_SIZE), a
    finding each}; faults, notes: lines.
    """

    rows: dict[str, list[Measured]]
    observers: dict[str, observer.Comparison] = field(default_factory=dict)
    crops: dict[str, list[np.ndarray]] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


# --- The list of findings ---------------------------------------------------------------------------------------------


def read(path) -> list[Finding]:
    """The findings of a CSV file: columns image (or image_id), x, y, diameter or VinDr's x_min, y_min, x_max, y_max,
    and label (or class_name), which may be missing. Rows with empty coordinates, VinDr's "No finding", are left out.

    UserError, with the line, for what is missing or no number.
    """
    # utf-8-sig: spreadsheets put a byte order mark before the first column's name
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            # letter case and blanks of headings vary between exports
            columns = {(name or "").strip().lower(): name for name in reader.fieldnames or ()}
            table = list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"cannot read the findings {path}: {error}") from None

    # Which columns there are decides between a list of points and VinDr's boxes; a point and a diameter come first.
    image_column = next((columns[name] for name in COLUMNS["image"] if name in columns), None)
    label_column = next((columns[name] for name in COLUMNS["label"] if name in columns), None)
    coordinates: tuple[str, ...] | None = None
    if columns.keys() >= set(POINT):
        coordinates = POINT
    elif columns.keys() >= set(BOX):
        coordinates = BOX
    if image_column is None or coordinates is None:
        shown = ", ".join(columns) or "(none)"
        raise UserError(
            f"{path} has the columns {shown}; a list of findings has image, and x, y, diameter or "
            "x_min, y_min, x_max, y_max"
        )

    found = []
    # line 1 of the file holds the headings
    for line, row in enumerate(table, 2):
        entries = [(row[columns[name]] or "").strip() for name in coordinates]
        # VinDr's rows of healthy images have a class but no box
        if not any(entries):
            continue
        try:
            numbers = [float(entry) for entry in entries]
        except ValueError:
            raise UserError(
                f"{path}, line {line}: {', '.join(coordinates)} are {', '.join(entries)}; numbers are expected"
            ) from None

        # a box becomes the circle of its mean side
        if coordinates is BOX:
            x_min, y_min, x_max, y_max = numbers
            numbers = [(x_min + x_max) / 2, (y_min + y_max) / 2, (x_max - x_min + y_max - y_min) / 2]
        x, y, diameter = numbers

        # "nan" and "inf" are numbers to float()
        if not (all(map(math.isfinite, numbers)) and diameter > 0):
            raise UserError(f"{path}, line {line}: the finding has no positive size ({', '.join(entries)})")

        # image names may carry an ending; results are matched without it
        name = images.stem((row[image_column] or "").strip())
        label = (row[label_column] or "").strip() if label_column else ""
        found.append(Finding(name, x, y, diameter, label))
    if not found:
        raise UserError(f"{path} lists no finding")
    return found


# --- Measuring one finding --------------------------------------------------------------------------------------------


def contrast(image: np.ndarray, finding: Finding) -> tuple[float, float]:
    """(contrast, contrast to noise) of a finding in an image, float (H, W): noise is the ring's standard deviation.

    NaN where the disc or the ring has no pixel in the image.
    """
    distance = _distance(image.shape, finding)
    # 0.5: a finding of a pixel or two has the pixel on which it is centred
    inside = image[distance <= max(INSIDE * finding.diameter, 0.5)]
    ring = image[(distance >= RING[0] * finding.diameter) & (distance <= RING[1] * finding.diameter)]
    if len(inside) == 0 or len(ring) < 2:
        return math.nan, math.nan

    difference = float(inside.mean() - ring.mean())
    noise = float(ring.std())
    return difference, difference / noise if noise > 0 else math.nan


def slope_on_target(result: np.ndarray, target: np.ndarray, finding: Finding) -> float:
    """Least-squares slope, with intercept, of the result on the target, float (H, W), inside the finding; NaN for a
    constant target."""
    inside = _distance(result.shape, finding) <= max(WHOLE * finding.diameter, 1)

    # an intercept is taken out by centring the target: a shift of grey level is no loss of detail
    x = target[inside] - target[inside].mean() if inside.any() else np.zeros(1)
    if not (x * x).sum() > 0:
        return math.nan
    return float((x * result[inside]).sum() / (x * x).sum())


def _distance(shape: tuple[int, int], finding: Finding) -> np.ndarray:
    """(H, W): distance of each pixel's centre from the finding's, pixels."""
    return np.hypot(np.arange(shape[1])[None, :] - finding.x, np.arange(shape[0])[:, None] - finding.y)


# --- Measuring folders ------------------------------------------------------------------------------------------------


def measure(
    predictions: dict[str, str | Path],
    cxr,
    found: list[Finding],
    *,
    target=None,
    masks=None,
    seed: int = 0,
    side_mm: float = insertion.SIDE_MM,
) -> Result:
    """Measure findings in {method: folder of results}; cxr, target, masks: folders of X-rays, of true soft tissue and
    of lung masks.

    target, masks: None, or without an image of the name: no slope, lungs are found. side_mm: what an X-ray's longer
    side shows. seed: of the normal places and the bootstrap. Images that a folder lacks are faults, and their findings
    are left out; UserError where none is left.
    """
    # every source is listed once; only the CXR and the results must hold an image, truth and masks may lack it
    sources = {"CXR": images.find(cxr)} | {method: images.find(folder) for method, folder in predictions.items()}
    targets = images.find(target) if target is not None and Path(target).is_dir() else {}
    given_masks = images.find(masks) if masks is not None and Path(masks).is_dir() else {}

    # the untouched CXR is measured as a method: what it scores is what doing nothing does
    result = Result({method: [] for method in (UNTOUCHED, *predictions)})
    responses: Responses = {method: ([], []) for method in result.rows}
    names: tuple[list[str], list[str]] = ([], [])  # the images of the responses

    # image by image, so that each file is read once for all of its findings
    by_image: dict[str, list[Finding]] = {}
    for finding in found:
        by_image.setdefault(finding.image, []).append(finding)
    for image, own in by_image.items():
        lacking = [source for source, paths in sources.items() if image not in paths]
        if lacking:
            result.faults.append(f"{image}: its {len(own)} findings are left out; it is not among {', '.join(lacking)}")
            continue

        # All is compared in the CXR's own pixels, in which the findings are given.
        untouched = images.read(sources["CXR"][image]).pixels
        shown = {UNTOUCHED: untouched}
        for method in predictions:
            shown[method] = images.resize(images.read(sources[method][image]).pixels, untouched.shape)
        truth = images.resize(images.read(targets[image]).pixels, untouched.shape) if image in targets else None

        # Contrast, noise and slope of each finding in each method's result.
        for method, pixels in shown.items():
            for finding in own:
                result.rows[method].append(_measure_finding(untouched, pixels, truth, finding))

        # Channel outputs of the findings and of normal places in the same lungs.
        if image in given_masks:
            mask = images.read_mask_of(given_masks[image], untouched.shape)
        else:
            mask = lungs.lung_mask(untouched)
        pixel_mm = side_mm / max(untouched.shape)
        # seeded by the image's name, so that the places do not change with the other images of the list
        normal = normal_places(mask, own, pixel_mm, seeding.detail_generator(seed, image))
        _respond(responses, names, image, shown, own, normal, pixel_mm)

        # Crops for the picture.
        _crop_all(result, {"CXR": untouched, **{method: shown[method] for method in predictions}, "target": truth}, own)

    # Faults explain why nothing is left, so they are told with the error.
    if not result.rows[UNTOUCHED]:
        raise UserError(f"no finding lies in an image that all folders hold ({lists.shown_names(result.faults, '; ')})")
    _note_unmeasured(result)
    _observe(result, responses, names, seed)
    return result


def _measure_finding(untouched: np.ndarray, pixels: np.ndarray, truth: np.ndarray | None, finding: Finding) -> Measured:
    """A finding in a result `pixels`, in the untouched X-ray and, where there is one, in the truth."""
    before, noise_before = contrast(untouched, finding)
    after, noise_after = contrast(pixels, finding)
    slope = slope_on_target(pixels, truth, finding) if truth is not None else math.nan
    return Measured(finding, before, after, noise_before, noise_after, slope)


def _respond(
    responses: Responses,
    names: tuple[list[str], list[str]],
    image: str,
    shown: dict[str, np.ndarray],
    own: list[Finding],
    normal: np.ndarray,
    pixel_mm: float,
) -> None:
    """Add the observer's responses to an image's findings and normal places (n, 2), in each method's result, and for
    each response the image."""
    centres = np.array([(round(finding.x), round(finding.y)) for finding in own])
    # A centre outside the image has no patch; its row in the table is NaN.
    inside = ((centres >= 0) & (centres < shown[UNTOUCHED].shape[::-1])).all(1)
    for method, pixels in shown.items():
        responses[method][0].append(observer.outputs(pixels, centres[inside], pixel_mm))
        responses[method][1].append(observer.outputs(pixels, normal, pixel_mm))
    # by which the observer is cross-validated
    names[0].extend([image] * int(inside.sum()))
    names[1].extend([image] * len(normal))


def _crop_all(result: Result, sources: dict[str, np.ndarray | None], own: list[Finding]) -> None:
    """Add the crops of an image's findings from each source."""
    for label, pixels in sources.items():
        crops = result.crops.setdefault(label, [])
        for finding in own:
            black = np.zeros((CROP_SIZE, CROP_SIZE), np.float32)
            # without a target the column stays black, and is left out if it is black for all
            crops.append(black if pixels is None else _crop(pixels, finding))


def _note_unmeasured(result: Result) -> None:
    """Say how many findings the columns of the share kept leave out, and why."""
    rows = result.rows[UNTOUCHED]
    # NaN: no pixel inside, or fewer than two in the ring
    unmeasured = [row.finding for row in rows if math.isnan(row.before)]
    if unmeasured:
        first = unmeasured[0]
        result.notes.append(
            f"{len(unmeasured)} of {len(rows)} findings are not measured, since they are too small for the image's "
            f"pixels or lie outside it; the first: {first.diameter:g} pixels at ({first.x:g}, {first.y:g}) in "
            f"{first.image}"
        )
    faint = sum(abs(row.before) < LEAST_CONTRAST for row in rows)
    if faint:
        result.notes.append(
            f"{faint} of {len(rows)} findings have a contrast below {LEAST_CONTRAST:g} in the CXR; no share kept is "
            "given of these"
        )


def _observe(result: Result, responses: dict, names: tuple[list, list], seed: int) -> None:
    """Fill in result.observers, or a note that says why there are none."""
    # All methods are observed at the same places, so the names of the images serve for all.
    images_present, images_absent = (np.array(each) for each in names)
    observed = {}  # {method: scores of the places}
    try:
        for method, (present, absent) in responses.items():
            outputs_present = np.concatenate(present)
            outputs_absent = np.concatenate(absent)
            observed[method] = observer.cross_validate(
                outputs_present, outputs_absent, images_present, images_absent, seed
            )
    except ValueError as error:
        result.notes.append(f"no model observer: {error}")
        return

    # The CXR is compared with itself too: that row holds its AUC, and its difference is 0.
    for method, after in observed.items():
        result.observers[method] = observer.compare(observed[UNTOUCHED], after, images_present, images_absent, seed)


def normal_places(
    mask: np.ndarray, findings: list[Finding], pixel_mm: float, random: np.random.Generator
) -> np.ndarray:
    """(n, 2) columns and rows of up to NORMAL_PLACES places in the lungs, mask bool (H, W), away from findings and from
    each other."""
    # Findings are taken places from the start: a normal place must be away from them as from each other.
    inside = np.argwhere(mask)
    taken: list[tuple[float, float]] = [(finding.x, finding.y) for finding in findings]
    count = len(taken)
    for _ in range(NORMAL_PLACES if len(inside) else 0):
        # by rejection; a small lung may have room for fewer places
        for _ in range(TRIES):
            y, x = (int(value) for value in random.choice(inside))
            if all(math.hypot(x - other_x, y - other_y) * pixel_mm >= AWAY_MM for other_x, other_y in taken):
                taken.append((x, y))
                break
    return np.array(taken[count:], int).reshape(-1, 2)


def _crop(pixels: np.ndarray, finding: Finding) -> np.ndarray:
    """(CROP_SIZE, CROP_SIZE): the surroundings of a finding, black beyond the image."""
    # Large enough to show what surrounds the finding, and never a few magnified pixels.
    side = max(CROP_LEAST, round(CROP_REACH * finding.diameter))
    scale = CROP_SIZE / side
    # the finding's centre goes to the middle of the crop
    move = np.array([[scale, 0, CROP_SIZE / 2 - scale * finding.x], [0, scale, CROP_SIZE / 2 - scale * finding.y]])
    smaller = cv2.INTER_LINEAR if scale > 1 else cv2.INTER_AREA
    return cv2.warpAffine(pixels.astype(np.float32), move, (CROP_SIZE, CROP_SIZE), flags=smaller)
