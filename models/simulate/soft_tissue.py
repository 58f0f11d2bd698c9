"""Soft tissue and air of a drawn patient, as thickness maps (S, S) in units of the image's side.

Coordinates as in geometry.py. The numbers of the shapes are control points, placed by eye (see anatomy.py): lengths are
in units of the side, and a row of `geometry.rows` is (y, centre x, half width, depth).
The order of the random draws is part of the patient.
"""

import cv2
import numpy as np
from scipy.interpolate import CubicSpline

from ..runtime.seeding import detail_generator
from .anatomy import RIB_DROP, RIB_SLOPE, RIB_WIDTH, THORACIC_Y, WALL, Anatomy
from .field import texture
from .geometry import SIDES, curve, ellipsoid, filled, ribbon, rows

# The 2 x 12 roots become 24 * 2^7 = 3072 vessels in the last generation.
FORKS = 8  # generations of the lungs' vessels
ROOTS = 12  # vessels that leave a hilum


# --- Body -------------------------------------------------------------------------------------------------------------


def body(anatomy: Anatomy, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Thickness of trunk, neck, shoulders and arms, joined smoothly; the lungs are not yet taken out."""
    return joined(trunk(anatomy, x, y) + arms(anatomy, x, y))


def joined(shapes: list[np.ndarray]) -> np.ndarray:
    """The 4-norm of overlapping shapes: nearly the thickest of them, without a crease where they meet."""
    fourth_powers = sum((shape * shape) ** 2 for shape in shapes)
    return np.sqrt(np.sqrt(fourth_powers))


def trunk(anatomy: Anatomy, x: np.ndarray, y: np.ndarray) -> list[np.ndarray]:
    """Chest and belly, neck, shoulders."""
    width = anatomy.width
    fat = anatomy.fat
    lift = 0.025 * anatomy.shoulder
    # Fat widens and deepens the trunk; 0.48 of a side of 43 cm are 21 cm from front to back.
    half = 0.405 * width + 0.04 * fat
    deep = 0.48 + 0.12 * fat
    chest = [
        (0.08, 0, 0.22, 0),
        (0.19, 0, 0.36 * width, 0.2),
        (0.35, 0, half - 0.02, deep),
        (0.6, 0, half, deep),
        (0.9, 0, half - 0.01, deep + 0.05),
        (1.1, 0, half, deep + 0.1),
    ]
    neck = [
        (-0.2, 0, 0.15, 0.38),
        (0.05, 0, 0.13 * width + 0.02 * fat, 0.36),
        (0.15, 0, 0.17, 0.28),
        (0.26, 0, 0.25, 0),
    ]
    shoulders = [
        (0.02 - lift, 0, 0.10, 0.16),
        (0.07 - lift, 0, 0.17, 0.2),
        (0.10 - lift, 0, 0.28, 0.25),
        (0.14 - lift, 0, 0.44, 0.33),
        (0.2 - lift, 0, 0.56, 0.40),
        (0.3, 0, 0.57, 0.38),
        (0.42, 0, 0.5, 0),
    ]

    # Powers below 0.5: a trunk's cross-section is nearer to a box than to an ellipse.
    return [
        rows(x, y, chest, 0.25),
        rows(x, y, neck, 0.3),
        rows(x, y, shoulders, 0.3),
    ]


def arms(anatomy: Anatomy, x: np.ndarray, y: np.ndarray) -> list[np.ndarray]:
    """Both upper arms, from the shoulder down and outwards."""
    lift = 0.025 * anatomy.shoulder
    shapes = []
    for side in SIDES:
        arm = [
            (0.13 - lift, side * 0.45, 0.06, 0),
            (0.26 - lift, side * 0.46, 0.13, 0.30),
            (0.42, side * 0.50, 0.13, 0.27 + 0.05 * anatomy.fat),
            (0.55, side * 0.57, 0.13, 0.24),
            (0.8, side * 0.64, 0.12, 0.22),
            (1.1, side * 0.68, 0.09, 0.2),
        ]
        shapes.append(rows(x, y, arm, 0.3))
    return shapes


def breasts(anatomy: Anatomy, x: np.ndarray, y: np.ndarray) -> np.ndarray | np.float32:
    """Both breasts, fading out upwards; none of a man."""
    if not anatomy.female:
        return np.float32(0)
    random = detail_generator(anatomy.seed, "breasts")
    centre_y = random.uniform(0.68, 0.80)
    radius = random.uniform(0.11, 0.16)
    depth = random.uniform(0.02, 0.10)

    radii = (radius, 1.15 * radius)
    both = np.zeros_like(x)
    for side in SIDES:
        centre = (0.22 * side, centre_y)
        both = both + ellipsoid(x, y, centre, radii, depth)

    # The lower edge of a breast is a line in the radiograph, its upper one is none: from 1.1 radii above the centre it
    # takes a radius to come in.
    below_upper_edge = y - centre_y + 1.1 * radius
    fading = np.clip(below_upper_edge / radius, 0, 1)
    return fading * both


# --- Lungs ------------------------------------------------------------------------------------------------------------


def _pleura(anatomy: Anatomy, side: float) -> np.ndarray:
    """Outline (200, 2) of the space that a lung can fill: apex, inner side of the ribs, recess, spine."""
    # Each rib at its widest point (phi = pi / 2 in skeleton.ribs): x of its inner side, and its height y.
    rib_x = RIB_WIDTH * anatomy.width - WALL
    rib_y = THORACIC_Y + anatomy.drop * RIB_DROP / 2 + RIB_SLOPE * RIB_WIDTH
    inside_ribs = [(rib_x[rib], rib_y[rib]) for rib in (2, 3, 5, 7)]

    # The left lung's outline (x, y), from the apex outwards, down the ribs, and up along the spine
    top = THORACIC_Y[0] + 0.030
    apex = [
        (0.060, top + 0.07),
        (0.082, top + 0.015),
        (0.118, top),
        (0.165, top + 0.022),
        (0.207, top + 0.06),
    ]
    # The recess reaches far below the dome: `air` takes out what the abdomen fills of it.
    lowest_rib_x = rib_x[7]
    recess = [
        (lowest_rib_x, 0.88),
        (lowest_rib_x - 0.02, 0.96),
        (0.2, 0.94),
        (0.06, 0.90),
    ]
    beside_spine = [(0.052, 0.7), (0.055, 0.45)]
    closed = [*apex, *inside_ribs, *recess, *beside_spine, apex[0]]
    points = np.array(closed) * [side, 1]  # (k, 2)

    # Knots at the chord lengths keep the spline from overshooting where the points lie unevenly.
    # `periodic` makes it close without a corner.
    chords = np.diff(points, axis=0)
    lengths = np.linalg.norm(chords, axis=1)
    knots = np.concatenate([[0], np.cumsum(lengths)])
    outline = CubicSpline(knots, points, bc_type="periodic")
    samples = np.linspace(0, knots[-1], 200)
    return outline(samples)


def _mediastinum(anatomy: Anatomy, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Thickness of the heart and the great vessels."""
    random = detail_generator(anatomy.seed, "heart")
    knob = random.uniform(0.030, 0.042)  # half width of the aortic knob
    heart_tilt = 0.75 + random.normal(0, 0.1)

    # The heart lies on the diaphragm, so a deep breath lowers both.
    size = anatomy.heart
    mean_dome = sum(anatomy.domes) / 2
    base = mean_dome - 0.10

    # The ventricles form the left border of the heart's shadow, the right atrium the right one.
    ventricles = ellipsoid(
        x,
        y,
        centre=(0.055 * size, base),
        radii=(0.165 * size, 0.115 * size),
        depth=0.24,
        tilt=heart_tilt,
    )
    right_atrium = ellipsoid(
        x,
        y,
        centre=(-0.025 * size, base),
        radii=(0.065 * size, 0.13 * size),
        depth=0.22,
        tilt=-0.1,
    )

    # The aortic knob and the pulmonary trunk bulge to the left above them.
    aortic_knob = ellipsoid(x, y, centre=(0.060, 0.345), radii=(knob, knob * 1.15), depth=0.20)
    pulmonary_trunk = ellipsoid(x, y, centre=(0.066, 0.455), radii=(0.036, 0.055), depth=0.14, tilt=-0.2)

    # The great vessels that run up and down, and what lies in front of the spine
    descending_aorta = [
        (0.30, 0.055, 0.02, 0),
        (0.36, 0.07, 0.03, 0.1),
        (0.6, 0.06, 0.028, 0.1),
        (1, 0.045, 0.026, 0.1),
    ]
    upper_vena_cava = [
        (0.16, -0.05, 0.02, 0),
        (0.22, -0.045, 0.022, 0.14),
        (0.55, -0.04, 0.035, 0.14),
        (0.7, -0.03, 0.02, 0),
    ]
    before_the_spine = [
        (0.1, 0, 0.075, 0.2),
        (0.3, 0, 0.06, 0.25),
        (1, 0, 0.055, 0.25),
    ]

    # The thickest counts, not the sum: they are pieces of one solid shadow.
    shapes = [
        ventricles,
        right_atrium,
        aortic_knob,
        pulmonary_trunk,
        rows(x, y, descending_aorta),
        rows(x, y, upper_vena_cava),
        rows(x, y, before_the_spine, 0.3),
    ]
    return np.maximum.reduce(shapes)


def _dome(anatomy: Anatomy, x: np.ndarray, side: float) -> np.ndarray:
    """Height y of one half of the diaphragm at x: a dome that falls steeply to the side."""
    # u: 0 at the top of the dome, about 1 at the chest wall, negative towards the heart, where it stays nearly flat.
    chest_wall = RIB_WIDTH[8] * anatomy.width
    u = (np.abs(x) - 0.16) / (chest_wall - 0.15)
    # The same number for both sides: the generator is made anew with the same name.
    steepness = detail_generator(anatomy.seed, "dome").uniform(0.13, 0.21)
    right_dome, left_dome = anatomy.domes
    top = left_dome if side > 0 else right_dome
    fall_to_the_side = steepness * np.abs(u) ** 2.4
    fall_to_the_heart = 0.03 * u * u
    return top + np.where(u > 0, fall_to_the_side, fall_to_the_heart)


def _quarter_circle(share: np.ndarray) -> np.ndarray:
    """0 at 0, 1 at 1, rising between as a quarter of a circle: steep first, flat at the end."""
    return np.sqrt(1 - (1 - share) ** 2)


def air(anatomy: Anatomy, x: np.ndarray, y: np.ndarray, body: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Thickness of the aerated lungs, and the coverage in [0, 1] of the lung fields beside heart and diaphragm."""
    size = len(x)
    heart = _mediastinum(anatomy, x, y)

    # Near the midline spine and heart take room: nothing is left within 0.035, all of it beyond 0.135.
    from_midline = np.clip((np.abs(x) - 0.035) / 0.10, 0, 1)
    beside_spine = np.sqrt(from_midline)

    total = np.zeros_like(body)
    lungs = np.zeros_like(body)
    for side in SIDES:
        # The space that the lung can fill, and how deep inside it a pixel lies, in units of the side.
        space = filled(_pleura(anatomy, side), anatomy, size)
        pixels_inside = cv2.distanceTransform((space > 0.5).astype(np.uint8), cv2.DIST_L2, 5)
        depth = pixels_inside / (size * anatomy.zoom)

        # The lung's thickness: 0.78 of the body's, the rest is wall; over the outermost 0.05 (2 cm) it falls to 0 as a
        # quarter of a circle, which is how a round lung meets the ribs.
        from_wall = np.minimum(depth / 0.05, 1)
        inside = 0.78 * body * _quarter_circle(from_wall) * beside_spine

        # Below the dome the abdomen takes the lung's place, over the next 0.05 as a quarter of a circle too: behind the
        # dome some lung is left, as in a real radiograph.
        below = y - _dome(anatomy, x, side)
        from_dome = np.clip(below / 0.05, 0, 1)
        abdomen = inside * _quarter_circle(from_dome)
        total += np.maximum(inside - heart - abdomen, 0) * space

        # The lung field ends at dome and heart, as readers outline it, though there is air behind both.
        lungs += space * (below < 0) * (heart <= 0)
    return total, lungs


def vessels(anatomy: Anatomy, size: int) -> np.ndarray:
    """Thickness of the branching vessels of both lungs, thinner with every fork from the hilum."""
    random = detail_generator(anatomy.seed, "vessels")
    total = np.zeros((size, size), np.float32)

    # The roots: angle 0 is sideways, positive is down. They fan out from the hilum of either lung.
    count = 2 * ROOTS
    side = np.repeat(SIDES, ROOTS)[:, None]  # (24, 1)
    fan = np.linspace(-1.45, 1.5, ROOTS)
    angle = np.tile(fan, 2) + random.normal(0, 0.12, count)  # (24,)
    hilum_x = 0.085 * side[:, 0]
    hilum_y = 0.465 + 0.06 * np.sin(angle)
    hilum = np.stack([hilum_x, hilum_y], 1)  # (24, 2)
    start = hilum + random.normal(0, 0.018, (count, 2))

    # The lower lobes' vessels are longer and thicker.
    longer = 1 + 0.3 * (angle > 0.5)
    thicker = 1 + 0.4 * (angle > 0.9)
    length = random.uniform(0.04, 0.085, count) * longer
    radius = random.uniform(0.0045, 0.0095, count) * thicker

    for _ in range(FORKS):
        # Each of the B vessels bends once on its way, in the middle.
        count = len(angle)
        bent = angle + random.normal(0, 0.35, count)
        angles = np.stack([angle, bent], 1)  # (B, 2), of its halves
        sideways = side * np.cos(angles)
        down = np.sin(angles)
        directions = np.stack([sideways, down], -1)  # (B, 2, 2)
        halves = directions * length[:, None, None] / 2
        further_points = start[:, None] + np.cumsum(halves, 1)
        path = np.concatenate([start[:, None], further_points], 1)  # (B, 3, 2)

        # It gets a little thinner.
        radii = radius[:, None] * np.linspace(1, 0.9, 9)  # (B, 9)
        total = total + ribbon(curve(path, 9), radii, anatomy, size)

        # Of two children one goes on and one turns off, to either side.
        start = np.repeat(path[:, -1], 2, 0)  # (2 B, 2)
        side = np.repeat(side, 2, 0)  # (2 B, 1)
        turn_size = random.uniform(0.4, 0.95, count)
        turn_sign = random.choice([-1, 1], count)
        turn = turn_size * turn_sign  # (B,)
        turns = np.stack([-0.25 * turn, turn], 1)  # (B, 2)
        angle = (bent[:, None] + turns).ravel()  # (2 B,)

        # They are shorter, and together have about the parent's cross-section: 0.84^2 + 0.62^2 = 1.09.
        length = np.repeat(length, 2) * random.uniform(0.65, 1.0, 2 * count)
        shares = random.uniform(0.9, 1.1, (count, 2)) * [0.84, 0.62]  # (B, 2), of the parent's radius
        radius = np.repeat(radius, 2) * shares.ravel()

    # Thicker along the rays than across them, by eye
    return 1.8 * total


def trachea_end(seed: int) -> tuple[float, float]:
    """(how far the trachea of patient `seed` leans to the left, y of the carina), in units of the side."""
    random = detail_generator(seed, "airways")
    lean = random.uniform(-0.012, 0.004)
    return lean, random.uniform(0.36, 0.40)


def airways(anatomy: Anatomy, size: int) -> np.ndarray:
    """Thickness of the air in the trachea and the main bronchi."""
    lean, carina = trachea_end(anatomy.seed)

    # Control points (x, y). The bronchi leave at the carina, the right one more steeply.
    trachea_points = [
        (0.002, carina - 0.48),
        (0, carina - 0.32),
        (lean, carina - 0.16),
        (lean / 2 - 0.004, carina),
    ]
    right_bronchus = [
        (-0.004, carina - 0.01),
        (-0.03, carina + 0.03),
        (-0.07, carina + 0.085),
    ]
    left_bronchus = [
        (0.002, carina - 0.01),
        (0.035, carina + 0.035),
        (0.085, carina + 0.075),
    ]
    trachea = ribbon(curve([trachea_points]), 0.021, anatomy, size)
    bronchi = ribbon(curve([right_bronchus, left_bronchus]), 0.012, anatomy, size)
    return 1.2 * trachea + bronchi


# --- What not everybody has -------------------------------------------------------------------------------------------


def stomach(anatomy: Anatomy, x: np.ndarray, y: np.ndarray) -> np.ndarray | np.float32:
    """Thickness of the bubble below the left diaphragm, flat below as the patient stands; absent in three of ten."""
    random = detail_generator(anatomy.seed, "stomach")
    if random.random() < 0.3:
        return np.float32(0)

    # Below the left half: the liver lies under the right one.
    _, left_dome = anatomy.domes
    centre_y = left_dome + random.uniform(0.05, 0.08)
    centre_x = random.uniform(0.14, 0.2)
    radius_x = random.uniform(0.05, 0.09)
    radius_y = random.uniform(0.03, 0.05)
    depth = random.uniform(0.05, 0.15)
    tilt = random.normal(0, 0.2)
    level = centre_y + random.uniform(0.0, 0.04)  # of the fluid below the gas

    bubble = ellipsoid(x, y, (centre_x, centre_y), (radius_x, radius_y), depth, tilt)
    return bubble * (y < level)


def findings(anatomy: Anatomy, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Thickness of nodules and hazy opacities; most patients have none."""
    random = detail_generator(anatomy.seed, "findings")
    total = np.zeros_like(x)

    # Nodules: three patients in five have none.
    nodule_count = int(random.choice([0, 0, 0, 1, 3]))
    for _ in range(nodule_count):
        radius = random.uniform(0.008, 0.03)
        side = random.choice(SIDES)
        centre_x = side * random.uniform(0.1, 0.26)
        centre_y = random.uniform(0.25, 0.7)
        radius_y = radius * random.uniform(0.8, 1.2)
        total += ellipsoid(x, y, (centre_x, centre_y), (radius, radius_y), radius)

    # A hazy opacity, in a quarter of the patients
    if random.random() < 0.25:
        side = random.choice(SIDES)
        centre_x = side * random.uniform(0.12, 0.25)
        centre_y = random.uniform(0.3, 0.7)
        radii = random.uniform(0.05, 0.15, 2)
        depth = random.uniform(0.02, 0.07)
        tilt = random.uniform(0, 3)

        # Power 1.5 instead of a ball's 0.5: it fades out without an outline.
        haze = ellipsoid(x, y, (centre_x, centre_y), radii, depth, tilt, power=1.5)
        grain = 1 + 0.25 * texture(anatomy.seed, "haze", len(x), 64)
        total += haze * grain
    return total


def devices(anatomy: Anatomy, size: int) -> np.ndarray:
    """Thickness of a port with its catheter and of a letter beside the patient; both images show them."""
    random = detail_generator(anatomy.seed, "devices")
    total = np.zeros((size, size), np.float32)
    if random.random() < 0.25:
        total += _port(anatomy, size, random)
    if random.random() < 0.3:
        total += _letter(size, random)
    return total


def _port(anatomy: Anatomy, size: int, random: np.random.Generator) -> np.ndarray:
    """Thickness of a port under the skin and of its catheter, which runs beside the collar bone into the upper vena
    cava, right of the midline."""
    side = random.choice(SIDES)
    port_x = side * 0.24
    port_y = random.uniform(0.4, 0.55)
    tip_y = random.uniform(0.42, 0.55)
    catheter_points = [
        (port_x, port_y),
        (side * 0.25, 0.33),
        (side * 0.17, 0.24),
        (side * 0.07, 0.26),
        (-0.04, 0.38),
        (-0.045, tip_y),
    ]
    catheter = ribbon(curve([catheter_points]), 0.0022, anatomy, size)

    # The port is a ring.
    angle = np.linspace(0, 2 * np.pi, 49)
    ring_x = port_x + 0.016 * np.cos(angle)
    ring_y = port_y + 0.016 * np.sin(angle)
    ring = np.stack([ring_x, ring_y], -1)[None]  # (1, 49, 2)
    port = ribbon(ring, 0.0018, anatomy, size)

    # Gains above 1: plastic and metal absorb more than as much tissue.
    return 2 * catheter + 5 * port


def _letter(size: int, random: np.random.Generator) -> np.ndarray:
    """Thickness of a letter of lead in an upper corner of the image."""
    letter = str(random.choice(["L", "R", "PA"]))

    # Drawn at one fixed size, so that it looks the same in an image of any size.
    canvas = np.zeros((512, 512), np.uint8)
    left = int(random.choice([30, 450]))  # pixels of the canvas, as the next
    baseline = int(random.uniform(40, 90))
    text = cv2.putText(canvas, letter, (left, baseline), cv2.FONT_HERSHEY_SIMPLEX, 1.0, 255, 3)

    # The canvas goes up to 255: a letter of lead is as dense as 0.0012 * 255 = 0.31 of the side, 13 cm of tissue.
    return 0.0012 * cv2.resize(text, (size, size), interpolation=cv2.INTER_AREA)
