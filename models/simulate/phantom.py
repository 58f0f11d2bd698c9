"""Simulated chest X-rays with their soft-tissue image and lung mask; everything is drawn, no file is read.

    phantom.simulate(seed=0, size=512)

The patient's coordinates: x from the midline (positive = the patient's left = right side of the image), y downwards
from the top of the image, z towards the breastbone; unit = the side of the image, about 43 cm. Bones are surfaces in
space whose shell is splatted along the rays, so that a hollow tube is bright at its rims; soft tissue and air are
thickness maps. Their line integrals are added and go through one exposure and one tone curve for both images.
"""

import functools
from dataclasses import dataclass, fields

import cv2
import numpy as np
from scipy.interpolate import CubicSpline, PchipInterpolator

from . import lesions
from .xray import blur, tone_curve

VERSION = 1  # raise it with any change that changes a pair: a simulation is not continued by another version
MIN_SIZE = 64  # pixels
SIDE = 43.0  # of the image, cm
SOFT_MU = 7.4  # attenuation of one unit of soft tissue, 0.17 per cm
SIDES = np.array([-1.0, 1.0], np.float32)  # the patient's right, left
# Ribs 1 to 12: half width of the cage, fall from the back to the front, fall along the back, angle where bone ends.
RIB_WIDTH = np.array([0.155, 0.243, 0.293, 0.320, 0.338, 0.350, 0.358, 0.363, 0.363, 0.350, 0.300, 0.200])
RIB_DROP = np.array([0.150, 0.215, 0.255, 0.285, 0.305, 0.325, 0.345, 0.360, 0.370, 0.350, 0.240, 0.130])
RIB_SLOPE = np.array([0.0, 0.0, 0.0, 0.02, 0.04, 0.06, 0.09, 0.12, 0.16, 0.22, 0.32, 0.40])
RIB_END = np.radians([150, 150, 150, 147, 143, 138, 131, 124, 120, 114, 86, 60])
RIB_BOX = 0.75  # exponent of the cage's cross-section; 1 = an ellipse, less = a box
THORACIC_Y = 0.115 + np.concatenate([[0], np.cumsum(np.linspace(0.043, 0.068, 11))])  # centres of T1 to T12


@dataclass(frozen=True)
class Phantom:
    """A pair and its mask: cxr and soft float32 (size, size) in [0, 1], bones bright; mask bool, true in the lungs."""

    cxr: np.ndarray
    soft: np.ndarray
    mask: np.ndarray


@dataclass(frozen=True)
class Anatomy:
    """One patient in one pose; lengths in units of the image side, angles in radians."""

    seed: int
    female: bool
    fat: float  # 0 slim to 1 heavy
    width: float  # of the rib cage, 1 = a broad man
    drop: float  # obliqueness of the ribs, 1 = usual
    rib: float  # half height of a rib
    heart: float  # 1 = usual
    domes: tuple  # y of the right and the left half of the diaphragm
    density: float  # of lung tissue against water
    shift: tuple  # x, y
    turn: float  # in the image plane
    yaw: float  # about the long axis
    zoom: float
    shoulder: float  # -1 hanging to 1 raised
    bone: float  # attenuation of compact bone against soft tissue
    residue: float  # share of the bone edges that the soft-tissue image keeps


@dataclass(frozen=True)
class Display:
    """One exposure and one way of showing it; lengths in units of the image side."""

    scatter: float  # against primary radiation
    local: float  # gain of local contrast
    unsharp: float  # gain of fine detail
    blur: float
    noise: float  # of the log exposure in air
    air: float  # grey level of no patient at all
    tones: tuple  # grey levels of the quantiles TONE_AT of the body


@dataclass(frozen=True, eq=False)
class Surroundings:
    """A drawn patient in the image plane, around whom something else can take the chest's place; maps are float32 (size, size).

    body: cm of tissue with neither lungs nor arms; arms, vessels, devices: cm of tissue; girdle, spine, cage: cm of compact bone (collar
    bones, shoulder blades and arms; vertebrae; ribs and breast bone); chest: right, left, top and bottom of the lungs, pixels.
    """

    body: np.ndarray
    arms: np.ndarray
    vessels: np.ndarray
    devices: np.ndarray
    girdle: np.ndarray
    spine: np.ndarray
    cage: np.ndarray
    chest: tuple


@dataclass(frozen=True)
class Tubes:
    """Bones of B paths of k points: half axes along the normal and across it, shell thickness, density inside."""

    path: np.ndarray  # (B, k, 3)
    normal: np.ndarray  # (B, k, 3)
    thin: np.ndarray  # (B, k), as the three that follow
    wide: np.ndarray
    cortex: np.ndarray
    marrow: np.ndarray  # against compact bone


def simulate(seed: int, size: int, with_lesions: bool = False) -> Phantom:
    """Draw patient `seed` at size x size pixels; a pure function. ValueError for a size below MIN_SIZE.

    with_lesions: the same patient with drawn lesions (lesions.py), in both images.
    """
    if size < MIN_SIZE:
        raise ValueError(f"size {size} is below {MIN_SIZE} pixels: ask for a larger phantom")
    soft, bone, lungs = _matter(seed, size)
    if with_lesions:
        soft = soft + lesions.draw(lungs > 0.5, bone, seed, SIDE)[0] / np.float32(SIDE)
    return Phantom(*_show(_draw_anatomy(seed), _draw_display(seed), soft, bone), lungs > 0.5)


@functools.lru_cache(maxsize=1)  # a patient is often shown twice, with and without lesions
def _matter(seed: int, size: int) -> tuple:
    """The line integrals of soft tissue and bone, and the coverage of the lung fields, (size, size) each."""
    anatomy = _draw_anatomy(seed)
    x, y = _patient_grid(anatomy, size)
    body = _body(anatomy, x, y)
    air, lungs = _air(anatomy, x, y, body)
    blood = (_vessels(anatomy, size) + _findings(anatomy, x, y)) * np.minimum(air / 0.10, 1)
    grain = 1 + 0.05 * _texture(anatomy, "lung", size, 320) + 0.07 * _texture(anatomy, "lobe", size, 9)
    soft = body - air * (1 - anatomy.density * grain) + blood
    soft += _breasts(anatomy, x, y) + _devices(anatomy, size) - _airways(anatomy, size) - _stomach(anatomy, x, y)
    soft = np.maximum(soft, 0) * (1 + 0.004 * _texture(anatomy, "tissue", size, 64))
    bone, warp = _skeleton(anatomy, size), _elastic(anatomy, size)
    return tuple(cv2.remap(layer, *warp, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE) for layer in (soft, bone, lungs))


def surroundings(seed: int, size: int) -> Surroundings:
    """Patient `seed` as `simulate` draws him, before any warp, taken apart."""
    anatomy = _draw_anatomy(seed)
    x, y = _patient_grid(anatomy, size)
    layers = [_joined(_trunk(anatomy, x, y)), _joined(_arms(anatomy, x, y)), _vessels(anatomy, size), _devices(anatomy, size),
              *(_bone(anatomy, size, tubes) for tubes in ([_girdle(anatomy)], _spine(anatomy), [_ribs(anatomy), _breast_bone()]))]
    reach, top, bottom = RIB_WIDTH.max() * anatomy.width - 0.014, THORACIC_Y[0] + 0.030, sum(anatomy.domes) / 2
    ends = _project(anatomy, np.array([(-reach, 0.5), (reach, 0.5), (0, top), (0, bottom)]), size)
    return Surroundings(*(np.float32(SIDE) * layer.astype(np.float32) for layer in layers),
                        (*map(float, ends[:2, 0]), *map(float, ends[2:, 1])))


def _rng(seed, name):
    """The generator of one part of one patient, independent of all others."""
    return np.random.default_rng([seed, *name.encode()])


def _draw_anatomy(seed):
    g = _rng(seed, "anatomy")
    female, top = bool(g.random() < 0.5), g.uniform(0.69, 0.79)
    return Anatomy(
        seed=seed, female=female, fat=g.beta(2, 3), width=g.uniform(0.86, 0.95) if female else g.uniform(0.93, 1.03),
        drop=g.uniform(0.85, 1.2), rib=g.uniform(0.0115, 0.0150), heart=g.uniform(0.85, 1.2),
        domes=(top, top + g.uniform(0.015, 0.06)), density=g.uniform(0.2, 0.34),
        shift=tuple(g.uniform(-0.025, 0.025, 2)), turn=g.normal(0, 0.02), yaw=g.normal(0, 0.03),
        zoom=g.uniform(0.94, 1.08), shoulder=g.uniform(-1, 1), bone=float(np.exp(g.uniform(np.log(2.5), np.log(7.0)))),
        residue=g.choice([0.0, g.uniform(0.01, 0.05)]))


def _draw_display(seed):
    g = _rng(seed, "display")
    tones = np.array([0.26, 0.39, 0.59, 0.79, 0.93, 0.97]) + g.normal(0, 0.02, 6) + g.normal(0, 0.03)
    return Display(scatter=g.uniform(0.05, 0.3), local=g.uniform(0.4, 1.1), unsharp=g.uniform(0.1, 0.8),
                   blur=g.uniform(0.0002, 0.0008), noise=float(np.exp(g.uniform(np.log(0.002), np.log(0.008)))),
                   air=g.uniform(0.015, 0.06), tones=tuple(np.minimum(tones, 0.985)))


# ---- geometry ----

def _project(anatomy, points, size):
    """Pixel coordinates (..., 2) of the patient's points (..., 3) or (..., 2)."""
    x, y = points[..., 0], points[..., 1] - 0.5
    if points.shape[-1] == 3:
        x = x * np.cos(anatomy.yaw) + points[..., 2] * np.sin(anatomy.yaw)
    cos, sin = anatomy.zoom * np.cos(anatomy.turn), anatomy.zoom * np.sin(anatomy.turn)
    place = np.stack([cos * x - sin * y + anatomy.shift[0], sin * x + cos * y + anatomy.shift[1]], -1)
    return (size * (place + 0.5) - 0.5).astype(np.float32)


def _patient_grid(anatomy, size):
    """Patient coordinates x, y (size, size) of the pixel centres: the inverse of _project."""
    centre = (np.arange(size) + 0.5) / size - 0.5
    u, v = centre[None, :] - anatomy.shift[0], centre[:, None] - anatomy.shift[1]
    cos, sin = np.cos(anatomy.turn) / anatomy.zoom, np.sin(anatomy.turn) / anatomy.zoom
    return (cos * u + sin * v).astype(np.float32), (cos * v - sin * u + 0.5).astype(np.float32)


def _splat(total, px, py, mass):
    """Add masses, in thickness times square pixels, to the map `total` (size, size), each spread bilinearly."""
    size = len(total)
    keep = (px > 0) & (px < size - 1) & (py > 0) & (py < size - 1)
    px, py, mass = px[keep], py[keep], mass[keep]
    if not len(mass):
        return
    column, row = px.astype(np.int32), py.astype(np.int32)
    top, bottom = row.min(), row.max() + 2
    corner, right, lower = (row - top) * size + column, mass * (px - column), py - row
    window = np.zeros((bottom - top) * size)
    for offset, part in ((0, mass - right), (1, right)):
        low = part * lower
        window += np.bincount(corner + offset, part - low, len(window))
        window += np.bincount(corner + (offset + size), low, len(window))
    total[top:bottom] += window.reshape(-1, size)


def _resample(values, count):
    """Linear interpolation of (B, k, ...) along its second axis to `count` samples."""
    place = np.arange(count) * ((values.shape[1] - 1) / (count - 1))
    low = np.minimum(place.astype(int), values.shape[1] - 2)
    share = (place - low).reshape(1, -1, *[1] * (values.ndim - 2)).astype(np.float32)
    return values[:, low] * (1 - share) + values[:, low + 1] * share


@functools.cache
def _spline_weights(controls, count):
    """Weights (count, controls) of a cubic spline, which is linear in its control points."""
    spline = CubicSpline(np.linspace(0, 1, controls), np.eye(controls))
    return spline(np.linspace(0, 1, count)).astype(np.float32)


def _curve(points, count=49):
    """A smooth path (B, count, d) through control points (B, k, d)."""
    points = np.asarray(points, np.float32)
    return _spline_weights(points.shape[1], count) @ points


def _both(points):
    """Control points (k, 3) of the left side, for both sides: (2, k, 3)."""
    return np.asarray(points) * np.stack([SIDES, SIDES * 0 + 1, SIDES * 0 + 1], 1)[:, None]


def _tubes(path, thin, wide, cortex, marrow, normal=(0, 0, 1)):
    """Tubes (B, k) from profiles that are constants, (j,) spread over each path, or (B, k)."""
    at = np.linspace(0, 1, path.shape[1])
    profiles = [np.interp(at, np.linspace(0, 1, np.size(v)), v) if np.ndim(v) == 1 else v
                for v in (thin, wide, cortex, marrow)]
    return Tubes(path.astype(np.float32), np.broadcast_to(np.asarray(normal, np.float32), path.shape),
                 *(np.broadcast_to(np.asarray(v, np.float32), path.shape[:2]) for v in profiles))


def _join(parts):
    """One Tubes of several with the same k."""
    return Tubes(*(np.concatenate([getattr(part, field.name) for part in parts]) for field in fields(Tubes)))


def _count(path):
    """Samples along pixel paths (B, k, 2) that lie at most a pixel apart."""
    longest = np.sqrt((np.diff(path, axis=1) ** 2).sum(-1)).max() * (path.shape[1] - 1)
    return int(np.clip(longest, 4, 4096))


def _shell(tubes, weight, fill, anatomy, size):
    """Thickness map of shells of thickness `weight` (B, k) at `fill` of the tubes' half axes."""
    along = np.gradient(tubes.path, axis=1)
    speed = np.linalg.norm(along, axis=-1)
    along /= speed[..., None]
    normal = tubes.normal - along * (along * tubes.normal).sum(-1, keepdims=True)
    normal *= fill * (tubes.thin / np.linalg.norm(normal, axis=-1))[..., None]
    across = np.cross(along, tubes.normal)
    across *= fill * (tubes.wide / np.linalg.norm(across, axis=-1))[..., None]
    path, pixel = _project(anatomy, tubes.path, size), size * anatomy.zoom
    normal, across = (_project(anatomy, tubes.path + axis, size) - path for axis in (normal, across))
    slant = np.hypot(speed, np.gradient(tubes.wide, axis=1)) * weight * (tubes.path.shape[1] - 1)
    return _rings(path, normal, across, slant * pixel, fill * tubes.thin * pixel, fill * tubes.wide * pixel, size)


def _rings(path, normal, across, slant, thin, wide, size):
    """Splat tubes given in pixels, a few at once to bound the memory."""
    total, batch = np.zeros((size, size), np.float32), max(1, 2000 // size)
    for first in range(0, len(path), batch):
        part = slice(first, first + batch)
        rows, ring = _count(path[part]), int(np.clip(2 * np.pi * max(thin[part].max(), wide[part].max()), 8, 1024))
        middle, cos_axis, sin_axis, step, a, b = (_resample(v[part], rows)[:, :, None]
                                                  for v in (path, normal, across, slant, thin, wide))
        angle = (2 * np.pi / ring * np.arange(ring)).astype(np.float32)
        cos, sin = np.cos(angle), np.sin(angle)
        px, py = (middle[..., i] + cos * cos_axis[..., i] + sin * sin_axis[..., i] for i in (0, 1))
        mass = np.sqrt((a * sin) ** 2 + (b * cos) ** 2) * step * (2 * np.pi / ring / (rows - 1))
        _splat(total, px, py, mass)
    return total


def _ribbon(path, radius, anatomy, size):
    """Thickness map of solid round tubes seen from the front: path (B, k, 2), radius (k) or (B, k)."""
    radius = np.broadcast_to(np.asarray(radius, np.float32), path.shape[:2])
    path, pixel = _project(anatomy, path, size), size * anatomy.zoom
    rows = _count(path)
    along = _resample(np.gradient(path, axis=1), rows) * ((path.shape[1] - 1) / (rows - 1))
    middle, radius = _resample(path, rows)[:, :, None], _resample(radius, rows)[..., None]
    speed = np.linalg.norm(along, axis=-1, keepdims=True)
    across = along / np.maximum(speed, 1e-9) * radius * pixel
    count = int(np.clip(2 * pixel * radius.max(), 3, 400))
    u = ((np.arange(count) + 0.5) / count * 2 - 1).astype(np.float32)
    mass = np.sqrt(1 - u * u) * speed * radius**2 * (4 * pixel / count)
    total = np.zeros((size, size), np.float32)
    _splat(total, middle[..., 0] - u * across[..., 1:], middle[..., 1] + u * across[..., :1], mass)
    return total


def _rows(x, y, knots, power=0.5):
    """Thickness of a part given row by row: knots (k, 4) of y, centre x, half width and depth, joined smoothly."""
    knots = np.asarray(knots)
    fine = np.linspace(knots[0, 0], knots[-1, 0], 4096)
    table = PchipInterpolator(knots[:, 0], knots[:, 1:])(fine).astype(np.float32).T
    index = np.clip((y - fine[0]) / (fine[1] - fine[0]), 0, 4095).astype(np.int32)
    centre, half, depth = table[:, index]
    return depth * np.maximum(1 - ((x - centre) / half) ** 2, 0) ** power


def _ellipsoid(x, y, centre, radii, depth, tilt=0.0, power=0.5):
    """Thickness of an ellipsoid; tilt clockwise in the image."""
    dx, dy = x - centre[0], y - centre[1]
    u, v = (np.cos(tilt) * dx + np.sin(tilt) * dy) / radii[0], (np.cos(tilt) * dy - np.sin(tilt) * dx) / radii[1]
    return depth * np.maximum(1 - u * u - v * v, 0) ** power


def _fill(outline, anatomy, size):
    """Coverage in [0, 1] of a closed outline (k, 2)."""
    corners = np.round(_project(anatomy, outline, size) * 16).astype(np.int32)
    return cv2.fillPoly(np.zeros((size, size), np.uint8), [corners], 255, cv2.LINE_AA, shift=4).astype(np.float32) / 255


def _texture(anatomy, name, size, grains):
    """Unit noise (size, size) of `grains` grains a side, the same picture at every size."""
    noise = _rng(anatomy.seed, name).standard_normal((grains, grains), np.float32)
    return cv2.resize(noise, (size, size), interpolation=cv2.INTER_AREA if size < grains else cv2.INTER_CUBIC)


# ---- soft tissue and air ----

def _body(anatomy, x, y):
    """Thickness of trunk, neck, shoulders and arms, joined smoothly; the lungs are not yet taken out."""
    return _joined(_trunk(anatomy, x, y) + _arms(anatomy, x, y))


def _joined(parts):
    return np.sqrt(np.sqrt(sum((part * part) ** 2 for part in parts)))


def _trunk(anatomy, x, y):
    w, fat, up = anatomy.width, anatomy.fat, 0.025 * anatomy.shoulder
    half, deep = 0.405 * w + 0.04 * fat, 0.48 + 0.12 * fat
    return [
        _rows(x, y, [(0.08, 0, 0.22, 0), (0.19, 0, 0.36 * w, 0.2), (0.35, 0, half - 0.02, deep), (0.6, 0, half, deep),
                     (0.9, 0, half - 0.01, deep + 0.05), (1.1, 0, half, deep + 0.1)], 0.25),
        _rows(x, y, [(-0.2, 0, 0.15, 0.38), (0.05, 0, 0.13 * w + 0.02 * fat, 0.36), (0.15, 0, 0.17, 0.28),
                     (0.26, 0, 0.25, 0)], 0.3),
        _rows(x, y, [(0.02 - up, 0, 0.10, 0.16), (0.07 - up, 0, 0.17, 0.2), (0.10 - up, 0, 0.28, 0.25),
                     (0.14 - up, 0, 0.44, 0.33), (0.2 - up, 0, 0.56, 0.40), (0.3, 0, 0.57, 0.38), (0.42, 0, 0.5, 0)],
              0.3)]


def _arms(anatomy, x, y):
    up = 0.025 * anatomy.shoulder
    return [_rows(x, y, [(0.13 - up, side * 0.45, 0.06, 0), (0.26 - up, side * 0.46, 0.13, 0.30),
                         (0.42, side * 0.50, 0.13, 0.27 + 0.05 * anatomy.fat), (0.55, side * 0.57, 0.13, 0.24),
                         (0.8, side * 0.64, 0.12, 0.22), (1.1, side * 0.68, 0.09, 0.2)], 0.3) for side in SIDES]


def _breasts(anatomy, x, y):
    if not anatomy.female:
        return np.float32(0)
    g = _rng(anatomy.seed, "breasts")
    cy, radius, depth = g.uniform(0.68, 0.80), g.uniform(0.11, 0.16), g.uniform(0.02, 0.10)
    upper = np.clip((y - cy + 1.1 * radius) / radius, 0, 1)
    return upper * sum(_ellipsoid(x, y, (side * 0.22, cy), (radius, 1.15 * radius), depth) for side in SIDES)


def _pleura(anatomy, side):
    """Outline (200, 2) of the space that a lung can fill: apex, inner side of the ribs, recess, spine."""
    reach = RIB_WIDTH * anatomy.width - 0.014
    fall = THORACIC_Y + anatomy.drop * RIB_DROP / 2 + RIB_SLOPE * RIB_WIDTH
    top = THORACIC_Y[0] + 0.030
    points = [(0.060, top + 0.07), (0.082, top + 0.015), (0.118, top), (0.165, top + 0.022), (0.207, top + 0.06),
              *((reach[i], fall[i]) for i in (2, 3, 5, 7)), (reach[7], 0.88), (reach[7] - 0.02, 0.96), (0.2, 0.94),
              (0.06, 0.90), (0.052, 0.7), (0.055, 0.45)]
    points = np.array([*points, points[0]]) * [side, 1]
    knots = np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(points, axis=0), axis=1))])
    return CubicSpline(knots, points, bc_type="periodic")(np.linspace(0, knots[-1], 200))


def _mediastinum(anatomy, x, y):
    """Thickness of the heart and the great vessels."""
    g, h = _rng(anatomy.seed, "heart"), anatomy.heart
    base, knob = sum(anatomy.domes) / 2 - 0.10, g.uniform(0.030, 0.042)
    return np.maximum.reduce([
        _ellipsoid(x, y, (0.055 * h, base), (0.165 * h, 0.115 * h), 0.24, 0.75 + g.normal(0, 0.1)),  # ventricles
        _ellipsoid(x, y, (-0.025 * h, base), (0.065 * h, 0.13 * h), 0.22, -0.1),  # right atrium
        _ellipsoid(x, y, (0.060, 0.345), (knob, knob * 1.15), 0.20),  # aortic knob
        _ellipsoid(x, y, (0.066, 0.455), (0.036, 0.055), 0.14, -0.2),  # pulmonary trunk
        _rows(x, y, [(0.30, 0.055, 0.02, 0), (0.36, 0.07, 0.03, 0.1), (0.6, 0.06, 0.028, 0.1), (1, 0.045, 0.026, 0.1)]),
        _rows(x, y, [(0.16, -0.05, 0.02, 0), (0.22, -0.045, 0.022, 0.14), (0.55, -0.04, 0.035, 0.14),
                     (0.7, -0.03, 0.02, 0)]),  # upper vena cava
        _rows(x, y, [(0.1, 0, 0.075, 0.2), (0.3, 0, 0.06, 0.25), (1, 0, 0.055, 0.25)], 0.3)])  # in front of the spine


def _dome(anatomy, x, side):
    """Height y of one half of the diaphragm at x: a dome that falls steeply to the side."""
    u = (np.abs(x) - 0.16) / (RIB_WIDTH[8] * anatomy.width - 0.15)
    steep = _rng(anatomy.seed, "dome").uniform(0.13, 0.21)
    return anatomy.domes[int(side > 0)] + np.where(u > 0, steep * np.abs(u) ** 2.4, 0.03 * u * u)


def _air(anatomy, x, y, body):
    """Thickness of the aerated lungs, and the coverage in [0, 1] of the lung fields beside heart and diaphragm."""
    size, heart = len(x), _mediastinum(anatomy, x, y)
    air, lungs = np.zeros_like(body), np.zeros_like(body)
    for side in SIDES:
        space = _fill(_pleura(anatomy, side), anatomy, size)
        depth = cv2.distanceTransform((space > 0.5).astype(np.uint8), cv2.DIST_L2, 5) / (size * anatomy.zoom)
        beside = np.sqrt(np.clip((np.abs(x) - 0.035) / 0.10, 0, 1))  # near the midline spine and heart take room
        inside = 0.78 * body * np.sqrt(1 - (1 - np.minimum(depth / 0.05, 1)) ** 2) * beside
        below = y - _dome(anatomy, x, side)
        abdomen = inside * np.sqrt(1 - (1 - np.clip(below / 0.05, 0, 1)) ** 2)
        air += np.maximum(inside - heart - abdomen, 0) * space
        lungs += space * (below < 0) * (heart <= 0)
    return air, lungs


def _vessels(anatomy, size):
    """Thickness of the branching vessels of both lungs, thinner with every fork from the hilum."""
    g, total, roots = _rng(anatomy.seed, "vessels"), 0, 12
    side = np.repeat(SIDES, roots)[:, None]
    angle = np.tile(np.linspace(-1.45, 1.5, roots), 2) + g.normal(0, 0.12, 2 * roots)  # 0 = sideways, positive = down
    start = np.stack([0.085 * side[:, 0], 0.465 + 0.06 * np.sin(angle)], 1) + g.normal(0, 0.018, (2 * roots, 2))
    length = g.uniform(0.04, 0.085, 2 * roots) * (1 + 0.3 * (angle > 0.5))
    radius = g.uniform(0.0045, 0.0095, 2 * roots) * (1 + 0.4 * (angle > 0.9))
    for _ in range(8):
        angles = np.stack([angle, angle + g.normal(0, 0.35, len(angle))], 1)
        headings = np.stack([side * np.cos(angles), np.sin(angles)], -1) * length[:, None, None] / 2  # (B, 2, 2)
        path = np.concatenate([start[:, None], start[:, None] + np.cumsum(headings, 1)], 1)
        total = total + _ribbon(_curve(path, 9), radius[:, None] * np.linspace(1, 0.9, 9), anatomy, size)
        start, side = np.repeat(path[:, -1], 2, 0), np.repeat(side, 2, 0)
        aside = g.uniform(0.4, 0.95, len(angle)) * g.choice([-1, 1], len(angle))  # one child goes on, one turns off
        angle = (angles[:, 1:] + np.stack([-0.25 * aside, aside], 1)).ravel()
        length = np.repeat(length, 2) * g.uniform(0.65, 1.0, len(angle))
        radius = np.repeat(radius, 2) * (g.uniform(0.9, 1.1, (len(path), 2)) * [0.84, 0.62]).ravel()
    return 1.8 * total


def _airways(anatomy, size):
    """Thickness of the air in the trachea and the main bronchi."""
    g = _rng(anatomy.seed, "airways")
    lean, carina = g.uniform(-0.012, 0.004), g.uniform(0.36, 0.40)
    trachea = _curve([[(0.002, carina - 0.48), (0, carina - 0.32), (lean, carina - 0.16), (lean / 2 - 0.004, carina)]])
    bronchi = _curve([[(-0.004, carina - 0.01), (-0.03, carina + 0.03), (-0.07, carina + 0.085)],
                      [(0.002, carina - 0.01), (0.035, carina + 0.035), (0.085, carina + 0.075)]])
    return 1.2 * _ribbon(trachea, 0.021, anatomy, size) + _ribbon(bronchi, 0.012, anatomy, size)


def _stomach(anatomy, x, y):
    """Thickness of the bubble below the left diaphragm, flat below as the patient stands; absent in three of ten."""
    g = _rng(anatomy.seed, "stomach")
    if g.random() < 0.3:
        return np.float32(0)
    cy = anatomy.domes[1] + g.uniform(0.05, 0.08)
    bubble = _ellipsoid(x, y, (g.uniform(0.14, 0.2), cy), (g.uniform(0.05, 0.09), g.uniform(0.03, 0.05)),
                        g.uniform(0.05, 0.15), g.normal(0, 0.2))
    return bubble * (y < cy + g.uniform(0.0, 0.04))


def _findings(anatomy, x, y):
    """Thickness of nodules and hazy opacities; most patients have none."""
    g, total = _rng(anatomy.seed, "findings"), np.zeros_like(x)
    for _ in range(int(g.choice([0, 0, 0, 1, 3]))):
        r = g.uniform(0.008, 0.03)
        total += _ellipsoid(x, y, (g.choice(SIDES) * g.uniform(0.1, 0.26), g.uniform(0.25, 0.7)),
                            (r, r * g.uniform(0.8, 1.2)), r)
    if g.random() < 0.25:
        haze = _ellipsoid(x, y, (g.choice(SIDES) * g.uniform(0.12, 0.25), g.uniform(0.3, 0.7)),
                          g.uniform(0.05, 0.15, 2), g.uniform(0.02, 0.07), g.uniform(0, 3), 1.5)
        total += haze * (1 + 0.25 * _texture(anatomy, "haze", len(x), 64))
    return total


def _devices(anatomy, size):
    """Thickness of a port with its catheter and of a letter beside the patient; both images show them."""
    g, total = _rng(anatomy.seed, "devices"), np.zeros((size, size), np.float32)
    if g.random() < 0.25:
        side, low = g.choice(SIDES), g.uniform(0.4, 0.55)
        line = _curve([[(side * 0.24, low), (side * 0.25, 0.33), (side * 0.17, 0.24), (side * 0.07, 0.26),
                        (-0.04, 0.38), (-0.045, g.uniform(0.42, 0.55))]])
        turn = np.linspace(0, 2 * np.pi, 49)
        ring = np.stack([side * 0.24 + 0.016 * np.cos(turn), low + 0.016 * np.sin(turn)], -1)[None]
        total += 2 * _ribbon(line, 0.0022, anatomy, size) + 5 * _ribbon(ring, 0.0018, anatomy, size)
    if g.random() < 0.3:
        letter, corner = str(g.choice(["L", "R", "PA"])), (int(g.choice([30, 450])), int(g.uniform(40, 90)))
        text = cv2.putText(np.zeros((512, 512), np.uint8), letter, corner, cv2.FONT_HERSHEY_SIMPLEX, 1.0, 255, 3)
        total += 0.0012 * cv2.resize(text, (size, size), interpolation=cv2.INTER_AREA)
    return total


# ---- bone ----

def _ribs(anatomy):
    """Twelve pairs of ribs (24, 49), the right ones first: from the spine around to the front, falling all the way."""
    g, t = _rng(anatomy.seed, "ribs"), np.linspace(0, 1, 49)
    number, side = np.tile(np.arange(12), 2), np.repeat(SIDES, 12)[:, None]
    half = (RIB_WIDTH[number] * anatomy.width * (1 + g.normal(0, 0.006, 24)))[:, None]
    drop = (RIB_DROP[number] * anatomy.drop * (1 + g.normal(0, 0.03, 24)))[:, None]
    start = np.arcsin((0.040 / half) ** (1 / RIB_BOX))
    phi = start + t * (RIB_END[number][:, None] + g.normal(0, 0.04, (24, 1)) - start)  # 0 = back, pi = front
    sin, cos = np.sin(phi), np.cos(phi)
    out = half * sin**RIB_BOX
    y = (THORACIC_Y[number][:, None] - 0.012 + g.normal(0, 0.002, (24, 1)) + drop * (1 - cos) / 2
         + RIB_SLOPE[number][:, None] * out - 0.014 * np.sin(np.pi * np.clip(phi / 0.9, 0, 1)))
    depth = np.linspace(0.14, 0.22, 12)[number][:, None]
    path = np.stack([side * out, y, -depth * np.sign(cos) * np.abs(cos) ** RIB_BOX], -1)
    tip = np.where(number == 0, -0.65, -0.15)[:, None] + 0 * phi  # the first rib lies flat
    wide = (anatomy.rib * np.interp(t, [0, 0.06, 0.2, 0.6, 0.95, 1], [0.7, 0.75, 1, 0.95, 1.1, 0.7])
            * np.interp(number, [0, 10, 11], [1, 0.9, 0.7])[:, None])
    cortex = np.interp(t, [0, 0.5, 0.8, 1], [1, 1, 0.75, 0.5]) * 0.0032
    return _tubes(path, 0.55 * wide, wide, cortex, 0.34, np.stack([side * sin, tip, -cos], -1))


def _spine(anatomy):
    """Bodies of C4 to L3 (20, 9), and their pedicles, transverse and spinous processes (100, 49)."""
    g = _rng(anatomy.seed, "spine")
    outer = np.arange(1, 5)
    y = np.concatenate([THORACIC_Y[0] - 0.039 * outer[::-1], THORACIC_Y, THORACIC_Y[-1] + 0.071 * outer])
    height = np.gradient(y) * 0.44
    width = np.interp(y, [0, 0.12, 0.3, 0.75, 1], [0.036, 0.042, 0.040, 0.050, 0.056]) * (0.5 + 0.5 * anatomy.width)
    x = np.interp(y, np.linspace(0, 1, 5), g.normal(0, 0.004, 5))
    centre = np.stack([x, y, 0 * y - 0.13], -1)[:, None]
    level = np.array([-1, -0.99, -0.9, -0.5, 0, 0.5, 0.9, 0.99, 1.0])
    edge = width[:, None] * [0, 0.95, 1.03, 0.95, 0.92, 0.95, 1.03, 0.95, 0]
    tilt = np.interp(y, [0, 0.12, 0.5, 1], [0.30, 0.25, 0.02, -0.12]) + g.normal(0, 0.05, 20)  # against the rays
    axis = np.stack([g.normal(0, 0.02, 20), np.cos(tilt), np.sin(tilt)], -1)[:, None]
    marrow = np.interp(y, [0, 0.2, 0.5], [0.08, 0.14, 0.17])[:, None]
    bodies = _tubes(centre + level[:, None] * height[:, None, None] * axis, 0.8 * edge, edge, 0.0010, marrow)
    processes = []
    for side in SIDES:
        at = np.stack([side * 0.55 * width, -0.3 * height], -1) + g.normal(0, 0.0015, (20, 2))
        pedicle = np.stack([np.column_stack([at, np.full(20, z)]) for z in (-0.03, -0.045, -0.06)], 1)
        processes.append(_tubes(_curve(centre + pedicle), 0.0065, 0.0095, 0.0012, 0.3, (1, 0, 0)))
        reach = np.interp(y, [0, 0.11, 0.2, 0.7, 1], [0.045, 0.085, 0.072, 0.06, 0.075])
        process = np.stack([np.stack([side * r * reach, -lift * height, 0 * y - 0.05], -1)
                            for r, lift in ((0.3, 0.1), (0.7, 0.35), (1, 0.55))], 1)
        processes.append(_tubes(_curve(centre + process), 0.006, [0.013, 0.009, 0.010, 0.003], 0.0013, 0.25))
    spinous = np.array([(0, 0.006, -0.06), (0, 0.022, -0.085), (0, 0.034, -0.11)]) + g.normal(0, 0.001, (20, 3, 3))
    processes.append(_tubes(_curve(centre + spinous), [0.004, 0.006], [0.016, 0.012], 0.0014, 0.2, (1, 0, 0)))
    return bodies, _join(processes)


def _girdle(anatomy):
    """Collar bones, shoulder blades and upper arms (18, 49)."""
    g, lift = _rng(anatomy.seed, "shoulders"), 0.02 * anatomy.shoulder
    out = np.array([g.uniform(0.0, 0.045), -lift, 0])
    collar = [(0.048, 0.265, 0.18), (0.11, 0.245, 0.20), (0.18, 0.215 - lift, 0.19), (0.27, 0.17 - 1.5 * lift, 0.12),
              (0.335 + out[0] / 2, 0.142 - 1.7 * lift, 0.06), (0.385 + out[0], 0.143 - 1.7 * lift, 0.03)]

    def bone(points, *profiles):
        return _tubes(_curve(_both(np.asarray(points) + out)), *profiles)

    return _join([
        _tubes(_curve(_both(collar)), [0.018, 0.014, 0.013, 0.013, 0.010, 0.009],
               [0.021, 0.015, 0.014, 0.015, 0.018, 0.014], 0.0036, 0.3),
        bone([(0.335, 0.25, -0.1), (0.325, 0.31, -0.12), (0.312, 0.38, -0.15), (0.295, 0.47, -0.18)],
             [0.008, 0.005, 0.004], [0.011, 0.007, 0.006, 0.003], [0.003, 0.003, 0.002, 0.0006], 0.3),  # outer border
        bone([(0.235, 0.19, -0.18), (0.24, 0.27, -0.19), (0.26, 0.37, -0.19), (0.295, 0.47, -0.18)], 0.002, 0.003,
             [0.0004, 0.0010, 0.0010], 0.3),  # inner border
        bone([(0.292, 0.44, -0.18), (0.283, 0.36, -0.18), (0.285, 0.29, -0.18), (0.29, 0.21, -0.16)], 0.003,
             [0.012, 0.04, 0.052, 0.05], [0.0008, 0.0006, 0.0006], 0.6),  # blade
        bone([(0.24, 0.235, -0.18), (0.30, 0.205, -0.18), (0.36, 0.16, -0.12), (0.41, 0.155, -0.05),
              (0.425, 0.17, 0.0)], [0.004, 0.006, 0.009, 0.009], [0.005, 0.007, 0.015, 0.018, 0.01], 0.0022,
             0.3),  # ridge
        bone([(0.335, 0.22, -0.08), (0.318, 0.195, -0.03), (0.312, 0.20, 0.03)], 0.010, [0.016, 0.014, 0.012], 0.0022,
             0.3),  # coracoid
        bone([(0.342, 0.20, -0.08), (0.338, 0.235, -0.08), (0.345, 0.27, -0.08)], [0.003, 0.013, 0.003],
             [0.006, 0.014, 0.006], 0.0030, 0.3),  # socket
        bone([(0.408, 0.252, -0.05), (0.39, 0.235, -0.05), (0.375, 0.221, -0.05), (0.362, 0.208, -0.05),
              (0.352, 0.198, -0.05), (0.348, 0.194, -0.05)], *[[0.034, 0.043, 0.043, 0.036, 0.020, 0.002]] * 2,
             [0, 0.001, 0.0024, 0.0026, 0.0026],
             0.12),  # head of the humerus
        bone([(0.398, 0.182, -0.05), (0.400, 0.187, -0.05), (0.404, 0.203, -0.05), (0.411, 0.24, -0.05),
              (0.430, 0.29, -0.05), (0.455, 0.36, -0.05), (0.56, 0.61, -0.05)],
             *[[0.003, 0.019, 0.029, 0.035, 0.030, 0.022, 0.020]] * 2, [0.002, 0.002, 0.003, 0.0055, 0.007], 0.12)])


def _breast_bone():
    return _tubes(_curve([[(0, 0.255, 0.2), (0, 0.36, 0.23), (0, 0.5, 0.24), (0, 0.6, 0.24)]]), 0.010,
                  [0.045, 0.035, 0.025, 0.035, 0.02], 0.0010, 0.1)


def _skeleton(anatomy, size):
    return _bone(anatomy, size, (_ribs(anatomy), *_spine(anatomy), _girdle(anatomy), _breast_bone()))


def _bone(anatomy, size, bones):
    """Thickness of compact bone, the trabecular inside included."""
    cortex, inside = np.zeros((size, size), np.float32), np.zeros((size // 2, size // 2), np.float32)
    for tubes in bones:
        cortex += _shell(tubes, tubes.cortex, 1.0, anatomy, size)
        inside += _shell(tubes, 0.8 * tubes.marrow * tubes.thin, 0.6, anatomy, size // 2)  # a solid, after smoothing
    inside = cv2.GaussianBlur(inside, (0, 0), max(0.0035 * size / 2, 0.5))
    inside = cv2.resize(inside, (size, size), interpolation=cv2.INTER_LINEAR)
    grain = 0.13 * _texture(anatomy, "trabeculae", size, 512) + 0.08 * _texture(anatomy, "density", size, 128)
    return (inside + 0.6 * cortex) * np.maximum(1 + grain, 0.3) + 0.4 * cortex


# ---- image ----

def _elastic(anatomy, size):
    """Maps of cv2.remap for a smooth warp by about 0.01 that vanishes at the borders."""
    g, index = _rng(anatomy.seed, "elastic"), np.arange(size, dtype=np.float32)
    wave = np.sin(np.pi * np.arange(1, 4)[:, None] * (index + 0.5) / size)  # (3, size)
    across, down = (size * (wave.T @ g.normal(0, 0.004, (3, 3)) @ wave) for _ in range(2))
    return (index + across).astype(np.float32), (index[:, None] + down).astype(np.float32)


def _log_exposure(integral, display):
    """What the detector reads, on a log scale: primary radiation under a veil of scatter, then sharpened."""
    primary = np.exp(-integral)
    veil = display.scatter * np.maximum(blur(primary, 0.08), 0)
    log = blur(-np.log((primary + veil) / (1 + display.scatter)), display.blur)
    log += display.unsharp * (log - blur(log, 0.004))
    return log + display.local * (log - blur(log, 0.08))


def _show(anatomy, display, soft, bone):
    """The cxr and the soft-tissue image in [0, 1]: bone taken away, all else equal but for a little noise."""
    size = len(soft)
    g = _rng(anatomy.seed, f"noise {size}")
    edges = anatomy.residue * (bone - blur(bone, 0.004))
    cxr, rest = (_log_exposure(SOFT_MU * (soft + anatomy.bone * layer), display) for layer in (bone, edges))
    grain = display.noise * np.exp(0.3 * np.minimum(SOFT_MU * soft, 5))
    shared, own = g.standard_normal((2, size, size), np.float32)
    cxr, rest = cxr + grain * shared, rest + grain * (0.9 * shared + 0.45 * own)
    tone = tone_curve(cxr, display.air, display.tones)
    return tone(cxr), tone(rest)
