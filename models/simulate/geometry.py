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

    # Parallel rays: z only counts through the yaw, about the long axis. Points without z are outlines as they are seen,
    # and do not turn with it.
    if points.shape[-1] == 3:
        z = points[..., 2]
        x = x * np.cos(pose.yaw) + z * np.sin(pose.yaw)

    # Turn and zoom about the image's middle, and shift: u, v in units of the side, from the image's middle.
    shift_u, shift_v = pose.shift
    cos = pose.zoom * np.cos(pose.turn)
    sin = pose.zoom * np.sin(pose.turn)
    u = cos * x - sin * y + shift_u
    v = sin * x + cos * y + shift_v

    # To pixels; -0.5: pixel centres lie at whole numbers.
    place = np.stack([u, v], -1)  # (..., 2)
    return (size * (place + 0.5) - 0.5).astype(np.float32)


def patient_grid(pose: Pose, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Patient coordinates x and y, float32 (size, size) each, of the pixel centres: the inverse of `project`."""
    # The pixel centres in units of the side, from the image's middle; the shift taken back.
    shift_u, shift_v = pose.shift
    centre = (np.arange(size) + 0.5) / size - 0.5
    u = centre[None, :] - shift_u  # (1, size)
    v = centre[:, None] - shift_v  # (size, 1)

    # Turn and zoom taken back.
    cos = np.cos(pose.turn) / pose.zoom
    sin = np.sin(pose.turn) / pose.zoom
    x = cos * u + sin * v  # (size, size)
    y = cos * v - sin * u + 0.5
    return x.astype(np.float32), y.astype(np.float32)


def splat(total: np.ndarray, px: np.ndarray, py: np.ndarray, mass: np.ndarray) -> None:
    """Add masses, in thickness times square pixels, to the map `total` (size, size), each spread bilinearly over four
    pixels."""
    # What would touch a pixel outside is left out as a whole.
    size = len(total)
    inside = (px > 0) & (px < size - 1) & (py > 0) & (py < size - 1)
    px = px[inside]
    py = py[inside]
    mass = mass[inside]
    if not len(mass):
        return

    # The upper left of the four pixels, and how far a point lies to its right and below it, in [0, 1).
    column = px.astype(np.int32)
    row = py.astype(np.int32)
    from_column = px - column
    from_row = py - row

    # The rows that are touched, as a flat window: one bincount adds up what falls on each of the four pixels.
    top = row.min()
    bottom = row.max() + 2
    upper_left = (row - top) * size + column
    window = np.zeros((bottom - top) * size)
    right_mass = mass * from_column
    left_mass = mass - right_mass
    for upper, column_mass in ((upper_left, left_mass), (upper_left + 1, right_mass)):
        lower_mass = column_mass * from_row
        upper_mass = column_mass - lower_mass
        window += np.bincount(upper, upper_mass, len(window))
        window += np.bincount(upper + size, lower_mass, len(window))
    total[top:bottom] += window.reshape(-1, size)


# --- Curves and tubes -------------------------------------------------------------------------------------------------


@functools.cache
def _spline_weights(controls: int, count: int) -> np.ndarray:
    """Weights (count, controls) of a cubic spline, which is linear in its control points."""
    # The spline through unit vectors: row i holds the weights of all control points at sample i.
    knots = np.linspace(0, 1, controls)
    samples = np.linspace(0, 1, count)
    spline = CubicSpline(knots, np.eye(controls))
    return spline(samples).astype(np.float32)


def curve(points, count: int = POINTS) -> np.ndarray:
    """A smooth path, float32 (B, count, d), through control points (B, k, d)."""
    points = np.asarray(points, np.float32)
    weights = _spline_weights(points.shape[1], count)
    return weights @ points


def both_sides(points) -> np.ndarray:
    """Control points (k, 3) of the left side, for both sides: (2, k, 3)."""
    # Only x changes its sign.
    same = np.ones_like(SIDES)
    signs = np.stack([SIDES, same, same], 1)  # (2, 3)
    return np.asarray(points) * signs[:, None]


def make_tubes(path: np.ndarray, thin, wide, cortex, marrow, normal=(0, 0, 1)) -> Tubes:
    """Tubes (B, k) from profiles that are constants, (j,) spread over each path, or (B, k)."""
    count, points, _ = path.shape
    along = np.linspace(0, 1, points)

    def profile(values) -> np.ndarray:
        if np.ndim(values) == 1:
            knots = np.linspace(0, 1, np.size(values))
            values = np.interp(along, knots, values)
        return np.broadcast_to(np.asarray(values, np.float32), (count, points))

    return Tubes(
        path=path.astype(np.float32),
        normal=np.broadcast_to(np.asarray(normal, np.float32), path.shape),
        thin=profile(thin),
        wide=profile(wide),
        cortex=profile(cortex),
        marrow=profile(marrow),
    )


def join(groups: list[Tubes]) -> Tubes:
    """One Tubes of several with the same k."""
    joined = {}
    for field in fields(Tubes):
        joined[field.name] = np.concatenate([getattr(group, field.name) for group in groups])
    return Tubes(**joined)


def resample(values: np.ndarray, count: int) -> np.ndarray:
    """Linear interpolation of (B, k, ...) along its second axis to `count` samples."""
    # The place of each sample in steps of the input, and the input point before it. The last sample belongs to the
    # last interval, so the point before it is the last but one.
    intervals = values.shape[1] - 1
    place = np.arange(count) * (intervals / (count - 1))
    before = np.minimum(place.astype(int), intervals - 1)

    # The weight of the point after it, with as many axes as the values.
    further_axes = [1] * (values.ndim - 2)
    weight = (place - before).reshape(1, count, *further_axes).astype(np.float32)
    return values[:, before] * (1 - weight) + values[:, before + 1] * weight


def _sample_count(path: np.ndarray) -> int:
    """Samples along pixel paths (B, k, 2) that lie at most a pixel apart."""
    steps = np.diff(path, axis=1)  # (B, k - 1, 2)
    lengths = np.sqrt((steps**2).sum(-1))
    # The longest step taken for all: the samples are spread evenly over the parameter, not over the length.
    intervals = path.shape[1] - 1
    return int(np.clip(lengths.max() * intervals, 4, 4096))


# --- Thickness maps ---------------------------------------------------------------------------------------------------


def shell(tubes: Tubes, weight: np.ndarray, scale: float, pose: Pose, size: int) -> np.ndarray:
    """Thickness map (size, size) of shells of thickness `weight` (B, k) at `scale` of the tubes' half axes."""
    # The direction of each path, of length 1, and how far it goes from one point to the next.
    along = np.gradient(tubes.path, axis=1)  # (B, k, 3)
    speed = np.linalg.norm(along, axis=-1)  # (B, k)
    along /= speed[..., None]

    # The two half axes of each cross-section, at right angles to the path: along the normal, without its component
    # along the path, and across it.
    along_component = (along * tubes.normal).sum(-1, keepdims=True)  # (B, k, 1)
    normal = tubes.normal - along * along_component
    normal *= scale * (tubes.thin / np.linalg.norm(normal, axis=-1))[..., None]
    across = np.cross(along, tubes.normal)
    across *= scale * (tubes.wide / np.linalg.norm(across, axis=-1))[..., None]

    # Path and half axes as they are seen, in pixels: differences of projected points.
    path = project(pose, tubes.path, size)  # (B, k, 2)
    seen_normal = project(pose, tubes.path + normal, size) - path
    seen_across = project(pose, tubes.path + across, size) - path

    # The shell's cross-section along the surface, which is longer than the path where a tube gets wider.
    widening = np.gradient(tubes.wide, axis=1)
    intervals = tubes.path.shape[1] - 1
    slant = np.hypot(speed, widening) * weight * intervals  # (B, k)

    pixel = size * pose.zoom  # pixels for a unit of the patient's coordinates
    thin = scale * tubes.thin * pixel
    wide = scale * tubes.wide * pixel
    return _rings(path, seen_normal, seen_across, slant * pixel, thin, wide, size)


def _rings(path, normal, across, slant, thin, wide, size: int) -> np.ndarray:
    """Splat tubes given in pixels as rings of points, a few tubes at once to bound the memory: (size, size).

    path: (B, k, 2). normal, across: (B, k, 2), the half axes of each ring as they are seen. thin, wide: (B, k), the
    same in space. slant: (B, k), the shell's thickness times the length of its surface along the whole path.
    """
    total = np.zeros((size, size), np.float32)
    batch = max(1, 2000 // size)
    for first in range(0, len(path), batch):
        group = slice(first, first + batch)

        # At most about a pixel between neighbours, along the tubes and around them: fewer points would show as dots.
        samples = _sample_count(path[group])
        largest_radius = max(thin[group].max(), wide[group].max())
        ring = int(np.clip(2 * np.pi * largest_radius, 8, 1024))

        # Everything at these samples, with an axis for the points of a ring.
        middle = resample(path[group], samples)[:, :, None]  # (tubes, samples, 1, 2), as the two that follow
        cos_axis = resample(normal[group], samples)[:, :, None]
        sin_axis = resample(across[group], samples)[:, :, None]
        surface = resample(slant[group], samples)[:, :, None]  # (tubes, samples, 1), as the two that follow
        a = resample(thin[group], samples)[:, :, None]
        b = resample(wide[group], samples)[:, :, None]

        # A ring is the ellipse middle + cos * (half axis a) + sin * (half axis b).
        angle = (2 * np.pi / ring * np.arange(ring)).astype(np.float32)
        cos = np.cos(angle)
        sin = np.sin(angle)
        px = middle[..., 0] + cos * cos_axis[..., 0] + sin * sin_axis[..., 0]  # (tubes, samples, ring)
        py = middle[..., 1] + cos * cos_axis[..., 1] + sin * sin_axis[..., 1]

        # A point's mass: arc length of the ellipse per angle, sqrt(a^2 sin^2 + b^2 cos^2), times the angle between
        # points, times the shell's thickness, times the step along the tube's surface.
        arc_per_angle = np.sqrt((a * sin) ** 2 + (b * cos) ** 2)
        angle_and_step = 2 * np.pi / ring / (samples - 1)
        mass = arc_per_angle * surface * angle_and_step
        splat(total, px, py, mass)
    return total


def ribbon(path: np.ndarray, radius, pose: Pose, size: int) -> np.ndarray:
    """Thickness map (size, size) of solid round tubes seen from the front: path (B, k, 2), radius a number, (k,) or (B,
    k)."""
    pixel = size * pose.zoom  # pixels for a unit of the patient's coordinates
    radius = np.broadcast_to(np.asarray(radius, np.float32), path.shape[:2])  # (B, k)
    path = project(pose, path, size)  # (B, k, 2), pixels

    # Samples about a pixel apart. steps: from sample to sample, so the derivative is scaled to the finer spacing.
    samples = _sample_count(path)
    middle = resample(path, samples)  # (B, samples, 2)
    radius = resample(radius, samples)[..., None]  # (B, samples, 1)
    finer = (path.shape[1] - 1) / (samples - 1)
    steps = resample(np.gradient(path, axis=1), samples) * finer  # (B, samples, 2)
    length = np.linalg.norm(steps, axis=-1, keepdims=True)  # (B, samples, 1), pixels

    # Points on a line across the tube, at u in (-1, 1) of its radius: (-y, x) is at right angles to (x, y).
    count = int(np.clip(2 * pixel * radius.max(), 3, 400))
    u = ((np.arange(count) + 0.5) / count * 2 - 1).astype(np.float32)
    radius_along = steps / np.maximum(length, 1e-9) * radius * pixel  # (B, samples, 2)
    px = middle[..., :1] - u * radius_along[..., 1:]  # (B, samples, count)
    py = middle[..., 1:] + u * radius_along[..., :1]

    # A point's mass: the chord 2 r sqrt(1 - u^2) of the circle, times the point's share of the width, 2 r / count,
    # times its length along the path.
    mass = np.sqrt(1 - u * u) * length * radius**2 * (4 * pixel / count)
    total = np.zeros((size, size), np.float32)
    splat(total, px, py, mass)
    return total


def rows(x: np.ndarray, y: np.ndarray, knots, power: float = 0.5) -> np.ndarray:
    """Thickness of a body given row by row: knots (k, 4) of y, centre x, half width and depth, joined smoothly.

    power: of the row's cross-section; 0.5 is an ellipse, less is flatter.
    """
    # A table of the profiles, instead of the interpolant at every pixel. Monotone cubics (PCHIP): between two knots no
    # profile swings beyond them, so no depth gets negative.
    knots = np.asarray(knots)
    knot_y = knots[:, 0]
    profiles = PchipInterpolator(knot_y, knots[:, 1:])
    table_y = np.linspace(knot_y[0], knot_y[-1], TABLE)
    table = profiles(table_y).astype(np.float32).T  # (3, TABLE)

    # Each pixel's row of it; above the first and below the last knot that knot's row goes on.
    step = table_y[1] - table_y[0]
    index = np.clip((y - table_y[0]) / step, 0, TABLE - 1).astype(np.int32)
    centre, half_width, depth = table[:, index]  # each of y's shape

    # depth (1 - u^2)^power, where u is -1 and 1 at the two ends of the row.
    u = (x - centre) / half_width
    return depth * np.maximum(1 - u**2, 0) ** power


def ellipsoid(x: np.ndarray, y: np.ndarray, centre, radii, depth, tilt: float = 0.0, power: float = 0.5) -> np.ndarray:
    """Thickness of an ellipsoid, `depth` in its middle; tilt in radians, clockwise in the image."""
    # u, v: along the two axes, from the middle, in units of the radii.
    dx = x - centre[0]
    dy = y - centre[1]
    cos = np.cos(tilt)
    sin = np.sin(tilt)
    u = (cos * dx + sin * dy) / radii[0]
    v = (cos * dy - sin * dx) / radii[1]
    return depth * np.maximum(1 - u * u - v * v, 0) ** power


def filled(outline: np.ndarray, pose: Pose, size: int) -> np.ndarray:
    """Coverage in [0, 1], float32 (size, size), of a closed outline (k, 2)."""
    # OpenCV takes whole numbers: FINE_BITS binary places and its anti-aliasing place edges to 1/16 of a pixel.
    corners = project(pose, outline, size) * 2**FINE_BITS
    corners = np.round(corners).astype(np.int32)
    canvas = np.zeros((size, size), np.uint8)
    cv2.fillPoly(canvas, [corners], 255, cv2.LINE_AA, shift=FINE_BITS)
    return canvas.astype(np.float32) / 255
