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
        fewest, most = PLATE_COUNT
        for _ in range(random.integers(fewest, most, endpoint=True)):
            total += plate(lung, random, pixel)
    return total


def patch(lung: np.ndarray, random: np.random.Generator, pixel: float) -> np.ndarray:
    """A patch of consolidation: wide, uneven, with a soft outline, inside the lung. float32 (S, S), cm of water."""
    size = len(lung)
    places = np.argwhere(lung)
    if len(places) == 0:
        return np.zeros(lung.shape, np.float32)
    y, x = random.choice(places)
    width, height = random.uniform(*PATCH_WIDTH, 2)  # cm
    half_width = width / 2 / pixel  # pixels
    half_height = height / 2 / pixel
    depth = random.uniform(*PATCH_DEPTH)

    # A paraboloid 1 - u^2 - v^2, 1 in its middle and 0 from its rim on.
    column = np.arange(size)[None, :]
    row = np.arange(size)[:, None]
    u = (column - x) / half_width  # (1, S)
    v = (row - y) / half_height  # (S, 1)
    paraboloid = np.maximum(1 - u**2 - v**2, 0)  # (S, S)

    # Made uneven by coarse noise; multiplied by the lung, so that it ends where the lung does.
    noise = random.standard_normal((48, 48), np.float32)
    smooth_noise = cv2.resize(noise, (size, size), interpolation=cv2.INTER_CUBIC)
    grain = 1 + 0.5 * smooth_noise
    uneven = np.maximum(paraboloid * grain, 0) * lung
    soft_edged = blur(uneven.astype(np.float32), EDGE)
    water = depth * soft_edged
    return water.astype(np.float32)


def effusion(lung: np.ndarray, random: np.random.Generator, pixel: float) -> np.ndarray:
    """Fluid at the base of one lung, float32 (S, S), cm of water.

    Its upper outline is a meniscus: it rises towards the chest wall. Arguments as `draw`.
    """
    own = _one_lung(lung, random)
    rows, columns = np.nonzero(own)
    top = rows.min()
    bottom = rows.max()
    lung_height = bottom - top + 1  # pixels, as the two that follow
    height = random.uniform(*EFFUSION_HEIGHT) * lung_height  # at the chest wall
    drop = random.uniform(*MENISCUS) * height  # from there to the mediastinum
    depth = random.uniform(*EFFUSION_DEPTH)

    # From 0 at the mediastinum to 1 at the chest wall; the outline rises with its square.
    _, columns_of_both = np.nonzero(lung)
    middle = columns_of_both.mean()
    left = columns.min()
    right = columns.max()
    lies_left = abs(right - middle) < abs(left - middle)
    inner = right if lies_left else left  # column at the mediastinum
    outer = left if lies_left else right  # and at the chest wall
    size = len(lung)
    from_inner = np.arange(size) - inner  # (S,), pixels
    across = np.clip(from_inner / (outer - inner), 0, 1)
    surface = bottom - height + drop * (1 - across**2)  # (S,), the row of the fluid's surface in each column

    # The deeper below its surface, the thicker, up to the full depth.
    row = np.arange(size)[:, None]
    below = (row - surface) * pixel  # (S, S), cm
    filled = np.clip(below / SLOPE, 0, 1)
    water = depth * filled * own
    return blur(water.astype(np.float32), EDGE)


def plate(lung: np.ndarray, random: np.random.Generator, pixel: float) -> np.ndarray:
    """A plate of collapsed lung, seen on edge: a thin, slightly bent band. float32 (S, S), cm of water.

    Arguments as `draw`.
    """
    # Its middle lies in the lower part of the lungs.
    places = np.argwhere(lung)  # (n, 2): row, column
    rows = places[:, 0]
    top = rows.min()
    bottom = rows.max()
    highest = top + PLATE_LOW * (bottom - top)  # row
    places = places[rows >= highest]
    y, x = random.choice(places)
    half = random.uniform(*PLATE_LENGTH) / 2 / pixel  # pixels
    sigma = random.uniform(*PLATE_WIDTH) / 2 / pixel  # pixels, across
    depth = random.uniform(*PLATE_DEPTH)
    tilt = random.normal(0, PLATE_TILT)
    arch = random.uniform(-PLATE_BEND, PLATE_BEND) * 2 * half  # pixels

    # Along the plate, from -1 to 1 at its ends, and across it, in pixels from its arch: a parabola 1 - along^2.
    size = len(lung)
    right = np.arange(size)[None, :] - x
    down = np.arange(size)[:, None] - y
    cos = np.cos(tilt)
    sin = np.sin(tilt)
    along = (cos * right + sin * down) / half  # (S, S), as all that follow
    parabola = 1 - along**2
    across = cos * down - sin * right - arch * parabola

    # A Gaussian across it, thinner towards its ends.
    fading = np.maximum(parabola, 0)
    band = np.exp(-((across / sigma) ** 2) / 2)
    water = depth * fading * band * lung
    return water.astype(np.float32)


def _one_lung(lung: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """The right or the left lung, bool (S, S): the larger connected field of one half of the image."""
    half = np.zeros_like(lung)
    _, columns = np.nonzero(lung)
    middle = int(round(columns.mean()))
    if random.random() < 0.5:
        half[:, :middle] = True
    else:
        half[:, middle:] = True
    own = lung & half
    count, labels, statistics, _ = cv2.connectedComponentsWithStats(own.astype(np.uint8))
    if count < 2:  # nothing of the lungs in that half
        return lung
    # label 0 is what lies outside
    areas = statistics[1:, cv2.CC_STAT_AREA]
    largest = 1 + int(np.argmax(areas))
    return labels == largest
