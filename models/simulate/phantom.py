"""Simulated chest X-rays with their soft-tissue image and lung mask; everything is drawn, no file is read.

    phantom.simulate(seed=0, size=512)

The patient's bones are hollow tubes in space, soft tissue and air are thickness maps (geometry.py says in which
coordinates; the image's side is about 43 cm). Their line integrals are added and go through one exposure and one tone
curve for both images.
"""

from dataclasses import dataclass

import cv2
import numpy as np

from ..runtime.seeding import detail_generator
from . import cartilage, devices, field, geometry, girdle, lesions, skeleton, soft_tissue
from .anatomy import SIDE, Anatomy, draw_anatomy
from .extras import NOTHING, Extras
from .field import blur, texture
from .shoulder_ct import Shoulders
from .surroundings import surroundings
from .xray import tone_curve

VERSION = 1  # raise it with any change that changes a pair: a simulation is not continued by another version
MIN_SIZE = 64  # pixels
SOFT_MU = 7.4  # attenuation of one unit of soft tissue, 0.17 per cm
ELASTIC_WAVES = 3
ELASTIC_BEND = 0.004  # of the warp that makes every patient's drawing a little different, in units of the side


@dataclass(frozen=True)
class Phantom:
    """A pair and its mask: cxr and soft float32 (size, size) in [0, 1], bones bright; mask bool, true in the lungs."""

    cxr: np.ndarray
    soft: np.ndarray
    mask: np.ndarray


@dataclass(frozen=True)
class Display:
    """One exposure and one way of showing it; lengths in units of the image's side."""

    scatter: float  # against primary radiation
    local: float  # gain of local contrast
    unsharp: float  # gain of fine detail
    blur: float
    noise: float  # of the log exposure in air
    air: float  # grey level of no patient at all
    tones: tuple[float, ...]  # grey levels of the quantiles xray.TONE_AT of the body


def simulate(seed: int, size: int, with_lesions: bool = False, extras: Extras = NOTHING) -> Phantom:
    """Draw patient `seed` at size x size pixels; a pure function. ValueError for a size below MIN_SIZE.

    with_lesions: the same patient with drawn lesions (lesions.py), in both images.
    """
    return _expose_each(seed, size, [with_lesions], extras)[0]


def simulate_twins(seed: int, size: int, extras: Extras = NOTHING) -> tuple[Phantom, Phantom]:
    """What `simulate` gives of patient `seed` with and without lesions, in half the time."""
    with_lesions, without = _expose_each(seed, size, [True, False], extras)
    return with_lesions, without


def _expose_each(seed: int, size: int, with_lesions: list[bool], extras: Extras) -> list[Phantom]:
    """Patient `seed`, drawn once, with or without lesions for each item of the list."""
    if size < MIN_SIZE:
        raise ValueError(f"size {size} is below {MIN_SIZE} pixels: ask for a larger phantom")
    anatomy = draw_anatomy(seed)
    soft, bone, lungs = matter(anatomy, size, not extras.devices, extras.shoulders)
    mask = lungs > 0.5
    if extras.cartilage:
        bone = bone + cartilage.thickness(anatomy, size)
    cxr_alone = None
    if extras.devices:
        drawn = devices.draw(anatomy, size)
        soft = soft + drawn.both
        cxr_alone = drawn.cxr_alone
    pairs = []
    for has_lesions in with_lesions:
        tissue = soft
        if has_lesions:
            added, _ = lesions.draw(mask, bone, seed, SIDE)  # cm of water
            # From cm to units of the side, as all of `matter`.
            tissue = soft + added / np.float32(SIDE)
        cxr, without_bone = show(anatomy, draw_display(seed), tissue, bone, cxr_alone)
        pairs.append(Phantom(cxr, without_bone, mask))
    return pairs


def matter(
    anatomy: Anatomy, size: int, with_port: bool = True, shoulders: Shoulders | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What rays meet, (size, size) each: soft tissue and compact bone in units of the side, and the coverage of the
    lung fields.

    with_port: with the port and the letter that some patients have (soft_tissue.devices). shoulders: those of a CT,
    instead of drawn ones.
    """
    seed = anatomy.seed
    x, y = geometry.patient_grid(anatomy, size)

    # Soft tissue: the body less the air in the lungs, whose tissue is uneven, and the blood in them.
    body = soft_tissue.body(anatomy, x, y)
    air, lungs = soft_tissue.air(anatomy, x, y, body)
    # Vessels fade where less than 0.10 (4 cm) of lung holds them, so that none ends at the lung's outline.
    fading = np.minimum(air / 0.10, 1)
    blood = (soft_tissue.vessels(anatomy, size) + soft_tissue.findings(anatomy, x, y)) * fading
    airways = soft_tissue.airways(anatomy, size)
    bone = None
    if shoulders is not None:
        drawn_body = body
        body, bone = _with_shoulders(anatomy, shoulders, body, lungs)
        # The CT's windpipe is not taken out once more.
        missing = np.maximum(drawn_body - body, 0)
        airways = np.maximum(airways - missing, 0)
    grain = 1 + 0.05 * texture(seed, "lung", size, 320) + 0.07 * texture(seed, "lobe", size, 9)
    soft = body - air * (1 - anatomy.density * grain) + blood
    port = soft_tissue.devices(anatomy, size) if with_port else np.float32(0)
    soft += soft_tissue.breasts(anatomy, x, y) + port - airways - soft_tissue.stomach(anatomy, x, y)
    soft = np.maximum(soft, 0) * (1 + 0.004 * texture(seed, "tissue", size, 64))

    # A smooth warp of all three: nobody is as straight as the control points.
    if bone is None:
        bone = skeleton.skeleton(anatomy, size)
    across, down = field.elastic_maps(seed, ELASTIC_WAVES, ELASTIC_BEND, size)
    soft, bone, lungs = (
        cv2.remap(layer, across, down, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        for layer in (soft, bone, lungs)
    )
    return soft, bone, lungs


def _with_shoulders(
    anatomy: Anatomy, shoulders: Shoulders, body: np.ndarray, lungs: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The drawn body, and compact bone, (size, size) each in units of the side, with the shoulders of a CT.

    body, lungs: as drawn. The body stays as it was in front of the lungs, whose air is taken out of it.
    """
    size = len(body)
    around = girdle.with_shoulders(surroundings(anatomy.seed, size), shoulders, anatomy)
    bone = (around.girdle + around.spine + around.cage) / np.float32(SIDE)
    whole = soft_tissue.joined([around.body, around.arms]) / np.float32(SIDE)

    outside = (lungs < 0.5).astype(np.uint8)
    far = cv2.distanceTransform(outside, cv2.DIST_L2, 5) / size
    share = field.smooth_step(far, 0.0, 0.06)
    return (body + share * (whole - body)).astype(np.float32), bone


# --- The images -------------------------------------------------------------------------------------------------------


def draw_display(seed: int) -> Display:
    """How pair `seed` is exposed and shown; the order of the draws is part of the pair."""
    random = detail_generator(seed, "display")
    tones = np.array([0.26, 0.39, 0.59, 0.79, 0.93, 0.97]) + random.normal(0, 0.02, 6) + random.normal(0, 0.03)
    scatter = random.uniform(0.05, 0.3)
    local = random.uniform(0.4, 1.1)
    unsharp = random.uniform(0.1, 0.8)
    sigma = random.uniform(0.0002, 0.0008)
    noise = float(np.exp(random.uniform(np.log(0.002), np.log(0.008))))
    air = random.uniform(0.015, 0.06)
    return Display(scatter, local, unsharp, sigma, noise, air, tuple(np.minimum(tones, 0.985)))


def _log_exposure(integral: np.ndarray, display: Display) -> np.ndarray:
    """What the detector reads, on a log scale: primary radiation under a veil of scatter, then sharpened."""
    primary = np.exp(-integral)
    veil = display.scatter * np.maximum(blur(primary, 0.08), 0)
    log = blur(-np.log((primary + veil) / (1 + display.scatter)), display.blur)
    log += display.unsharp * (log - blur(log, 0.004))
    return log + display.local * (log - blur(log, 0.08))


def show(
    anatomy: Anatomy, display: Display, soft: np.ndarray, bone: np.ndarray, cxr_alone: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """The cxr and the soft-tissue image in [0, 1]: bone taken away but for some of its edges, all else equal but for a
    little noise.

    soft, bone: (size, size) in units of the side, as `matter` gives them. cxr_alone: what of the devices the cxr
    alone shows, as thickness of tissue, likewise; None: none.
    """
    size = len(soft)
    # Real dual-energy images keep traces of the edges of bone; here the soft-tissue images of half the patients do.
    edges = anatomy.residue * (bone - blur(bone, 0.004))
    dense = soft if cxr_alone is None else soft + cxr_alone
    cxr = _log_exposure(SOFT_MU * (dense + anatomy.bone * bone), display)
    without_bone = _log_exposure(SOFT_MU * (soft + anatomy.bone * edges), display)

    # Quantum noise grows with what absorbs; the subtraction keeps most of it and adds some of its own.
    random = detail_generator(anatomy.seed, f"noise {size}")
    shared, own = random.standard_normal((2, size, size), np.float32)
    grain = display.noise * np.exp(0.3 * np.minimum(SOFT_MU * soft, 5))
    cxr = cxr + grain * shared
    # 0.9^2 + 0.45^2 = 1.01: as much noise as in the CXR, nine tenths of its amplitude shared with it.
    without_bone = without_bone + grain * (0.9 * shared + 0.45 * own)

    # One curve for both, set by the CXR: a grey value means the same exposure in both images.
    tone = tone_curve(cxr, display.air, display.tones)
    return tone(cxr), tone(without_bone)
