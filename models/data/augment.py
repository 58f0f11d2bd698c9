"""Random changes of training images: of a pair alike (flip, rotation, scale, grey values, sharpness, noise), and of the bone in the CXR.

The papers have none. Black stays black under all of them, so what lies outside the lungs of a masked image, and around an image
that is not square, looks as it would without.
"""
import hashlib
import math
from dataclasses import dataclass, fields

import cv2
import numpy as np


@dataclass(frozen=True)
class Augmentation:
    """How far images are changed; every amount is drawn uniformly from its range, anew for each (image, version)."""
    flip: bool = False               # left and right exchanged, in half of the cases
    rotate: float = 0.0              # degrees, -rotate to rotate
    scale: float = 0.0               # factor 1 - scale to 1 + scale about the centre
    contrast: float = 0.0            # factor 1 - contrast to 1 + contrast of the grey values (clipped at white)
    gamma: float = 0.0               # exponent from 1 / (1 + gamma) to 1 + gamma of the grey values
    sharpen: float = 0.0             # gain of detail, -sharpen / 2 (softer) to sharpen
    noise: float = 0.0               # standard deviation of white noise, 0 to noise, one noise for both images
    bone: float = 0.0                # factor 1 - bone to 1 of the bone in the CXR
    bone_flat: tuple = (0.0, 0.0)    # share, from and to, that the bone loses of what is wide in it, as local contrast equalisation does
    bone_wide: tuple = (0.03, 0.12)  # width, from and to, above which bone is wide, in units of the side
    bone_edge: float = 0.0           # gain, 0 to bone_edge, of what is fine in the bone: cortices

    @classmethod
    def chosen(cls, settings) -> "Augmentation":
        """What the settings' section augment says."""
        return cls(**{field.name: getattr(settings, field.name) for field in fields(cls)})

    @property
    def changes_bone(self) -> bool:
        return bool(self.bone or any(self.bone_flat) or self.bone_edge)


NONE = Augmentation()
FINE, BONE_FINE = (0.0012, 0.008), (0.002, 0.006)  # blurs that part fine from coarse, in units of the side


def augment(pixels: np.ndarray, how: Augmentation, key: str) -> np.ndarray:
    """Float (S, S) in [0, 1] -> float32 (S, S) in [0, 1], changed as `key` decides: images of one key are changed alike."""
    if how == NONE:
        return pixels
    random = _random(key)
    turn, size, light, bend = random.uniform(-1, 1, 4)
    side = pixels.shape[-1]
    if how.flip and random.random() < 0.5:
        pixels = pixels[:, ::-1]
    if how.rotate or how.scale:
        centre = ((side - 1) / 2,) * 2
        matrix = cv2.getRotationMatrix2D(centre, turn * how.rotate, 1 + size * how.scale)
        pixels = cv2.warpAffine(np.ascontiguousarray(pixels), matrix, (side, side), flags=cv2.INTER_LANCZOS4, borderValue=0)
    pixels = np.clip(pixels, 0, 1) * (1 + light * how.contrast)
    pixels = np.clip(pixels, 0, 1).astype(np.float32) ** np.float32(math.exp(bend * math.log1p(how.gamma)))
    if how.sharpen or how.noise:
        pixels = _textured(pixels, how, random)
    return pixels


def _textured(pixels: np.ndarray, how: Augmentation, random: np.random.Generator) -> np.ndarray:
    """Sharper or softer, and noisier; black stays black."""
    gain, sigma, level = random.uniform(-0.5, 1) * how.sharpen, _width(random, FINE), random.uniform() * how.noise
    changed = pixels + gain * (pixels - _blur(pixels, sigma)) + level * random.standard_normal(pixels.shape, np.float32)
    return np.clip(changed * (pixels > 0), 0, 1).astype(np.float32)


def change_bone(cxr: np.ndarray, soft: np.ndarray, how: Augmentation, key: str) -> np.ndarray:
    """The CXR, float32 (S, S) in [0, 1], with another bone b = CXR - soft: soft + f (b - g wide(b) + h fine(b)), f, g, h as `key` decides."""
    if not how.changes_bone:
        return cxr
    random, bone = _random(f"{key}/bone"), cxr - soft
    factor, flat, edge = 1 - random.uniform() * how.bone, random.uniform(*how.bone_flat), random.uniform() * how.bone_edge
    wide, fine = _blur(bone, _width(random, how.bone_wide)), bone - _blur(bone, _width(random, BONE_FINE))
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
