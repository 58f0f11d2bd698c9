"""A drawn patient in numbers: what is the same in everybody, and what is drawn for each.

Coordinates as in geometry.py. The tables here, and the control points in soft_tissue.py and skeleton.py, were placed by
the project's authors by eye, after the proportions of normal chest radiographs; they come from no atlas and no
patient's measures.
"""

from dataclasses import dataclass

import numpy as np

from ..runtime.seeding import detail_generator
from .geometry import Pose

SIDE = 43.0  # of the image, cm

# Ribs 1 to 12: half width of the cage, fall from the back to the front, fall along the back, angle where bone ends and
# gristle begins
RIB_WIDTH = np.array([0.155, 0.243, 0.293, 0.320, 0.338, 0.350, 0.358, 0.363, 0.363, 0.350, 0.300, 0.200])
RIB_DROP = np.array([0.150, 0.215, 0.255, 0.285, 0.305, 0.325, 0.345, 0.360, 0.370, 0.350, 0.240, 0.130])
RIB_SLOPE = np.array([0.0, 0.0, 0.0, 0.02, 0.04, 0.06, 0.09, 0.12, 0.16, 0.22, 0.32, 0.40])
RIB_END = np.radians([150, 150, 150, 147, 143, 138, 131, 124, 120, 114, 86, 60])
RIB_BOX = 0.75  # exponent of the cage's cross-section; 1 = an ellipse, less = a box
THORACIC_Y = 0.115 + np.concatenate([[0], np.cumsum(np.linspace(0.043, 0.068, 11))])  # centres of T1 to T12
WALL = 0.014  # from the middle of the ribs to the lung


@dataclass(frozen=True)
class Anatomy(Pose):
    """One patient in one pose; lengths in units of the image's side, angles in radians."""

    seed: int
    female: bool
    fat: float  # 0 slim to 1 heavy
    width: float  # of the rib cage, 1 = a broad man
    drop: float  # obliqueness of the ribs, 1 = usual
    rib: float  # half height of a rib
    heart: float  # 1 = usual
    domes: tuple[float, float]  # y of the right and the left half of the diaphragm
    density: float  # of lung tissue against water
    shoulder: float  # -1 hanging to 1 raised
    bone: float  # attenuation of compact bone against soft tissue
    residue: float  # share of the bone edges that the soft-tissue image keeps


def draw_anatomy(seed: int) -> Anatomy:
    """Patient `seed`; the order of the draws is part of the patient."""
    random = detail_generator(seed, "anatomy")
    # Everything is drawn at once and in this order, so a patient stays the same whatever shape is drawn from it.
    female = bool(random.random() < 0.5)
    right_dome = random.uniform(0.69, 0.79)
    fat = random.beta(2, 3)
    width = random.uniform(0.86, 0.95) if female else random.uniform(0.93, 1.03)
    drop = random.uniform(0.85, 1.2)
    rib = random.uniform(0.0115, 0.0150)
    heart = random.uniform(0.85, 1.2)
    left_dome = right_dome + random.uniform(0.015, 0.06)  # lower: the liver lies under the right one
    density = random.uniform(0.2, 0.34)
    shift = tuple(random.uniform(-0.025, 0.025, 2))
    turn = random.normal(0, 0.02)
    yaw = random.normal(0, 0.03)
    zoom = random.uniform(0.94, 1.08)
    shoulder = random.uniform(-1, 1)
    # Uniform in the logarithm: the tube voltage and the mineral of bone change its attenuation by factors.
    bone = float(np.exp(random.uniform(np.log(2.5), np.log(7.0))))
    # Half of the soft-tissue images are free of bone, half keep traces of its edges, as real subtractions do.
    residue = random.choice([0.0, random.uniform(0.01, 0.05)])
    return Anatomy(
        seed=seed,
        female=female,
        fat=fat,
        width=width,
        drop=drop,
        rib=rib,
        heart=heart,
        domes=(right_dome, left_dome),
        density=density,
        shift=shift,
        turn=turn,
        yaw=yaw,
        zoom=zoom,
        shoulder=shoulder,
        bone=bone,
        residue=residue,
    )
