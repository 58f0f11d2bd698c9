"""Disease and anatomy that simulated patients do not have: each function changes a CXR, and some of them the lungs'
mask too.

CXR and mask are (H, W), the CXR in about [0, 1] with bright bones. Each function takes its random numbers in the order
of its lines: a changed order gives other samples. Positions and lengths are in units of the image's sides, x to the
right and y downwards.
"""

import cv2
import numpy as np
from numpy.random import Generator

from .draws import blob, chance, log_uniform, smooth, unit_grid

Images = tuple[np.ndarray, np.ndarray]  # CXR and mask
Box = tuple[float, float, float, float]  # left, right, top, bottom
NO_LUNG = (0.3, 0.4, 0.3, 0.7)  # the box where there is no lung


def heart(random: Generator, cxr: np.ndarray, mask: np.ndarray) -> Images:
    """A larger heart or mediastinum: it takes a piece of a lung, mask and all."""
    lung, box = one_lung(random, mask)
    left, right, top, bottom = box
    width = right - left
    height = bottom - top
    centre_x = medial_border(box)
    if chance(random, 0.75):
        # The heart, at the lung's base
        radius_x = random.uniform(0.2, 0.65) * width
        radius_y = random.uniform(0.15, 0.35) * height
        centre_y = bottom - random.uniform(0.05, 0.3) * height
    else:
        # The mediastinum, above
        radius_x = random.uniform(0.1, 0.3) * width
        radius_y = random.uniform(0.1, 0.4) * height
        centre_y = top + random.uniform(0, 0.4) * height

    # What an ellipse covers of the lung, (H, W), 0 or 1
    x, y = unit_grid(cxr.shape)
    u = (x - centre_x) / radius_x
    v = (y - centre_y) / radius_y
    is_inside = u**2 + v**2 < 1
    ellipse = is_inside.astype(np.float32)
    taken = ellipse * (lung > 0.5)

    edge_sigma = random.uniform(0.5, 1.5)  # px
    opacity = random.uniform(0.6, 1)
    soft_edged = cv2.GaussianBlur(taken, (0, 0), edge_sigma)
    weight = soft_edged * opacity
    brightness = random.uniform(0.9, 1.2)
    grey = tissue(cxr, mask)
    with_heart = covered(cxr, weight, grey, brightness)
    remaining_lungs = mask * (1 - taken)
    return with_heart, remaining_lungs


def opacities(random: Generator, cxr: np.ndarray, mask: np.ndarray) -> Images:
    """Nodules, masses, consolidations: the lungs' mask stays."""
    count = int(random.integers(1, 6))
    for _ in range(count):
        lung, (left, right, top, bottom) = one_lung(random, mask)
        size = log_uniform(random, 0.02, 0.16)
        centre_x = random.uniform(left, right)
        centre_y = random.uniform(top, bottom)
        elongation = np.exp(random.normal(0, 0.25, 2))
        radii = size * elongation
        shade = blob(random, cxr.shape, (centre_x, centre_y), radii, 1.0)

        # Seen in the lung only
        opacity = random.uniform(0.2, 0.9)
        weight = shade * np.clip(lung, 0, 1) * opacity
        brightness = random.uniform(0.8, 1.05)
        grey = tissue(cxr, mask)
        cxr = covered(cxr, weight, grey, brightness)
    return cxr, mask


def effusion(random: Generator, cxr: np.ndarray, mask: np.ndarray) -> Images:
    """The lower end of one lung takes the brightness of tissue; the mask stays."""
    lung, box = one_lung(random, mask)
    left, right, top, bottom = box
    x, y = unit_grid(cxr.shape)
    width = max(right - left, 0.01)
    from_spine = x - medial_border(box)
    lateral = np.abs(from_spine / width)  # 0 at the spine, 1 at the ribs

    # The fluid's upper border, y in each column (H, W), which mostly rises to the side
    height = bottom - top
    fluid_height = height * random.uniform(0.05, 0.35)
    rise = random.uniform(-0.2, 0.8)
    level = bottom - fluid_height * (1 + rise * (lateral - 0.5))

    # A logistic step density / (1 + exp(t)) at that border
    density = random.uniform(0.4, 0.95)
    softness = random.uniform(0.004, 0.05)
    above = level - y
    t = np.clip(above / softness, -30, 30)  # bounded, so that nothing overflows
    opacity = density / (1 + np.exp(t))
    weight = opacity * np.clip(lung, 0, 1)
    brightness = random.uniform(0.9, 1.1)
    grey = tissue(cxr, mask)
    with_fluid = covered(cxr, weight, grey, brightness)
    return with_fluid, mask


def haze(random: Generator, cxr: np.ndarray, mask: np.ndarray) -> Images:
    """One lung, or both, darker or brighter as a whole, or streaky."""
    lung = mask
    if chance(random, 0.5):
        lung, _ = one_lung(random, mask)

    # Above 0 towards tissue, below 0 towards black
    offset = random.uniform(-0.3, 0.6)
    streaks = 0.3 * random.random()
    grains = int(random.choice([4, 12, 40]))
    pattern = offset + streaks * smooth(random, cxr.shape, grains)
    strength = np.clip(pattern, -0.4, 0.9)
    weight = strength * np.clip(lung, 0, 1)
    to_tissue = tissue(cxr, mask) - cxr
    brighter = weight * to_tissue * (weight > 0)
    darker = weight * 0.3 * cxr * (weight < 0)
    return cxr + brighter + darker, mask


def breasts(random: Generator, cxr: np.ndarray, mask: np.ndarray) -> Images:
    """Two round shadows, sharp below."""
    x, y = unit_grid(cxr.shape)
    centre_y = random.uniform(0.5, 0.8)
    radius_x = random.uniform(0.12, 0.22)
    radius_y = random.uniform(0.12, 0.25)
    gain = random.uniform(0.04, 0.22)
    right_x = random.uniform(0.2, 0.33)
    left_x = random.uniform(0.67, 0.8)

    # 1 at the lower edge and below, 0 above the breast: its upper edge is no line in a radiograph.
    from_top = y - centre_y + radius_y
    fading = np.clip(from_top / (1.2 * radius_y), 0, 1)
    for centre_x in (right_x, left_x):
        offset_y = random.normal(0, 0.02)
        u = (x - centre_x) / radius_x
        v = (y - centre_y - offset_y) / radius_y
        from_edge = 1 - np.hypot(u, v)  # in radii, above 0 inside
        shadow = np.clip(from_edge / 0.12, 0, 1)
        cxr = cxr + gain * shadow * fading
    return cxr, mask


def bowel(random: Generator, cxr: np.ndarray, mask: np.ndarray) -> Images:
    """Gas below the diaphragm, often right below it and with a level, never in the lungs."""
    outside = outside_lungs(mask, 1)
    below_apex = np.cumsum(mask > 0.5, axis=0) > 0  # at or below the lungs' first row of the column
    _, y = unit_grid(cxr.shape)
    count = int(random.integers(1, 4))
    for _ in range(count):
        _, (left, right, _, bottom) = one_lung(random, mask)
        radii = np.exp(random.normal(-2.7, 0.4, 2))
        if chance(random, 0.6):
            # Right below a lung
            centre_x = random.uniform(left, right)
            centre_y = bottom + random.uniform(-0.08, 0.15)
        else:
            # Anywhere in the abdomen
            centre_x = random.uniform(0.2, 0.8)
            centre_y = random.uniform(0.75, 1)
        gas = blob(random, cxr.shape, (centre_x, centre_y), radii, 0.2)

        # Fluid with a flat level below the gas
        if chance(random, 0.4):
            _, radius_y = radii
            level = centre_y + random.uniform(-0.3, 0.8) * radius_y
            gas = gas * (y < level)

        darkening = random.uniform(0.1, 0.6)
        removed_share = darkening * gas * outside * below_apex
        cxr = cxr - removed_share * cxr
    return cxr, mask


def arms(random: Generator, cxr: np.ndarray, mask: np.ndarray) -> Images:
    """Arms, shoulder blades, the folds of a bra or a gown: bright and dark bands at the sides."""
    x, y = unit_grid(cxr.shape)
    outside = outside_lungs(mask, 2)
    for from_side in (x, 1 - x):
        # How far each pixel lies inside the band, whose border is a slanted line
        width = random.uniform(-0.05, 0.12)
        slant = random.uniform(-0.3, 0.3)
        depth = width + slant * (y - 0.5) - from_side
        if chance(random, 0.7):
            gain = random.uniform(-0.4, 0.3)
            band = np.clip(depth / 0.01, 0, 1)
            cxr = cxr + gain * band * outside
    return cxr, mask


# --- The lungs in the image -------------------------------------------------------------------------------------------


def one_lung(random: Generator, mask: np.ndarray) -> tuple[np.ndarray, Box]:
    """Mask and box of one of the two largest regions; an empty mask and NO_LUNG if there is none."""
    is_lung = mask > 0.5
    count, labels, stats, _ = cv2.connectedComponentsWithStats(is_lung.astype(np.uint8))
    if count < 2:
        return mask * 0, NO_LUNG

    # One of the two largest regions; label 0 is the background.
    areas = stats[1:, cv2.CC_STAT_AREA]
    from_largest = np.argsort(areas)[::-1]
    two_largest = 1 + from_largest[:2]
    label = random.choice(two_largest)

    # Its box, from pixels to units of the sides
    left, top, width, height = stats[label, :4]
    right = left + width
    bottom = top + height
    image_height, image_width = mask.shape
    box = (left / image_width, right / image_width, top / image_height, bottom / image_height)
    lung = mask * (labels == label)
    return lung, box


def medial_border(box: Box) -> float:
    """x of the side of a lung's box that is nearer to the other lung."""
    left, right, _, _ = box
    is_right_of_the_middle = left + right > 1
    return left if is_right_of_the_middle else right


def tissue(cxr: np.ndarray, mask: np.ndarray) -> float:
    """The grey level of soft tissue beside the lungs."""
    inside = mask > 0.5
    if not inside.any():
        return 0.7
    return float(np.quantile(cxr[inside], 0.9))


def outside_lungs(mask: np.ndarray, margin: int) -> np.ndarray:
    """1 outside the lungs and a margin of so many pixels around them, 0 inside."""
    side = 2 * margin + 1
    square = np.ones((side, side))
    grown = cv2.dilate(mask, square)
    return 1 - np.clip(grown, 0, 1)


def covered(cxr: np.ndarray, weight: np.ndarray, grey: float, brightness: float) -> np.ndarray:
    """The CXR under something of one grey level, times brightness, whose opacity is weight (H, W)."""
    below = cxr * (1 - weight)
    above = weight * grey * brightness
    return below + above
