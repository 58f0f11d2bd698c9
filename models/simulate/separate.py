"""A chest CT taken apart: soft tissue, bone, body and lungs, as volumes that `xray.project` sums along rays.

    part = separate.parts(hounsfield, spacing, labels)

The slices of a CT are thicker than a cortex: bone surfaces are found between the slices from distances inside each slice, and
the bone behind them is laid on again as a thin dense shell over spongy bone, keeping the CT's own amount of bone.
"""
from dataclasses import dataclass

import cv2
import numpy as np
from scipy import ndimage
from scipy.special import expit

from ..runtime.files import replacing
from .xray import Volume

TISSUE, COMPACT = 40.0, 1620.0  # Hounsfield units of muscle and of cortical bone (1.92 * 0.265 / 0.194 at 70 keV, `xray`'s tables)
BRIGHTEST = 70.0                # of soft tissue without contrast medium
UNIT = 1e-4                     # of the values of the volumes
SHARPEN = 0.3                   # gain along the body of what half a slice blurs
METAL = 1100                    # Hounsfield units that so much bone in one place does not reach
COARSE = 2.1                    # mm that make a voxel of the coarse volumes
ABOVE, BELOW = 70.0, 160.0      # mm of the CT kept above and below the lungs
LITRES = (0.8, 12.0)            # of air that a chest holds
CORTEX = 0.9                    # thickness of the shell, mm
SPONGY = 0.07                   # share of compact bone in spongy bone
AROUND = 3.0                    # mm over which the CT's amount of bone is kept
SHARE = (1.0, 1.2)              # of the shell and the spongy bone of a healthy adult that the CT's own amount can ask for
# Structures of an organ mask by name, as TotalSegmentator calls them
BONES = ("rib_", "vertebrae_", "sternum", "scapula", "clavicula", "humerus")
GRISTLE = ("costal_cartilages",)  # bone where it is calcified
ARMS = ("scapula", "clavicula", "humerus")


@dataclass(frozen=True, eq=False)
class Parts:
    """fine: tissue as water and, in its place, compact bone, (D, H, W, 2). coarse: body and lung, shares of the voxel, (d, h, w, 2).

    lungs: their box in mm from the volume's middle: right, left, top, bottom as a radiograph shows them.
    """
    fine: Volume
    coarse: Volume
    lungs: tuple


def parts(hounsfield: np.ndarray, spacing: tuple, labels: np.ndarray | None = None, names: dict | None = None) -> Parts:
    """Take a CT apart. hounsfield (D, H, W), axes as in `xray`; spacing in mm; labels (D, H, W) with {number: structure} or None.

    ValueError where the volume does not show two lungs in a body.
    """
    body, lungs = body_and_lungs(hounsfield, spacing)
    keep = _crop(body, lungs, spacing)
    hounsfield, body, lungs = (np.ascontiguousarray(volume[keep]) for volume in (hounsfield, body, lungs))
    if labels is not None:
        bone, arms = labelled_bone(hounsfield, labels[keep], names)
    else:
        bone, arms = guessed_bone(hounsfield, body, lungs, spacing)
    height = hounsfield.shape[1]
    rows = round(height * spacing[1] / spacing[2])
    water = _tissue(hounsfield, body, bone | arms, rows)
    compact = sharp_bone(hounsfield, bone & ~arms, spacing, rows)
    pair = 2 if spacing[0] < 1.0 else 1  # rays run along the depth, where a millimetre more makes no difference
    fine = np.stack([_pairs(volume, pair) for volume in (water, compact)], -1)
    coarse = np.stack([_shrink(volume, max(1, round(COARSE / spacing[2]))) for volume in (body, lungs)], -1)
    coarse_spacing = np.multiply(spacing, hounsfield.shape) / coarse.shape[:3]
    return Parts(Volume(fine, (spacing[0] * pair, height * spacing[1] / rows, spacing[2]), UNIT),
                 Volume(coarse, tuple(coarse_spacing.tolist()), UNIT), _box(lungs, spacing))


def _tissue(hounsfield, body, bone, rows) -> np.ndarray:
    """Tissue as water (D, rows, W), muscle in the place of bone; thick slices blur it along the body alone, which is mended a little."""
    soft = np.where(bone, TISSUE, np.minimum(hounsfield, BRIGHTEST)).astype(np.float32)
    soft = _between(np.where(body, soft, -1000), rows)
    soft += SHARPEN * (soft - ndimage.gaussian_filter1d(soft, rows / hounsfield.shape[1] / 2, axis=1))
    return np.clip((soft + 1000) / 1000, 0, 1 + BRIGHTEST / 1000)


def body_and_lungs(hounsfield: np.ndarray, spacing: tuple) -> tuple[np.ndarray, np.ndarray]:
    """bool (D, H, W) each: the body without table and clothes but with its air, and the air of the lungs."""
    step = tuple(max(1, round(2.0 / length)) for length in spacing)
    small = hounsfield[::step[0], ::step[1], ::step[2]]
    volume = np.prod(np.multiply(spacing, step)) / 1e6  # litres
    solid = small > -400
    tool = np.ones((3, 3), np.uint8)
    for row in range(solid.shape[1]):  # axial slices
        solid[:, row] = cv2.morphologyEx(solid[:, row].astype(np.uint8), cv2.MORPH_OPEN, tool, iterations=2)
    solid = _largest(solid)
    for row in range(solid.shape[1]):
        closed = cv2.morphologyEx(np.pad(solid[:, row].astype(np.uint8), 8), cv2.MORPH_CLOSE, tool, iterations=4)[8:-8, 8:-8]
        solid[:, row] = ndimage.binary_fill_holes(closed)
    air = ndimage.binary_opening(solid & (small < -450), iterations=2)
    number, count = ndimage.label(air)
    litres = np.bincount(number.ravel(), minlength=count + 1)[1:] * volume
    kept = [index + 1 for index in np.argsort(-litres)[:2] if litres[index] > max(0.25 * litres.max(), 0.2)] if count else []
    lungs = ndimage.binary_dilation(np.isin(number, kept), iterations=2) & (small < -450) & solid
    if not LITRES[0] <= lungs.sum() * volume <= LITRES[1]:
        raise ValueError(f"no lungs of {LITRES[0]:g} to {LITRES[1]:g} litres in it, but {lungs.sum() * volume:.2f}; is it a chest CT?")
    return tuple(_enlarge(mask, hounsfield.shape) for mask in (solid, lungs))


def labelled_bone(hounsfield, labels, names) -> tuple[np.ndarray, np.ndarray]:
    """bool (D, H, W) each: bone, and those of the raised arms, from an organ mask that is coarser than the CT."""
    def of(*starts):
        return np.isin(labels, [number for number, name in names.items() if name.startswith(starts)])

    bone, gristle, arms = of(*BONES), of(*GRISTLE), of(*ARMS)
    for row in range(bone.shape[1]):
        plane = hounsfield[:, row]
        metal = cv2.morphologyEx((plane > METAL).astype(np.uint8), cv2.MORPH_OPEN, np.ones((5, 5), np.uint8))
        near = (_grown(bone[:, row], 2) | gristle[:, row]) & (plane > 130) & ~_grown(metal, 3)
        bone[:, row] = bone[:, row] & (plane > -50) | near
        arms[:, row] = _grown(arms[:, row], 3) & (plane > 100)
    return bone, arms


def guessed_bone(hounsfield, body, lungs, spacing) -> tuple[np.ndarray, np.ndarray]:
    """As `labelled_bone`, from grey values and position alone.

    Bone lies around the chest and crosses its wall; contrast medium lies inside it, is even, or brighter than so thick a bone.
    """
    chest, spine, beside = _regions(lungs, spacing)
    round_, thick_round = (_disc(mm, spacing) for mm in (4, 8))
    window = (2 * round(2.5 / spacing[2]) + 1,) * 2
    lowest = np.flatnonzero(lungs.any((0, 2))).mean()
    dense = np.zeros(hounsfield.shape, bool)
    for row in range(hounsfield.shape[1]):
        plane = cv2.GaussianBlur(hounsfield[:, row].astype(np.float32), (0, 0), 0.7 / spacing[2])  # less noise
        mean = cv2.blur(plane, window)
        spread = np.sqrt(np.maximum(cv2.blur(plane * plane, window) - mean * mean, 0))
        even = (mean > 110) & (spread < np.where(spine[:, row], 16, 40))
        even = cv2.morphologyEx(even.astype(np.uint8), cv2.MORPH_OPEN, round_)
        metal = cv2.morphologyEx((hounsfield[:, row] > METAL).astype(np.uint8), cv2.MORPH_OPEN, np.ones((5, 5), np.uint8))
        dense[:, row] = body[:, row] & (hounsfield[:, row] > 180) & ~cv2.dilate(even | metal, round_).astype(bool)
    number, count = ndimage.label(dense)
    voxels, outside, hard = (np.bincount(number.ravel(), weight, count + 1) for weight in
                             (None, ~chest.ravel(), (hounsfield > 350).ravel()))
    kept = (voxels * np.prod(spacing) > 200) & (outside > 0.3 * voxels) & (hard > 0)  # mm^3
    kept[0] = False
    bone = kept[number]
    for row in range(bone.shape[1]):
        closed = cv2.morphologyEx(bone[:, row].astype(np.uint8), cv2.MORPH_CLOSE, round_)
        bone[:, row] = ndimage.binary_fill_holes(closed) & (hounsfield[:, row] > -50)
        if row > lowest:  # kidneys take up contrast medium; no bone beside the spine is as thick
            thick = cv2.morphologyEx(bone[:, row].astype(np.uint8), cv2.MORPH_OPEN, thick_round) & ~spine[:, row]
            bone[:, row] &= ~cv2.dilate(thick.astype(np.uint8), thick_round).astype(bool)
    return bone, bone & beside


def _regions(lungs, spacing) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """bool (D, H, W) each: the space inside the ribs; where the spine is; what lies beside the rib cage, above the lungs' middle."""
    chest, spine, beside = (np.zeros(lungs.shape, bool) for _ in range(3))
    rows, columns, slices = (np.flatnonzero(lungs.any(axes)) for axes in ((0, 2), (0, 1), (1, 2)))
    off_middle = np.abs(np.arange(lungs.shape[2]) - columns.mean()) * spacing[2]
    behind = np.arange(lungs.shape[0]) > slices[-1] - 60 / spacing[0]
    spine[:] = (behind[:, None] & (off_middle < 32))[:, None]
    wall, inner = (_disc(mm, spacing) for mm in (25, 4))
    for row in range(lungs.shape[1]):
        points = np.argwhere(lungs[:, row])[:, ::-1].astype(np.int32)
        far = np.ones(lungs[:, row].shape, bool)
        if len(points) > 50:
            hull = cv2.fillConvexPoly(np.zeros(far.shape, np.uint8), cv2.convexHull(points), 1)
            chest[:, row], far = cv2.erode(hull, inner), cv2.dilate(hull, wall) == 0
        if row < (rows[0] + rows[-1]) / 2:
            beside[:, row] = far & (off_middle > 60)
    return chest, spine, beside


def sharp_bone(hounsfield, bone, spacing, rows) -> np.ndarray:
    """Share of compact bone (D, rows, W): the CT's amount, in shells of CORTEX over spongy bone."""
    inside = np.empty(bone.shape, np.float32)
    for row in range(bone.shape[1]):
        mask = bone[:, row].astype(np.uint8)
        inside[:, row] = cv2.distanceTransform(mask, cv2.DIST_L2, 5) - cv2.distanceTransform(1 - mask, cv2.DIST_L2, 5)
    inside = _smooth(_between(np.clip(inside, -8, 8), rows), 0.6) * spacing[2]  # mm to the surface, below 0 outside
    amount = np.clip((hounsfield - TISSUE) / (COMPACT - TISSUE), 0, 1.2) * bone
    amount = _between(amount.astype(np.float32), rows)
    edge = expit(8 * inside)
    shell = edge * expit(8 * (CORTEX - inside))
    made = SPONGY * edge + (1 - SPONGY) * shell
    wide = AROUND / spacing[2]
    share = np.clip(_smooth(amount, wide) / (_smooth(made, wide) + 1e-3), *SHARE)
    return 0.8 * made * share + 0.2 * amount * edge


def save(part: Parts, path) -> None:
    """Write parts to an .npz file, whole or not at all."""
    with replacing(path) as temporary, open(temporary, "wb") as file:
        np.savez(file, fine=part.fine.values, fine_spacing=part.fine.spacing, coarse=part.coarse.values,
                 coarse_spacing=part.coarse.spacing, lungs=part.lungs)


def load(path) -> Parts:
    """Inverse of `save`."""
    with np.load(path) as file:
        fine, coarse = (Volume(file[name], tuple(file[f"{name}_spacing"].tolist()), UNIT) for name in ("fine", "coarse"))
        return Parts(fine, coarse, tuple(file["lungs"].tolist()))


# --- Helpers ---------------------------------------------------------------------------------------------------------------------

def _disc(radius, spacing):
    """A structuring element for axial slices; the radius in mm."""
    return cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * round(radius / spacing[2]) + 1,) * 2)


def _grown(plane, voxels):
    """bool (D, W): an axial slice's mask with a rim of so many voxels."""
    return cv2.dilate(plane.astype(np.uint8), np.ones((2 * voxels + 1,) * 2, np.uint8)).astype(bool)


def _largest(mask):
    number, count = ndimage.label(mask)
    return number == 1 + np.argmax(np.bincount(number.ravel(), minlength=2)[1:]) if count else mask


def _enlarge(mask, shape):
    """bool (d, h, w) -> bool (D, H, W) = shape, smooth inside the axial slices."""
    at = [np.minimum(np.arange(long) * short // long, short - 1) for long, short in zip(shape, mask.shape)]
    large = np.empty(shape, bool)
    for row, source in enumerate(at[1]):
        large[:, row] = cv2.resize(mask[:, source].astype(np.float32), (shape[2], shape[0]), interpolation=cv2.INTER_LINEAR) > 0.5
    return large


def _crop(body, lungs, spacing):
    """Slices of the part around the lungs, as wide as the body is there."""
    rows = np.flatnonzero(lungs.any((0, 2)))
    first, last = max(0, rows[0] - round(ABOVE / spacing[1])), rows[-1] + 1 + round(BELOW / spacing[1])
    part = body[:, first:last]
    sides = [np.flatnonzero(part.any(axes)) for axes in ((1, 2), (0, 1))]
    return slice(sides[0][0], sides[0][-1] + 1), slice(first, last), slice(sides[1][0], sides[1][-1] + 1)


def _smooth(volume, sigma):
    """Gaussian blur of (D, rows, W), in voxels."""
    planes = np.stack([cv2.GaussianBlur(plane, (0, 0), sigma) for plane in volume])
    return ndimage.gaussian_filter1d(planes, sigma, axis=0, truncate=3, output=planes)


def _between(volume, rows):
    """(D, H, W) -> float32 (D, rows, W): cubic between the axial slices."""
    shape = (volume.shape[2], rows)
    return np.stack([cv2.resize(plane.astype(np.float32), shape, interpolation=cv2.INTER_CUBIC) for plane in volume])


def _pairs(volume, count):
    """Mean of each `count` slices, as uint16 in UNIT."""
    volume = np.pad(volume, ((0, -len(volume) % count), (0, 0), (0, 0)))
    return np.rint(np.clip(volume.reshape(-1, count, *volume.shape[1:]).mean(1), 0, 6) / UNIT).astype(np.uint16)


def _shrink(mask, count):
    """bool (D, H, W) -> uint16 shares, about `count` voxels in one along front-back and left-right."""
    depth, height, width = mask.shape
    shape = (-(-width // count), -(-depth // count))
    return np.stack([np.rint(cv2.resize(mask[:, row].astype(np.float32), shape, interpolation=cv2.INTER_AREA) / UNIT)
                     for row in range(height)], 1).astype(np.uint16)


def _box(lungs, spacing):
    """right, left, top, bottom of the lungs, mm from the volume's middle; a few stray voxels do not count.

    The bottom is where the diaphragm hides the lungs: where an axial slice has half of the largest one's air.
    """
    area = lungs.sum((0, 2))
    columns, rows = (np.cumsum(part) / part.sum() for part in (lungs.sum((0, 1)), area))
    right, left = (np.searchsorted(columns, part) for part in (0.004, 0.996))
    top, bottom = np.searchsorted(rows, 0.004), np.flatnonzero(area > 0.5 * area.max())[-1]
    return tuple(float((index + 0.5 - lungs.shape[axis] / 2) * spacing[axis]) for index, axis in
                 ((right, 2), (left, 2), (top, 1), (bottom, 1)))
