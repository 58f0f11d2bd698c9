"""Simulated chest X-rays with soft-tissue image and lung mask from a CT, as a dual-energy system would take them.

    ct.simulate(separate.parts(hounsfield, spacing), seed=0, size=512)

A chest CT lies with raised arms and ends at the neck: the chest is the CT's, shoulders, arms and neck are a phantom's. Line
integrals of tissue and bone are put together, bent smoothly, and seen by two spectra; the soft-tissue image is the subtraction of
the two log images. Exposure, scatter, noise and tone curve are drawn, and are the same for both images of a pair.
"""
from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np

from . import lesions, phantom, xray
from .phantom import Phantom
from .separate import Parts

THUMB = 128  # pixels at which windows are cut
VERSION = 1  # raise it with any change that changes a pair, in `separate` and `xray` too
HEART = (0.55, 0.68, 0.13, 0.16)  # centre and extent of what beats, in units of the image side
DRAWN_BONE = 0.65  # mineral of the phantom's ribs and vertebrae against the CT's
SEEN = 0.88  # share of the lower half that rays through the back and the front both meet
FINE = 0.4  # cm of tissue that a vessel of the lungs is thicker than what surrounds it
GRAIN = 0.3  # growth of noise with the log exposure


@dataclass(frozen=True)
class Draw:
    """What varies from pair to pair of the same CT; lengths in units of the image side."""
    turn: tuple  # radians, as xray.Pose
    deep: float  # stretch along the rays
    tall: float  # the lungs' height over that of the phantom
    air: float  # of the lungs against the CT's
    bone: float  # mineral against the CT's
    girdle: float  # mineral of collar bones, shoulder blades and arms against the phantom's
    cage: bool  # ribs of the phantom instead of the CT's
    bend: float  # of the elastic warp
    vessels: float  # gain of the lungs' detail, which the CT's slices and its shallow breath lack
    branches: float  # of the phantom's vessels, laid into the lungs
    kilovolts: float  # 0 to 1: how hard the radiograph is
    shift: float  # of the body between the two exposures
    beat: float  # of heart and diaphragm between them
    scatter: float  # against primary radiation
    noise: float  # of the log exposure in air
    subtraction: float  # share of the subtraction's noise that its filters leave
    local: float  # gain of local contrast
    unsharp: float  # gain of fine detail
    sharp: float  # blur of the detector
    dark: float  # grey level of no patient at all
    tones: tuple  # grey levels of the quantiles xray.TONE_AT


def draw(seed: int) -> Draw:
    """What pair `seed` is drawn with."""
    g = rng(seed, "ct")
    tones = np.array([0.22, 0.36, 0.60, 0.81, 0.91, 0.95]) + g.normal(0, 0.03) + np.cumsum(g.normal(0, 0.012, 6))
    return Draw(
        turn=(g.uniform(-0.16, 0.16), g.normal(0, 0.035), g.normal(0, 0.02)), deep=g.uniform(0.85, 1.15), tall=g.uniform(0.94, 1.05),
        air=g.uniform(1.0, 1.06), bone=float(np.exp(g.uniform(np.log(1.7), np.log(3.3)))), girdle=g.uniform(0.6, 1.1),
        cage=bool(g.random() < 0.4), bend=g.uniform(0.002, 0.005), vessels=g.uniform(0.0, 1.0), branches=g.uniform(0.1, 0.6),
        kilovolts=g.uniform(0.3, 1), shift=float(g.choice([0, g.uniform(0, 0.0002)])),
        beat=float(g.choice([0, g.uniform(0.0003, 0.0015)])), scatter=g.uniform(0.1, 0.6),
        noise=float(np.exp(g.uniform(np.log(0.002), np.log(0.008)))), subtraction=g.uniform(0, 0.25), local=g.uniform(0.2, 1.2),
        unsharp=g.uniform(0.1, 1.0), sharp=g.uniform(0.0003, 0.0009), dark=g.uniform(0.01, 0.06),
        tones=tuple(np.clip(np.maximum.accumulate(tones), 0.05, 0.99)))


def rng(seed: int, name: str):
    """The generator of one part of one pair, independent of all others."""
    return np.random.default_rng([seed, *name.encode()])


def simulate(part: Parts, seed: int, size: int, with_lesions: bool = False) -> Phantom:
    """Pair `seed` of a CT at size x size pixels; a pure function. ValueError for a size below phantom.MIN_SIZE.

    with_lesions: the same pair with drawn lesions (lesions.py), in both images.
    """
    if size < phantom.MIN_SIZE:
        raise ValueError(f"size {size} is below {phantom.MIN_SIZE} pixels: ask for a larger one")
    drawn = draw(seed)
    water, bone, lung = integrals(part, drawn, seed, size)
    field = lung_field(lung, water)
    if with_lesions:
        water = water + lesions.draw(field, bone, seed, phantom.SIDE)[0]
    cxr, soft = expose(water, bone, drawn, seed)
    return Phantom(*show(cxr, soft, drawn, seed), field)


# --- The patient -----------------------------------------------------------------------------------------------------------------

@lru_cache(maxsize=1)  # a pair is often shown twice, with and without lesions
def integrals(part: Parts, drawn: Draw, seed: int, size: int) -> tuple:
    """cm of tissue as water, of compact bone in its place, and of lung, (size, size) each."""
    around = phantom.surroundings(seed, size)
    pose = fit(part, drawn, around.chest, size)
    fine = np.moveaxis(xray.project(part.fine, pose, size), -1, 0)
    coarse = [cv2.resize(layer, (size, size)) for layer in np.moveaxis(xray.project(part.coarse, pose, size // 2), -1, 0)]
    water, bone, body, lung = (_mirror_below(layer, part, pose) for layer in (*fine, *coarse))
    chest, inside = windows(lung, part, pose)

    airy = xray.blur((lung / 10).clip(0, 1), 0.01)
    detail = (water - xray.blur(water, 0.01)).clip(-FINE, FINE)  # not the outlines of heart and diaphragm
    water = water + airy * (drawn.vessels * detail + drawn.branches * around.vessels)
    water = chest * (body - drawn.air * (body - water)) + (1 - chest) * around.body
    arms = (1 - inside) * around.arms
    water = np.sqrt(np.sqrt(water.clip(0) ** 4 + arms ** 4)) + around.devices

    grain = 1 + 0.10 * _texture(seed, "trabeculae", size, 512) + 0.06 * _texture(seed, "density", size, 128)
    own = chest * bone * grain.clip(0.3)
    bone = around.spine + around.cage if drawn.cage else around.spine * (1 - chest)
    bone = drawn.bone * (DRAWN_BONE * bone + own * (not drawn.cage) + drawn.girdle * around.girdle)
    warp = _elastic(seed, drawn.bend, size)
    return tuple(cv2.remap(layer.astype(np.float32), *warp, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
                 for layer in (water, bone, lung * chest))


def fit(part: Parts, drawn: Draw, chest: tuple, size: int) -> xray.Pose:
    """The pose in which the CT's lungs fill the box `chest` (right, left, top, bottom in pixels)."""
    right, left, top, bottom = part.lungs
    mm = 10 * phantom.SIDE / size
    wide = (chest[1] - chest[0]) * mm / (left - right)
    tall = np.clip(drawn.tall * (chest[3] - chest[2]) * mm / (bottom - top), 0.9 * wide, 1.4 * wide)
    centre = ((chest[0] + chest[1] - size) / 2 * mm - wide * (right + left) / 2, (chest[2] - size / 2) * mm - tall * top)
    return xray.Pose(drawn.turn, (wide, tall, drawn.deep), centre, 10 * phantom.SIDE)


def windows(lung, part, pose) -> tuple:
    """Shares (S, S) in [0, 1]: where the CT is to be seen, and the part of that around the lungs.

    Around the lungs and below the armpits it is the CT, between its ends; above and beside, where its arms are raised, it is not.
    """
    size = len(lung)
    small = cv2.resize(lung, (THUMB, THUMB), interpolation=cv2.INTER_AREA)
    points = np.argwhere(small > 1)[:, ::-1].astype(np.int32)  # 1 cm
    hull = cv2.fillConvexPoly(np.zeros((THUMB, THUMB), np.uint8), cv2.convexHull(points), 1)
    far = cv2.distanceTransform(1 - hull, cv2.DIST_L2, 5) / THUMB
    y = ((np.arange(THUMB) + 0.5) / THUMB)[:, None]
    top, bottom = np.flatnonzero(hull.any(1))[[0, -1]] / THUMB
    upper = 0.5 + (pose.centre[1] - pose.stretch[1] * part.fine.spacing[1] * part.fine.values.shape[1] / 2) / pose.field
    inside = _step(far, 0.085, 0.03) * _step(y, upper + 0.01, upper + 0.06)
    below = _step(y, top + 0.35 * (bottom - top), top + 0.75 * (bottom - top))
    return tuple(cv2.GaussianBlur(cv2.resize(layer.astype(np.float32), (size, size), interpolation=cv2.INTER_CUBIC), (0, 0),
                                  size / 100).clip(0, 1) for layer in (np.maximum(inside, below), inside))


def _mirror_below(layer, part, pose) -> np.ndarray:
    """The layer (S, S), mirrored where rays meet the CT's lower end."""
    size = len(layer)
    half = pose.stretch[1] * part.fine.spacing[1] * part.fine.values.shape[1] / 2
    lean = abs(np.sin(pose.turn[0])) * pose.stretch[2] * part.fine.spacing[0] * len(part.fine.values) / 2
    edge = int(size * (0.5 + (pose.centre[1] + SEEN * half - lean) / pose.field))
    rows = np.arange(size)
    return layer[np.where(rows > edge, 2 * edge - rows, rows).clip(0)]


def lung_field(lung, water) -> np.ndarray:
    """bool (S, S): the lungs as one outlines them in a radiograph, without what heart and diaphragm hide.

    The air in front of and behind heart and diaphragm is thin; so is that at the chest wall, which is added from there outwards.
    """
    size = len(lung)
    most = np.quantile(lung[lung > 1], 0.95)
    thick = (lung > 0.35 * most) & (lung > 0.8 * water)
    thick = cv2.morphologyEx(thick.astype(np.uint8), cv2.MORPH_OPEN, _disc(size / 60))
    _, labels, numbers, centres = cv2.connectedComponentsWithStats(thick)
    mask = np.zeros((size, size), bool)
    for label in 1 + np.flatnonzero(numbers[1:, cv2.CC_STAT_AREA] > 0.01 * size * size):
        part, flip = labels == label, 1 if centres[label, 0] > size / 2 else -1
        begun, ended = (np.logical_or.accumulate(part[:, ::way], 1)[:, ::way] for way in (flip, -flip))
        above = part.any(0) & ~np.logical_or.accumulate(part, 0)
        mask |= part | (lung > 0.3 * most) & begun & ~ended | (lung > 0.12 * most) & above
    mask = cv2.morphologyEx(mask.astype(np.uint8), cv2.MORPH_CLOSE, _disc(size / 50))
    return cv2.morphologyEx(mask, cv2.MORPH_OPEN, _disc(size / 80)).astype(bool)


# --- The images ------------------------------------------------------------------------------------------------------------------

def expose(water, bone, drawn, seed) -> tuple:
    """The log images (S, S) of the high energy and of the subtraction, free of noise."""
    size = len(water)
    hard = (1 - drawn.kilovolts) * xray.MIDDLE + drawn.kilovolts * xray.HIGH
    high = xray.attenuation(water, bone, hard)
    moved = xray.attenuation(water, bone, xray.LOW)
    if drawn.shift or drawn.beat:
        moved = cv2.remap(moved, *_motion(drawn, seed, size), cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)
    return high, xray.subtract(high, moved, xray.LOW, hard)


def _motion(drawn, seed, size) -> tuple:
    """Maps of cv2.remap from one exposure to the other: the body moves a little, heart and diaphragm more."""
    g, index = rng(seed, "motion"), np.arange(size, dtype=np.float32)
    heart = np.exp(-((index[None] / size - HEART[0]) / HEART[2]) ** 2 - ((index[:, None] / size - HEART[1]) / HEART[3]) ** 2)
    across, down = (size * (drawn.shift * g.normal() + drawn.beat * g.normal() * heart) for _ in range(2))
    return (index[None] + across).astype(np.float32), (index[:, None] + down).astype(np.float32)


def show(cxr, soft, drawn, seed) -> tuple:
    """Grey images (S, S) in [0, 1] of two log images: the same scatter, detector and display for both."""
    size = len(cxr)
    veil = drawn.scatter * xray.blur(np.exp(-cxr), 0.08).clip(0)
    g = rng(seed, f"noise {size}")
    shared, own = g.standard_normal((2, size, size), np.float32)
    grain = drawn.noise * np.exp(GRAIN * np.minimum(cxr, 5))
    noise = [shared, shared + drawn.subtraction * (2 * shared + 3 * own)]
    logs = [xray.blur(-np.log((np.exp(-log) + veil) / (1 + drawn.scatter)), drawn.sharp) + grain * part
            for log, part in zip((cxr, soft), noise)]
    wide = xray.blur(logs[1], 0.08)  # of the soft-tissue image for both: bone leaves no halo, and tissue keeps its grey
    logs = [log + drawn.unsharp * (2 * log - xray.blur(log, 0.003) - xray.blur(log, 0.012)) + drawn.local * (log - wide) for log in logs]
    tone = xray.tone_curve(logs[0], drawn.dark, drawn.tones)
    return tone(logs[0]), tone(logs[1])


def _elastic(seed, bend, size) -> tuple:
    """Maps of cv2.remap for a smooth warp that vanishes at the borders."""
    g, index = rng(seed, "elastic"), np.arange(size, dtype=np.float32)
    wave = np.sin(np.pi * np.arange(1, 5)[:, None] * (index + 0.5) / size)  # (4, size)
    across, down = (size * (wave.T @ g.normal(0, bend, (4, 4)) @ wave) for _ in range(2))
    return (index + across).astype(np.float32), (index[:, None] + down).astype(np.float32)


def _disc(radius):
    """A structuring element of so many pixels' radius."""
    return cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * max(1, round(radius)) + 1,) * 2)


def _step(value, start, end):
    """A smooth step from 0 at `start` to 1 at `end`."""
    t = np.clip((value - start) / (end - start), 0, 1)
    return t * t * (3 - 2 * t)


def _texture(seed, name, size, grains):
    noise = rng(seed, name).standard_normal((grains, grains), np.float32)
    return cv2.resize(noise, (size, size), interpolation=cv2.INTER_AREA if size < grains else cv2.INTER_CUBIC)
