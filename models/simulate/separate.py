"""A chest CT taken apart: soft tissue, bone, body and lungs, as volumes that `xray.project` sums along rays.

    part = separate.parts(hounsfield, spacing, labels)

The slices of a CT are thicker than a cortex: bone surfaces are found between the slices from distances inside each
slice, and the bone behind them is laid on again as a thin dense shell over spongy bone, keeping the CT's own amount of
bone.

A volume is (D, H, W) with axes as in `xray`: volume[:, row] is an axial slice (D, W).
"""

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
METAL = (
    1100  # above it a patch of METAL_SIDE voxels squared is metal; cortical bone never averages that over such an area
)
METAL_SIDE = 5
SOLID = -400  # above it there is body
AIRY = -450  # below it there is air in the lungs

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
    # The part of the CT around the lungs
    body, lungs = body_and_lungs(hounsfield, spacing)
    keep = _crop(body, lungs, spacing)
    hounsfield, body, lungs = (np.ascontiguousarray(volume[keep]) for volume in (hounsfield, body, lungs))

    # Bone, and what of it belongs to the raised arms, which a radiograph does not show so
    if labels is not None:
        bone, arms = labelled_bone(hounsfield, labels[keep], names or {})
    else:
        bone, arms = guessed_bone(hounsfield, body, lungs, spacing)

    # Fine volumes have as many rows along the body as a slice has across it.
    height = hounsfield.shape[1]
    rows = round(height * spacing[1] / spacing[2])
    water = _tissue(hounsfield, body, bone | arms, rows)
    compact = sharp_bone(hounsfield, bone & ~arms, spacing, rows)
    count = 2 if spacing[0] < 1.0 else 1  # rays run along the depth, where a millimetre more makes no difference
    fine = np.stack([_mean_slices(volume, count) for volume in (water, compact)], -1)
    fine_spacing = (spacing[0] * count, height * spacing[1] / rows, spacing[2])

    coarse = np.stack([_shrink(volume, max(1, round(COARSE / spacing[2]))) for volume in (body, lungs)], -1)
    coarse_spacing = np.multiply(spacing, hounsfield.shape) / coarse.shape[:3]
    return Parts(
        Volume(fine, fine_spacing, UNIT), Volume(coarse, tuple(coarse_spacing.tolist()), UNIT), _box(lungs, spacing)
    )


def _tissue(hounsfield: np.ndarray, body: np.ndarray, bone: np.ndarray, rows: int) -> np.ndarray:
    """Tissue as water (D, rows, W), muscle in the place of bone; thick slices blur it along the body alone, which is
    mended a little."""
    soft = np.where(bone, TISSUE, np.minimum(hounsfield, BRIGHTEST)).astype(np.float32)
    soft = _between(np.where(body, soft, AIR), rows)
    half_slice = rows / hounsfield.shape[1] / 2
    soft += SHARPEN * (soft - ndimage.gaussian_filter1d(soft, half_slice, axis=1))
    # Hounsfield's scale: water is 0, air -1000, so mu / mu_water = 1 + HU / 1000.
    return np.clip((soft + 1000) / 1000, 0, 1 + BRIGHTEST / 1000)


# --- Body, lungs, bone ------------------------------------------------------------------------------------------------


def body_and_lungs(hounsfield: np.ndarray, spacing: Spacing) -> tuple[np.ndarray, np.ndarray]:
    """bool (D, H, W) each: the body without table and clothes but with its air, and the air of the lungs."""
    # At about 2 mm, which is enough for both
    step = tuple(max(1, round(2.0 / length)) for length in spacing)
    small = hounsfield[:: step[0], :: step[1], :: step[2]]
    litres_a_voxel = np.prod(np.multiply(spacing, step)) / 1e6

    # The body: the largest solid thing once thin things (table, clothes) are opened away, closed and filled in each
    # axial slice
    solid = small > SOLID
    tool = np.ones((3, 3), np.uint8)
    for row in range(solid.shape[1]):
        solid[:, row] = cv2.morphologyEx(solid[:, row].astype(np.uint8), cv2.MORPH_OPEN, tool, iterations=2)
    solid = _largest(solid)
    for row in range(solid.shape[1]):
        padded = np.pad(solid[:, row].astype(np.uint8), 8)
        closed = cv2.morphologyEx(padded, cv2.MORPH_CLOSE, tool, iterations=4)[8:-8, 8:-8]
        solid[:, row] = _holes_filled(closed)

    # The lungs: the largest one or two airs inside it
    air = ndimage.binary_opening(solid & (small < AIRY), iterations=2)
    number, count = _components(air)
    litres = np.bincount(number.ravel(), minlength=count + 1)[1:] * litres_a_voxel
    kept = []
    if count:
        kept = [index + 1 for index in np.argsort(-litres)[:2] if litres[index] > max(0.25 * litres.max(), 0.2)]
    grown = np.asarray(ndimage.binary_dilation(np.isin(number, kept), iterations=2), bool)
    lungs = grown & (small < AIRY) & solid
    total = lungs.sum() * litres_a_voxel
    if not LITRES[0] <= total <= LITRES[1]:
        raise ValueError(f"no lungs of {LITRES[0]:g} to {LITRES[1]:g} litres in it, but {total:.2f}; is it a chest CT?")
    return _enlarge(solid, hounsfield.shape), _enlarge(lungs, hounsfield.shape)


def _metal(plane: np.ndarray) -> np.ndarray:
    """uint8 (D, W): the patches of metal in an axial slice of Hounsfield units."""
    return cv2.morphologyEx(
        (plane > METAL).astype(np.uint8), cv2.MORPH_OPEN, np.ones((METAL_SIDE, METAL_SIDE), np.uint8)
    )


def labelled_bone(hounsfield: np.ndarray, labels: np.ndarray, names: dict[int, str]) -> tuple[np.ndarray, np.ndarray]:
    """bool (D, H, W) each: bone, and those of the raised arms, from an organ mask that is coarser than the CT."""

    def of(starts: tuple[str, ...]) -> np.ndarray:
        return np.isin(labels, [number for number, name in names.items() if name.startswith(starts)])

    bone = of(BONES)
    gristle = of(GRISTLE)
    arms = of(ARMS)
    for row in range(bone.shape[1]):
        plane = hounsfield[:, row]
        dense_nearby = (_grown(bone[:, row], 2) | gristle[:, row]) & (plane > 130) & ~_grown(_metal(plane), 3)
        bone[:, row] = bone[:, row] & (plane > -50) | dense_nearby
        arms[:, row] = _grown(arms[:, row], 3) & (plane > 100)
    return bone, arms


def guessed_bone(
    hounsfield: np.ndarray, body: np.ndarray, lungs: np.ndarray, spacing: Spacing
) -> tuple[np.ndarray, np.ndarray]:
    """As `labelled_bone`, from grey values and position alone.

    Bone lies around the chest and crosses its wall; contrast medium lies inside it, is even, or brighter than so thick
    a bone.
    """
    chest, spine, beside = _regions(lungs, spacing)
    small_disc = disc(4 / spacing[2])  # 4 and 8 mm
    large_disc = disc(8 / spacing[2])

    # What is dense, but neither even (contrast medium) nor metal
    window_side = 2 * round(2.5 / spacing[2]) + 1
    dense = np.zeros(hounsfield.shape, bool)
    for row in range(hounsfield.shape[1]):
        plane = hounsfield[:, row]
        quiet = cv2.GaussianBlur(plane.astype(np.float32), (0, 0), 0.7 / spacing[2])  # less noise
        mean = cv2.blur(quiet, (window_side, window_side))
        spread = np.sqrt(np.maximum(cv2.blur(quiet * quiet, (window_side, window_side)) - mean * mean, 0))
        even = (mean > 110) & (spread < np.where(spine[:, row], 16, 40))
        contrast = cv2.morphologyEx(even.astype(np.uint8), cv2.MORPH_OPEN, small_disc)
        no_bone = cv2.dilate(np.maximum(contrast, _metal(plane)), small_disc).astype(bool)
        dense[:, row] = body[:, row] & (plane > 180) & ~no_bone

    # Of that, what is large, reaches out of the chest and is hard somewhere
    number, count = _components(dense)
    voxels = np.bincount(number.ravel(), None, count + 1)
    outside = np.bincount(number.ravel(), ~chest.ravel(), count + 1)
    hard = np.bincount(number.ravel(), (hounsfield > 350).ravel(), count + 1)
    kept = (voxels * np.prod(spacing) > 200) & (outside > 0.3 * voxels) & (hard > 0)  # mm^3
    kept[0] = False
    bone = kept[number]

    # Closed and filled in each axial slice. Kidneys take up contrast medium; no bone beside the spine is as thick.
    lowest = np.flatnonzero(lungs.any((0, 2))).mean()
    for row in range(bone.shape[1]):
        closed = cv2.morphologyEx(bone[:, row].astype(np.uint8), cv2.MORPH_CLOSE, small_disc)
        bone[:, row] = _holes_filled(closed) & (hounsfield[:, row] > -50)
        if row > lowest:
            thick = cv2.morphologyEx(bone[:, row].astype(np.uint8), cv2.MORPH_OPEN, large_disc) & ~spine[:, row]
            bone[:, row] &= ~cv2.dilate(thick.astype(np.uint8), large_disc).astype(bool)
    return bone, bone & beside


def _regions(lungs: np.ndarray, spacing: Spacing) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """bool (D, H, W) each: the space inside the ribs; where the spine is; what lies beside the rib cage, above the
    lungs' middle."""
    chest = np.zeros(lungs.shape, bool)
    spine = np.zeros(lungs.shape, bool)
    beside = np.zeros(lungs.shape, bool)
    rows, columns, slices = (np.flatnonzero(lungs.any(axes)) for axes in ((0, 2), (0, 1), (1, 2)))

    # The spine: in the middle, and not more than 6 cm in front of the lungs' rear end
    off_middle = np.abs(np.arange(lungs.shape[2]) - columns.mean()) * spacing[2]  # mm
    behind = np.arange(lungs.shape[0]) > slices[-1] - 60 / spacing[0]
    spine[:] = (behind[:, None] & (off_middle < 32))[:, None]

    # The chest: the convex hull of the lungs in each axial slice, 4 mm smaller; 25 mm outside of it the arms begin
    inner = disc(4 / spacing[2])
    wall = disc(25 / spacing[2])
    for row in range(lungs.shape[1]):
        points = np.argwhere(lungs[:, row])[:, ::-1].astype(np.int32)
        far = np.ones(lungs[:, row].shape, bool)
        if len(points) > 50:
            hull = cv2.fillConvexPoly(np.zeros(far.shape, np.uint8), cv2.convexHull(points), 1)
            chest[:, row] = cv2.erode(hull, inner)
            far = cv2.dilate(hull, wall) == 0
        if row < (rows[0] + rows[-1]) / 2:
            beside[:, row] = far & (off_middle > 60)
    return chest, spine, beside


def sharp_bone(hounsfield: np.ndarray, bone: np.ndarray, spacing: Spacing, rows: int) -> np.ndarray:
    """Share of compact bone (D, rows, W): the CT's amount, in shells of CORTEX over spongy bone."""
    # mm to the surface, below 0 outside: measured in the axial slices, interpolated between them
    inside = np.empty(bone.shape, np.float32)
    for row in range(bone.shape[1]):
        mask = bone[:, row].astype(np.uint8)
        inside[:, row] = cv2.distanceTransform(mask, cv2.DIST_L2, 5) - cv2.distanceTransform(1 - mask, cv2.DIST_L2, 5)
    inside = _smooth(_between(np.clip(inside, -8, 8), rows), 0.6) * spacing[2]

    # The bone of a healthy adult behind that surface, then as much of it as the CT has
    # Logistic steps of 8 per mm rise from 10 to 90 % within 0.55 mm, less than a voxel of most CTs.
    edge = expit(8 * inside)
    shell = edge * expit(8 * (CORTEX - inside))
    made = SPONGY * edge + (1 - SPONGY) * shell
    amount = np.clip((hounsfield - TISSUE) / (COMPACT - TISSUE), 0, 1.2) * bone
    amount = _between(amount.astype(np.float32), rows)
    wide = AROUND / spacing[2]
    share = np.clip(_smooth(amount, wide) / (_smooth(made, wide) + 1e-3), *SHARE)

    # A fifth is the CT's own bone, which keeps its texture.
    return 0.8 * made * share + 0.2 * amount * edge


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
    short = mask.shape[1]
    source_rows = np.minimum(np.arange(height) * short // height, short - 1)
    large = np.empty(shape, bool)
    for row, source in enumerate(source_rows):
        plane = mask[:, source].astype(np.float32)
        large[:, row] = cv2.resize(plane, (width, depth), interpolation=cv2.INTER_LINEAR) > 0.5
    return large


def _crop(body: np.ndarray, lungs: np.ndarray, spacing: Spacing) -> tuple[slice, slice, slice]:
    """Slices of the part around the lungs, as wide as the body is there."""
    rows = np.flatnonzero(lungs.any((0, 2)))
    first = max(0, rows[0] - round(ABOVE / spacing[1]))
    last = rows[-1] + 1 + round(BELOW / spacing[1])
    around = body[:, first:last]
    deep = np.flatnonzero(around.any((1, 2)))
    wide = np.flatnonzero(around.any((0, 1)))
    return slice(deep[0], deep[-1] + 1), slice(first, last), slice(wide[0], wide[-1] + 1)


def _smooth(volume: np.ndarray, sigma: float) -> np.ndarray:
    """Gaussian blur of (D, rows, W), in voxels."""
    planes = np.stack([cv2.GaussianBlur(plane, (0, 0), sigma) for plane in volume])
    return ndimage.gaussian_filter1d(planes, sigma, axis=0, truncate=3, output=planes)


def _between(volume: np.ndarray, rows: int) -> np.ndarray:
    """(D, H, W) -> float32 (D, rows, W): cubic between the axial slices."""
    shape = (volume.shape[2], rows)
    return np.stack([cv2.resize(plane.astype(np.float32), shape, interpolation=cv2.INTER_CUBIC) for plane in volume])


def _mean_slices(volume: np.ndarray, count: int) -> np.ndarray:
    """Mean of each `count` slices along D, as uint16 in UNIT."""
    padded = np.pad(volume, ((0, -len(volume) % count), (0, 0), (0, 0)))
    means = padded.reshape(-1, count, *padded.shape[1:]).mean(1)
    return np.rint(np.clip(means, 0, 6) / UNIT).astype(np.uint16)


def _shrink(mask: np.ndarray, count: int) -> np.ndarray:
    """bool (D, H, W) -> uint16 shares, about `count` voxels in one along front-back and left-right."""
    depth, height, width = mask.shape
    shape = (-(-width // count), -(-depth // count))
    planes = []
    for row in range(height):
        share = cv2.resize(mask[:, row].astype(np.float32), shape, interpolation=cv2.INTER_AREA)
        planes.append(np.rint(share / UNIT))
    return np.stack(planes, 1).astype(np.uint16)


def _box(lungs: np.ndarray, spacing: Spacing) -> tuple[float, float, float, float]:
    """right, left, top, bottom of the lungs, mm from the volume's middle; a few stray voxels do not count.

    The bottom is where the diaphragm hides the lungs: where an axial slice has half of the largest one's air.
    """
    of_rows = lungs.sum((0, 2))
    of_columns = lungs.sum((0, 1))
    row_shares = np.cumsum(of_rows) / of_rows.sum()
    column_shares = np.cumsum(of_columns) / of_columns.sum()
    right = np.searchsorted(column_shares, 0.004)
    left = np.searchsorted(column_shares, 0.996)
    top = np.searchsorted(row_shares, 0.004)
    bottom = np.flatnonzero(of_rows > 0.5 * of_rows.max())[-1]

    def mm(index, axis: int) -> float:
        return float((index + 0.5 - lungs.shape[axis] / 2) * spacing[axis])

    return mm(right, 2), mm(left, 2), mm(top, 1), mm(bottom, 1)
