"""Random changes of training images: geometry, grey values, sharpness and noise alike for both images of a pair, the
display alike or not, and the bone in the CXR.

The amounts are the section `augment` of the settings; the papers have no augmentation. Black stays black under all of
the changes, so what lies outside the lungs of a masked image, and around an image that is not square, looks as it would
without them.
"""

import math

import cv2
import numpy as np

from .. import images
from ..config import Augment
from ..runtime import seeding

# Gaussian blurs that separate fine from coarse structure, smallest and largest sigma in units of the image's side
DETAIL_SIGMA = (0.0012, 0.008)
CORTEX_SIGMA = (0.002, 0.006)

WIDE_SHRINK = 8  # a wide blur is computed on an image that is so many times smaller

# Multi-scale contrast, as X-ray units show images
COARSEST_SIDE = 8  # pixels; an image is halved until it would be smaller
KEPT_CONTRAST = 0.1  # grey scale: contrast of a band that the power law leaves as it is
LEAST_CONTRAST = 0.01  # grey scale: below it the power law goes over into a factor, which bounds how noise grows
BASE_FADES = 0.5  # of the display's amount, by which the coarsest structures fade at most


def changes_bone(augmentation: Augment | None) -> bool:
    """Whether the bone in the CXR is changed, for which the soft-tissue image is needed too."""
    if augmentation is None:
        return False
    amounts = (augmentation.bone, *augmentation.bone_flat, augmentation.bone_edge)
    return any(amounts)


def changes_nothing(augmentation: Augment | None) -> bool:
    """Whether images stay as they are, to the bit."""
    if augmentation is None:
        return True
    amounts = (
        augmentation.flip,
        augmentation.rotate,
        augmentation.scale,
        augmentation.contrast,
        augmentation.gamma,
        augmentation.display,
        augmentation.sharpen,
        augmentation.noise,
    )
    return not any(amounts) and not changes_bone(augmentation)


def augment(pixels: np.ndarray, augmentation: Augment | None, key: str, is_soft: bool = False) -> np.ndarray:
    """Float (S, S) in [0, 1] -> float32 (S, S) in [0, 1], changed as `key` decides: images of one key are changed
    alike.

    is_soft: the image is the soft-tissue one of its pair, whose display may be its own (augment.display_apart).
    """
    if augmentation is None or changes_nothing(augmentation):
        return pixels

    # Every random number is drawn whether it is used or not, so that one setting does not shift the draws of another.
    random = seeding.augmentation_generator(key)
    rotation, zoom, brightness, bend = random.uniform(-1, 1, 4)

    # Geometry: the flip first, then rotation and scale in one interpolation.
    side = pixels.shape[-1]
    if augmentation.flip and random.random() < 0.5:
        pixels = pixels[:, ::-1]
    if augmentation.rotate or augmentation.scale:
        middle = (side - 1) / 2
        angle = rotation * augmentation.rotate  # degrees
        enlargement = 1 + zoom * augmentation.scale
        matrix = cv2.getRotationMatrix2D((middle, middle), angle, enlargement)
        upright = np.ascontiguousarray(pixels)  # OpenCV refuses the negative strides of a flipped view
        pixels = cv2.warpAffine(upright, matrix, (side, side), flags=cv2.INTER_LANCZOS4, borderValue=0)

    # Grey values: a factor, then a power whose exponent is as likely above 1 as below.
    # Clipped first, since Lanczos overshoots at edges and a negative grey value has no real power.
    factor = 1 + brightness * augmentation.contrast
    pixels = np.clip(pixels, 0, 1) * factor
    # (1 + gamma)^bend, with bend in [-1, 1]: from 1 / (1 + gamma) to 1 + gamma
    logarithm = bend * math.log1p(augmentation.gamma)
    exponent = np.float32(math.exp(logarithm))
    pixels = np.clip(pixels, 0, 1).astype(np.float32) ** exponent

    if augmentation.display:
        display = "display"
        apart = seeding.augmentation_generator(f"{key}/display apart").random() < augmentation.display_apart
        if is_soft and apart:
            display = "display of soft tissue"
        own_random = seeding.augmentation_generator(f"{key}/{display}")
        pixels = change_display(pixels, augmentation.display, own_random)
    if augmentation.sharpen or augmentation.noise:
        pixels = _change_texture(pixels, augmentation, random)
    return pixels


def change_display(pixels: np.ndarray, amount: float, random: np.random.Generator) -> np.ndarray:
    """Float32 (S, S) in [0, 1] with another multi-scale contrast; black stays black. amount: 0 for none.

    Each band b of a Laplacian pyramid (Burt & Adelson 1983) becomes b (KEPT_CONTRAST / |b|)^(1 - p), which raises faint
    contrasts over strong ones as the display of X-ray units does (Vuylsteke & Schoeters 1994); the coarsest image fades
    towards its mean. p is in [1 / (1 + amount), 1], and a tilt makes fine bands stronger than coarse ones, or fainter,
    by up to 1 + amount.
    """
    log_amount = math.log1p(amount)
    power = math.exp(-random.uniform() * log_amount)
    tilt = random.uniform(-1, 1) * log_amount
    most_fading = min(1.0, BASE_FADES * amount)
    fading = random.uniform() * most_fading

    # The pyramid: what each halving loses, finest first, and the image that is left.
    bands = []
    image = pixels.astype(np.float32)
    while min(image.shape) >= 2 * COARSEST_SIDE:
        coarser = cv2.pyrDown(image)
        enlarged = cv2.pyrUp(coarser, dstsize=image.shape[::-1])
        bands.append(image - enlarged)
        image = coarser

    # The coarsest image, then the bands put back onto it with their new contrasts.
    image = image + fading * (image.mean() - image)
    for number in reversed(range(len(bands))):
        band = bands[number]
        contrast = np.sqrt(band**2 + LEAST_CONTRAST**2)
        gain = (KEPT_CONTRAST / contrast) ** (1 - power)
        fineness = 0.5 - number / len(bands)  # 0.5 for the finest band, falling to about -0.5
        gain *= math.exp(tilt * fineness)
        enlarged = cv2.pyrUp(image, dstsize=band.shape[::-1])
        image = enlarged + gain * band
    return _keep_black(image, pixels)


def _keep_black(changed: np.ndarray, original: np.ndarray) -> np.ndarray:
    """The changed image as float32 (S, S) in [0, 1], and 0 wherever the original is: masked images and padding are
    exactly 0 outside, and no change must light them up."""
    kept = changed * (original > 0)
    return np.clip(kept, 0, 1).astype(np.float32)


def _change_texture(pixels: np.ndarray, augmentation: Augment, random: np.random.Generator) -> np.ndarray:
    """Float32 (S, S) sharper or softer, and noisier; black stays black."""
    # Sharper by up to the whole amount, softer by up to half of it, as config.yaml states.
    gain = random.uniform(-0.5, 1) * augmentation.sharpen
    sigma = _log_uniform(random, DETAIL_SIGMA)
    level = random.uniform() * augmentation.noise

    # Unsharp mask, then white noise. The same key gives both images of a pair the same noise, as quantum noise that
    # a dual-energy pair shares would be.
    detail = pixels - _blur(pixels, sigma)
    noise = random.standard_normal(pixels.shape, np.float32)
    changed = pixels + gain * detail + level * noise
    return _keep_black(changed, pixels)


def change_bone(cxr: np.ndarray, soft: np.ndarray, augmentation: Augment | None, key: str) -> np.ndarray:
    """The CXR, float32 (S, S) in [0, 1], with another bone in the place of b = CXR - soft.

    The result is soft + f (b - g wide(b) + h fine(b)), with f, g, h as `key` decides. wide(b) is what a Gaussian leaves
    of b, and taking it away imitates local contrast equalisation; fine(b) is what a narrow Gaussian takes from b: the
    cortices.
    """
    if augmentation is None or not changes_bone(augmentation):
        return cxr
    # A generator of its own, so that these draws do not shift those of `augment`.
    random = seeding.augmentation_generator(f"{key}/bone")
    bone = cxr - soft

    # f, from 1 - bone to 1; g, from bone_flat; h, from 0 to bone_edge
    factor = 1 - random.uniform() * augmentation.bone
    least, most = augmentation.bone_flat
    flattening = random.uniform(least, most)
    edge_gain = random.uniform() * augmentation.bone_edge

    wide_sigma = _log_uniform(random, augmentation.bone_wide)
    wide = _blur(bone, wide_sigma)
    cortex_sigma = _log_uniform(random, CORTEX_SIGMA)
    fine = bone - _blur(bone, cortex_sigma)

    # f (b - g wide + h fine), not where the CXR is 0, which is padding
    other_bone = factor * (bone - flattening * wide + edge_gain * fine) * (cxr > 0)
    changed = soft + other_bone
    return np.clip(changed, 0, 1).astype(np.float32)


def _log_uniform(random: np.random.Generator, bounds: tuple[float, ...]) -> float:
    """A number between two bounds, uniform in its logarithm."""
    low, high = bounds
    logarithm = random.uniform(math.log(low), math.log(high))
    return math.exp(logarithm)


def _blur(pixels: np.ndarray, sigma: float) -> np.ndarray:
    """Gaussian blur of float32 (S, S) by a sigma in units of the side."""
    reduced_side = max(1, len(pixels) // WIDE_SHRINK)
    return images.blur(pixels, sigma, reduced_side)
