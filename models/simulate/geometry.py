"""From shapes in a drawn patient to thickness maps: hollow tubes, ribbons, ellipsoids and outlines, seen along parallel
rays.

The patient's coordinates: x from the midline (positive = the patient's left = the right side of the image), y downwards
from the top of the image, z towards the breastbone; unit = the side of the image. A hollow tube is a surface in space,
whose shell is splatted along the rays ring by ring, so that it is bright at its rims. In shapes, B is the number of
tubes, k that of the points along each.
"""

import functools
from dataclasses import dataclass, fields

import cv2
import numpy as np
from scipy.interpolate import CubicSpline, PchipInterpolator

SIDES = np.array([-1.0, 1.0], np.float32)  # the patient's right, left
POINTS = 49  # along a curve, unless told
TABLE = 4096  # rows of an interpolated profile
FINE_BITS = 4  # binary places of the corners that OpenCV fills between


@dataclass(frozen=True)
class Pose:
    """How the patient stands before the detector; lengths in units of the image's side, angles in radians."""

    shift: tuple[float, float]  # x, y
    turn: float  # in the image plane
    yaw: float  # about the long axis
    zoom: float


@dataclass(frozen=True)
class Tubes:
    """Bones of B paths of k points: half axes along the normal and across it, thickness of the shell, density
    inside."""

    path: np.ndarray  # (B, k, 3)
    normal: np.ndarray  # (B, k, 3)
    thin: np.ndarray  # (B, k), as the three that follow
    wide: np.ndarray
    cortex: np.ndarray
    marrow: np.ndarray  # against compact bone


# --- Between the patient and the image --------------------------------------------------------------------------------


def project(pose: Pose, points: np.ndarray, size: int) -> np.ndarray:
    """Pixel coordinates, float32 (..., 2), of the patient's points (..., 3) or (..., 2)."""
    x = points[..., 0]
    y = points[..., 1] - 0.5

    # Parallel rays: z only counts through the yaw, about the long axis. Points
    # without z are outlines as they are seen, and do not turn with it.
    if points.shape[-1] == 3:
        x = x * np.cos(pose.yaw) + points[..., 2] * np.sin(pose.yaw)
    cos = pose.zoom * np.cos(pose.turn)
    sin = pose.zoom * np.sin(pose.turn)

    # Then turn and zoom about the image's middle, and shift; -0.5: pixel centres lie at whole numbers.
    place = np.stack([cos * x - sin * y + pose.shift[0], sin * x + cos * y + pose.shift[1]], -1)
    return (size * (place + 0.5) - 0.5).astype(np.float32)


def patient_grid(pose: Pose, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Patient coordinates x and y, float32 (size, size) each, of the pixel centres: the inverse of `project`."""
    centre = (np.arange(size) + 0.5) / size - 0.5
    u = centre[None, :] - pose.shift[0]
    v = centre[:, None] - pose.shift[1]
    cos = np.cos(pose.turn) / pose.zoom
    sin = np.sin(pose.turn) / pose.zoom
    x = (cos * u + sin * v).astype(np.float32)
    y = (cos * v - sin * u + 0.5).astype(np.float32)
    return x, y


def splat(total: np.ndarray, px: np.ndarray, py: np.ndarray, mass: np.ndarray) -> None:
    """Add masses, in thickness times square pixels, to the map `total` (size, size), each spread bilinearly over four
    pixels."""
    size = len(total)
    # What would touch a pixel outside is left out as a whole.
    keep = (px > 0) & (px < size - 1) & (py > 0) & (py < size - 1)
    px = px[keep]
    py = py[keep]
    mass = mass[keep]
    if not len(mass):
        return

    # The window of rows that are touched, flat, so that one bincount adds up each of the four corners.
    column = px.astype(np.int32)
    row = py.astype(np.int32)
    top = row.min()
    bottom = row.max() + 2
    corner = (row - top) * size + column
    right = mass * (px - column)
    below = py - row
    window = np.zeros((bottom - top) * size)
    for offset, share in ((0, mass - right), (1, right)):
        lower = share * below
        window += np.bincount(corner + offset, share - lower, len(window))
        window += np.bincount(corner + (offset + size), lower, len(window))
    total[top:bottom] += window.reshape(-1, size)


# --- Curves and tubes -------------------------------------------------------------------------------------------------


@functools.cache
def _spline_weights(controls: int, count: int) -> np.ndarray:
    """Weights (count, controls) of a cubic spline, which is linear in its control points."""
    # The spline through unit vectors: row i holds the weights of all control points at sample i.
    spline = CubicSpline(np.linspace(0, 1, controls), np.eye(controls))
    return spline(np.linspace(0, 1, count)).astype(np.float32)


def curve(points, count: int = POINTS) -> np.ndarray:
    """A smooth path, float32 (B, count, d), through control points (B, k, d)."""
    points = np.asarray(points, np.float32)
    return _spline_weights(points.shape[1], count) @ points


def both_sides(points) -> np.ndarray:
    """Control points (k, 3) of the left side, for both sides: (2, k, 3)."""
    # Only x changes its sign: (2, 1, 3) times (k, 3).
    ones = SIDES * 0 + 1
    return np.asarray(points) * np.stack([SIDES, ones, ones], 1)[:, None]


def make_tubes(path: np.ndarray, thin, wide, cortex, marrow, normal=(0, 0, 1)) -> Tubes:
    """Tubes (B, k) from profiles that are constants, (j,) spread over each path, or (B, k)."""
    along = np.linspace(0, 1, path.shape[1])

    def profile(values) -> np.ndarray:
        if np.ndim(values) == 1:
            values = np.interp(along, np.linspace(0, 1, np.size(values)), values)
        return np.broadcast_to(np.asarray(values, np.float32), path.shape[:2])

    normals = np.broadcast_to(np.asarray(normal, np.float32), path.shape)
    return Tubes(path.astype(np.float32), normals, profile(thin), profile(wide), profile(cortex), profile(marrow))


def join(groups: list[Tubes]) -> Tubes:
    """One Tubes of several with the same k."""
    joined = {}
    for field in fields(Tubes):
        joined[field.name] = np.concatenate([getattr(group, field.name) for group in groups])
    return Tubes(**joined)


def resample(values: np.ndarray, count: int) -> np.ndarray:
    """Linear interpolation of (B, k, ...) along its second axis to `count` samples."""
    # place: of each sample, in steps of the input; the last one belongs to the last interval.
    place = np.arange(count) * ((values.shape[1] - 1) / (count - 1))
    low = np.minimum(place.astype(int), values.shape[1] - 2)
    share = (place - low).reshape(1, -1, *[1] * (values.ndim - 2)).astype(np.float32)
    return values[:, low] * (1 - share) + values[:, low + 1] * share


def _sample_count(path: np.ndarray) -> int:
    """Samples along pixel paths (B, k, 2) that lie at most a pixel apart."""
    steps = np.sqrt((np.diff(path, axis=1) ** 2).sum(-1))
    # The longest step taken for all: the samples are spread evenly over the parameter, not over the length.
    longest = steps.max() * (path.shape[1] - 1)
    return int(np.clip(longest, 4, 4096))


# --- Thickness maps ---------------------------------------------------------------------------------------------------


def shell(tubes: Tubes, weight: np.ndarray, scale: float, pose: Pose, size: int) -> np.ndarray:
    """Thickness map (size, size) of shells of thickness `weight` (B, k) at `scale` of the tubes' half axes."""
    # The two half axes of each cross-section, at right angles to the path.
    along = np.gradient(tubes.path, axis=1)
    speed = np.linalg.norm(along, axis=-1)
    along /= speed[..., None]
    normal = tubes.normal - along * (along * tubes.normal).sum(-1, keepdims=True)
    normal *= scale * (tubes.thin / np.linalg.norm(normal, axis=-1))[..., None]
    across = np.cross(along, tubes.normal)
    across *= scale * (tubes.wide / np.linalg.norm(across, axis=-1))[..., None]

    # The same in pixels, as differences of projected points.
    path = project(pose, tubes.path, size)
    pixel = size * pose.zoom
    normal = project(pose, tubes.path + normal, size) - path
    across = project(pose, tubes.path + across, size) - path

    # Where a tube gets wider its surface is longer than its path.
    slant = np.hypot(speed, np.gradient(tubes.wide, axis=1)) * weight * (tubes.path.shape[1] - 1)
    return _rings(path, normal, across, slant * pixel, scale * tubes.thin * pixel, scale * tubes.wide * pixel, size)


def _rings(path, normal, across, slant, thin, wide, size: int) -> np.ndarray:
    """Splat tubes given in pixels as rings of points, a few tubes at once to bound the memory."""
    total = np.zeros((size, size), np.float32)
    batch = max(1, 2000 // size)
    for first in range(0, len(path), batch):
        group = slice(first, first + batch)

        # At most about a pixel between neighbours, along the tubes and around them: fewer points would show as dots.
        samples = _sample_count(path[group])
        ring = int(np.clip(2 * np.pi * max(thin[group].max(), wide[group].max()), 8, 1024))

        # middle and the two axes: (tubes, samples, 1, 2); the others: (tubes, samples, 1)
        middle, cos_axis, sin_axis, step, a, b = (
            resample(values[group], samples)[:, :, None] for values in (path, normal, across, slant, thin, wide)
        )

        # A ring is the ellipse middle + cos * (half axis a) + sin * (half axis b).
        angle = (2 * np.pi / ring * np.arange(ring)).astype(np.float32)
        cos = np.cos(angle)
        sin = np.sin(angle)
        px = middle[..., 0] + cos * cos_axis[..., 0] + sin * sin_axis[..., 0]  # (tubes, samples, ring)
        py = middle[..., 1] + cos * cos_axis[..., 1] + sin * sin_axis[..., 1]
        # Mass: arc length of the ellipse per angle, times the shell's thickness times the step along the tube.
        mass = np.sqrt((a * sin) ** 2 + (b * cos) ** 2) * step * (2 * np.pi / ring / (samples - 1))
        splat(total, px, py, mass)
    return total


def ribbon(path: np.ndarray, radius, pose: Pose, size: int) -> np.ndarray:
    """Thickness map (size, size) of solid round tubes seen from the front: path (B, k, 2), radius a number, (k,) or (B,
    k)."""
    radius = np.broadcast_to(np.asarray(radius, np.float32), path.shape[:2])
    path = project(pose, path, size)
    pixel = size * pose.zoom

    samples = _sample_count(path)
    along = resample(np.gradient(path, axis=1), samples) * ((path.shape[1] - 1) / (samples - 1))
    middle = resample(path, samples)[:, :, None]
    radius = resample(radius, samples)[..., None]
    speed = np.linalg.norm(along, axis=-1, keepdims=True)
    across = along / np.maximum(speed, 1e-9) * radius * pixel

    # Points on a line across the tube, each with the chord of the circle that is seen there.
    count = int(np.clip(2 * pixel * radius.max(), 3, 400))
    u = ((np.arange(count) + 0.5) / count * 2 - 1).astype(np.float32)
    # Chord 2 r sqrt(1 - u^2), times the point's share of the width, 2 r / count, times its length along the path.
    mass = np.sqrt(1 - u * u) * speed * radius**2 * (4 * pixel / count)
    total = np.zeros((size, size), np.float32)
    splat(total, middle[..., 0] - u * across[..., 1:], middle[..., 1] + u * across[..., :1], mass)
    return total


def rows(x: np.ndarray, y: np.ndarray, knots, power: float = 0.5) -> np.ndarray:
    """Thickness of a body given row by row: knots (k, 4) of y, centre x, half width and depth, joined smoothly.

    power: of the row's cross-section; 0.5 is an ellipse, less is flatter.
    """
    knots = np.asarray(knots)
    # Monotone cubics (PCHIP): between two knots no profile swings beyond them, so no depth gets negative.
    fine = np.linspace(knots[0, 0], knots[-1, 0], TABLE)
    table = PchipInterpolator(knots[:, 0], knots[:, 1:])(fine).astype(np.float32).T
    # A table instead of the interpolant at every pixel; above the first and below the last knot that
    # knot's row goes on.
    index = np.clip((y - fine[0]) / (fine[1] - fine[0]), 0, TABLE - 1).astype(np.int32)
    centre, half, depth = table[:, index]
    return depth * np.maximum(1 - ((x - centre) / half) ** 2, 0) ** power


def ellipsoid(x: np.ndarray, y: np.ndarray, centre, radii, depth, tilt: float = 0.0, power: float = 0.5) -> np.ndarray:
    """Thickness of an ellipsoid, `depth` in its middle; tilt in radians, clockwise in the image."""
    dx = x - centre[0]
    dy = y - centre[1]
    u = (np.cos(tilt) * dx + np.sin(tilt) * dy) / radii[0]
    v = (np.cos(tilt) * dy - np.sin(tilt) * dx) / radii[1]
    return depth * np.maximum(1 - u * u - v * v, 0) ** power


def filled(outline: np.ndarray, pose: Pose, size: int) -> np.ndarray:
    """Coverage in [0, 1], float32 (size, size), of a closed outline (k, 2)."""
    # OpenCV takes whole numbers: FINE_BITS binary places and its anti-aliasing place edges to 1/16 of a pixel.
    corners = np.round(project(pose, outline, size) * 2**FINE_BITS).astype(np.int32)
    canvas = np.zeros((size, size), np.uint8)
    return cv2.fillPoly(canvas, [corners], 255, cv2.LINE_AA, shift=FINE_BITS).astype(np.float32) / 255
