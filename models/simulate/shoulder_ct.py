"""A CT of neck and shoulders taken apart: soft tissue, the shoulder girdle, and the spine with the jaw.

    part = shoulder_ct.parts(hounsfield, spacing)

Such a CT is taken with hanging arms, from the head to the apices of the lungs, and is mostly cut off at the sides;
every one is here, before the shoulder joints. What is bone is told by grey values and position as in a chest CT
(ct_bone.py); ribs and breast bone lie on the lungs or in the middle and are left out, since a patient has those of his
chest.

A volume is (D, H, W) with axes as in `xray`: volume[:, row] is an axial slice (D, W).
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import ndimage

from ..runtime.files import replacing
from . import separate
from .ct_bone import HARD, MARROW, TISSUE, dense_bone, sharp_bone
from .field import closed, disc
from .voxels import UNIT, Spacing, between, components, enlarge, holes_filled, largest, mean_slices
from .xray import Volume

APEX_LITRES = 0.05  # of air that each lung's apex holds at least
ABOVE = 130.0  # mm of the CT kept above the apices: more than a chest X-ray shows
ASIDE = 140.0  # mm of it kept on either side of the middle: arms and shoulder joints lie beyond
END = 12.0  # mm: what reaches so near to the CT's lower end goes on below it
NECK = 40.0  # mm that it has to show above them
ARMS_AT = 100.0  # mm above the apices: where hanging arms and shoulders have ended
ARMS_OUT = 110.0  # mm from the middle: beyond a head
COLLAR_BONE = 80.0  # mm from the middle, to which the girdle reaches at least on both sides
# Girdle against the rest: ribs lie nearer to the lungs, breast bone and spine nearer to the middle.
OFF_LUNGS = 13.0  # mm
OFF_MIDDLE = 22.0  # mm, in front
OFF_SPINE = 52.0  # mm, behind the middle of the apices
SPINE = 32.0  # mm, half its width: there bone itself is even
PROCESSES = 40.0  # mm from the middle, to which those of the vertebrae reach
JAW = 70.0  # mm from the middle, to which it reaches
MEDIAL = 70.0  # mm: so near to the middle the first rib's end lies below the collar bone, nothing else
COLLAR_BONE_HEIGHT = 25.0  # mm of its slanting shaft, in one column
LEAST_PIECE = 200.0  # mm^3 of a piece of bone
LEAST_BONE = 1500.0  # mm^3 of a piece of the girdle
CORTEX = 1.8  # thickness of a collar bone's shell, mm: twice that of a rib
LIMITS = (0.5, 2.5)  # of the shell and the spongy bone of a healthy adult, what the CT's own amount can ask for
INLET = 40.0  # mm below the apices
INNER_END = 34.0  # mm from the middle: near a collar bone's inner end
SIDE_SHARE = 0.85  # of the way from the middle to the CT's side, at which the collar bones are looked up
COARSE = 2.0  # mm at which distances from the lungs are measured


@dataclass(frozen=True, eq=False)
class Shoulders:
    """volume: tissue as water, with the lungs filled, and in its place compact bone of the collar bones, of the
    shoulder blades, and of spine and jaw, (D, H, W, 4).

    All else in mm from the volume's middle: middle: of the body across; apex: top of the lungs; inlet: half the width
    of the lungs INLET mm below it; collar_bones: (x, y, depth) of the right and the left collar bone, each near its
    inner end and near the side of the CT.
    """

    volume: Volume
    middle: float
    apex: float
    inlet: float
    collar_bones: np.ndarray  # (2, 2, 3): side, end, coordinate


def parts(hounsfield: np.ndarray, spacing: Spacing) -> Shoulders:
    """Take a CT apart. hounsfield (D, H, W), axes as in `xray`; spacing in mm.

    ValueError where it does not show a neck, both collar bones and the apices of both lungs, with hanging arms.
    """
    _, height_mm, width_mm = spacing
    body, lungs = _body_and_apices(hounsfield, spacing)
    lung_rows = np.flatnonzero(lungs.any((0, 2)))
    lung_columns = np.flatnonzero(lungs.any((0, 1)))
    middle = (lung_columns[0] + lung_columns[-1]) / 2  # columns
    _refuse_other_views(body, lung_rows[0], middle, spacing)

    # Only what a chest X-ray shows, up to the shoulder joints
    first_row = max(0, lung_rows[0] - round(ABOVE / height_mm))
    first_column = max(0, round(middle - ASIDE / width_mm))
    last_column = round(middle + ASIDE / width_mm)
    crop = np.s_[:, first_row:, first_column : last_column + 1]
    hounsfield = np.ascontiguousarray(hounsfield[crop])
    body = np.ascontiguousarray(body[crop])
    lungs = np.ascontiguousarray(lungs[crop])
    apex = lung_rows[0] - first_row
    middle = middle - first_column

    bone = _bone(hounsfield, body, middle, spacing)
    girdle, axial = _divided(bone, lungs, middle, spacing)
    collar_bones = _collar_bones(girdle, lungs, middle)
    _refuse_no_collar_bones(collar_bones, middle, width_mm)

    # Tissue without bone, the lungs filled; air of windpipe and throat stays.
    filled = np.where(lungs, np.int16(TISSUE), hounsfield)
    rows = round(hounsfield.shape[1] * height_mm / width_mm)
    water = separate.tissue(filled, body, bone, rows)  # (D, rows, W)
    # Made sharp as a whole and shared out then: where two pieces are cut apart there is no cortex.
    compact = sharp_bone(hounsfield, bone, spacing, rows, CORTEX, LIMITS)
    layers = [water]
    for piece in (collar_bones, girdle & ~collar_bones, axial):
        layers.append(compact * _share(piece, bone, rows))
    return _assembled(layers, lungs, collar_bones, middle, apex, spacing)


def _share(piece: np.ndarray, bone: np.ndarray, rows: int) -> np.ndarray:
    """float32 (D, rows, W) in [0, 1]: a piece of the bone with a rim of a voxel, without the rest."""
    with_rim = np.asarray(ndimage.binary_dilation(piece), bool) & ~(bone & ~piece)
    return between(with_rim.astype(np.float32), rows).clip(0, 1)


def _assembled(
    layers: list[np.ndarray], lungs: np.ndarray, collar_bones: np.ndarray, middle: float, apex: int, spacing: Spacing
) -> Shoulders:
    """The layers (D, rows, W) as one volume, and the landmarks in mm from its middle."""
    depth_mm, height_mm, width_mm = spacing
    depth, height, width = lungs.shape

    # Rays run along the depth, where a millimetre more makes no difference.
    count = 2 if depth_mm < 1.0 else 1
    values = np.stack([mean_slices(layer, count) for layer in layers], -1)
    row_mm = height * height_mm / values.shape[1]
    volume = Volume(values, (depth_mm * count, row_mm, width_mm), UNIT)

    # Half the lungs' width below the apices
    inlet_row = min(apex + round(INLET / height_mm), height - 1)
    inlet_columns = np.flatnonzero(lungs[:, inlet_row].any(0))
    inlet = (inlet_columns[-1] - inlet_columns[0] + 1) / 2 * width_mm

    # Where the collar bones are
    inner = INNER_END / width_mm  # columns from the middle
    right = SIDE_SHARE * middle
    left = SIDE_SHARE * (width - 1 - middle)
    ends = []
    for offset in (-inner, -right, inner, left):
        column = round(middle + offset)
        slices, rows = np.nonzero(collar_bones[:, :, column])
        if not len(rows):
            raise ValueError("a collar bone is not whole in it")
        x = (column + 0.5 - width / 2) * width_mm
        y = (rows.mean() + 0.5 - height / 2) * height_mm
        z = (slices.mean() + 0.5 - depth / 2) * depth_mm
        ends.append((x, y, z))

    return Shoulders(
        volume=volume,
        middle=float((middle + 0.5 - width / 2) * width_mm),
        apex=float((apex - height / 2) * height_mm),
        inlet=float(inlet),
        collar_bones=np.array(ends).reshape(2, 2, 3),
    )


# --- What it shows ----------------------------------------------------------------------------------------------------


def _body_and_apices(hounsfield: np.ndarray, spacing: Spacing) -> tuple[np.ndarray, np.ndarray]:
    """bool (D, H, W) each: the body with its air, and the air of the lungs, which reaches down to the last slice."""
    steps = [max(1, round(separate.SAMPLING / length)) for length in spacing]
    step_d, step_h, step_w = steps
    small = hounsfield[::step_d, ::step_h, ::step_w]  # (d, h, w)
    litres_a_voxel = np.prod(np.multiply(spacing, steps)) / 1e6
    body = separate.solid_body(small)

    # The two largest airs that reach the lower end; the opening parts the windpipe from them.
    airy = body & (small < separate.AIRY)
    number, _ = components(ndimage.binary_opening(airy, iterations=2))
    end_rows = max(1, round(END / (spacing[1] * step_h)))
    lowest = number[:, -end_rows:]
    found = []
    for label in np.unique(lowest[lowest > 0]):
        litres = (number == label).sum() * litres_a_voxel
        if litres >= APEX_LITRES:
            found.append((litres, label))
    if len(found) < 2:
        raise ValueError(
            f"it does not end in the apices of two lungs ({len(found)} airs of {APEX_LITRES:g} litres or more at its "
            "lower end); is it a CT of neck and shoulders?"
        )
    kept = [label for _, label in sorted(found)[-2:]]
    lungs = np.isin(number, kept)
    with_rims = np.asarray(ndimage.binary_dilation(lungs, iterations=2), bool)
    return enlarge(body, hounsfield.shape), enlarge(with_rims & airy, hounsfield.shape)


def _refuse_other_views(body: np.ndarray, apex: int, middle: float, spacing: Spacing) -> None:
    """ValueError where the neck is cut off or arms are raised. apex: row; middle: column."""
    _, height_mm, width_mm = spacing
    above_mm = apex * height_mm
    if above_mm < NECK:
        raise ValueError(f"it shows {above_mm:.0f} mm above the apices of the lungs; {NECK:g} of the neck are needed")

    # Beside the head there is nothing if the arms hang.
    far_above = apex - round(ARMS_AT / height_mm)
    far_out = np.abs(np.arange(body.shape[2]) - middle) * width_mm > ARMS_OUT
    if far_above > 0 and body[:, :far_above][:, :, far_out].mean() > 0.02:
        raise ValueError("its arms are raised beside the head; a CT with hanging arms is needed")


def _refuse_no_collar_bones(collar_bones: np.ndarray, middle: float, width_mm: float) -> None:
    """ValueError where they are cut off on one side."""
    columns = np.flatnonzero(collar_bones.any((0, 1)))
    reach = [0.0, 0.0]
    if len(columns):
        reach = [(middle - columns[0]) * width_mm, (columns[-1] - middle) * width_mm]
    if min(reach) < COLLAR_BONE:
        raise ValueError(
            f"its collar bones reach {reach[0]:.0f} and {reach[1]:.0f} mm from the middle; {COLLAR_BONE:g} are needed"
        )


# --- Bone -------------------------------------------------------------------------------------------------------------


def _bone(hounsfield: np.ndarray, body: np.ndarray, middle: float, spacing: Spacing) -> np.ndarray:
    """bool (D, H, W): all bone, without contrast medium, closed and filled in each axial slice."""
    _, _, width_mm = spacing
    from_middle = np.abs(np.arange(hounsfield.shape[2]) - middle) * width_mm
    spine = np.zeros((hounsfield.shape[0], hounsfield.shape[2]), bool)
    spine[:] = from_middle < SPINE
    dense = np.empty(hounsfield.shape, bool)
    for row in range(hounsfield.shape[1]):
        dense[:, row] = body[:, row] & dense_bone(hounsfield[:, row], spine, width_mm)

    # Pieces that are large and hard somewhere
    number, count = components(dense)
    voxels = np.bincount(number.ravel(), None, count + 1)
    hard = np.bincount(number.ravel(), (hounsfield > HARD).ravel(), count + 1)
    kept = (voxels * np.prod(spacing) > LEAST_PIECE) & (hard > 0)
    kept[0] = False
    bone = kept[number]
    small_disc = disc(4 / width_mm)  # 4 mm
    for row in range(bone.shape[1]):
        filled = holes_filled(closed(bone[:, row], small_disc))
        bone[:, row] = filled & (hounsfield[:, row] > MARROW)
    return bone


def _divided(bone: np.ndarray, lungs: np.ndarray, middle: float, spacing: Spacing) -> tuple[np.ndarray, np.ndarray]:
    """bool (D, H, W) each: collar bones and shoulder blades; spine and jaw."""
    from_middle = np.abs(np.arange(bone.shape[2]) - middle) * spacing[2]  # (W,), mm
    behind = _behind(lungs)  # (D,)

    # Off the lungs, off the middle, and behind further off it: there the ribs begin.
    least = np.where(behind[:, None], OFF_SPINE, OFF_MIDDLE)  # (D, 1)
    off_middle = from_middle[None, :] > least  # (D, W)
    far = _off_lungs(lungs, spacing)
    girdle = bone & far & off_middle[:, None]

    # Large pieces alone; what reaches no further out than a jaw is none of it.
    girdle = _large(girdle, from_middle, spacing)
    _take_out_first_ribs(girdle, behind, from_middle < MEDIAL, spacing[1])
    girdle = _large(girdle, from_middle, spacing)

    # Spine and jaw: near the middle, above the lungs or behind them
    near = from_middle[None, :] < np.where(behind[:, None], OFF_SPINE, JAW)  # (D, W)
    above = np.arange(bone.shape[1]) < np.flatnonzero(lungs.any((0, 2)))[0]  # (H,)
    vertebrae = behind[:, None] & (from_middle < PROCESSES)[None, :]  # (D, W)
    there = above[None, :, None] | vertebrae[:, None]  # (D, H, W)
    axial = bone & far & near[:, None] & there
    return girdle, axial & ~girdle


def _collar_bones(girdle: np.ndarray, lungs: np.ndarray, middle: float) -> np.ndarray:
    """bool (D, H, W): of either side, the largest piece of the girdle in front."""
    in_front = girdle & ~_behind(lungs)[:, None, None]
    result = np.zeros_like(girdle)
    cut = round(middle)
    result[:, :, :cut] = largest(in_front[:, :, :cut])
    result[:, :, cut:] = largest(in_front[:, :, cut:])
    return result


def _behind(lungs: np.ndarray) -> np.ndarray:
    """bool (D,): behind the middle of the lungs, where the shoulder blades are; the collar bones lie before it."""
    slices = np.flatnonzero(lungs.any((1, 2)))
    return np.arange(lungs.shape[0]) > slices.mean()


def _large(girdle: np.ndarray, from_middle: np.ndarray, spacing: Spacing) -> np.ndarray:
    """bool (D, H, W): the pieces of more than LEAST_BONE that reach as far out as a collar bone. from_middle: (W,),
    mm."""
    number, count = components(girdle)
    volume = np.bincount(number.ravel(), minlength=count + 1) * np.prod(spacing)  # mm^3
    columns = np.broadcast_to(from_middle, girdle.shape)
    reach = np.asarray(ndimage.maximum(columns, number, np.arange(count + 1)))
    kept = (volume > LEAST_BONE) & (reach > COLLAR_BONE)
    kept[0] = False
    return kept[number]


def _take_out_first_ribs(girdle: np.ndarray, behind: np.ndarray, medial: np.ndarray, height_mm: float) -> None:
    """Take out, in place, what lies in front and more than a collar bone's height below its upper edge."""
    height = girdle.shape[1]
    in_front = girdle & ~behind[:, None, None]
    any_there = in_front.any(0)  # (H, W)
    top = np.where(any_there.any(0), any_there.argmax(0), height)  # (W,)
    lowest = top + COLLAR_BONE_HEIGHT / height_mm
    below = (np.arange(height)[:, None] > lowest[None, :]) & medial[None, :]  # (H, W)
    girdle &= behind[:, None, None] | ~below[None]


def _off_lungs(lungs: np.ndarray, spacing: Spacing) -> np.ndarray:
    """bool (D, H, W): farther from the lungs than ribs lie."""
    steps = [max(1, round(COARSE / length)) for length in spacing]
    step_d, step_h, step_w = steps
    small = lungs[::step_d, ::step_h, ::step_w]
    mm = np.multiply(spacing, steps)
    distance = np.asarray(ndimage.distance_transform_edt(~small, sampling=mm))
    return enlarge(distance > OFF_LUNGS, lungs.shape)


# --- Files ------------------------------------------------------------------------------------------------------------


def save(part: Shoulders, path: str | Path) -> None:
    """Write shoulders to an .npz file, whole or not at all."""
    with replacing(path) as temporary, open(temporary, "wb") as file:
        np.savez(
            file,
            values=part.volume.values,
            spacing=part.volume.spacing,
            landmarks=(part.middle, part.apex, part.inlet),
            collar_bones=part.collar_bones,
        )


def load(path: str | Path) -> Shoulders:
    """Inverse of `save`."""
    with np.load(path) as file:
        volume = Volume(file["values"], tuple(file["spacing"].tolist()), UNIT)
        middle, apex, inlet = file["landmarks"].tolist()
        return Shoulders(volume, middle, apex, inlet, file["collar_bones"])
