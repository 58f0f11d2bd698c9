"""Wide opacities of sick lungs, drawn as thickness maps: consolidation, pleural effusion, plate-like atelectasis.

Like the nodules of `lesions`, whose `draw` adds them, they are in both images of a pair. Fluid and collapsed lung
absorb as much as water, and none of them follows a rib. Rates and sizes are set by eye, so that none is rare in a
training.
"""

import cv2
import numpy as np

from .field import blur

EDGE = 0.006  # sigma of the blur of the outlines of consolidation and fluid, in units of the side

# Consolidation
PATCHES = 0.15  # share of the patients
PATCH_WIDTH = (3.0, 10.0)  # cm
PATCH_DEPTH = (0.5, 3.0)  # cm of water

# Pleural effusion: fluid between lung and chest wall, which collects in the lowest place of a patient who stands.
EFFUSIONS = 0.12  # share of the patients
EFFUSION_HEIGHT = (0.15, 0.6)  # of the lung's height, to which the fluid reaches at the chest wall
EFFUSION_DEPTH = (2.0, 9.0)  # cm of water at the lung's base
MENISCUS = (0.3, 0.7)  # share of that height by which the fluid's outline is lower at the mediastinum
SLOPE = 2.5  # cm below its outline after which the fluid has its full depth

# Plate-like atelectasis: a thin plate of collapsed lung, mostly above the diaphragm and nearly level.
PLATES = 0.15  # share of the patients
PLATE_COUNT = (1, 3)  # from and to
PLATE_LENGTH = (2.5, 8.0)  # cm
PLATE_WIDTH = (0.15, 0.5)  # cm, across the plate
PLATE_DEPTH = (0.5, 2.0)  # cm of water
PLATE_TILT = 0.4  # radians; sigma of the angle with the horizontal
PLATE_BEND = 0.12  # of the length, the largest height of its arch
PLATE_LOW = 0.45  # the plates' middles lie below this share of the lungs' height


def draw(lung: np.ndarray, random: np.random.Generator, pixel: float) -> np.ndarray:
    """cm of water that a patient's wide opacities add, float32 (S, S); mostly none.

    lung: bool (S, S), true where rays cross aerated lung. pixel: cm.
    """
    total = np.zeros(lung.shape, np.float32)
    if not lung.any():
        return total
    if random.random() < EFFUSIONS:
        total += effusion(lung, random, pixel)
    if random.random() < PLATES:
        for _ in range(random.integers(PLATE_COUNT[0], PLATE_COUNT[1] + 1)):
            total += plate(lung, random, pixel)
    return total


def patch(lung: np.ndarray, random: np.random.Generator, pixel: float) -> np.ndarray:
    """A patch of consolidation: wide, uneven, with a soft outline, inside the lung. float32 (S, S), cm of water."""
    size = len(lung)
    places = np.argwhere(lung)
    if len(places) == 0:
        return np.zeros(lung.shape, np.float32)
    y, x = random.choice(places)
    half_width, half_height = random.uniform(*PATCH_WIDTH, 2) / 2 / pixel  # pixels
    depth = random.uniform(*PATCH_DEPTH)

    # A paraboloid, 1 in its middle.
    index = np.arange(size)
    u = (index[None, :] - x) / half_width
    v = (index[:, None] - y) / half_height
    paraboloid = np.maximum(1 - u**2 - v**2, 0)

    # Made uneven by coarse noise; multiplied by the lung, so that it ends where the lung does.
    noise = random.standard_normal((48, 48), np.float32)
    smooth_noise = cv2.resize(noise, (size, size), interpolation=cv2.INTER_CUBIC)
    grain = 1 + 0.5 * smooth_noise
    uneven = np.maximum(paraboloid * grain, 0) * lung
    soft_edged = blur(uneven.astype(np.float32), EDGE)
    return (depth * soft_edged).astype(np.float32)


def effusion(lung: np.ndarray, random: np.random.Generator, pixel: float) -> np.ndarray:
    """Fluid at the base of one lung, float32 (S, S), cm of water.

    Its upper outline is a meniscus: it rises towards the chest wall. Arguments as `draw`.
    """
    own = _one_lung(lung, random)
    rows, columns = np.nonzero(own)
    top = rows.min()
    bottom = rows.max()
    height = bottom - top + 1  # pixels
    rises = random.uniform(*EFFUSION_HEIGHT) * height  # at the chest wall
    falls = random.uniform(*MENISCUS) * rises
    depth = random.uniform(*EFFUSION_DEPTH)

    # From 0 at the mediastinum to 1 at the chest wall; the outline rises with its square.
    middle = np.nonzero(lung)[1].mean()
    left = columns.min()
    right = columns.max()
    lies_left = abs(right - middle) < abs(left - middle)
    inner = right if lies_left else left  # column at the mediastinum
    outer = left if lies_left else right  # and at the chest wall
    across = np.clip((np.arange(lung.shape[1]) - inner) / (outer - inner), 0, 1)  # (S,)
    outline = bottom - rises + falls * (1 - across**2)  # (S,), the row of the fluid's surface in each column

    # The deeper below its outline, the thicker, up to the full depth.
    below = (np.arange(lung.shape[0])[:, None] - outline[None, :]) * pixel  # (S, S), cm
    filled = np.clip(below / SLOPE, 0, 1)
    water = depth * filled * own
    return blur(water.astype(np.float32), EDGE)


def plate(lung: np.ndarray, random: np.random.Generator, pixel: float) -> np.ndarray:
    """A plate of collapsed lung, seen on edge: a thin, slightly bent band. float32 (S, S), cm of water.

    Arguments as `draw`.
    """
    rows, _ = np.nonzero(lung)
    lowest = rows.min() + PLATE_LOW * (rows.max() - rows.min())
    places = np.argwhere(lung)
    places = places[places[:, 0] >= lowest]
    y, x = random.choice(places)
    half = random.uniform(*PLATE_LENGTH) / 2 / pixel  # pixels
    sigma = random.uniform(*PLATE_WIDTH) / 2 / pixel  # pixels, across
    depth = random.uniform(*PLATE_DEPTH)
    tilt = random.normal(0, PLATE_TILT)
    arch = random.uniform(-PLATE_BEND, PLATE_BEND) * 2 * half  # pixels

    # Along the plate, from -1 to 1 at its ends, and across it, measured from its arch.
    right = np.arange(lung.shape[1])[None, :] - x
    down = np.arange(lung.shape[0])[:, None] - y
    along = (np.cos(tilt) * right + np.sin(tilt) * down) / half
    across = np.cos(tilt) * down - np.sin(tilt) * right - arch * (1 - along**2)

    # Thinner towards its ends.
    fading = np.maximum(1 - along**2, 0)
    band = np.exp(-((across / sigma) ** 2) / 2)
    return (depth * fading * band * lung).astype(np.float32)


def _one_lung(lung: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """The right or the left lung, bool (S, S): the larger connected field of one half of the image."""
    half = np.zeros_like(lung)
    middle = int(round(np.nonzero(lung)[1].mean()))
    if random.random() < 0.5:
        half[:, :middle] = True
    else:
        half[:, middle:] = True
    own = lung & half
    count, labels, statistics, _ = cv2.connectedComponentsWithStats(own.astype(np.uint8))
    if count < 2:  # nothing of the lungs in that half
        return lung
    # label 0 is what lies outside
    largest = 1 + int(np.argmax(statistics[1:, cv2.CC_STAT_AREA]))
    return labels == largest
