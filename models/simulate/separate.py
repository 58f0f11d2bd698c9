"""A chest CT taken apart: soft tissue, bone, body and lungs, as volumes that `xray.project` sums along rays.

    part = separate.parts(hounsfield, spacing, labels)

The slices of a CT are thicker than a cortex: bone surfaces are found between the slices from distances inside each
slice, and the bone behind them is laid on again as a thin dense shell over spongy bone, keeping the CT's own amount of
bone.

A volume is (D, H, W) with axes as in `xray`: volume[:, row] is an axial slice (D, W).
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import ndimage

from ..runtime.files import replacing
from .ct_bone import TISSUE, guessed_bone, labelled_bone, sharp_bone
from .field import closed, opened, square
from .voxels import UNIT, Spacing, between, components, enlarge, holes_filled, largest, mean_slices, shrink
from .xray import Volume

# Hounsfield units
AIR = -1000  # all around the body
BRIGHTEST = 70.0  # of soft tissue without contrast medium
SOLID = -400  # above it there is body
AIRY = -450  # below it there is air in the lungs

SHARPEN = 0.3  # gain along the body of what half a slice blurs
COARSE = 2.1  # mm that make a voxel of the coarse volumes
# mm of the CT kept above and below the lungs
ABOVE = 70.0
BELOW = 160.0
LITRES = (0.8, 12.0)  # of air that a chest holds, from and to
SAMPLING = 2.0  # mm at which body and lungs are looked for, which is enough for both


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
    water = tissue(hounsfield, body, bone | arms, rows)  # (D, rows, W)
    compact = sharp_bone(hounsfield, bone & ~arms, spacing, rows)  # (D, rows, W)

    # Rays run along the depth, where a millimetre more makes no difference.
    count = 2 if depth_mm < 1.0 else 1
    fine = np.stack([mean_slices(water, count), mean_slices(compact, count)], -1)  # (D / count, rows, W, 2)
    fine_spacing = (depth_mm * count, row_mm, width_mm)

    # Coarse volumes cover the same box in millimetres.
    coarse_count = max(1, round(COARSE / width_mm))
    coarse = np.stack([shrink(body, coarse_count), shrink(lungs, coarse_count)], -1)  # (d, h, w, 2)
    box_mm = np.multiply(spacing, hounsfield.shape)
    coarse_spacing = tuple((box_mm / coarse.shape[:3]).tolist())

    return Parts(
        fine=Volume(fine, fine_spacing, UNIT),
        coarse=Volume(coarse, coarse_spacing, UNIT),
        lungs=_box(lungs, spacing),
    )


def tissue(hounsfield: np.ndarray, body: np.ndarray, bone: np.ndarray, rows: int) -> np.ndarray:
    """Tissue as water (D, rows, W), muscle in the place of bone; thick slices blur it along the body alone, which is
    mended a little."""
    # No bone, no contrast medium, no table
    without_contrast = np.minimum(hounsfield, BRIGHTEST)
    without_bone = np.where(bone, TISSUE, without_contrast).astype(np.float32)
    soft = np.where(body, without_bone, AIR)  # HU

    # An unsharp mask along the body: soft + SHARPEN (soft - blurred)
    soft = between(soft, rows)  # (D, rows, W)
    half_slice = rows / hounsfield.shape[1] / 2  # rows
    blurred = ndimage.gaussian_filter1d(soft, half_slice, axis=1)
    soft += SHARPEN * (soft - blurred)

    # Hounsfield's scale: water is 0, air -1000, so mu / mu_water = 1 + HU / 1000.
    brightest = 1 + BRIGHTEST / 1000
    return np.clip((soft + 1000) / 1000, 0, brightest)


# --- Body and lungs ---------------------------------------------------------------------------------------------------


def body_and_lungs(hounsfield: np.ndarray, spacing: Spacing) -> tuple[np.ndarray, np.ndarray]:
    """bool (D, H, W) each: the body without table and clothes but with its air, and the air of the lungs."""
    # Every few voxels, about SAMPLING apart
    steps = [max(1, round(SAMPLING / length)) for length in spacing]
    step_d, step_h, step_w = steps
    small = hounsfield[::step_d, ::step_h, ::step_w]  # (d, h, w)
    small_spacing = np.multiply(spacing, steps)  # mm
    litres_a_voxel = np.prod(small_spacing) / 1e6

    body = solid_body(small)
    lungs = _lungs(small, body, litres_a_voxel)
    litres = lungs.sum() * litres_a_voxel
    least, most = LITRES
    if not least <= litres <= most:
        raise ValueError(f"no lungs of {least:g} to {most:g} litres in it, but {litres:.2f}; is it a chest CT?")
    return enlarge(body, hounsfield.shape), enlarge(lungs, hounsfield.shape)


def solid_body(hounsfield: np.ndarray) -> np.ndarray:
    """bool (d, h, w): the largest solid thing once thin things (table, clothes) are opened away, closed and filled in
    each axial slice."""
    solid = hounsfield > SOLID
    for row in range(solid.shape[1]):
        solid[:, row] = opened(solid[:, row], square(3), iterations=2)
    body = largest(solid)

    # Closed with a margin of air, since the body may reach the border of the slice
    margin = 8  # voxels
    for row in range(body.shape[1]):
        padded = np.pad(body[:, row], margin)
        padded = closed(padded, square(3), iterations=4)
        plane = padded[margin:-margin, margin:-margin]
        body[:, row] = holes_filled(plane)
    return body


def _lungs(hounsfield: np.ndarray, body: np.ndarray, litres_a_voxel: float) -> np.ndarray:
    """bool (d, h, w): the largest one or two airs inside the body."""
    # The opening parts the lungs from airways and bowel.
    airy = hounsfield < AIRY
    thick_airs = ndimage.binary_opening(body & airy, iterations=2)
    number, count = components(thick_airs)
    voxels = np.bincount(number.ravel(), minlength=count + 1)
    litres = voxels[1:] * litres_a_voxel  # (count,), without the outside

    # None below 0.2 litres, nor a second one that is small against the first
    kept = []
    if count:
        least = max(0.25 * litres.max(), 0.2)
        from_largest = np.argsort(-litres)
        for index in from_largest[:2]:
            if litres[index] > least:
                kept.append(index + 1)

    # What the opening took from their rims is given back.
    lungs = np.isin(number, kept)
    with_rims = np.asarray(ndimage.binary_dilation(lungs, iterations=2), bool)
    return with_rims & airy & body


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


def _crop(body: np.ndarray, lungs: np.ndarray, spacing: Spacing) -> tuple[slice, slice, slice]:
    """Slices of the part around the lungs, as wide as the body is there."""
    _, height_mm, _ = spacing
    lung_rows = np.flatnonzero(lungs.any((0, 2)))
    rows_above = round(ABOVE / height_mm)
    rows_below = round(BELOW / height_mm)
    top = max(0, lung_rows[0] - rows_above)
    bottom = lung_rows[-1] + 1 + rows_below
    along = slice(top, bottom)

    around = body[:, along]
    slices = np.flatnonzero(around.any((1, 2)))
    columns = np.flatnonzero(around.any((0, 1)))
    deep = slice(slices[0], slices[-1] + 1)
    across = slice(columns[0], columns[-1] + 1)
    return deep, along, across


def _box(lungs: np.ndarray, spacing: Spacing) -> tuple[float, float, float, float]:
    """right, left, top, bottom of the lungs, mm from the volume's middle; a few stray voxels do not count.

    The bottom is where the diaphragm hides the lungs: where an axial slice has half of the largest one's air.
    """
    air_of_rows = lungs.sum((0, 2))
    air_of_columns = lungs.sum((0, 1))
    row_shares = np.cumsum(air_of_rows) / air_of_rows.sum()
    column_shares = np.cumsum(air_of_columns) / air_of_columns.sum()

    # Columns and rows of voxels
    right = np.searchsorted(column_shares, 0.004)
    left = np.searchsorted(column_shares, 0.996)
    top = np.searchsorted(row_shares, 0.004)
    full_rows = np.flatnonzero(air_of_rows > 0.5 * air_of_rows.max())
    bottom = full_rows[-1]

    # mm from the volume's middle to the centres of these voxels
    def from_middle(index, axis: int) -> float:
        middle = lungs.shape[axis] / 2
        return float((index + 0.5 - middle) * spacing[axis])

    return from_middle(right, 2), from_middle(left, 2), from_middle(top, 1), from_middle(bottom, 1)
