"""Drawn lung lesions: nodules and masses, as thickness maps that both images of a pair contain; wide opacities are
drawn by `opacities`.

    added, found = lesions.draw(lung, bone, seed=0, side=43.0)

A lesion is drawn in projection: the chord of a ball, changed into the shapes that radiologists name. Half of the
lesions lie over bone, where bone suppression takes them away most easily. Sizes and shapes are drawn here; no patient's
lesion is copied.
"""

from dataclasses import dataclass

import cv2
import numpy as np

from ..runtime.seeding import detail_generator
from . import opacities
from .field import blur

VERSION = 2  # of what `draw` draws; patients of two versions are never mixed

# Rates of the shapes
SHAPES = {
    "round": 0.26,
    "lobulated": 0.24,
    "spiculated": 0.2,
    "part-solid": 0.12,
    "cavitated": 0.08,
    "calcified": 0.1,
}
COUNT = (3, 9)  # nodules and masses per patient, from and to
DIAMETER = (0.4, 4.0)  # cm, from and to; drawn uniformly in the logarithm
DENSITY = (0.55, 0.95)  # of the lesion's tissue, less that of the lung that it displaces, relative to water
EDGE = (0.02, 0.10)  # cm; sigma of the blur of a lesion's outline
OVER_BONE = 0.5  # share of the lesions whose centre lies over bone
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
        piece = thickness(lesion.shape, lesion.diameter, pixel, random)
        add(total, piece, lesion.x, lesion.y)
    # Wide opacities. The patch's draws follow those of the nodules, the others are of their own.
    if random.random() < opacities.PATCHES:
        total += opacities.patch(lung, random, pixel)
    total += opacities.draw(lung, detail_generator(seed, "opacities"), pixel)
    return total, placed


def thickness(shape: str, diameter: float, pixel: float, random: np.random.Generator) -> np.ndarray:
    """One lesion in the middle of a square, float32 (2 h + 1, 2 h + 1): cm of water that it adds. diameter, pixel:
    cm."""
    # x and y of the square's pixels, cm from its middle; 2 pixels more for the blur of the margin.
    radius = diameter / 2
    reach = REACH * radius / pixel  # pixels
    half = int(np.ceil(reach)) + 2
    offsets = np.arange(-half, half + 1) * pixel
    square = (len(offsets), len(offsets))
    x = np.broadcast_to(offsets[None, :], square)
    y = np.broadcast_to(offsets[:, None], square)

    body = _body(shape, x, y, radius, random)

    # A lesion's margin is not a step; at least 0.3 pixels: in a small image EDGE alone would be no blur at all.
    sigma = random.uniform(*EDGE) / pixel  # pixels
    density = random.uniform(*DENSITY)
    water = (density * body).astype(np.float32)
    return cv2.GaussianBlur(water, (0, 0), max(sigma, 0.3))


def _body(shape: str, x: np.ndarray, y: np.ndarray, radius: float, random: np.random.Generator) -> np.ndarray:
    """A lesion's tissue along each ray, cm. x, y: from its middle, cm."""
    if shape == "lobulated":
        return _lobes(x, y, radius, random)

    # All other shapes change one solid body.
    body = _ball(x, y, radius, random)
    if shape == "spiculated":
        return body + _spicules(x, y, radius, random)

    if shape == "part-solid":
        # Thin ground glass around a dense core
        core_radius = radius * random.uniform(0.3, 0.65)
        core = _ball(x, y, core_radius, random)
        thinning = random.uniform(0.25, 0.5)
        return thinning * body + 0.6 * core

    if shape == "cavitated":
        hollow_x, hollow_y = _moved(x, y, 0.1, radius, random)
        hollow_radius = radius * random.uniform(0.5, 0.8)
        hollow = _ball(hollow_x, hollow_y, hollow_radius, random)
        return np.maximum(body - hollow, 0)

    if shape == "calcified":
        core_x, core_y = _moved(x, y, 0.2, radius, random)
        core_radius = radius * random.uniform(0.3, 0.7)
        core = _ball(core_x, core_y, core_radius, random)
        gain = random.uniform(0.5, 2.0)
        return body + gain * core

    return body


def add(total: np.ndarray, piece: np.ndarray, x: int, y: int) -> None:
    """Add a square piece (2 h + 1, 2 h + 1) to total (S, S) in place, its middle at column x, row y; what leaves the
    image is cut off."""
    # What of the piece lies inside the image, as rows and columns of the image.
    half = len(piece) // 2
    top = max(0, y - half)
    left = max(0, x - half)
    bottom = min(total.shape[0], y + half + 1)
    right = min(total.shape[1], x + half + 1)
    if top >= bottom or left >= right:
        return

    # The same as rows and columns of the piece, whose first pixel lies at (y - half, x - half).
    first_row = y - half
    first_column = x - half
    piece_rows = slice(top - first_row, bottom - first_row)
    piece_columns = slice(left - first_column, right - first_column)
    total[top:bottom, left:right] += piece[piece_rows, piece_columns]


def over_ribs(bone: np.ndarray) -> np.ndarray:
    """bool (S, S): where there is more bone than in the neighbourhood, which tells ribs and clavicles from the gaps
    between them."""
    return bone > blur(bone.astype(np.float32), RIB)


def _place(lung: np.ndarray, bone: np.ndarray, random: np.random.Generator, pixel: float) -> list[Lesion]:
    """Lesions at places inside the lungs, OVER_BONE of them over bone, that do not lie on top of each other."""
    # (y, x) of all pixels that a lesion over bone, or between bones, can lie at.
    ribs = over_ribs(bone)
    places_over_bone = np.argwhere(lung & ribs)
    places_between = np.argwhere(lung & ~ribs)

    least, most = COUNT
    smallest, largest = np.log(DIAMETER)
    names = list(SHAPES)
    rates = list(SHAPES.values())
    placed: list[Lesion] = []
    count = random.integers(least, most + 1)
    for _ in range(count):
        # What the lesion is like; drawn even where there is no place for it, so that the next ones do not change.
        over_bone = bool(random.random() < OVER_BONE)
        diameter = float(np.exp(random.uniform(smallest, largest)))
        shape = str(random.choice(names, p=rates))
        places = places_over_bone if over_bone else places_between
        if len(places) == 0:
            continue

        # The first place that is far enough from all others.
        for _ in range(TRIES):
            place = random.choice(places)
            y = int(place[0])
            x = int(place[1])
            if all(_are_apart(x, y, diameter, other, pixel) for other in placed):
                placed.append(Lesion(x, y, diameter, shape, over_bone))
                break
    return placed


def _are_apart(x: int, y: int, diameter: float, other: Lesion, pixel: float) -> bool:
    """Whether a lesion of a diameter, cm, would not lie on top of another one."""
    distance = np.hypot(x - other.x, y - other.y) * pixel  # cm
    least = APART * (diameter + other.diameter) / 2  # cm, of the sum of the two radii
    return bool(distance > least)


def _ball(x: np.ndarray, y: np.ndarray, radius: float, random: np.random.Generator) -> np.ndarray:
    """Chords through a solid of about this radius whose outline is an ellipse with three soft bumps."""
    # The ellipse: a turned coordinate system, in which it is a circle of this radius.
    turn = random.uniform(0, np.pi)
    flat = random.uniform(0.75, 1.0)
    cos = np.cos(turn)
    sin = np.sin(turn)
    along = cos * x + sin * y
    across = (cos * y - sin * x) / flat

    # The bumps: r(angle) = radius (1 + sum over k of c_k cos(k angle + phase_k)), k = 2, 3, 5, c_k about 5 %.
    angle = np.arctan2(across, along)
    bumps = 0
    for k in (2, 3, 5):
        height = random.normal(0, 0.05)
        phase = random.uniform(0, 2 * np.pi)
        bumps = bumps + height * np.cos(k * angle + phase)
    outline = radius * (1 + bumps)

    # The chord 2 radius sqrt(1 - (d / r)^2) of a ball, a little thinner or thicker.
    distance_squared = along**2 + across**2
    inside = 1 - distance_squared / outline**2
    thicker = random.uniform(0.8, 1.1)
    diameter = 2 * radius * thicker
    return diameter * np.sqrt(np.maximum(inside, 0))


def _moved(
    x: np.ndarray, y: np.ndarray, deviation: float, radius: float, random: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """x and y from a middle that is moved by normal amounts; their deviation is in radii."""
    moved_x = x - random.normal(0, deviation) * radius
    moved_y = y - random.normal(0, deviation) * radius
    return moved_x, moved_y


def _lobes(x: np.ndarray, y: np.ndarray, radius: float, random: np.random.Generator) -> np.ndarray:
    """Chords through several balls that have grown together: nearly the longest chord at each place, with soft notches
    between."""
    # The 4-norm of the balls is nearly their maximum, without its creases.
    fourth_powers = np.zeros(x.shape)
    count = random.integers(3, 6)
    for _ in range(count):
        # The smaller a ball, the further it can lie from the lesion's middle.
        share = random.uniform(0.45, 0.75)  # of the lesion's radius
        distance = random.uniform(0.3, 1.0) * (1 - share) * radius / 0.7  # cm
        angle = random.uniform(0, 2 * np.pi)
        ball_x = x - distance * np.cos(angle)
        ball_y = y - distance * np.sin(angle)
        ball = _ball(ball_x, ball_y, share * radius, random)
        fourth_powers += ball**4
    return fourth_powers**0.25


def _spicules(x: np.ndarray, y: np.ndarray, radius: float, random: np.random.Generator) -> np.ndarray:
    """Thin strands of tissue that run outwards from the lesion and thin out."""
    distance = np.hypot(x, y)
    strands = np.zeros(x.shape)
    count = random.integers(7, 20)
    for _ in range(count):
        angle = random.uniform(0, 2 * np.pi)
        cos = np.cos(angle)
        sin = np.sin(angle)
        along = cos * x + sin * y
        across = cos * y - sin * x
        end = radius * random.uniform(1.2, 2.0)  # cm
        width = random.uniform(0.03, 0.08)  # cm

        # To one side only, and fainter the farther out
        to_end = (end - distance) / end
        fading = np.clip(to_end, 0, 1) * (along > 0)

        # A Gaussian across
        u = across / width
        profile = np.exp(-(u**2) / 2)
        depth = random.uniform(0.1, 0.3)  # cm
        strands += depth * fading * profile
    return np.minimum(strands, 0.6)
