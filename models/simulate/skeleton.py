"""The bones of a drawn patient, as hollow tubes, and the thickness of compact bone that rays meet.

Coordinates as in geometry.py. The numbers of the shapes are control points (x, y, z) of the left side, and profiles
along the bone, placed by eye (see anatomy.py). B is the number of bones, k that of the points along each.
"""

from functools import partial

import cv2
import numpy as np

from ..runtime.seeding import detail_generator
from .anatomy import RIB_BOX, RIB_DROP, RIB_END, RIB_SLOPE, RIB_WIDTH, THORACIC_Y, Anatomy
from .field import texture
from .geometry import POINTS, SIDES, Tubes, both_sides, curve, join, make_tubes, shell

RIBS = 12
VERTEBRAE = 20  # C4 to L3
MARROW_SCALE = 0.6  # of the half axes, at which the inside of a bone is splatted; it is smoothed to a solid then
MARROW_BLUR = 0.0035  # sigma of that, in units of the side


def ribs(anatomy: Anatomy) -> Tubes:
    """Twelve pairs of ribs (24, k), the right ones first: from the spine around to the front, falling all the way."""
    random = detail_generator(anatomy.seed, "ribs")
    t = np.linspace(0, 1, POINTS)

    # One row a rib. Small random amounts: neighbouring ribs and the two sides are never quite alike.
    number = np.tile(np.arange(RIBS), 2)  # (24,)
    side = np.repeat(SIDES, RIBS)[:, None]  # (24, 1)
    wider = 1 + random.normal(0, 0.006, 2 * RIBS)
    steeper = 1 + random.normal(0, 0.03, 2 * RIBS)
    half = (RIB_WIDTH[number] * anatomy.width * wider)[:, None]  # (24, 1), half the cage's width
    drop = (RIB_DROP[number] * anatomy.drop * steeper)[:, None]
    slope = RIB_SLOPE[number][:, None]

    # The way around the cage: phi is 0 at the back and pi at the front.
    # A rib begins beside its vertebra, 0.040 from the midline: half * sin(start)^RIB_BOX = 0.040.
    start = np.arcsin((0.040 / half) ** (1 / RIB_BOX))
    end = RIB_END[number][:, None] + random.normal(0, 0.04, (2 * RIBS, 1))
    phi = start + t * (end - start)  # (24, k)
    sin = np.sin(phi)
    cos = np.cos(phi)

    # The cage's cross-section is the superellipse x = half sin^p, z = -depth cos^p with p = RIB_BOX.
    out = half * sin**RIB_BOX
    depth = np.linspace(0.14, 0.22, RIBS)[number][:, None]
    z = -depth * np.sign(cos) * np.abs(cos) ** RIB_BOX

    # Its height y: its vertebra's; the fall to the front and the fall along the back; less the short rise (y is
    # downwards) that a rib makes beside the spine before it falls.
    vertebra_y = THORACIC_Y[number][:, None]
    unevenness = random.normal(0, 0.002, (2 * RIBS, 1))
    fall_to_the_front = drop * (1 - cos) / 2
    fall_along_the_back = slope * out
    rise_phase = np.pi * np.clip(phi / 0.9, 0, 1)
    rise = 0.014 * np.sin(rise_phase)
    y = vertebra_y - 0.012 + unevenness + fall_to_the_front + fall_along_the_back - rise
    path = np.stack([side * out, y, z], -1)  # (24, k, 3)

    # The cross-section: all are slim at both ends, the lower ones altogether; the cortex gets thinner to the front.
    along_rib = np.interp(t, [0, 0.06, 0.2, 0.6, 0.95, 1], [0.7, 0.75, 1, 0.95, 1.1, 0.7])  # (k,)
    of_rib = np.interp(number, [0, 10, 11], [1, 0.9, 0.7])[:, None]  # (24, 1)
    wide = anatomy.rib * along_rib * of_rib
    cortex_along = np.interp(t, [0, 0.5, 0.8, 1], [1, 1, 0.75, 0.5])
    cortex = cortex_along * 0.0032

    # The normal points out of the cage, so the thin half axis lies across the wall and the wide one along it; it points
    # up too, most at the first rib, which lies flat.
    up = np.where(number == 0, -0.65, -0.15)[:, None]
    normal_y = np.broadcast_to(up, phi.shape)
    outwards = np.stack([side * sin, normal_y, -cos], -1)  # (24, k, 3)
    return make_tubes(path, 0.55 * wide, wide, cortex, 0.34, outwards)


def spine(anatomy: Anatomy) -> tuple[Tubes, Tubes]:
    """Bodies of C4 to L3 (20, 9), and their pedicles, transverse and spinous processes (100, k)."""
    random = detail_generator(anatomy.seed, "spine")

    # Where the vertebrae are: four above and four below the thoracic ones
    outer = np.arange(1, 5)
    above = THORACIC_Y[0] - 0.039 * outer[::-1]
    below = THORACIC_Y[-1] + 0.071 * outer
    y = np.concatenate([above, THORACIC_Y, below])  # (20,)

    # How large. Half heights: 0.44 of the distance leaves 12 % of it for the disc.
    height = 0.44 * np.gradient(y)
    usual_width = np.interp(y, [0, 0.12, 0.3, 0.75, 1], [0.036, 0.042, 0.040, 0.050, 0.056])
    width = usual_width * (0.5 + 0.5 * anatomy.width)

    # The spine swings a little to the sides.
    swing = random.normal(0, 0.004, 5)
    x = np.interp(y, np.linspace(0, 1, 5), swing)
    z = np.full(VERTEBRAE, -0.13)
    centre = np.stack([x, y, z], -1)[:, None]  # (20, 1, 3)

    # The bodies: barrels with a waist, at `level` of their half heights.
    level = np.array([-1, -0.99, -0.9, -0.5, 0, 0.5, 0.9, 0.99, 1.0])
    edge = width[:, None] * [0, 0.95, 1.03, 0.95, 0.92, 0.95, 1.03, 0.95, 0]  # (20, 9)

    # Tilted against the rays as the spine is curved
    curvature = np.interp(y, [0, 0.12, 0.5, 1], [0.30, 0.25, 0.02, -0.12])
    tilt = curvature + random.normal(0, 0.05, VERTEBRAE)
    lean = random.normal(0, 0.02, VERTEBRAE)
    axis = np.stack([lean, np.cos(tilt), np.sin(tilt)], -1)[:, None]  # (20, 1, 3)

    # The path runs along each vertebra's axis, whose ends have width 0, which closes the barrel.
    path = centre + level[:, None] * height[:, None, None] * axis  # (20, 9, 3)
    marrow = np.interp(y, [0, 0.2, 0.5], [0.08, 0.14, 0.17])[:, None]
    bodies = make_tubes(path, 0.8 * edge, edge, 0.0010, marrow)

    # What stands out from them, first on the right, then on the left, then in the middle
    processes = []
    for side in SIDES:
        processes.append(_pedicles(centre, side, width, height, random))
        processes.append(_transverse_processes(centre, side, y, height))
    processes.append(_spinous_processes(centre, random))
    return bodies, join(processes)


def _pedicles(
    centre: np.ndarray, side: float, width: np.ndarray, height: np.ndarray, random: np.random.Generator
) -> Tubes:
    """Pedicles of all vertebrae (20, k) of a side: they run straight to the back, along the rays, and are seen end on
    as the rings of a frontal radiograph.

    centre: (20, 1, 3). width, height: (20,), half of the bodies'.
    """
    place = np.stack([side * 0.55 * width, -0.3 * height], -1)  # (20, 2): x, y
    place = place + random.normal(0, 0.0015, (VERTEBRAE, 2))
    points = []
    for z in (-0.03, -0.045, -0.06):
        depth = np.full(VERTEBRAE, z)
        points.append(np.column_stack([place, depth]))
    path = curve(centre + np.stack(points, 1))
    return make_tubes(path, 0.0065, 0.0095, 0.0012, 0.3, (1, 0, 0))


def _transverse_processes(centre: np.ndarray, side: float, y: np.ndarray, height: np.ndarray) -> Tubes:
    """Transverse processes of all vertebrae (20, k) of a side, sideways and a little up.

    centre: (20, 1, 3). y: (20,), of the bodies' centres; height: (20,), half of the bodies'.
    """
    # Longest at the uppermost thoracic vertebrae
    reach = np.interp(y, [0, 0.11, 0.2, 0.7, 1], [0.045, 0.085, 0.072, 0.06, 0.075])
    z = np.full(VERTEBRAE, -0.05)
    points = []
    for share, lift in ((0.3, 0.1), (0.7, 0.35), (1, 0.55)):
        points.append(np.stack([side * share * reach, -lift * height, z], -1))
    path = curve(centre + np.stack(points, 1))
    return make_tubes(path, 0.006, [0.013, 0.009, 0.010, 0.003], 0.0013, 0.25)


def _spinous_processes(centre: np.ndarray, random: np.random.Generator) -> Tubes:
    """Spinous processes of all vertebrae (20, k), down and to the back in the midline. centre: (20, 1, 3)."""
    usual = np.array([(0, 0.006, -0.06), (0, 0.022, -0.085), (0, 0.034, -0.11)])
    points = usual + random.normal(0, 0.001, (VERTEBRAE, 3, 3))
    path = curve(centre + points)
    return make_tubes(path, [0.004, 0.006], [0.016, 0.012], 0.0014, 0.2, (1, 0, 0))


def girdle(anatomy: Anatomy) -> Tubes:
    """Collar bones, shoulder blades and upper arms (18, k)."""
    lift, outwards = _shoulder_placing(anatomy)
    shift = np.array([outwards, -lift, 0])
    bones = [
        _collar_bones(lift, outwards),
        *_shoulder_blades(shift),
        *_upper_arms(shift),
    ]
    return join(bones)


def collar_bones(anatomy: Anatomy) -> Tubes:
    """Both collar bones (2, k), the right one first."""
    return _collar_bones(*_shoulder_placing(anatomy))


def _shoulder_placing(anatomy: Anatomy) -> tuple[float, float]:
    """How far the shoulders are raised, and how far the shoulder blades and arms are moved outwards."""
    random = detail_generator(anatomy.seed, "shoulders")
    # Raised shoulders lift the girdle; how far the shoulder blades are turned out of the lungs depends on how the
    # patient is placed.
    lift = 0.02 * anatomy.shoulder
    outwards = random.uniform(0.0, 0.045)
    return lift, outwards


def _moved_bones(shift: np.ndarray, points, thin, wide, cortex, marrow) -> Tubes:
    """A bone of either side (2, k): given on the left, moved by `shift` (3,), and mirrored to the right."""
    moved = np.asarray(points) + shift
    path = curve(both_sides(moved))
    return make_tubes(path, thin, wide, cortex, marrow)


def _collar_bones(lift: float, outwards: float) -> Tubes:
    """Both collar bones (2, k). They turn about their inner end, so a point moves the more the further out it is."""
    points = [
        (0.048, 0.265, 0.18),
        (0.11, 0.245, 0.20),
        (0.18, 0.215 - lift, 0.19),
        (0.27, 0.17 - 1.5 * lift, 0.12),
        (0.335 + outwards / 2, 0.142 - 1.7 * lift, 0.06),
        (0.385 + outwards, 0.143 - 1.7 * lift, 0.03),
    ]
    return make_tubes(
        curve(both_sides(points)),
        thin=[0.018, 0.014, 0.013, 0.013, 0.010, 0.009],
        wide=[0.021, 0.015, 0.014, 0.015, 0.018, 0.014],
        cortex=0.0036,
        marrow=0.3,
    )


def _shoulder_blades(shift: np.ndarray) -> list[Tubes]:
    """Both shoulder blades, (2, k) each: a plate between two borders, with its ridge, its hook and the arm's socket."""
    bone = partial(_moved_bones, shift)
    outer_border = bone(
        [
            (0.335, 0.25, -0.1),
            (0.325, 0.31, -0.12),
            (0.312, 0.38, -0.15),
            (0.295, 0.47, -0.18),
        ],
        thin=[0.008, 0.005, 0.004],
        wide=[0.011, 0.007, 0.006, 0.003],
        cortex=[0.003, 0.003, 0.002, 0.0006],
        marrow=0.3,
    )
    inner_border = bone(
        [
            (0.235, 0.19, -0.18),
            (0.24, 0.27, -0.19),
            (0.26, 0.37, -0.19),
            (0.295, 0.47, -0.18),
        ],
        thin=0.002,
        wide=0.003,
        cortex=[0.0004, 0.0010, 0.0010],
        marrow=0.3,
    )
    blade = bone(
        [
            (0.292, 0.44, -0.18),
            (0.283, 0.36, -0.18),
            (0.285, 0.29, -0.18),
            (0.29, 0.21, -0.16),
        ],
        thin=0.003,
        wide=[0.012, 0.04, 0.052, 0.05],
        cortex=[0.0008, 0.0006, 0.0006],
        marrow=0.6,
    )
    ridge = bone(
        [
            (0.24, 0.235, -0.18),
            (0.30, 0.205, -0.18),
            (0.36, 0.16, -0.12),
            (0.41, 0.155, -0.05),
            (0.425, 0.17, 0.0),
        ],
        thin=[0.004, 0.006, 0.009, 0.009],
        wide=[0.005, 0.007, 0.015, 0.018, 0.01],
        cortex=0.0022,
        marrow=0.3,
    )
    coracoid = bone(
        [
            (0.335, 0.22, -0.08),
            (0.318, 0.195, -0.03),
            (0.312, 0.20, 0.03),
        ],
        thin=0.010,
        wide=[0.016, 0.014, 0.012],
        cortex=0.0022,
        marrow=0.3,
    )
    socket = bone(
        [
            (0.342, 0.20, -0.08),
            (0.338, 0.235, -0.08),
            (0.345, 0.27, -0.08),
        ],
        thin=[0.003, 0.013, 0.003],
        wide=[0.006, 0.014, 0.006],
        cortex=0.0030,
        marrow=0.3,
    )

    return [outer_border, inner_border, blade, ridge, coracoid, socket]


def _upper_arms(shift: np.ndarray) -> list[Tubes]:
    """The humerus of either side, (2, k) each: a round head, and a shaft that leaves the image downwards."""
    bone = partial(_moved_bones, shift)
    head_radius = [0.034, 0.043, 0.043, 0.036, 0.020, 0.002]
    head = bone(
        [
            (0.408, 0.252, -0.05),
            (0.39, 0.235, -0.05),
            (0.375, 0.221, -0.05),
            (0.362, 0.208, -0.05),
            (0.352, 0.198, -0.05),
            (0.348, 0.194, -0.05),
        ],
        thin=head_radius,
        wide=head_radius,
        cortex=[0, 0.001, 0.0024, 0.0026, 0.0026],
        marrow=0.12,
    )
    shaft_radius = [0.003, 0.019, 0.029, 0.035, 0.030, 0.022, 0.020]
    shaft = bone(
        [
            (0.398, 0.182, -0.05),
            (0.400, 0.187, -0.05),
            (0.404, 0.203, -0.05),
            (0.411, 0.24, -0.05),
            (0.430, 0.29, -0.05),
            (0.455, 0.36, -0.05),
            (0.56, 0.61, -0.05),
        ],
        thin=shaft_radius,
        wide=shaft_radius,
        cortex=[0.002, 0.002, 0.003, 0.0055, 0.007],
        marrow=0.12,
    )
    return [head, shaft]


def breast_bone() -> Tubes:
    """One bone (1, k) in the midline."""
    points = [
        (0, 0.255, 0.2),
        (0, 0.36, 0.23),
        (0, 0.5, 0.24),
        (0, 0.6, 0.24),
    ]
    return make_tubes(
        curve([points]),
        thin=0.010,
        wide=[0.045, 0.035, 0.025, 0.035, 0.02],
        cortex=0.0010,
        marrow=0.1,
    )


def skeleton(anatomy: Anatomy, size: int) -> np.ndarray:
    """Thickness of compact bone (size, size) of all bones."""
    bodies, processes = spine(anatomy)
    bones = [ribs(anatomy), bodies, processes, girdle(anatomy), breast_bone()]
    return bone_thickness(anatomy, size, bones)


def bone_thickness(anatomy: Anatomy, size: int, bones: list[Tubes]) -> np.ndarray:
    """Thickness of compact bone (size, size) of some bones, the trabecular inside included."""
    # Cortices are shells at the surface. The inside of a tube of radius r is one ring at 0.6 r, 0.8 r thick: its area,
    # 2 pi * 0.6 r * 0.8 r, is 0.96 of the disc's, and the blur fills the hole. Half the size does, as it is blurred.
    half_size = size // 2
    cortex = np.zeros((size, size), np.float32)
    inside = np.zeros((half_size, half_size), np.float32)
    for tubes in bones:
        marrow_thickness = 0.8 * tubes.marrow * tubes.thin  # (B, k)
        cortex += shell(tubes, tubes.cortex, 1.0, anatomy, size)
        inside += shell(tubes, marrow_thickness, MARROW_SCALE, anatomy, half_size)
    sigma = max(MARROW_BLUR * size / 2, 0.5)  # pixels at half the size
    inside = cv2.GaussianBlur(inside, (0, 0), sigma)
    inside = cv2.resize(inside, (size, size), interpolation=cv2.INTER_LINEAR)

    # Texture of bone at two scales, 1/512 and 1/128 of the side (0.8 and 3.4 mm); 0.4 of the cortex stays even.
    trabeculae = 0.13 * texture(anatomy.seed, "trabeculae", size, 512)
    density = 0.08 * texture(anatomy.seed, "density", size, 128)
    grain = np.maximum(1 + (trabeculae + density), 0.3)
    uneven = (inside + 0.6 * cortex) * grain
    return uneven + 0.4 * cortex
