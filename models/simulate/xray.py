"""From matter to radiographs: rays through a volume, two spectra, dual-energy subtraction, one way of showing both
images.

Lengths are in mm, thicknesses in cm of water and of compact bone, energies in keV. A volume's axes run from front to
back, from head to foot, and from the patient's right to the left, so that its slices look like a radiograph. The beam
runs from back to front.
"""

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
from scipy.interpolate import PchipInterpolator

FOCUS = 1800.0  # from the source to the detector, mm
GAP = 30.0  # from the patient's front to the detector, mm
ENERGIES = np.array([30.0, 40.0, 50.0, 60.0, 80.0, 100.0])
# Hubbell and Seltzer, NISTIR 5632, tables of water and of cortical bone (ICRU-44), mu / rho in cm^2 / g at ENERGIES
WATER = np.array([0.3756, 0.2683, 0.2269, 0.2059, 0.1837, 0.1707])
COMPACT = np.array([1.331, 0.6655, 0.4242, 0.3148, 0.2229, 0.1855])
DENSITY = 1.92  # of cortical bone, g / cm^3 (ICRU-44)
BONE = DENSITY * COMPACT - WATER  # a cm of compact bone in the place of a cm of water
# What a filtered tube and a caesium iodide detector leave at ENERGIES, roughly: shares of the signal at 60, 80 and 120
# kV
LOW = np.array([0.08, 0.34, 0.43, 0.15, 0.0, 0.0])
MIDDLE = np.array([0.03, 0.18, 0.36, 0.31, 0.12, 0.0])
HIGH = np.array([0.01, 0.08, 0.21, 0.31, 0.26, 0.13])
REFERENCE = (15.0, 0.6)  # cm of water and of bone at which the subtraction is weighted
DEEPEST = 80.0  # cm of water to which the subtraction is calibrated
TONE_AT = (0.05, 0.25, 0.5, 0.75, 0.95, 0.99)  # quantiles of the body whose grey levels a tone curve is given
BODY = 0.4  # log exposure above which a pixel shows the body


# --- Rays -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Volume:
    """values: (D, H, W, C) of uint16, in units of `unit`; spacing: mm along D, H, W."""

    values: np.ndarray
    spacing: tuple[float, float, float]
    unit: float


@dataclass(frozen=True)
class Pose:
    """How a volume lies before the detector. turn: radians about the axes left-right, head-foot, front-back; stretch:
    along left-right, head-foot, front-back; centre: where the volume's middle is seen, mm from the image's; field: the
    image's side, mm, both in the plane through the volume's middle.
    """

    turn: tuple[float, float, float] = (0.0, 0.0, 0.0)
    stretch: tuple[float, float, float] = (1.0, 1.0, 1.0)
    centre: tuple[float, float] = (0.0, 0.0)
    field: float = 400.0


def rotation(turn: tuple[float, float, float]) -> np.ndarray:
    """(3, 3): about x (left-right), then y (head-foot), then z (front-back)."""
    about_x, about_y, about_z = turn
    turned_x = _plane_rotation(1, 2, about_x)
    turned_y = _plane_rotation(2, 0, about_y)
    turned_z = _plane_rotation(0, 1, about_z)
    return turned_z @ turned_y @ turned_x


def _plane_rotation(first: int, second: int, angle: float) -> np.ndarray:
    """(3, 3): from axis `first` towards axis `second`."""
    matrix = np.eye(3)
    matrix[first, first] = np.cos(angle)
    matrix[second, second] = np.cos(angle)
    matrix[first, second] = -np.sin(angle)
    matrix[second, first] = np.sin(angle)
    return matrix


def project(volume: Volume, pose: Pose, size: int) -> np.ndarray:
    """Line integrals (size, size, C) of a volume, in cm: a slice is seen through a homography, whatever the pose."""
    depth, height, width, channels = volume.values.shape
    dz, dy, dx = volume.spacing

    # How the volume lies: mm along its axes -> mm in space, from its middle. source_distance: from there to the source.
    placing = rotation(pose.turn) @ np.diag(pose.stretch)  # (3, 3)
    half_depth = pose.stretch[2] * dz * depth / 2
    source_distance = FOCUS - half_depth - GAP

    # From mm in the plane through the volume's middle to pixels; -0.5: pixel centres lie at whole numbers.
    pixels_per_mm = size / pose.field
    middle = size / 2 - 0.5
    to_pixels = np.array(
        [
            [pixels_per_mm, 0, middle],
            [0, pixels_per_mm, middle],
            [0, 0, 1],
        ]
    )

    # In space, mm: where the volume's middle is, and the ways from a voxel to the next column and row
    volume_middle = [*pose.centre, 0]
    column_step = placing[:, 0] * dx  # (3,)
    row_step = placing[:, 1] * dy

    # The first voxel of a slice from the volume's middle, mm along the volume's axes
    first_x = (0.5 - width / 2) * dx
    first_y = (0.5 - height / 2) * dy

    # A slice after the other, as it is seen from the source.
    total = np.zeros((size, size, channels), np.float32)
    for index in range(depth):
        values = volume.values[index]  # (H, W, C)
        if not values.any():
            continue

        # Where its voxel (column, row) lies: (column, row, 1) -> x, y, z in mm.
        first_z = (index + 0.5 - depth / 2) * dz
        first_voxel = placing @ [first_x, first_y, first_z] + volume_middle  # (3,)
        to_space = np.column_stack([column_step, row_step, first_voxel])  # (3, 3)

        # A homography divides x and y by its third row: the distance from the source over that of the middle.
        to_plane = to_space.copy()
        to_plane[2] = [0, 0, 1] - to_space[2] / source_distance
        homography = to_pixels @ to_plane
        seen = cv2.warpPerspective(values, homography, (size, size), flags=cv2.INTER_LINEAR)
        cv2.accumulate(seen.reshape(size, -1), total.reshape(size, -1))

    # Times the way of each ray through a slice; a tenth of it is in cm.
    lengths = _ray_lengths(placing, dz, pose, size, source_distance)  # (size, size)
    cm_per_value = lengths * (volume.unit / 10)
    return total * cm_per_value[..., None]


def _ray_lengths(placing: np.ndarray, dz: float, pose: Pose, size: int, source_distance: float) -> np.ndarray:
    """Length of the ray of each pixel (size, size) between two slices, mm; arguments as in `project`."""
    # Each pixel's place in the plane through the volume's middle, mm from the image's middle
    share = (np.arange(size) + 0.5) / size  # of the side
    mm = (share - 0.5) * pose.field

    # The direction of each ray, of length 1: from the source, which lies over the image's middle, to the pixel.
    x = mm[None, :]
    y = mm[:, None]
    ray = np.stack(np.broadcast_arrays(x, y, -source_distance), -1)  # (size, size, 3)
    ray /= np.linalg.norm(ray, axis=-1, keepdims=True)

    # How far it gets along the volume's first axis in 1 mm: the last row of the inverse maps mm in space to z.
    to_z = np.linalg.inv(placing)[2]  # (3,)
    z_per_mm = np.abs(ray @ to_z)  # (size, size)
    return (dz / z_per_mm).astype(np.float32)


# --- Two energies -----------------------------------------------------------------------------------------------------


def attenuation(water, bone, spectrum: np.ndarray) -> np.ndarray:
    """-log of the signal behind so many cm of tissue as water and, in its place, of compact bone: Beer and Lambert's
    law, -log sum over energies of share exp(-mu_water water - mu_bone bone).

    water, bone: numbers or arrays that broadcast. spectrum: shares of the signal at ENERGIES.
    """
    # In single precision, as the images are
    shares = (spectrum / spectrum.sum()).astype(np.float32)
    of_water = WATER.astype(np.float32)
    of_bone = BONE.astype(np.float32)

    # The signal behind both against that of the unattenuated beam, energy by energy
    shape = np.broadcast_shapes(np.shape(water), np.shape(bone))
    signal = np.zeros(shape, np.float32)
    for share, mu_water, mu_bone in zip(shares, of_water, of_bone):
        if share:
            log_signal = -mu_water * water - mu_bone * bone
            signal += share * np.exp(log_signal)
    return -np.log(np.maximum(signal, 1e-30))  # the least signal keeps the logarithm finite


def bone_weight(low: np.ndarray, high: np.ndarray) -> float:
    """The share of the low-energy log image whose subtraction cancels bone, at REFERENCE."""
    # What bone adds to the log image of each energy
    water, bone = REFERENCE
    bone_high = attenuation(water, bone, high) - attenuation(water, 0.0, high)
    bone_low = attenuation(water, bone, low) - attenuation(water, 0.0, low)
    return float(bone_high / bone_low)


def subtract(of_high: np.ndarray, of_low: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """The log image that the high energy would give without bone, from the log images of both.

    high - weight * low sees little but water; the thickness of water that gives the same difference is looked up, and
    what the high energy makes of it returned. Where there is no bone it is `of_high` itself; where there is, one
    spectral line each leaves nothing of it, and real spectra leave what beam hardening makes of it.
    """
    # What water alone gives: its log images by thickness in cm, from below 0 on, since motion between the exposures can
    # ask for less than none.
    water = np.linspace(-2, DEEPEST, 4096)
    water_high = attenuation(water, 0.0, high).astype(np.float64)
    water_low = attenuation(water, 0.0, low).astype(np.float64)

    # The water that gives the same difference, and what the high energy makes of it.
    weight = bone_weight(low, high)
    difference = of_high - weight * of_low
    water_difference = water_high - weight * water_low
    return np.interp(difference, water_difference, water_high).astype(np.float32)


# --- Showing ----------------------------------------------------------------------------------------------------------


def tone_curve(log: np.ndarray, air: float, tones: tuple[float, ...]) -> Callable[[np.ndarray], np.ndarray]:
    """The grey level in [0, 1] of a log exposure, as a function that rises everywhere.

    air: the grey level of no patient at all; tones: those of the quantiles TONE_AT of `log` inside the body.
    """
    # The log exposures that get a given grey: below none, none, the body's quantiles, and beyond them.
    sample = log[::4, ::4]  # a sixteenth of the pixels is enough
    of_body = sample[sample > BODY]
    quantiles = np.quantile(of_body, TONE_AT)
    beyond = quantiles[-1] + 2.0
    levels = np.concatenate([[-1.0, 0.0], quantiles, [beyond]])
    greys = np.maximum.accumulate([0, air, *tones, 1.0])

    # Small slopes are added, since interpolation needs levels that rise.
    number = np.arange(len(levels))
    levels = levels + 1e-3 * number
    levels = np.maximum.accumulate(levels) + 1e-6 * number

    # A quarter of a straight line, from air to the last quantile, keeps the curve from getting flat.
    ends = [1, -2]
    straight = np.interp(levels, levels[ends], greys[ends])
    mixed = 0.75 * greys + 0.25 * straight

    # A table of the curve, which is looked up for every pixel.
    table_levels = np.linspace(levels[0], levels[-1], 1024)
    table_greys = PchipInterpolator(levels, mixed)(table_levels)

    def tone(value: np.ndarray) -> np.ndarray:
        grey = np.interp(value, table_levels, table_greys)
        return np.clip(grey, 0, 1).astype(np.float32)

    return tone
