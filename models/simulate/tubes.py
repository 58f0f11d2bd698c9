"""Tubes, lines and electrodes of patients in bed, drawn on a canvas; see devices.py.

Coordinates as in geometry.py: x to the patient's left, from the midline; y downwards; in units of the side.
"""

import numpy as np

from . import soft_tissue
from .canvas import CATHETER, CM, PLASTIC, Canvas
from .geometry import SIDES

# Absorption against tissue
STRIPE = 16.0  # of the stripes of tubes, which hold barium
COPPER = 25.0  # of the strands in a cable

# Central venous catheters, each with its control points up to the upper vena cava
RIGHT_JUGULAR = [(-0.11, -0.06), (-0.085, 0.06), (-0.062, 0.17)]
LEFT_JUGULAR = [(0.10, -0.06), (0.085, 0.08), (0.065, 0.19), (0.02, 0.255)]
RIGHT_SUBCLAVIAN = [(-0.21, 0.29), (-0.19, 0.235), (-0.13, 0.225), (-0.075, 0.25)]
LEFT_ARM = [(0.50, 0.52), (0.43, 0.36), (0.34, 0.245), (0.22, 0.225), (0.10, 0.245), (0.01, 0.28)]
RIGHT_ARM = [(-0.50, 0.52), (-0.43, 0.36), (-0.34, 0.245), (-0.22, 0.225), (-0.11, 0.245)]
CATHETERS = [RIGHT_JUGULAR, LEFT_JUGULAR, RIGHT_SUBCLAVIAN, LEFT_ARM, RIGHT_ARM]
CATHETER_RATES = [0.45, 0.1, 0.15, 0.12, 0.18]


def add_endotracheal_tube(canvas: Canvas, random: np.random.Generator) -> None:
    """A tube down the trachea, whose tip lies 2 to 7 cm above the carina."""
    lean, carina_y = soft_tissue.trachea_end(canvas.anatomy.seed)
    tip = carina_y - random.uniform(2, 7) * CM
    at_mouth = random.uniform(-0.03, 0.03)
    points = [
        (at_mouth, -0.15),
        (0.3 * at_mouth, 0.0),
        (lean / 2, 0.6 * tip),
        (lean, tip),
    ]
    outer = random.uniform(0.48, 0.56)  # cm
    canvas.tube(points, outer, outer - 0.13, PLASTIC, STRIPE)


def add_gastric_tube(canvas: Canvas, random: np.random.Generator) -> None:
    """A tube down the oesophagus, behind the heart, into the stomach, where it turns to one side."""
    _, left_dome = canvas.anatomy.domes
    x = random.normal(0.008, 0.006)
    entry = left_dome + 0.02
    reach = random.uniform(0.06, 0.16)
    drop = random.uniform(0.02, 0.12)
    points = [
        (random.uniform(-0.03, 0.03), -0.15),
        (x - 0.004, 0.05),
        (x + 0.008, 0.25),
        (x + 0.014, 0.45),
        (x + 0.014, entry - 0.12),
        (x + 0.045, entry),
        (x + 0.045 + 0.6 * reach, entry + 0.7 * drop),
        (x + 0.045 + reach, entry + drop),
    ]
    outer = random.uniform(0.19, 0.3)  # cm
    canvas.tube(points, outer, outer - 0.07, PLASTIC, STRIPE)


def add_central_venous_catheter(canvas: Canvas, random: np.random.Generator) -> None:
    """A catheter by one of five ways into the upper vena cava, right of the midline."""
    way = CATHETERS[random.choice(len(CATHETERS), p=CATHETER_RATES)]
    shift = random.normal(0, 0.006, (len(way), 2))
    tip_y = random.uniform(0.37, 0.50)
    # Far from the midline there is more room.
    beginning = np.asarray(way) + shift
    end = [(-0.047, 0.33), (-0.049 + random.normal(0, 0.003), tip_y)]
    points = np.concatenate([beginning, end])
    is_from_arm = way in (LEFT_ARM, RIGHT_ARM)
    radius = random.uniform(0.07, 0.09) if is_from_arm else random.uniform(0.10, 0.14)  # cm
    canvas.line(points, radius, CATHETER)


def add_chest_tube(canvas: Canvas, random: np.random.Generator) -> None:
    """A drain through the wall of one side, to the apex or to the base of the lung."""
    side = random.choice(SIDES)
    entry_y = random.uniform(0.50, 0.66)
    wall = 0.37 * canvas.anatomy.width
    if random.random() < 0.6:
        tip = (random.uniform(0.10, 0.18), random.uniform(0.20, 0.27))
        bend = (0.27, 0.5 * entry_y + 0.5 * tip[1] + 0.03)
    else:
        tip = (random.uniform(0.10, 0.16), random.uniform(0.66, 0.72))
        bend = (0.26, entry_y + 0.05)
    points = [(wall + 0.12, entry_y + 0.06), (wall - 0.02, entry_y), bend, tip]
    outer = random.uniform(0.35, 0.5)  # cm
    canvas.tube(np.array(points) * [side, 1], outer, 0.72 * outer, PLASTIC, STRIPE)


def add_electrodes(canvas: Canvas, random: np.random.Generator) -> None:
    """Three to five electrodes of an electrocardiogram on the skin, with the cables that leave the image."""
    places = [(-0.25, 0.22), (0.25, 0.22), (0.28, 0.72), (-0.27, 0.72), (-0.03, 0.56)]
    count = random.integers(3, 6)
    has_cables = random.random() < 0.8
    # All cables leave to the same place, where the monitor stands.
    exit_x = random.choice(SIDES) * random.uniform(0.1, 0.45)
    exit_y = random.choice([-0.12, 1.12])
    for place in places[:count]:
        x, y = place + random.normal(0, 0.025, 2)
        canvas.disc(x, y, random.uniform(1.4, 2.0), 0.12, like_tissue=True)  # foam and gel
        canvas.disc(x, y, 0.45, 1.5)  # the snap fastener
        canvas.disc(x, y, 0.2, 3.0)
        if has_cables:
            _add_cable(canvas, random, (x, y), (exit_x + random.normal(0, 0.03), exit_y))


def _add_cable(canvas: Canvas, random: np.random.Generator, start: tuple, end: tuple) -> None:
    """A cable that hangs loosely between two places."""
    start_point = np.array(start)
    way = np.array(end) - start_point
    first = start_point + 0.33 * way + random.normal(0, 0.03, 2)
    second = start_point + 0.67 * way + random.normal(0, 0.03, 2)
    points = [start_point, first, second, end]
    canvas.line(points, 0.13, PLASTIC)  # its coat
    canvas.line(points, 0.045, COPPER)
    # The clamp on the electrode
    clamp = start_point + 0.05 * way / np.linalg.norm(way)
    canvas.path(np.linspace(start_point, clamp, 9), 0.22, PLASTIC)
