"""What lies around a drawn patient's chest, for pairs in which something else takes the chest's place.

around = surroundings(seed=0, size=512)
"""

from dataclasses import dataclass

import numpy as np

from . import geometry, skeleton, soft_tissue
from .anatomy import RIB_WIDTH, SIDE, THORACIC_Y, WALL, draw_anatomy


@dataclass(frozen=True, eq=False)
class Surroundings:
    """A drawn patient in the image plane, around whom something else can take the chest's place; maps are float32
    (size, size).

    body: cm of tissue with neither lungs nor arms; arms, vessels, devices: cm of tissue; girdle, spine, cage: cm of
    compact bone (collar bones, shoulder blades and arms; vertebrae; ribs and breast bone); chest: right, left, top and
    bottom of the lungs, pixels.
    """

    body: np.ndarray
    arms: np.ndarray
    vessels: np.ndarray
    devices: np.ndarray
    girdle: np.ndarray
    spine: np.ndarray
    cage: np.ndarray
    chest: tuple[float, float, float, float]


def surroundings(seed: int, size: int, with_port: bool = True) -> Surroundings:
    """Patient `seed` as `phantom.simulate` draws him, before any warp, taken apart.

    with_port: as in `phantom.matter`.
    """
    anatomy = draw_anatomy(seed)
    x, y = geometry.patient_grid(anatomy, size)

    def in_cm(layer: np.ndarray) -> np.ndarray:
        return np.float32(SIDE) * layer.astype(np.float32)

    # The box of the lungs: from rib to rib, from the apex to the middle of the diaphragm's two halves.
    reach = RIB_WIDTH.max() * anatomy.width - WALL
    top = THORACIC_Y[0] + 0.030
    bottom = sum(anatomy.domes) / 2
    ends = geometry.project(anatomy, np.array([(-reach, 0.5), (reach, 0.5), (0, top), (0, bottom)]), size)
    chest = (float(ends[0, 0]), float(ends[1, 0]), float(ends[2, 1]), float(ends[3, 1]))

    port = soft_tissue.devices(anatomy, size) if with_port else np.zeros((size, size), np.float32)
    return Surroundings(
        body=in_cm(soft_tissue.joined(soft_tissue.trunk(anatomy, x, y))),
        arms=in_cm(soft_tissue.joined(soft_tissue.arms(anatomy, x, y))),
        vessels=in_cm(soft_tissue.vessels(anatomy, size)),
        devices=in_cm(port),
        girdle=in_cm(skeleton.bone_thickness(anatomy, size, [skeleton.girdle(anatomy)])),
        spine=in_cm(skeleton.bone_thickness(anatomy, size, list(skeleton.spine(anatomy)))),
        cage=in_cm(skeleton.bone_thickness(anatomy, size, [skeleton.ribs(anatomy), skeleton.breast_bone()])),
        chest=chest,
    )
