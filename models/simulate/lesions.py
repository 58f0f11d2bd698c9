"""Drawn lung lesions: nodules, masses and patches of consolidation, as thickness maps that both images of a pair
contain.

    added, found = lesions.draw(lung, bone, seed=0, side=43.0)

A lesion is drawn in projection: the chord of a ball, changed into the shapes that radiologists name. Half of the
lesions lie over bone, where bone suppression takes them away most easily. Sizes and shapes are drawn here; no patient's
lesion is copied.
"""

from dataclasses import dataclass

import cv2
import numpy as np

from ..runtime.seeding import detail_generator
from .field import blur

# Rates of the shapes
SHAPES = {"round": 0.26, "lobulated": 0.24, "spiculated": 0.2, "part-solid": 0.12, "cavitated": 0.08, "calcified": 0.1}
COUNT = (3, 9)  # nodules and masses per patient, from and to
DIAMETER = (0.4, 4.0)  # cm, from and to; drawn uniformly in the logarithm
DENSITY = (0.55, 0.95)  # of the lesion's tissue, less that of the lung that it displaces, relative to water
EDGE = (0.02, 0.10)  # cm; sigma of the blur of a lesion's outline
OVER_BONE = 0.5  # share of the lesions whose centre lies over bone
PATCH = 0.15  # share of the patients who also have a patch of consolidation
PATCH_WIDTH = (3.0, 10.0)  # cm
PATCH_DEPTH = (0.5, 3.0)  # cm of water
RIB = 0.02  # sigma, in units of the side, of the blur that bone is compared with to find ribs
REACH = 2.2  # half the side of the square that a lesion is drawn in, in radii: spicules reach out
APART = 0.7  # two centres are at least this share of the sum of the two radii apart
TRIES = 30  # places that are tried for a lesion before it is left out


@dataclass(frozen=True)
class Lesion:
    """x, y: centre, pixels; diameter: cm; shape: a key of SHAPES; over_bone: whether the centre lies over bone."""

    x: int
    y: int
    diameter: float
    shape: str
    over_bone: bool


def draw(lung: np.ndarray, bone: np.ndarray, seed: int, side: float) -> tuple[np.ndarray, list[Lesion]]:
    """Patient `seed`'s lesions: (cm of water that they add, float32 (S, S); one Lesion each). A pure function.

    lung: bool (S, S), true where rays cross aerated lung. bone: (S, S), thickness of bone in any unit. side: side of
    the image, cm.
    """
    random = detail_generator(seed, "lesions")
    pixel = side / len(lung)  # cm
    total = np.zeros(lung.shape, np.float32)
    placed = _place(lung, bone, random, pixel)

    for lesion in placed:
        add(total, thickness(lesion.shape, lesion.diameter, pixel, random), lesion.x, lesion.y)

    if random.random() < PATCH:
        total += _patch(lung, random, pixel)
    return total, placed


def thickness(shape: str, diameter: float, pixel: float, random: np.random.Generator) -> np.ndarray:
    """One lesion in the middle of a square, float32 (2 h + 1, 2 h + 1): cm of water that it adds. diameter, pixel:
    cm."""
    radius = diameter / 2
    half = int(np.ceil(REACH * radius / pixel)) + 2
    index = np.arange(-half, half + 1) * pixel
    x = np.broadcast_to(index[None, :], (len(index), len(index)))
    y = np.broadcast_to(index[:, None], x.shape)

    # The solid body, in cm of tissue along the ray.
    if shape == "lobulated":
        body = _lobes(x, y, radius, random)
    else:
        body = _ball(x, y, radius, random)

    # What the other shapes change in it.
    if shape == "spiculated":
        body = body + _spicules(x, y, radius, random)
    elif shape == "part-solid":
        core = _ball(x, y, radius * random.uniform(0.3, 0.65), random)
        body = random.uniform(0.25, 0.5) * body + 0.6 * core
    elif shape == "cavitated":
        hollow_x = x - random.normal(0, 0.1) * radius
        hollow_y = y - random.normal(0, 0.1) * radius
        hollow = _ball(hollow_x, hollow_y, radius * random.uniform(0.5, 0.8), random)
        body = np.maximum(body - hollow, 0)
    elif shape == "calcified":
        core_x = x - random.normal(0, 0.2) * radius
        core_y = y - random.normal(0, 0.2) * radius
        core = _ball(core_x, core_y, radius * random.uniform(0.3, 0.7), random)
        body = body + random.uniform(0.5, 2.0) * core

    # A lesion's margin is not a step; at least 0.3 pixels: in a small image EDGE alone would be no blur at all.
    sigma = random.uniform(*EDGE) / pixel  # pixels
    density = random.uniform(*DENSITY)
    return cv2.GaussianBlur((density * body).astype(np.float32), (0, 0), max(sigma, 0.3))


def add(total: np.ndarray, piece: np.ndarray, x: int, y: int) -> None:
    """Add a square piece (2 h + 1, 2 h + 1) to total (S, S) in place, its middle at column x, row y; what leaves the
    image is cut off."""
    half = len(piece) // 2
    top = max(0, y - half)
    left = max(0, x - half)
    bottom = min(total.shape[0], y + half + 1)
    right = min(total.shape[1], x + half + 1)
    if top < bottom and left < right:
        total[top:bottom, left:right] += piece[top - y + half : bottom - y + half, left - x + half : right - x + half]


def over_ribs(bone: np.ndarray) -> np.ndarray:
    """bool (S, S): where there is more bone than in the neighbourhood, which tells ribs and clavicles from the gaps
    between them."""
    return bone > blur(bone.astype(np.float32), RIB)


def _place(lung: np.ndarray, bone: np.ndarray, random: np.random.Generator, pixel: float) -> list[Lesion]:
    """Lesions at places inside the lungs, OVER_BONE of them over bone, that do not lie on top of each other."""
    ribs = over_ribs(bone)
    candidates = {True: np.argwhere(lung & ribs), False: np.argwhere(lung & ~ribs)}
    placed: list[Lesion] = []
    for _ in range(random.integers(COUNT[0], COUNT[1] + 1)):
        over_bone = bool(random.random() < OVER_BONE)
        diameter = float(np.exp(random.uniform(np.log(DIAMETER[0]), np.log(DIAMETER[1]))))
        shape = str(random.choice(list(SHAPES), p=list(SHAPES.values())))
        if len(candidates[over_bone]) == 0:
            continue
        for _ in range(TRIES):
            y, x = (int(value) for value in random.choice(candidates[over_bone]))
            if all(_are_apart(x, y, diameter, other, pixel) for other in placed):
                placed.append(Lesion(x, y, diameter, shape, over_bone))
                break
    return placed


def _are_apart(x: int, y: int, diameter: float, other: Lesion, pixel: float) -> bool:
    """Whether a lesion of a diameter, cm, would not lie on top of another one."""
    distance = np.hypot(x - other.x, y - other.y) * pixel  # cm
    return bool(distance > APART * (diameter + other.diameter) / 2)


def _ball(x: np.ndarray, y: np.ndarray, radius: float, random: np.random.Generator) -> np.ndarray:
    """Chords through a solid of about this radius whose outline is an ellipse with three soft bumps."""
    turn = random.uniform(0, np.pi)
    flat = random.uniform(0.75, 1.0)
    along = np.cos(turn) * x + np.sin(turn) * y
    across = (np.cos(turn) * y - np.sin(turn) * x) / flat
    angle = np.arctan2(across, along)
    # r(angle) = 1 + bumps of order 2, 3 and 5, 5 % each; then the chord 2 r sqrt(1 - (d / r)^2) of a ball.
    outline = 1 + sum(random.normal(0, 0.05) * np.cos(k * angle + random.uniform(0, 2 * np.pi)) for k in (2, 3, 5))
    inside = 1 - (along**2 + across**2) / (radius * outline) ** 2
    return 2 * radius * random.uniform(0.8, 1.1) * np.sqrt(np.maximum(inside, 0))


def _lobes(x: np.ndarray, y: np.ndarray, radius: float, random: np.random.Generator) -> np.ndarray:
    """Chords through several balls that have grown together: nearly the longest chord at each place, with soft notches
    between."""
    fourth = np.zeros(x.shape)
    for _ in range(random.integers(3, 6)):
        share = random.uniform(0.45, 0.75)
        away = random.uniform(0.3, 1.0) * (1 - share) * radius / 0.7
        angle = random.uniform(0, 2 * np.pi)
        # The 4-norm is nearly the maximum, without its creases.
        fourth += _ball(x - away * np.cos(angle), y - away * np.sin(angle), share * radius, random) ** 4
    return fourth**0.25


def _spicules(x: np.ndarray, y: np.ndarray, radius: float, random: np.random.Generator) -> np.ndarray:
    """Thin strands of tissue that run outwards from the lesion and thin out."""
    distance = np.hypot(x, y)
    strands = np.zeros(x.shape)
    for _ in range(random.integers(7, 20)):
        angle = random.uniform(0, 2 * np.pi)
        along = np.cos(angle) * x + np.sin(angle) * y
        across = np.cos(angle) * y - np.sin(angle) * x
        end = radius * random.uniform(1.2, 2.0)
        width = random.uniform(0.03, 0.08)  # cm
        # To one side only, and fainter the farther out.
        fades = np.clip((end - distance) / end, 0, 1) * (along > 0)
        strands += random.uniform(0.1, 0.3) * fades * np.exp(-((across / width) ** 2) / 2)
    return np.minimum(strands, 0.6)


def _patch(lung: np.ndarray, random: np.random.Generator, pixel: float) -> np.ndarray:
    """A patch of consolidation: wide, uneven, with a soft outline, inside the lung. float32 (S, S), cm of water."""
    size = len(lung)
    places = np.argwhere(lung)
    if len(places) == 0:
        return np.zeros(lung.shape, np.float32)
    y, x = random.choice(places)
    width = random.uniform(*PATCH_WIDTH, 2) / 2 / pixel  # half widths, pixels
    depth = random.uniform(*PATCH_DEPTH)
    index = np.arange(size)
    # A paraboloid made uneven by coarse noise; multiplied by the lung, so that it ends where the lung does.
    inside = 1 - ((index[None, :] - x) / width[0]) ** 2 - ((index[:, None] - y) / width[1]) ** 2
    grain = cv2.resize(random.standard_normal((48, 48), np.float32), (size, size), interpolation=cv2.INTER_CUBIC)
    uneven = np.maximum(np.maximum(inside, 0) * (1 + 0.5 * grain), 0) * lung
    return (depth * blur(uneven.astype(np.float32), 0.006)).astype(np.float32)
