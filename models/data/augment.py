"""Random changes of training images: of a pair alike (flip, rotation, scale, grey values, sharpness, noise), and of the bone in the CXR.

The papers have none. Black stays black under all of them, so what lies outside the lungs of a masked image, and around an image
that is not square, looks as it would without.
"""
import hashlib
import math

import cv2
import numpy as np

from ..config import Augment

FINE, BONE_FINE = (0.0012, 0.008), (0.002, 0.006)  # blurs that part fine from coarse, in units of the side


def changes_bone(augmentation: Augment | None) -> bool:
    """Whether the bone in the CXR is changed, for which the soft-tissue image is needed too."""
    if augmentation is None:
        return False
    return bool(augmentation.bone or any(augmentation.bone_flat) or augmentation.bone_edge)


def changes_nothing(augmentation: Augment | None) -> bool:
    """Whether images stay as they are, to the bit."""
    if augmentation is None:
        return True
    amounts = (augmentation.flip, augmentation.rotate, augmentation.scale, augmentation.contrast, augmentation.gamma,
               augmentation.sharpen, augmentation.noise)
    return not any(amounts) and not changes_bone(augmentation)


def augment(pixels: np.ndarray, augmentation: Augment | None, key: str) -> np.ndarray:
    """Float (S, S) in [0, 1] -> float32 (S, S) in [0, 1], changed as `key` decides: images of one key are changed alike."""
    if changes_nothing(augmentation):
        return pixels
    random = _random(key)
    turn, size, light, bend = random.uniform(-1, 1, 4)
    side = pixels.shape[-1]
    if augmentation.flip and random.random() < 0.5:
        pixels = pixels[:, ::-1]
    if augmentation.rotate or augmentation.scale:
        centre = ((side - 1) / 2,) * 2
        matrix = cv2.getRotationMatrix2D(centre, turn * augmentation.rotate, 1 + size * augmentation.scale)
        pixels = cv2.warpAffine(np.ascontiguousarray(pixels), matrix, (side, side), flags=cv2.INTER_LANCZOS4, borderValue=0)
    pixels = np.clip(pixels, 0, 1) * (1 + light * augmentation.contrast)
    pixels = np.clip(pixels, 0, 1).astype(np.float32) ** np.float32(math.exp(bend * math.log1p(augmentation.gamma)))
    if augmentation.sharpen or augmentation.noise:
        pixels = _textured(pixels, augmentation, random)
    return pixels


def _textured(pixels: np.ndarray, augmentation: Augment | None, random: np.random.Generator) -> np.ndarray:
    """Sharper or softer, and noisier; black stays black."""
    gain, sigma, level = random.uniform(-0.5, 1) * augmentation.sharpen, _width(random, FINE), random.uniform() * augmentation.noise
    changed = pixels + gain * (pixels - _blur(pixels, sigma)) + level * random.standard_normal(pixels.shape, np.float32)
    return np.clip(changed * (pixels > 0), 0, 1).astype(np.float32)


def change_bone(cxr: np.ndarray, soft: np.ndarray, augmentation: Augment | None, key: str) -> np.ndarray:
    """The CXR, float32 (S, S) in [0, 1], with another bone b = CXR - soft: soft + f (b - g wide(b) + h fine(b)), f, g, h as `key` decides."""
    if not changes_bone(augmentation):
        return cxr
    random, bone = _random(f"{key}/bone"), cxr - soft
    factor, flat, edge = 1 - random.uniform() * augmentation.bone, random.uniform(*augmentation.bone_flat), random.uniform() * augmentation.bone_edge
    wide, fine = _blur(bone, _width(random, augmentation.bone_wide)), bone - _blur(bone, _width(random, BONE_FINE))
    return np.clip(soft + factor * (bone - flat * wide + edge * fine) * (cxr > 0), 0, 1).astype(np.float32)


def _random(key: str) -> np.random.Generator:
    return np.random.default_rng(int.from_bytes(hashlib.sha256(key.encode()).digest()[:8]))


def _width(random: np.random.Generator, bounds: tuple) -> float:
    return math.exp(random.uniform(*map(math.log, bounds)))


def _blur(pixels: np.ndarray, sigma: float) -> np.ndarray:
    """Gaussian blur of float32 (S, S) by a sigma in units of the side; a wide one at an eighth of the size."""
    size = pixels.shape[::-1]
    if sigma < 0.02:
        return cv2.GaussianBlur(pixels, (0, 0), sigma * size[0])
    small = cv2.resize(pixels, (max(1, size[0] // 8), max(1, size[1] // 8)), interpolation=cv2.INTER_AREA)
    return cv2.resize(cv2.GaussianBlur(small, (0, 0), sigma * small.shape[1]), size, interpolation=cv2.INTER_CUBIC)
