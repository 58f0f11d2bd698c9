"""Calcified cartilage of a drawn rib cage: between the front ends of the ribs and the breast bone, as compact bone.

It begins at the first rib and grows with age: along the margins of men's cartilage, in the middle of women's (McCormick
et al., AJR 1985). How many patients have it and how far it has gone is set by eye. Coordinates as in geometry.py.
"""

import numpy as np

from ..runtime.seeding import detail_generator
from . import skeleton
from .anatomy import Anatomy
from .field import smooth_step, texture
from .geometry import curve, ribbon

VERSION = 1  # of what `thickness` draws; patients of two versions are never mixed
SHARE = 0.5  # of the patients who have any
RIBS = 7  # whose cartilage reaches the breast bone
FIRST = 0.9  # share of the first ribs that have it, of patients who have any
STERNUM_X = 0.035  # where the cartilage ends, from the midline
STERNUM_Y = np.array([0.268, 0.305, 0.365, 0.425, 0.485, 0.54, 0.585])  # of ribs 1 to 7
SAG = 0.012  # by which cartilage hangs below the straight way
MARGIN = 0.8  # of the rib's half height, at which a margin lies
LINE = (0.0025, 0.0045)  # radius of a calcified margin or streak, from and to
CENTRE = (0.35, 0.7)  # breadth of a calcified middle against the rib's, from and to
DENSITY = (0.35, 0.8)  # of compact bone in what is calcified, from and to
PATCHES = 110  # grains of the texture that parts patches, along a side


def thickness(anatomy: Anatomy, size: int) -> np.ndarray:
    """Thickness of compact bone, float32 (size, size) in units of the side; a pure function of patient and size."""
    random = detail_generator(anatomy.seed, "cartilage")
    total = np.zeros((size, size), np.float32)
    if random.random() >= SHARE:
        return total
    degree = random.beta(1.5, 1.5)  # how far it has gone, 0 to 1
    density = random.uniform(*DENSITY)

    front_ends = skeleton.ribs(anatomy).path[:, -1]  # (24, 3), the right ones first
    for side in range(2):
        for rib in range(RIBS):
            # Drawn for every rib, so that one more or less changes no other.
            rate = FIRST if rib == 0 else degree
            is_calcified = random.random() < rate
            reach = random.uniform(0.3, 1.0) if rib else 1.0  # of the way to the breast bone
            line = random.uniform(*LINE)
            centre = random.uniform(*CENTRE)
            if not is_calcified:
                continue
            path = _course(front_ends[side * skeleton.RIBS + rib], rib, reach)
            if anatomy.female:
                total += ribbon(path[None], centre * anatomy.rib * np.linspace(1, 0.4, len(path)), anatomy, size)
            else:
                for sign in (-1, 1):
                    margin = path + [0, sign * MARGIN * anatomy.rib]
                    total += ribbon(margin[None].astype(np.float32), line, anatomy, size)

    # In patches, which grow together with age
    grain = texture(anatomy.seed, "calcification", size, PATCHES)
    patches = smooth_step(grain, 0.8 - 1.6 * degree, 1.6 - 1.6 * degree)
    return (density * total * patches).astype(np.float32)


def _course(front_end: np.ndarray, rib: int, reach: float) -> np.ndarray:
    """The cartilage (k, 2) from a rib's front end (3,), for a share of the way to the breast bone."""
    side = np.sign(front_end[0])
    start = front_end[:2]
    end = np.array([side * STERNUM_X, STERNUM_Y[rib]])
    middle = (start + end) / 2 + [0, SAG]
    whole = curve([[start, middle, end]])[0]  # (POINTS, 2)
    count = max(4, round(reach * len(whole)))
    return whole[:count]
