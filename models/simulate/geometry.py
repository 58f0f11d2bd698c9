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
        cos_yaw = np.cos(pose.yaw)
        sin_yaw = np.sin(pose.yaw)
        x = x * cos_yaw + z * sin_yaw

    # Turn and zoom about the image's middle, and shift: u, v in units of the side, from the image's middle.
    shift_u, shift_v = pose.shift
    cos = pose.zoom * np.cos(pose.turn)
    sin = pose.zoom * np.sin(pose.turn)
    u = cos * x - sin * y + shift_u
    v = sin * x + cos * y + shift_v

    # To pixels; -0.5: pixel centres lie at whole numbers.
    place = np.stack([u, v], -1)  # (..., 2)
    from_corner = place + 0.5
    pixels = size * from_corner - 0.5
    return pixels.astype(np.float32)


def patient_grid(pose: Pose, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Patient coordinates x and y, float32 (size, size) each, of the pixel centres: the inverse of `project`."""
    # The pixel centres in units of the side, from the image's middle; the shift taken back.
    shift_u, shift_v = pose.shift
    from_corner = (np.arange(size) + 0.5) / size
    from_middle = from_corner - 0.5
    u = from_middle[None, :] - shift_u  # (1, size)
    v = from_middle[:, None] - shift_v  # (size, 1)

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
    last = size - 1
    inside_columns = (px > 0) & (px < last)
    inside_rows = (py > 0) & (py < last)
    inside = inside_columns & inside_rows
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

    # The rows that are touched, as a flat window, and the places of the upper pixels in it
    top = row.min()
    bottom = row.max() + 2
    window = np.zeros((bottom - top) * size)
    upper_left = (row - top) * size + column
    upper_right = upper_left + 1

    # A mass's share of a pixel is the larger the nearer it lies: first between left and right, then between upper and
    # lower. One bincount for each of the four pixels adds up what falls on it.
    right_mass = mass * from_column
    left_mass = mass - right_mass
    for upper, column_mass in ((upper_left, left_mass), (upper_right, right_mass)):
        lower = upper + size
        lower_mass = column_mass * from_row
        upper_mass = column_mass - lower_mass
        window += np.bincount(upper, upper_mass, len(window))
        window += np.bincount(lower, lower_mass, len(window))
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
    left = np.asarray(points)  # (k, 3)
    return left * signs[:, None]


def make_tubes(path: np.ndarray, thin, wide, cortex, marrow, normal=(0, 0, 1)) -> Tubes:
    """Tubes (B, k) from profiles that are constants, (j,) spread over each path, or (B, k)."""
    count, points, _ = path.shape
    along = np.linspace(0, 1, points)

    def profile(values) -> np.ndarray:
        if np.ndim(values) == 1:
            # Knots at even distances along the path
            knots = np.linspace(0, 1, np.size(values))
            values = np.interp(along, knots, values)
        single = np.asarray(values, np.float32)
        return np.broadcast_to(single, (count, points))

    normals = np.asarray(normal, np.float32)
    return Tubes(
        path=path.astype(np.float32),
        normal=np.broadcast_to(normals, path.shape),
        thin=profile(thin),
        wide=profile(wide),
        cortex=profile(cortex),
        marrow=profile(marrow),
    )


def join(groups: list[Tubes]) -> Tubes:
    """One Tubes of several with the same k."""
    joined = {}
    for field in fields(Tubes):
        values = [getattr(group, field.name) for group in groups]
        joined[field.name] = np.concatenate(values)
    return Tubes(**joined)


def resample(values: np.ndarray, count: int) -> np.ndarray:
    """Linear interpolation of (B, k, ...) along its second axis to `count` samples."""
    # The place of each sample in steps of the input, and the input point before it. The last sample belongs to the
    # last interval, so the point before it is the last but one.
    intervals = values.shape[1] - 1
    step = intervals / (count - 1)
    place = np.arange(count) * step
    before = np.minimum(place.astype(int), intervals - 1)
    after = before + 1

    # The weight of the point after it, with as many axes as the values.
    further_axes = [1] * (values.ndim - 2)
    share = place - before  # (count,), of the interval
    weight = share.reshape(1, count, *further_axes).astype(np.float32)
    value_before = values[:, before]  # (B, count, ...)
    value_after = values[:, after]
    return value_before * (1 - weight) + value_after * weight


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
    normal = tubes.normal - along * along_component  # (B, k, 3)
    across = np.cross(along, tubes.normal)  # (B, k, 3)

    # Each as long as the half axis in its direction
    normal_factor = tubes.thin / np.linalg.norm(normal, axis=-1)  # (B, k)
    across_factor = tubes.wide / np.linalg.norm(across, axis=-1)
    normal *= scale * normal_factor[..., None]
    across *= scale * across_factor[..., None]

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
        circumference = 2 * np.pi * largest_radius
        ring = int(np.clip(circumference, 8, 1024))

        # Everything at these samples, with an axis for the points of a ring.
        middle = resample(path[group], samples)[:, :, None]  # (tubes, samples, 1, 2), as the two that follow
        cos_axis = resample(normal[group], samples)[:, :, None]
        sin_axis = resample(across[group], samples)[:, :, None]
        surface = resample(slant[group], samples)[:, :, None]  # (tubes, samples, 1), as the two that follow
        a = resample(thin[group], samples)[:, :, None]
        b = resample(wide[group], samples)[:, :, None]

        # A ring is the ellipse middle + cos * (half axis a) + sin * (half axis b).
        angle_step = 2 * np.pi / ring
        angle = (angle_step * np.arange(ring)).astype(np.float32)
        cos = np.cos(angle)
        sin = np.sin(angle)
        px = middle[..., 0] + cos * cos_axis[..., 0] + sin * sin_axis[..., 0]  # (tubes, samples, ring)
        py = middle[..., 1] + cos * cos_axis[..., 1] + sin * sin_axis[..., 1]

        # A point's mass: arc length of the ellipse per angle, sqrt(a^2 sin^2 + b^2 cos^2), times the angle between
        # points, times the shell's thickness, times the step along the tube's surface.
        arc_per_angle = np.sqrt((a * sin) ** 2 + (b * cos) ** 2)
        angle_and_step = angle_step / (samples - 1)
        mass = arc_per_angle * surface * angle_and_step
        splat(total, px, py, mass)
    return total


def ribbon(path: np.ndarray, radius, pose: Pose, size: int) -> np.ndarray:
    """Thickness map (size, size) of solid round tubes seen from the front: path (B, k, 2), radius a number, (k,) or (B,
    k)."""
    pixel = size * pose.zoom  # pixels for a unit of the patient's coordinates
    radius = np.asarray(radius, np.float32)
    radius = np.broadcast_to(radius, path.shape[:2])  # (B, k)
    path = project(pose, path, size)  # (B, k, 2), pixels

    # Samples about a pixel apart
    samples = _sample_count(path)
    middle = resample(path, samples)  # (B, samples, 2)
    radius = resample(radius, samples)[..., None]  # (B, samples, 1)

    # The way from sample to sample: the derivative from point to point, scaled to the finer spacing
    finer = (path.shape[1] - 1) / (samples - 1)
    derivative = np.gradient(path, axis=1)  # (B, k, 2)
    steps = resample(derivative, samples) * finer  # (B, samples, 2)
    length = np.linalg.norm(steps, axis=-1, keepdims=True)  # (B, samples, 1), pixels

    # Points on a line across the tube, about a pixel apart, at u in (-1, 1) of its radius
    largest_diameter = 2 * pixel * radius.max()
    count = int(np.clip(largest_diameter, 3, 400))
    share = (np.arange(count) + 0.5) / count  # of the line
    u = (share * 2 - 1).astype(np.float32)

    # A radius along the path, in pixels; (-y, x) is at right angles to (x, y).
    direction = steps / np.maximum(length, 1e-9)  # (B, samples, 2), of length 1
    radius_along = direction * radius * pixel
    x_along = radius_along[..., :1]  # (B, samples, 1)
    y_along = radius_along[..., 1:]
    px = middle[..., :1] - u * y_along  # (B, samples, count)
    py = middle[..., 1:] + u * x_along

    # A point's mass: the chord 2 r sqrt(1 - u^2) of the circle, times the point's share of the width, 2 r / count,
    # times its length along the path.
    half_chord = np.sqrt(1 - u * u)  # (count,), in radii
    pixel_share = 4 * pixel / count
    mass = half_chord * length * radius**2 * pixel_share
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
    steps_from_top = (y - table_y[0]) / step
    index = np.clip(steps_from_top, 0, TABLE - 1).astype(np.int32)
    centre, half_width, depth = table[:, index]  # each of y's shape

    # depth (1 - u^2)^power, where u is -1 and 1 at the two ends of the row.
    u = (x - centre) / half_width
    inside = np.maximum(1 - u**2, 0)
    return depth * inside**power


def ellipsoid(x: np.ndarray, y: np.ndarray, centre, radii, depth, tilt: float = 0.0, power: float = 0.5) -> np.ndarray:
    """Thickness of an ellipsoid, `depth` in its middle; tilt in radians, clockwise in the image."""
    # u, v: along the two axes, from the middle, in units of the radii.
    centre_x, centre_y = centre
    radius_u, radius_v = radii
    dx = x - centre_x
    dy = y - centre_y
    cos = np.cos(tilt)
    sin = np.sin(tilt)
    u = (cos * dx + sin * dy) / radius_u
    v = (cos * dy - sin * dx) / radius_v

    # depth (1 - u^2 - v^2)^power
    inside = np.maximum(1 - u * u - v * v, 0)
    return depth * inside**power


def filled(outline: np.ndarray, pose: Pose, size: int) -> np.ndarray:
    """Coverage in [0, 1], float32 (size, size), of a closed outline (k, 2)."""
    # OpenCV takes whole numbers: FINE_BITS binary places and its anti-aliasing place edges to 1/16 of a pixel.
    corners = project(pose, outline, size) * 2**FINE_BITS
    corners = np.round(corners).astype(np.int32)
    canvas = np.zeros((size, size), np.uint8)
    cv2.fillPoly(canvas, [corners], 255, cv2.LINE_AA, shift=FINE_BITS)
    return canvas.astype(np.float32) / 255
