"""The bone of a chest CT: which voxels it is, by an organ mask or by grey values alone, and its amount as sharp shells.

A volume is (D, H, W) with axes as in `xray`: volume[:, row] is an axial slice (D, W).
"""

import cv2
import numpy as np
from scipy.special import expit

from .field import closed, convex_hull, disc, eroded, grown, opened, square
from .voxels import Spacing, between, components, holes_filled, smooth

# Hounsfield units
TISSUE = 40.0  # of muscle
COMPACT = 1620.0  # of cortical bone (1.92 * 0.265 / 0.194 at 70 keV, `xray`'s tables)
# Above METAL a patch of METAL_SIDE voxels squared is metal; cortical bone never averages that over such an area.
METAL = 1100
METAL_SIDE = 5
MARROW = -50  # above it is all that a bone holds
DENSE = 180  # above it there may be bone
DENSE_BESIDE_LABELS = 130  # above it there is bone, next to voxels that an organ mask calls bone
DENSE_ARM = 100  # above it there is bone in the raised arms
HARD = 350  # above it is some of each bone
CONTRAST = 110  # above it is the mean of contrast medium
# Standard deviations below which what is dense is contrast medium; at the spine, where bone is more even, fewer
EVEN = 40
EVEN_AT_SPINE = 16

CORTEX = 0.9  # thickness of the shell, mm
SPONGY = 0.07  # share of compact bone in spongy bone
AROUND = 3.0  # mm over which the CT's amount of bone is kept
SHARE = (1.0, 1.2)  # of the shell and the spongy bone of a healthy adult that the CT's own amount can ask for
# Structures of an organ mask by name, as TotalSegmentator calls them
BONES = ("rib_", "vertebrae_", "sternum", "scapula", "clavicula", "humerus")
GRISTLE = ("costal_cartilages",)  # bone where it is calcified
ARMS = ("scapula", "clavicula", "humerus")


# --- By an organ mask -------------------------------------------------------------------------------------------------


def labelled_bone(hounsfield: np.ndarray, labels: np.ndarray, names: dict[int, str]) -> tuple[np.ndarray, np.ndarray]:
    """bool (D, H, W) each: bone, and those of the raised arms, from an organ mask that is coarser than the CT."""

    def of(starts: tuple[str, ...]) -> np.ndarray:
        numbers = [number for number, name in names.items() if name.startswith(starts)]
        return np.isin(labels, numbers)

    bone = of(BONES)
    gristle = of(GRISTLE)
    arms = of(ARMS)
    for row in range(bone.shape[1]):
        plane = hounsfield[:, row]  # (D, W), as all that follows
        labelled = bone[:, row]

        # The mask's bone, and what is dense next to it or in gristle, but no metal
        near = _with_rim(labelled, 2) | gristle[:, row]
        near_metal = _with_rim(_metal(plane), 3)
        dense_nearby = near & (plane > DENSE_BESIDE_LABELS) & ~near_metal
        bone_with_marrow = labelled & (plane > MARROW)
        bone[:, row] = bone_with_marrow | dense_nearby

        near_arms = _with_rim(arms[:, row], 3)
        arms[:, row] = near_arms & (plane > DENSE_ARM)
    return bone, arms


def _with_rim(plane: np.ndarray, voxels: int) -> np.ndarray:
    """bool (D, W): an axial slice's mask with a rim of so many voxels."""
    return grown(plane, square(2 * voxels + 1))


def _metal(plane: np.ndarray) -> np.ndarray:
    """bool (D, W): the patches of metal in an axial slice of Hounsfield units."""
    return opened(plane > METAL, square(METAL_SIDE))


# --- By grey values and position --------------------------------------------------------------------------------------


def guessed_bone(
    hounsfield: np.ndarray, body: np.ndarray, lungs: np.ndarray, spacing: Spacing
) -> tuple[np.ndarray, np.ndarray]:
    """As `labelled_bone`, from grey values and position alone.

    Bone lies around the chest and crosses its wall; contrast medium lies inside it, is even, or brighter than so thick
    a bone.
    """
    _, _, width_mm = spacing
    chest, spine, beside = _regions(lungs, spacing)
    dense = np.empty(hounsfield.shape, bool)
    for row in range(hounsfield.shape[1]):
        dense_plane = dense_bone(hounsfield[:, row], spine[:, row], width_mm)
        dense[:, row] = body[:, row] & dense_plane
    bone = _in_the_wall(dense, hounsfield, chest, spacing)

    # Closed and filled in each axial slice
    small_disc = disc(4 / width_mm)  # 4 mm
    large_disc = disc(8 / width_mm)
    middle_of_lungs = np.flatnonzero(lungs.any((0, 2))).mean()
    for row in range(bone.shape[1]):
        filled = holes_filled(closed(bone[:, row], small_disc))
        filled &= hounsfield[:, row] > MARROW

        # Kidneys take up contrast medium; no bone beside the spine is as thick.
        if row > middle_of_lungs:
            thick = opened(filled, large_disc) & ~spine[:, row]
            kidney = grown(thick, large_disc)
            filled &= ~kidney
        bone[:, row] = filled
    return bone, bone & beside


def dense_bone(plane: np.ndarray, spine: np.ndarray, pixel_mm: float) -> np.ndarray:
    """bool (D, W): what of an axial slice of Hounsfield units is dense, but neither even (contrast medium) nor metal.

    spine: bool (D, W), where bone itself is more even.
    """
    # Mean and spread in a window of 5 mm: variance = mean of the squares - square of the mean
    sigma = 0.7 / pixel_mm  # voxels, against noise
    quiet = cv2.GaussianBlur(plane.astype(np.float32), (0, 0), sigma)
    side = 2 * round(2.5 / pixel_mm) + 1
    mean = cv2.blur(quiet, (side, side))
    mean_square = cv2.blur(quiet * quiet, (side, side))
    variance = mean_square - mean * mean
    spread = np.sqrt(np.maximum(variance, 0))  # HU

    # Patches of contrast medium and of metal, with a rim of 4 mm that they blur into
    rim = disc(4 / pixel_mm)
    most_spread = np.where(spine, EVEN_AT_SPINE, EVEN)
    even = (mean > CONTRAST) & (spread < most_spread)
    contrast = opened(even, rim)
    no_bone = grown(contrast | _metal(plane), rim)
    return (plane > DENSE) & ~no_bone


def _in_the_wall(dense: np.ndarray, hounsfield: np.ndarray, chest: np.ndarray, spacing: Spacing) -> np.ndarray:
    """bool (D, H, W): the dense components that are large, reach out of the chest and are hard somewhere."""
    # How many voxels each component has, (count + 1,), the outside first: in all, out of the chest, hard ones
    number, count = components(dense)
    number_of_each = number.ravel()
    out_of_chest = ~chest.ravel()
    hard = (hounsfield > HARD).ravel()
    voxels = np.bincount(number_of_each, None, count + 1)
    voxels_outside = np.bincount(number_of_each, out_of_chest, count + 1)
    voxels_hard = np.bincount(number_of_each, hard, count + 1)

    volume = voxels * np.prod(spacing)  # mm^3
    reaches_out = voxels_outside > 0.3 * voxels
    kept = (volume > 200) & reaches_out & (voxels_hard > 0)
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
    from_middle = np.arange(width) - columns.mean()  # voxels
    off_middle = np.abs(from_middle) * width_mm  # (W,), mm
    foremost_slice = slices[-1] - 60 / depth_mm
    behind = np.arange(depth) > foremost_slice  # (D,)
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
        outside = np.ones((depth, width), bool)
        has_lungs = lungs[:, row].sum() > 50  # voxels
        if has_lungs:
            hull = convex_hull(lungs[:, row])
            chest[:, row] = eroded(hull, inner)
            outside = ~grown(hull, wall)
        if row < middle_row:
            beside[:, row] = outside & (off_middle > 60)
    return chest, spine, beside


# --- Amount -----------------------------------------------------------------------------------------------------------


def sharp_bone(
    hounsfield: np.ndarray,
    bone: np.ndarray,
    spacing: Spacing,
    rows: int,
    cortex: float = CORTEX,
    limits: tuple[float, float] = SHARE,
) -> np.ndarray:
    """Share of compact bone (D, rows, W): the CT's amount, in shells over spongy bone.

    cortex: thickness of the shell, mm; limits: least and most of what the CT's own amount can ask for.
    """
    _, _, width_mm = spacing
    inside = _depth_inside(bone, width_mm, rows)  # (D, rows, W), mm

    # The bone of a healthy adult behind that surface: spongy, and compact in the shell.
    # Logistic steps of 8 per mm rise from 10 to 90 % within 0.55 mm, less than a voxel of most CTs.
    edge = expit(8 * inside)
    shell = edge * expit(8 * (cortex - inside))
    healthy = SPONGY * edge + (1 - SPONGY) * shell

    # The CT's amount: 0 in muscle, 1 in compact bone
    contrast = (hounsfield - TISSUE) / (COMPACT - TISSUE)
    amount = np.clip(contrast, 0, 1.2) * bone  # (D, H, W)
    amount = between(amount.astype(np.float32), rows)  # (D, rows, W)

    # As much of the healthy bone as the CT has round about; the 1e-3 is for where there is no bone.
    sigma = AROUND / width_mm  # voxels
    amount_around = smooth(amount, sigma)
    healthy_around = smooth(healthy, sigma)
    share = np.clip(amount_around / (healthy_around + 1e-3), *limits)

    # A fifth is the CT's own bone, which keeps its texture.
    return 0.8 * healthy * share + 0.2 * amount * edge


def _depth_inside(bone: np.ndarray, voxel_mm: float, rows: int) -> np.ndarray:
    """mm to the surface of the bone, below 0 outside, float32 (D, rows, W): measured in the axial slices, interpolated
    between them."""
    inside = np.empty(bone.shape, np.float32)  # voxels
    for row in range(bone.shape[1]):
        mask = bone[:, row].astype(np.uint8)
        distance_inside = cv2.distanceTransform(mask, cv2.DIST_L2, 5)
        distance_outside = cv2.distanceTransform(1 - mask, cv2.DIST_L2, 5)
        inside[:, row] = distance_inside - distance_outside
    inside = between(np.clip(inside, -8, 8), rows)  # (D, rows, W)
    return smooth(inside, 0.6) * voxel_mm
