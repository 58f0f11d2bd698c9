"""What detector, viewer and archive make of an X-ray, (H, W) in about [0, 1] with bright bones.

Each function takes its random numbers in the order of its lines: a changed order gives other samples.
"""

import cv2
import numpy as np
from numpy.random import Generator
from scipy.interpolate import PchipInterpolator

from .draws import chance, log_uniform, smooth, unit_grid

Images = tuple[np.ndarray, np.ndarray]  # CXR and mask of the lungs


def display(random: Generator, cxr: np.ndarray) -> np.ndarray:
    """Another detector and viewer: heel effect, local contrast, equalisation, any rising tone curve, any window."""
    # Heel effect (the tube is weaker to one side), and uneven sensitivity
    if chance(random, 0.5):
        x, y = unit_grid(cxr.shape)
        slope_x = random.normal(0, 0.2)
        slope_y = random.normal(0, 0.2)
        slope = 1 + slope_x * (x - 0.5) + slope_y * (y - 0.5)
        unevenness = random.uniform(0, 0.06)
        noise = smooth(random, cxr.shape, 4)
        cxr = cxr * slope + unevenness * noise

    # Local contrast, more or less
    if chance(random, 0.6):
        gain = random.uniform(-0.5, 1.2)
        sigma = log_uniform(random, 1.5, 40)  # px
        blurred = cv2.GaussianBlur(cxr, (0, 0), sigma)
        detail = cxr - blurred
        cxr = cxr + gain * detail

    # From 0 to 1, for what follows
    span = max(np.ptp(cxr), 1e-3)
    cxr = (cxr - cxr.min()) / span
    if chance(random, 0.25):
        cxr = _equalised(random, cxr)

    # A rising tone curve through random knots, and a gamma
    concentration = np.full(5, 3.0)
    steps = random.dirichlet(concentration)  # they add up to 1
    inputs = np.linspace(0, 1, 6)
    outputs = np.cumsum(np.r_[0, steps])
    curve = PchipInterpolator(inputs, outputs)
    gamma = np.exp(random.normal(0, 0.35))
    cxr = curve(cxr) ** gamma

    # A window, outside of which everything is black or white
    low = 0.0
    high = 1.0
    if chance(random, 0.3):
        low = random.uniform(0, 0.25)
        high = random.uniform(0.75, 1)
    windowed = (cxr - low) / (high - low)
    return np.clip(windowed, 0, 1).astype(np.float32)


def _equalised(random: Generator, cxr: np.ndarray) -> np.ndarray:
    """Histogram equalisation of an image in [0, 1], mostly local (CLAHE)."""
    grey = np.uint8(255 * cxr)
    clip_limit = random.uniform(1, 5)
    tiles = int(random.integers(2, 9))  # along each side
    if chance(random, 0.7):
        clahe = cv2.createCLAHE(clip_limit, (tiles, tiles))
        equalised = clahe.apply(grey)
    else:
        equalised = cv2.equalizeHist(grey)
    return equalised / np.float32(255)


def things(random: Generator, cxr: np.ndarray) -> np.ndarray:
    """Letters, plates, wires, a pacemaker, electrodes: brighter or darker than anything."""
    picture = np.uint8(255 * cxr)
    draw_functions = (_draw_letters, _draw_plate, _draw_wire, _draw_pacemaker, _draw_electrode)
    count = int(random.integers(1, 5))
    for _ in range(count):
        number = random.integers(len(draw_functions))
        draw = draw_functions[number]
        draw(random, picture)
    return picture / np.float32(255)


def _place(random: Generator, picture: np.ndarray) -> tuple[int, int]:
    """Any pixel of the picture: x, y."""
    height, width = picture.shape
    x = int(random.uniform(0, width))
    y = int(random.uniform(0, height))
    return x, y


def _shade(random: Generator) -> int:
    """A grey level from 0 to 255: white half of the time, else black or any."""
    any_grey = random.random()
    grey = random.choice([0, 1, 1, any_grey])
    return int(255 * grey)


def _draw_letters(random: Generator, picture: np.ndarray) -> None:
    count = int(random.integers(1, 8))
    letters = random.choice(list("LRPA0123456789SITZ"), count)
    text = "".join(letters)
    corner = _place(random, picture)
    scale = random.uniform(0.3, 1.3)
    shade = _shade(random)
    thickness = int(random.integers(1, 4))
    cv2.putText(picture, text, corner, cv2.FONT_HERSHEY_SIMPLEX, scale, shade, thickness, cv2.LINE_AA)


def _draw_plate(random: Generator, picture: np.ndarray) -> None:
    x, y = _place(random, picture)
    width = int(random.uniform(4, 50))
    height = int(random.uniform(4, 30))
    shade = _shade(random)
    opposite_corner = (x + width, y + height)
    cv2.rectangle(picture, (x, y), opposite_corner, shade, cv2.FILLED)


def _draw_wire(random: Generator, picture: np.ndarray) -> None:
    # A random walk of six steps
    start = _place(random, picture)
    step_length = 0.1 * picture.shape[1]  # px
    steps = random.normal(0, step_length, (6, 2))
    corners = np.cumsum([start, *steps], axis=0)  # (7, 2)
    points = corners.astype(np.int32)
    shade = _shade(random)
    thickness = int(random.integers(1, 3))
    cv2.polylines(picture, [points], False, shade, thickness, cv2.LINE_AA)


def _draw_pacemaker(random: Generator, picture: np.ndarray) -> None:
    centre = _place(random, picture)
    half_width = int(random.uniform(3, 18))
    half_height = int(random.uniform(3, 14))
    angle = random.uniform(0, 180)
    shade = _shade(random)
    half_axes = (half_width, half_height)
    cv2.ellipse(picture, centre, half_axes, angle, 0, 360, shade, cv2.FILLED)


def _draw_electrode(random: Generator, picture: np.ndarray) -> None:
    centre = _place(random, picture)
    radius = int(random.uniform(2, 6))
    shade = _shade(random)
    thickness = int(random.choice([cv2.FILLED, 1]))
    cv2.circle(picture, centre, radius, shade, thickness)


def collimate(random: Generator, cxr: np.ndarray, mask: np.ndarray) -> Images:
    """Borders of one grey: laid over the image, tilted or not, or added around it."""
    any_grey = random.random()
    grey = float(random.choice([0, 0, 0, 1, 1, any_grey]))
    if chance(random, 0.5):
        return _padded(random, cxr, mask, grey)
    # What lies under a thin frame is still lung.
    return _framed(random, cxr, grey), mask


def _padded(random: Generator, cxr: np.ndarray, mask: np.ndarray, grey: float) -> Images:
    """Borders of one grey around the image, at some of its sides."""
    height, width = cxr.shape
    shares = random.uniform(0, 0.2, 4)  # above, below, left, right
    is_added = random.random(4) < 0.6
    widths = shares * (height, height, width, width) * is_added
    above, below, left, right = widths.astype(int).tolist()
    pads = ((above, below), (left, right))
    padded_cxr = np.pad(cxr, pads, constant_values=grey)
    padded_mask = np.pad(mask, pads)
    return padded_cxr, padded_mask


def _framed(random: Generator, cxr: np.ndarray, grey: float) -> np.ndarray:
    """The image within a collimator's field, a quadrilateral with soft edges; one grey outside."""
    height, width = cxr.shape
    shares = random.uniform(0, 0.09, 4)
    is_cut = random.random(4) < 0.6
    left, top, cut_right, cut_bottom = shares * is_cut
    right = 1 - cut_right
    bottom = 1 - cut_bottom
    corners = np.float32([(left, top), (right, top), (right, bottom), (left, bottom)])
    jitter = random.normal(0, 0.01, (4, 2))
    corners = (corners + jitter) * (width, height)  # px
    corners = np.round(corners).astype(np.int32)

    closed = np.zeros(cxr.shape, np.float32)
    field = cv2.fillConvexPoly(closed, corners, 1)
    edge_sigma = random.uniform(0.3, 1.5)  # px
    field = cv2.GaussianBlur(field, (0, 0), edge_sigma)
    return cxr * field + grey * (1 - field)


def detector(random: Generator, cxr: np.ndarray) -> np.ndarray:
    """Blur, noise, coarse grey levels, JPEG."""
    if chance(random, 0.4):
        sigma = random.uniform(0.3, 2)  # px
        cxr = cv2.GaussianBlur(cxr, (0, 0), sigma)

    # Noise, fine or in coarse grains of about the same strength
    if chance(random, 0.5):
        noise = random.standard_normal(cxr.shape).astype(np.float32)
        level = random.uniform(0, 0.08)
        is_fine = chance(random, 0.7)
        if not is_fine:
            coarse = cv2.GaussianBlur(noise, (0, 0), 1)
            noise = coarse * 2
        cxr = cxr + level * noise * (1.3 - cxr)  # stronger where the image is dark

    # Few grey levels
    if chance(random, 0.1):
        levels = int(random.integers(8, 40))
        cxr = np.round(cxr * levels) / levels

    # JPEG's blocks
    if chance(random, 0.2):
        quality = int(random.integers(20, 90))
        clipped = np.clip(cxr, 0, 1)
        grey = np.uint8(255 * clipped)
        options = [cv2.IMWRITE_JPEG_QUALITY, quality]
        _, encoded = cv2.imencode(".jpg", grey, options)
        decoded = cv2.imdecode(encoded, cv2.IMREAD_GRAYSCALE)
        cxr = decoded / 255
    return np.clip(cxr, 0, 1).astype(np.float32)
