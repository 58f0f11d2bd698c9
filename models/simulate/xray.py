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
    return _plane_rotation(0, 1, about_z) @ _plane_rotation(2, 0, about_y) @ _plane_rotation(1, 2, about_x)


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
    back = FOCUS - pose.stretch[2] * dz * depth / 2 - GAP  # from the source to the volume's middle
    place = rotation(pose.turn) @ np.diag(pose.stretch)
    pixel = size / pose.field
    to_pixels = np.array(
        [[pixel, 0, size / 2 - 0.5], [0, pixel, size / 2 - 0.5], [0, 0, 1]]
    )  # from mm in the middle plane

    total = np.zeros((size, size, channels), np.float32)
    for index in range(depth):
        if not volume.values[index].any():
            continue
        first_voxel = [(0.5 - width / 2) * dx, (0.5 - height / 2) * dy, (index + 0.5 - depth / 2) * dz]
        corner = place @ first_voxel + [*pose.centre, 0]
        plane = np.column_stack([place[:, 0] * dx, place[:, 1] * dy, corner])  # (column, row, 1) -> mm
        plane[2] = [0, 0, 1] - plane[2] / back  # the distance from the source over that of the middle
        seen = cv2.warpPerspective(volume.values[index], to_pixels @ plane, (size, size), flags=cv2.INTER_LINEAR)
        cv2.accumulate(seen.reshape(size, -1), total.reshape(size, -1))
    lengths = _ray_lengths(place, dz, pose, size, back)
    return total * (lengths * (volume.unit / 10))[..., None]


def _ray_lengths(place: np.ndarray, dz: float, pose: Pose, size: int, back: float) -> np.ndarray:
    """Length of the ray of each pixel (size, size) between two slices, mm."""
    mm = ((np.arange(size) + 0.5) / size - 0.5) * pose.field
    ray = np.stack(np.broadcast_arrays(mm[None, :], mm[:, None], -back), -1)
    ray /= np.linalg.norm(ray, axis=-1, keepdims=True)
    return (dz / np.abs(ray @ np.linalg.inv(place)[2])).astype(np.float32)


# --- Two energies -----------------------------------------------------------------------------------------------------


def attenuation(water, bone, spectrum: np.ndarray) -> np.ndarray:
    """-log of the signal behind so many cm of tissue as water and, in its place, of compact bone: Beer and Lambert's
    law."""
    signal = np.zeros(np.broadcast_shapes(np.shape(water), np.shape(bone)), np.float32)
    for share, of_water, of_bone in zip(spectrum / spectrum.sum(), WATER, BONE):
        if share:
            signal += np.float32(share) * np.exp(-np.float32(of_water) * water - np.float32(of_bone) * bone)
    return -np.log(np.maximum(signal, 1e-30))


def bone_weight(low: np.ndarray, high: np.ndarray) -> float:
    """The share of the low-energy log image whose subtraction cancels bone, at REFERENCE."""
    water, bone = REFERENCE
    seen_high = attenuation(water, bone, high) - attenuation(water, 0.0, high)
    seen_low = attenuation(water, bone, low) - attenuation(water, 0.0, low)
    return float(seen_high / seen_low)


def subtract(of_high: np.ndarray, of_low: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """The log image that the high energy would give without bone, from the log images of both.

    high - weight * low sees little but water; the thickness of water that gives the same difference is looked up, and
    what the high energy makes of it returned. Where there is no bone it is `of_high` itself; where there is, one
    spectral line each leaves nothing of it, and real spectra leave what beam hardening makes of it.
    """
    weight = bone_weight(low, high)
    # Thicknesses in cm; from below 0 on, since motion between the exposures can ask for less than none.
    water = np.linspace(-2, DEEPEST, 4096)
    water_high = attenuation(water, 0.0, high).astype(np.float64)
    water_low = attenuation(water, 0.0, low).astype(np.float64)
    return np.interp(of_high - weight * of_low, water_high - weight * water_low, water_high).astype(np.float32)


# --- Showing ----------------------------------------------------------------------------------------------------------


def tone_curve(log: np.ndarray, air: float, tones: tuple[float, ...]) -> Callable[[np.ndarray], np.ndarray]:
    """The grey level in [0, 1] of a log exposure, as a function that rises everywhere.

    air: the grey level of no patient at all; tones: those of the quantiles TONE_AT of `log` inside the body.
    """
    # The exposures that get a given grey; small slopes are added, since interpolation needs them to rise.
    sample = log[::4, ::4]
    levels = np.quantile(sample[sample > BODY], TONE_AT)
    levels = np.concatenate([[-1.0, 0.0], levels, [levels[-1] + 2.0]]) + 1e-3 * np.arange(len(TONE_AT) + 3)
    levels = np.maximum.accumulate(levels) + 1e-6 * np.arange(len(levels))
    greys = np.maximum.accumulate([0, air, *tones, 1.0])

    # A quarter of a straight line keeps the curve from getting flat.
    straight = np.interp(levels, levels[[1, -2]], greys[[1, -2]])
    at = np.linspace(levels[0], levels[-1], 1024)
    curve = PchipInterpolator(levels, 0.75 * greys + 0.25 * straight)(at)
    return lambda value: np.clip(np.interp(value, at, curve), 0, 1).astype(np.float32)
