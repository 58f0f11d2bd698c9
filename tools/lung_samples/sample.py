"""Samples for tools/train_lungs.py: simulated patients, spoiled in every way that real X-rays are.

    features, target = sample(index, pool)

Sample number i is a function of i alone. Each function takes its random numbers in the order of its lines: a changed
order gives other samples.
"""

import cv2
import numpy as np
from numpy.random import Generator

from models import lungs

from . import changes, display
from .draws import chance, smooth

SIZE = 256  # px, the patients are drawn at this size
CANVAS = lungs.NET_SIZE  # px, side of what the network sees

Images = tuple[np.ndarray, np.ndarray]  # CXR and mask
# How often a sample has each change
CHANGES = {
    changes.heart: 0.25,
    changes.opacities: 0.35,
    changes.effusion: 0.2,
    changes.haze: 0.2,
    changes.breasts: 0.25,
    changes.bowel: 0.3,
    changes.arms: 0.25,
}


def sample(index: int, pool: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Features (2, CANVAS, CANVAS) and lungs (1, CANVAS, CANVAS) of sample `index`, float32; a pure function.

    pool: patients, as `train_lungs.patients` gives them.
    """
    random = np.random.default_rng([2, index])

    # A patient with fainter or stronger bone, in another pose
    patient = pool[random.integers(len(pool))]
    cxr, soft, mask = patient.astype(np.float32)  # (SIZE, SIZE) each
    bone = cxr - soft
    bone_gain = random.uniform(0.3, 1.3)
    cxr = (soft + bone_gain * bone) / 255
    cxr, mask = deform(random, cxr, mask)  # (H, W) each

    # Disease and anatomy that simulated patients do not have
    for change, probability in CHANGES.items():
        if chance(random, probability):
            cxr, mask = change(random, cxr, mask)

    # What detector, viewer and archive do
    cxr = display.display(random, np.clip(cxr, 0, 1.3))
    if chance(random, 0.5):
        cxr = display.things(random, cxr)
    if chance(random, 0.4):
        cxr, mask = display.collimate(random, cxr, mask)
    cxr = display.detector(random, cxr)

    # At the network's size, the image in the upper left corner, as in models/lungs.py
    source_height, source_width = cxr.shape
    scale = CANVAS / max(source_height, source_width)
    height = max(1, round(source_height * scale))
    width = max(1, round(source_width * scale))
    cxr = cv2.resize(cxr, (width, height), interpolation=cv2.INTER_AREA)
    mask = cv2.resize(mask, (width, height), interpolation=cv2.INTER_AREA)
    target = np.zeros((1, CANVAS, CANVAS), np.float32)
    target[0, :height, :width] = mask
    return lungs.features(cxr), target


def deform(random: Generator, cxr: np.ndarray, mask: np.ndarray) -> Images:
    """Another build, pose and crop: an affine map with a smooth warp; any aspect."""
    height = int(random.integers(160, 225))
    aspect = np.exp(random.normal(0, 0.15))
    width = int(np.clip(height * aspect, 128, 280))
    shape = (height, width)

    # The place in the source from which each pixel is taken: from units of its side, 0 in the middle, to pixels
    u, v = _affine(random, shape)
    u, v = _warped(random, u, v)
    from_x = ((u + 0.5) * SIZE - 0.5).astype(np.float32)
    from_y = ((v + 0.5) * SIZE - 0.5).astype(np.float32)

    # What lies beyond the source's border: one grey, or its last pixels
    border = cv2.BORDER_REPLICATE
    grey = 0.0
    if chance(random, 0.4):
        border = cv2.BORDER_CONSTANT
        grey = float(random.choice([0, 0, 0.05, 1]))
    moved_cxr = cv2.remap(cxr, from_x, from_y, cv2.INTER_LINEAR, borderMode=border, borderValue=grey)
    moved_mask = cv2.remap(mask, from_x, from_y, cv2.INTER_LINEAR)
    return moved_cxr, moved_mask


def _affine(random: Generator, shape: tuple[int, int]) -> Images:
    """Place (u, v) in the source, (H, W) each, 0 in the middle: turned, zoomed, stretched and shifted."""
    height, width = shape
    rows, columns = np.mgrid[:height, :width].astype(np.float32)
    x = (columns + 0.5) / width - 0.5
    y = (rows + 0.5) / height - 0.5

    # A zoom above 1 makes the patient smaller.
    angle = random.normal(0, 0.08)
    zoom = np.exp(random.normal(-0.12, 0.16))
    cos = np.cos(angle) * zoom
    sin = np.sin(angle) * zoom

    # Most narrow images show less of the patient; the others squeeze him.
    stretch_x, stretch_y = np.exp(random.normal(0, 0.06, 2))
    if chance(random, 0.7):
        stretch_x = stretch_x * min(1.0, width / height)

    shift_u = random.normal(0, 0.05)
    shift_v = random.normal(0, 0.05)
    u = stretch_x * (cos * x - sin * y) + shift_u
    v = stretch_y * (sin * x + cos * y) + shift_v
    return u, v


def _warped(random: Generator, u: np.ndarray, v: np.ndarray) -> Images:
    """Places (u, v) as `_affine` gives them, moved by a smooth warp and by what makes builds differ."""
    strength = random.uniform(0, 0.028)
    grains_u = int(random.integers(3, 7))
    u = u + strength * smooth(random, u.shape, grains_u)
    grains_v = int(random.integers(3, 7))
    v = v + strength * smooth(random, v.shape, grains_v)

    # Broad above and narrow below, or the other way round
    taper = random.normal(0, 0.12)
    u = u * (1 + taper * v)

    # High and low diaphragms: the lower half is stretched
    drop = random.normal(0, 0.03)
    v = v + drop * np.clip(v, 0, 1) * 2

    # The heart on the right
    if chance(random, 0.2):
        u = -u
    return u, v
