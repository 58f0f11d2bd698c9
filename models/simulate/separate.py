"""A chest CT taken apart: soft tissue, bone, body and lungs, as volumes that `xray.project` sums along rays.

    part = separate.parts(hounsfield, spacing, labels)

The slices of a CT are thicker than a cortex: bone surfaces are found between the slices from distances inside each
slice, and the bone behind them is laid on again as a thin dense shell over spongy bone, keeping the CT's own amount of
bone.

A volume is (D, H, W) with axes as in `xray`: volume[:, row] is an axial slice (D, W).
"""

import math
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from scipy import ndimage
from scipy.special import expit

from ..runtime.files import replacing
from .field import disc
from .xray import Volume

Spacing = tuple[float, float, float]  # mm along D, H, W

# Hounsfield units
TISSUE = 40.0  # of muscle
AIR = -1000  # all around the body
COMPACT = 1620.0  # of cortical bone (1.92 * 0.265 / 0.194 at 70 keV, `xray`'s tables)
BRIGHTEST = 70.0  # of soft tissue without contrast medium
# Above METAL a patch of METAL_SIDE voxels squared is metal; cortical bone never averages that over such an area.
METAL = 1100
METAL_SIDE = 5
SOLID = -400  # above it there is body
AIRY = -450  # below it there is air in the lungs
MARROW = -50  # above it is all that a bone holds
DENSE = 180  # above it there may be bone
DENSE_BESIDE_LABELS = 130  # above it there is bone, next to voxels that an organ mask calls bone
DENSE_ARM = 100  # above it there is bone in the raised arms
HARD = 350  # above it is some of each bone
CONTRAST = 110  # above it is the mean of contrast medium

UNIT = 1e-4  # of the values of the volumes
SHARPEN = 0.3  # gain along the body of what half a slice blurs
COARSE = 2.1  # mm that make a voxel of the coarse volumes
ABOVE, BELOW = 70.0, 160.0  # mm of the CT kept above and below the lungs
LITRES = (0.8, 12.0)  # of air that a chest holds
CORTEX = 0.9  # thickness of the shell, mm
SPONGY = 0.07  # share of compact bone in spongy bone
AROUND = 3.0  # mm over which the CT's amount of bone is kept
SHARE = (1.0, 1.2)  # of the shell and the spongy bone of a healthy adult that the CT's own amount can ask for
# Structures of an organ mask by name, as TotalSegmentator calls them
BONES = ("rib_", "vertebrae_", "sternum", "scapula", "clavicula", "humerus")
GRISTLE = ("costal_cartilages",)  # bone where it is calcified
ARMS = ("scapula", "clavicula", "humerus")


@dataclass(frozen=True, eq=False)
class Parts:
    """fine: tissue as water and, in its place, compact bone, (D, H, W, 2). coarse: body and lung, shares of the voxel,
    (d, h, w, 2).

    lungs: their box in mm from the volume's middle: right, left, top, bottom as a radiograph shows them.
    """

    fine: Volume
    coarse: Volume
    lungs: tuple[float, float, float, float]


def parts(
    hounsfield: np.ndarray, spacing: Spacing, labels: np.ndarray | None = None, names: dict[int, str] | None = None
) -> Parts:
    """Take a CT apart. hounsfield (D, H, W), axes as in `xray`; spacing in mm; labels (D, H, W) with {number:
    structure} or None.

    ValueError where the volume does not show two lungs in a body.
    """
    # Of the CT only what lies around the lungs
    body, lungs = body_and_lungs(hounsfield, spacing)
    crop = _crop(body, lungs, spacing)
    hounsfield = np.ascontiguousarray(hounsfield[crop])
    body = np.ascontiguousarray(body[crop])
    lungs = np.ascontiguousarray(lungs[crop])

    # Bone, and what of it belongs to the raised arms, which a radiograph does not show so
    if labels is None:
        bone, arms = guessed_bone(hounsfield, body, lungs, spacing)
    else:
        bone, arms = labelled_bone(hounsfield, labels[crop], names or {})

    # Fine volumes have as many rows along the body as a slice has across it.
    depth_mm, height_mm, width_mm = spacing
    height = hounsfield.shape[1]
    rows = round(height * height_mm / width_mm)
    row_mm = height * height_mm / rows
    water = _tissue(hounsfield, body, bone | arms, rows)  # (D, rows, W)
    compact = sharp_bone(hounsfield, bone & ~arms, spacing, rows)  # (D, rows, W)

    # Rays run along the depth, where a millimetre more makes no difference.
    count = 2 if depth_mm < 1.0 else 1
    fine = np.stack([_mean_slices(water, count), _mean_slices(compact, count)], -1)  # (D / count, rows, W, 2)
    fine_spacing = (depth_mm * count, row_mm, width_mm)

    # Coarse volumes cover the same box in millimetres.
    coarse_count = max(1, round(COARSE / width_mm))
    coarse = np.stack([_shrink(body, coarse_count), _shrink(lungs, coarse_count)], -1)  # (d, h, w, 2)
    box_mm = np.multiply(spacing, hounsfield.shape)
    coarse_spacing = tuple((box_mm / coarse.shape[:3]).tolist())

    return Parts(
        fine=Volume(fine, fine_spacing, UNIT),
        coarse=Volume(coarse, coarse_spacing, UNIT),
        lungs=_box(lungs, spacing),
    )


def _tissue(hounsfield: np.ndarray, body: np.ndarray, bone: np.ndarray, rows: int) -> np.ndarray:
    """Tissue as water (D, rows, W), muscle in the place of bone; thick slices blur it along the body alone, which is
    mended a little."""
    # No bone, no contrast medium, no table
    soft = np.where(bone, TISSUE, np.minimum(hounsfield, BRIGHTEST)).astype(np.float32)
    soft = np.where(body, soft, AIR)

    # An unsharp mask along the body: soft + SHARPEN (soft - blurred)
    soft = _between(soft, rows)  # (D, rows, W)
    half_slice = rows / hounsfield.shape[1] / 2  # rows
    soft += SHARPEN * (soft - ndimage.gaussian_filter1d(soft, half_slice, axis=1))

    # Hounsfield's scale: water is 0, air -1000, so mu / mu_water = 1 + HU / 1000.
    brightest = 1 + BRIGHTEST / 1000
    return np.clip((soft + 1000) / 1000, 0, brightest)


# --- Body, lungs, bone ------------------------------------------------------------------------------------------------


def body_and_lungs(hounsfield: np.ndarray, spacing: Spacing) -> tuple[np.ndarray, np.ndarray]:
    """bool (D, H, W) each: the body without table and clothes but with its air, and the air of the lungs."""
    # At about 2 mm, which is enough for both
    step = tuple(max(1, round(2.0 / length)) for length in spacing)
    small = hounsfield[:: step[0], :: step[1], :: step[2]]  # (d, h, w)
    litres_a_voxel = np.prod(np.multiply(spacing, step)) / 1e6

    body = _body(small)
    lungs = _lungs(small, body, litres_a_voxel)
    litres = lungs.sum() * litres_a_voxel
    if not LITRES[0] <= litres <= LITRES[1]:
        raise ValueError(
            f"no lungs of {LITRES[0]:g} to {LITRES[1]:g} litres in it, but {litres:.2f}; is it a chest CT?"
        )
    return _enlarge(body, hounsfield.shape), _enlarge(lungs, hounsfield.shape)


def _body(hounsfield: np.ndarray) -> np.ndarray:
    """bool (d, h, w): the largest solid thing once thin things (table, clothes) are opened away, closed and filled in
    each axial slice."""
    square = np.ones((3, 3), np.uint8)
    solid = hounsfield > SOLID
    for row in range(solid.shape[1]):
        solid[:, row] = cv2.morphologyEx(solid[:, row].astype(np.uint8), cv2.MORPH_OPEN, square, iterations=2)
    body = _largest(solid)

    # Closed with a margin of air, since the body may reach the border of the slice
    margin = 8
    for row in range(body.shape[1]):
        padded = np.pad(body[:, row].astype(np.uint8), margin)
        closed = cv2.morphologyEx(padded, cv2.MORPH_CLOSE, square, iterations=4)
        body[:, row] = _holes_filled(closed[margin:-margin, margin:-margin])
    return body


def _lungs(hounsfield: np.ndarray, body: np.ndarray, litres_a_voxel: float) -> np.ndarray:
    """bool (d, h, w): the largest one or two airs inside the body."""
    # The opening parts the lungs from airways and bowel.
    airy = hounsfield < AIRY
    opened = ndimage.binary_opening(body & airy, iterations=2)
    number, count = _components(opened)
    voxels = np.bincount(number.ravel(), minlength=count + 1)[1:]  # (count,), without the outside
    litres = voxels * litres_a_voxel

    # None below 0.2 litres, nor a second one that is small against the first
    kept = []
    if count:
        least = max(0.25 * litres.max(), 0.2)
        for index in np.argsort(-litres)[:2]:
            if litres[index] > least:
                kept.append(index + 1)

    # What the opening took from their rims is given back.
    grown = np.asarray(ndimage.binary_dilation(np.isin(number, kept), iterations=2), bool)
    return grown & airy & body


def _metal(plane: np.ndarray) -> np.ndarray:
    """uint8 (D, W): the patches of metal in an axial slice of Hounsfield units."""
    square = np.ones((METAL_SIDE, METAL_SIDE), np.uint8)
    return cv2.morphologyEx((plane > METAL).astype(np.uint8), cv2.MORPH_OPEN, square)


def labelled_bone(hounsfield: np.ndarray, labels: np.ndarray, names: dict[int, str]) -> tuple[np.ndarray, np.ndarray]:
    """bool (D, H, W) each: bone, and those of the raised arms, from an organ mask that is coarser than the CT."""

    def of(starts: tuple[str, ...]) -> np.ndarray:
        numbers = [number for number, name in names.items() if name.startswith(starts)]
        return np.isin(labels, numbers)

    bone = of(BONES)
    gristle = of(GRISTLE)
    arms = of(ARMS)
    for row in range(bone.shape[1]):
        plane = hounsfield[:, row]  # (D, W)
        labelled = bone[:, row]

        # The mask's bone, and what is dense next to it or in gristle, but no metal
        near = _grown(labelled, 2) | gristle[:, row]
        near_metal = _grown(_metal(plane), 3)
        dense_nearby = near & (plane > DENSE_BESIDE_LABELS) & ~near_metal
        bone[:, row] = (labelled & (plane > MARROW)) | dense_nearby

        arms[:, row] = _grown(arms[:, row], 3) & (plane > DENSE_ARM)
    return bone, arms


def guessed_bone(
    hounsfield: np.ndarray, body: np.ndarray, lungs: np.ndarray, spacing: Spacing
) -> tuple[np.ndarray, np.ndarray]:
    """As `labelled_bone`, from grey values and position alone.

    Bone lies around the chest and crosses its wall; contrast medium lies inside it, is even, or brighter than so thick
    a bone.
    """
    chest, spine, beside = _regions(lungs, spacing)
    dense = np.empty(hounsfield.shape, bool)
    for row in range(hounsfield.shape[1]):
        dense[:, row] = body[:, row] & _dense(hounsfield[:, row], spine[:, row], spacing[2])
    bone = _in_the_wall(dense, hounsfield, chest, spacing)

    # Closed and filled in each axial slice
    small_disc = disc(4 / spacing[2])  # 4 mm
    large_disc = disc(8 / spacing[2])
    middle_of_lungs = np.flatnonzero(lungs.any((0, 2))).mean()
    for row in range(bone.shape[1]):
        closed = cv2.morphologyEx(bone[:, row].astype(np.uint8), cv2.MORPH_CLOSE, small_disc)
        filled = _holes_filled(closed) & (hounsfield[:, row] > MARROW)

        # Kidneys take up contrast medium; no bone beside the spine is as thick.
        if row > middle_of_lungs:
            opened = cv2.morphologyEx(filled.astype(np.uint8), cv2.MORPH_OPEN, large_disc)
            thick = opened & ~spine[:, row]
            kidney = cv2.dilate(thick.astype(np.uint8), large_disc).astype(bool)
            filled &= ~kidney
        bone[:, row] = filled
    return bone, bone & beside


def _dense(plane: np.ndarray, spine: np.ndarray, pixel_mm: float) -> np.ndarray:
    """bool (D, W): what of an axial slice of Hounsfield units is dense, but neither even (contrast medium) nor metal.

    spine: bool (D, W), where bone itself is more even.
    """
    # Mean and spread in a window of 5 mm: variance = mean of the squares - square of the mean
    quiet = cv2.GaussianBlur(plane.astype(np.float32), (0, 0), 0.7 / pixel_mm)  # less noise
    side = 2 * round(2.5 / pixel_mm) + 1
    mean = cv2.blur(quiet, (side, side))
    mean_square = cv2.blur(quiet * quiet, (side, side))
    variance = mean_square - mean * mean
    spread = np.sqrt(np.maximum(variance, 0))  # HU

    # Patches of contrast medium and of metal, with a rim of 4 mm that they blur into
    rim = disc(4 / pixel_mm)
    even = (mean > CONTRAST) & (spread < np.where(spine, 16, 40))
    contrast = cv2.morphologyEx(even.astype(np.uint8), cv2.MORPH_OPEN, rim)
    no_bone = cv2.dilate(np.maximum(contrast, _metal(plane)), rim).astype(bool)
    return (plane > DENSE) & ~no_bone


def _in_the_wall(dense: np.ndarray, hounsfield: np.ndarray, chest: np.ndarray, spacing: Spacing) -> np.ndarray:
    """bool (D, H, W): the dense components that are large, reach out of the chest and are hard somewhere."""
    number, count = _components(dense)
    number_of_each = number.ravel()
    voxels = np.bincount(number_of_each, None, count + 1)  # (count + 1,), the outside first
    voxels_outside = np.bincount(number_of_each, ~chest.ravel(), count + 1)
    voxels_hard = np.bincount(number_of_each, (hounsfield > HARD).ravel(), count + 1)

    large = voxels * np.prod(spacing) > 200  # mm^3
    reaches_out = voxels_outside > 0.3 * voxels
    kept = large & reaches_out & (voxels_hard > 0)
    kept[0] = False
    return kept[number]


def _regions(lungs: np.ndarray, spacing: Spacing) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """bool (D, H, W) each: the space inside the ribs; where the spine is; what lies beside the rib cage, above the
    lungs' middle."""
    depth_mm, _, width_mm = spacing
    depth, height, width = lungs.shape
    slices = np.flatnonzero(lungs.any((1, 2)))  # along the depth, from front to back
    rows = np.flatnonzero(lungs.any((0, 2)))
    columns = np.flatnonzero(lungs.any((0, 1)))

    # The spine: in the middle, and not more than 6 cm in front of the lungs' rear end. The same in all axial slices.
    off_middle = np.abs(np.arange(width) - columns.mean()) * width_mm  # (W,), mm
    behind = np.arange(depth) > slices[-1] - 60 / depth_mm  # (D,)
    spine_plane = behind[:, None] & (off_middle < 32)  # (D, W)
    spine = np.zeros(lungs.shape, bool)
    spine[:] = spine_plane[:, None]

    # The chest: the convex hull of the lungs in each axial slice, 4 mm smaller; 25 mm outside of it the arms begin
    chest = np.zeros(lungs.shape, bool)
    beside = np.zeros(lungs.shape, bool)
    inner = disc(4 / width_mm)
    wall = disc(25 / width_mm)
    middle_row = (rows[0] + rows[-1]) / 2
    for row in range(height):
        points = np.argwhere(lungs[:, row])[:, ::-1].astype(np.int32)  # (n, 2): x, y
        outside = np.ones((depth, width), bool)
        if len(points) > 50:
            hull = cv2.fillConvexPoly(np.zeros((depth, width), np.uint8), cv2.convexHull(points), 1)
            chest[:, row] = cv2.erode(hull, inner)
            outside = cv2.dilate(hull, wall) == 0
        if row < middle_row:
            beside[:, row] = outside & (off_middle > 60)
    return chest, spine, beside


def sharp_bone(hounsfield: np.ndarray, bone: np.ndarray, spacing: Spacing, rows: int) -> np.ndarray:
    """Share of compact bone (D, rows, W): the CT's amount, in shells of CORTEX over spongy bone."""
    # mm to the surface, below 0 outside: measured in the axial slices, interpolated between them
    inside = np.empty(bone.shape, np.float32)
    for row in range(bone.shape[1]):
        mask = bone[:, row].astype(np.uint8)
        depth_inside = cv2.distanceTransform(mask, cv2.DIST_L2, 5)  # voxels
        distance_outside = cv2.distanceTransform(1 - mask, cv2.DIST_L2, 5)
        inside[:, row] = depth_inside - distance_outside
    inside = _between(np.clip(inside, -8, 8), rows)  # (D, rows, W)
    inside = _smooth(inside, 0.6) * spacing[2]

    # The bone of a healthy adult behind that surface: spongy, and compact in the shell.
    # Logistic steps of 8 per mm rise from 10 to 90 % within 0.55 mm, less than a voxel of most CTs.
    edge = expit(8 * inside)
    shell = edge * expit(8 * (CORTEX - inside))
    healthy = SPONGY * edge + (1 - SPONGY) * shell

    # The CT's amount: 0 in muscle, 1 in compact bone
    amount = np.clip((hounsfield - TISSUE) / (COMPACT - TISSUE), 0, 1.2) * bone
    amount = _between(amount.astype(np.float32), rows)  # (D, rows, W)

    # As much of the healthy bone as the CT has round about; the 1e-3 is for where there is no bone.
    sigma = AROUND / spacing[2]  # voxels
    share = _smooth(amount, sigma) / (_smooth(healthy, sigma) + 1e-3)
    share = np.clip(share, *SHARE)

    # A fifth is the CT's own bone, which keeps its texture.
    return 0.8 * healthy * share + 0.2 * amount * edge


# --- Files ------------------------------------------------------------------------------------------------------------


def save(part: Parts, path: str | Path) -> None:
    """Write parts to an .npz file, whole or not at all."""
    with replacing(path) as temporary, open(temporary, "wb") as file:
        np.savez(
            file,
            fine=part.fine.values,
            fine_spacing=part.fine.spacing,
            coarse=part.coarse.values,
            coarse_spacing=part.coarse.spacing,
            lungs=part.lungs,
        )


def load(path: str | Path) -> Parts:
    """Inverse of `save`."""
    with np.load(path) as file:
        fine = Volume(file["fine"], tuple(file["fine_spacing"].tolist()), UNIT)
        coarse = Volume(file["coarse"], tuple(file["coarse_spacing"].tolist()), UNIT)
        return Parts(fine, coarse, tuple(file["lungs"].tolist()))


# --- Helpers ----------------------------------------------------------------------------------------------------------


def _grown(plane: np.ndarray, voxels: int) -> np.ndarray:
    """bool (D, W): an axial slice's mask with a rim of so many voxels."""
    side = 2 * voxels + 1
    return cv2.dilate(plane.astype(np.uint8), np.ones((side, side), np.uint8)).astype(bool)


def _components(mask: np.ndarray) -> tuple[np.ndarray, int]:
    """(the number of each voxel's connected component, 0 outside; how many there are)."""
    number = np.zeros(mask.shape, np.int32)
    count = ndimage.label(mask, output=number)
    return number, int(count)  # pyright: ignore[reportArgumentType]  (an int, where there is an output)


def _holes_filled(plane: np.ndarray) -> np.ndarray:
    """bool (D, W): an axial slice's mask without holes."""
    return np.asarray(ndimage.binary_fill_holes(plane), bool)


def _largest(mask: np.ndarray) -> np.ndarray:
    """The largest connected component of a mask."""
    number, count = _components(mask)
    if not count:
        return mask
    voxels = np.bincount(number.ravel(), minlength=2)[1:]
    return number == 1 + np.argmax(voxels)


def _enlarge(mask: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """bool (d, h, w) -> bool (D, H, W) = shape, smooth inside the axial slices."""
    depth, height, width = shape
    small_height = mask.shape[1]
    nearest_row = np.arange(height) * small_height // height
    nearest_row = np.minimum(nearest_row, small_height - 1)
    large = np.empty(shape, bool)
    for row in range(height):
        plane = mask[:, nearest_row[row]].astype(np.float32)  # (d, w)
        large[:, row] = cv2.resize(plane, (width, depth), interpolation=cv2.INTER_LINEAR) > 0.5
    return large


def _crop(body: np.ndarray, lungs: np.ndarray, spacing: Spacing) -> tuple[slice, slice, slice]:
    """Slices of the part around the lungs, as wide as the body is there."""
    lung_rows = np.flatnonzero(lungs.any((0, 2)))
    top = max(0, lung_rows[0] - round(ABOVE / spacing[1]))
    bottom = lung_rows[-1] + 1 + round(BELOW / spacing[1])
    along = slice(top, bottom)

    around = body[:, along]
    slices = np.flatnonzero(around.any((1, 2)))
    columns = np.flatnonzero(around.any((0, 1)))
    deep = slice(slices[0], slices[-1] + 1)
    across = slice(columns[0], columns[-1] + 1)
    return deep, along, across


def _smooth(volume: np.ndarray, sigma: float) -> np.ndarray:
    """Gaussian blur of (D, rows, W), in voxels."""
    planes = np.stack([cv2.GaussianBlur(plane, (0, 0), sigma) for plane in volume])
    return ndimage.gaussian_filter1d(planes, sigma, axis=0, truncate=3, output=planes)


def _between(volume: np.ndarray, rows: int) -> np.ndarray:
    """(D, H, W) -> float32 (D, rows, W): cubic between the axial slices."""
    planes = []
    for plane in volume:
        size = (plane.shape[1], rows)  # width first, as OpenCV has it
        planes.append(cv2.resize(plane.astype(np.float32), size, interpolation=cv2.INTER_CUBIC))
    return np.stack(planes)


def _mean_slices(volume: np.ndarray, count: int) -> np.ndarray:
    """Mean of each `count` slices along D, as uint16 in UNIT."""
    missing = -len(volume) % count
    padded = np.pad(volume, ((0, missing), (0, 0), (0, 0)))
    grouped = padded.reshape(-1, count, *padded.shape[1:])  # (D / count, count, rows, W)
    means = np.clip(grouped.mean(1), 0, 6)  # 6 / UNIT still fits uint16
    return np.rint(means / UNIT).astype(np.uint16)


def _shrink(mask: np.ndarray, count: int) -> np.ndarray:
    """bool (D, H, W) -> uint16 shares (d, H, w), about `count` voxels in one along front-back and left-right."""
    depth, height, width = mask.shape
    size = (math.ceil(width / count), math.ceil(depth / count))  # width first, as OpenCV has it
    planes = []
    for row in range(height):
        share = cv2.resize(mask[:, row].astype(np.float32), size, interpolation=cv2.INTER_AREA)
        planes.append(np.rint(share / UNIT))
    return np.stack(planes, 1).astype(np.uint16)


def _box(lungs: np.ndarray, spacing: Spacing) -> tuple[float, float, float, float]:
    """right, left, top, bottom of the lungs, mm from the volume's middle; a few stray voxels do not count.

    The bottom is where the diaphragm hides the lungs: where an axial slice has half of the largest one's air.
    """
    air_of_rows = lungs.sum((0, 2))
    air_of_columns = lungs.sum((0, 1))
    row_shares = np.cumsum(air_of_rows) / air_of_rows.sum()
    column_shares = np.cumsum(air_of_columns) / air_of_columns.sum()

    right = np.searchsorted(column_shares, 0.004)
    left = np.searchsorted(column_shares, 0.996)
    top = np.searchsorted(row_shares, 0.004)
    full_rows = np.flatnonzero(air_of_rows > 0.5 * air_of_rows.max())
    bottom = full_rows[-1]

    def mm(index, axis: int) -> float:
        middle = lungs.shape[axis] / 2
        return float((index + 0.5 - middle) * spacing[axis])

    return mm(right, 2), mm(left, 2), mm(top, 1), mm(bottom, 1)
