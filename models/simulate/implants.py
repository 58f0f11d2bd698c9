"""Implants, what patients wear, and text beside the patient, drawn on a canvas; see devices.py.

Coordinates as in geometry.py: x to the patient's left, from the midline; y downwards; in units of the side.
"""

import cv2
import numpy as np

from .canvas import CATHETER, CM, PLASTIC, Canvas, circle
from .geometry import SIDES, curve

# Absorption against tissue
STEEL = 50.0
TITANIUM = 24.0
LEAD_COIL = 22.0  # the coiled conductor of a pacemaker's lead
LETTER = 60.0  # cm of tissue that letters of lead absorb as much as
TEXTS = ("L", "R", "PA", "AP", "R PA", "L AP", "ERECT", "SUPINE", "PORTABLE", "R 12", "L 07")  # an R lies on the right
CANVAS = 512  # pixels of the square that text is drawn in, whatever the image's size


def add_pacemaker(canvas: Canvas, random: np.random.Generator) -> None:
    """A can below the collar bone, mostly the left one, and one to three leads through the upper vena cava into the
    heart; a third are defibrillators, larger and with a coil on the lead."""
    side = 1.0 if random.random() < 0.85 else -1.0
    is_defibrillator = random.random() < 0.33
    x = side * random.uniform(0.23, 0.28)
    y = random.uniform(0.28, 0.35)
    width = random.uniform(2.3, 2.6) if is_defibrillator else random.uniform(1.9, 2.3)  # cm, half of it
    tilt = side * random.uniform(-0.3, 0.4)

    # The can, with a battery that is denser than the rest, and a block of plastic on top that holds the leads
    canvas.area(_rounded(x, y, width, 1.05 * width, tilt), 7.0)
    battery_x = x + side * 0.3 * width * CM
    battery_y = y + 0.25 * width * CM
    canvas.area(_rounded(battery_x, battery_y, 0.55 * width, 0.6 * width, tilt), 9.0)
    top = y - 1.2 * width * CM
    canvas.area(_rounded(x, top, 0.75 * width, 0.45 * width, tilt), 0.9, like_tissue=True)
    for offset in (-0.3, 0.3):
        canvas.disc(x + offset * width * CM, top, 0.15, 6.0)

    ends = [(0.10, 0.66), (-0.075, 0.54), (0.14, 0.50)]
    count = random.integers(1, 4)
    for end in ends[:count]:
        tip = end + random.normal(0, 0.012, 2)
        _add_lead(canvas, random, side, (x, top), tip, is_defibrillator and end is ends[0])


def _add_lead(
    canvas: Canvas, random: np.random.Generator, side: float, start: tuple, tip: np.ndarray, has_coil: bool
) -> None:
    """A lead from the can at `start` to its tip in the heart: it winds around the can, follows the vein below the
    collar bone, and runs down the upper vena cava."""
    x, y = start
    loop = random.uniform(0.02, 0.05)
    points = [
        (x, y),
        (x - side * 0.04, y - loop),
        (side * 0.17, 0.235 + random.normal(0, 0.006)),
        (side * 0.08, 0.25),
        (-0.035, 0.33),
        (-0.05, 0.46),
        (-0.035 + 0.3 * (tip[0] + 0.035), 0.5 * (0.52 + tip[1]) + 0.03),
        tip,
    ]
    canvas.line(points, 0.1, LEAD_COIL)
    along = curve([points])[0]  # (POINTS, 2)
    canvas.path(along[-3:], 0.13, STEEL)  # the electrode at the tip
    if has_coil:
        canvas.path(along[-14:-5], 0.16, STEEL)


def _rounded(x: float, y: float, half_width: float, half_height: float, tilt: float) -> np.ndarray:
    """Outline (64, 2) of a box with round corners: the superellipse of exponent 4. Half axes: cm; tilt: radians."""
    angle = np.linspace(0, 2 * np.pi, 64)
    cos = np.cos(angle)
    sin = np.sin(angle)
    across = half_width * CM * np.sign(cos) * np.sqrt(np.abs(cos))
    down = half_height * CM * np.sign(sin) * np.sqrt(np.abs(sin))
    turned_x = np.cos(tilt) * across - np.sin(tilt) * down
    turned_y = np.sin(tilt) * across + np.cos(tilt) * down
    return np.stack([x + turned_x, y + turned_y], -1)


def add_port(canvas: Canvas, random: np.random.Generator) -> None:
    """A port under the skin: two rings, a piece of solid metal, and the catheter over the collar bone into the upper
    vena cava."""
    side = random.choice(SIDES, p=[0.7, 0.3])
    x = side * random.uniform(0.19, 0.27)
    y = random.uniform(0.30, 0.46)
    tip_y = random.uniform(0.40, 0.50)
    points = [
        (x, y),
        (x + side * 0.005, y - 0.06),
        (side * 0.165, 0.225),
        (side * 0.085, 0.215),
        (side * 0.06, 0.26),
        (-0.047, 0.35),
        (-0.049, tip_y),
    ]
    canvas.line(points, 0.13, CATHETER)
    canvas.line(points, 0.07, -CATHETER)

    # The chamber: an outer and an inner ring, which do not quite share their middle, and its floor
    shift = random.normal(0, 0.08, 2) * CM
    canvas.disc(x, y, 1.2, 0.6, like_tissue=True)
    canvas.path(circle(x, y, 1.2), 0.06, TITANIUM)
    canvas.path(circle(x + shift[0], y + shift[1], 0.8), 0.08, TITANIUM)
    canvas.disc(x + shift[0], y + shift[1], 0.7, random.uniform(0.2, 2.5))
    angle = random.uniform(0, np.pi)
    arm = 0.3 * CM * np.array([np.cos(angle), np.sin(angle)])
    middle = np.array([x, y])
    canvas.path(np.linspace(middle - arm, middle + arm, 9), 0.07, STEEL)


def add_sternal_wires(canvas: Canvas, random: np.random.Generator) -> None:
    """Five to seven loops of steel that close a breast bone, each with its twisted ends."""
    count = random.integers(5, 8)
    x = random.normal(0, 0.006)
    for y in np.linspace(0.29, 0.60, count):
        middle_x = x + random.normal(0, 0.003)
        middle_y = y + random.normal(0, 0.004)
        half_width = random.uniform(0.6, 1.1)  # cm, as the next
        half_height = random.uniform(0.15, 0.5)
        tilt = random.normal(0, 0.25)
        angle = np.linspace(0, 2 * np.pi, 49)
        across = half_width * CM * np.cos(angle)
        down = half_height * CM * np.sin(angle) + tilt * across
        loop = np.stack([middle_x + across, middle_y + down], -1)
        canvas.path(loop, 0.04, STEEL)
        end = loop[random.integers(0, 48)]
        twist = np.linspace(end, end + random.normal(0, 0.35, 2) * CM, 9)
        canvas.path(twist, 0.08, STEEL)


def add_clips(canvas: Canvas, random: np.random.Generator) -> None:
    """A cluster of surgical clips: at a hilum, in an armpit, at the neck or in the upper abdomen."""
    places = [(0.10, 0.45), (0.33, 0.36), (0.05, 0.12), (-0.14, 0.90)]
    spreads = [0.03, 0.045, 0.03, 0.03]
    index = random.integers(len(places))
    side = random.choice(SIDES) if index < 3 else 1.0
    centre = np.array(places[index]) * [side, 1]
    count = random.integers(2, 9)
    for _ in range(count):
        middle = centre + random.normal(0, spreads[index], 2)
        angle = random.normal(0.6, 0.5)
        arm = random.uniform(0.2, 0.4) * CM * np.array([np.cos(angle), np.sin(angle)])  # half of its length
        # Two legs side by side, nearly one line
        gap = random.uniform(0.0, 0.08) * CM
        for shift in (-gap, gap):
            leg = np.linspace(middle - arm + [0, shift], middle + arm, 9)
            canvas.path(leg, 0.05, TITANIUM)


def add_buttons(canvas: Canvas, random: np.random.Generator) -> None:
    """A row of buttons with two or four holes, of a shirt that was not taken off."""
    count = random.integers(3, 7)
    x = random.normal(0, 0.03)
    first = random.uniform(0.2, 0.32)
    apart = random.uniform(0.09, 0.13)
    radius = random.uniform(0.45, 0.75)  # cm
    thickness = random.uniform(0.6, 1.2)
    holes = random.choice([2, 4])
    for number in range(count):
        place_x = x + random.normal(0, 0.012)
        place_y = first + number * apart + random.normal(0, 0.006)
        canvas.disc(place_x, place_y, radius, thickness, like_tissue=True)
        canvas.path(circle(place_x, place_y, 0.9 * radius), 0.08, PLASTIC, like_tissue=True)  # the raised rim
        turn = random.uniform(0, np.pi)
        for hole in range(holes):
            angle = turn + 2 * np.pi * hole / holes
            hole_x = place_x + 0.25 * radius * CM * np.cos(angle)
            hole_y = place_y + 0.25 * radius * CM * np.sin(angle)
            canvas.disc(hole_x, hole_y, 0.11, -thickness, like_tissue=True)


def add_zip(canvas: Canvas, random: np.random.Generator) -> None:
    """Two interlocking rows of small teeth down the middle, and the slider."""
    x = random.normal(0, 0.03)
    top = random.uniform(0.12, 0.25)
    sway = random.normal(0, 0.01)
    rows = np.arange(top, 1.0, 0.25 * CM)
    for number, y in enumerate(rows):
        # Teeth of the two sides in turn
        side = 1 if number % 2 else -1
        middle = x + sway * np.sin(6 * y)
        end = middle + side * 0.3 * CM
        tooth = np.stack([np.linspace(middle, end, 5), np.full(5, y)], -1)
        canvas.path(tooth, 0.07, TITANIUM)
    canvas.area(_rounded(x + sway * np.sin(6 * top), top, 0.4, 0.6, 0.0), 2.5)


def add_hooks(canvas: Canvas, random: np.random.Generator) -> None:
    """The hooks of a brassiere's back, and the slides of its straps."""
    y = random.uniform(0.60, 0.70)
    x = random.normal(0, 0.02)
    for row in (-0.4, 0.4):
        hook = circle(x, y + row * CM, 0.22)[:25]
        canvas.path(hook, 0.045, STEEL)
        canvas.path(circle(x + 0.9 * CM, y + row * CM, 0.16)[8:], 0.045, STEEL)
    for side in SIDES:
        strap_x = side * random.uniform(0.16, 0.2)
        canvas.path(_rounded(strap_x, random.uniform(0.25, 0.33), 0.55, 0.35, 0.0), 0.08, TITANIUM)


def add_marker(canvas: Canvas, random: np.random.Generator) -> None:
    """Text of lead in an upper corner: the side, the projection or a short note, sometimes in a frame."""
    text = str(random.choice(TEXTS))
    scale = random.uniform(0.7, 1.2)
    weight = int(random.integers(2, 4))
    (width, height), _ = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, scale, weight)
    margin = int(random.uniform(12, 50))
    # The patient's right is the image's left.
    is_left = text.startswith("R") or (not text.startswith("L") and random.random() < 0.5)
    left = margin if is_left else CANVAS - margin - width
    baseline = int(random.uniform(30, 95)) + height // 2

    # Drawn at one fixed size, so that it looks the same in an image of any size.
    square = np.zeros((CANVAS, CANVAS), np.uint8)
    cv2.putText(square, text, (left, baseline), cv2.FONT_HERSHEY_SIMPLEX, scale, 255, weight, cv2.LINE_AA)
    if random.random() < 0.3:
        corner = (left - 7, baseline - height - 7)
        cv2.rectangle(square, corner, (left + width + 7, baseline + 9), 255, 2, cv2.LINE_AA)
    coverage = cv2.resize(square, (canvas.size, canvas.size), interpolation=cv2.INTER_AREA).astype(np.float32) / 255
    canvas.tissue += LETTER * CM * coverage
