"""Random changes of a training image, the same for all images of a pair: flip, rotation, scale, contrast, gamma.

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
    flip: bool       # left and right exchanged, in half of the cases
    rotate: float    # degrees, -rotate to rotate
    scale: float     # factor 1 - scale to 1 + scale about the centre
    contrast: float  # factor 1 - contrast to 1 + contrast of the grey values (clipped at white)
    gamma: float     # exponent from 1 / (1 + gamma) to 1 + gamma of the grey values

    @classmethod
    def chosen(cls, settings) -> "Augmentation":
        """What the settings' section augment says."""
        return cls(**{field.name: getattr(settings, field.name) for field in fields(cls)})


NONE = Augmentation(flip=False, rotate=0, scale=0, contrast=0, gamma=0)


def augment(pixels: np.ndarray, how: Augmentation, key: str) -> np.ndarray:
    """Float (S, S) in [0, 1] -> float32 (S, S) in [0, 1], changed as `key` decides: images of one key are changed alike."""
    if how == NONE:
        return pixels
    random = np.random.default_rng(int.from_bytes(hashlib.sha256(key.encode()).digest()[:8]))
    turn, size, light, bend = random.uniform(-1, 1, 4)
    side = pixels.shape[-1]
    if how.flip and random.random() < 0.5:
        pixels = pixels[:, ::-1]
    if how.rotate or how.scale:
        centre = ((side - 1) / 2,) * 2
        matrix = cv2.getRotationMatrix2D(centre, turn * how.rotate, 1 + size * how.scale)
        pixels = cv2.warpAffine(np.ascontiguousarray(pixels), matrix, (side, side), flags=cv2.INTER_LANCZOS4, borderValue=0)
    pixels = np.clip(pixels, 0, 1) * (1 + light * how.contrast)
    return np.clip(pixels, 0, 1).astype(np.float32) ** np.float32(math.exp(bend * math.log1p(how.gamma)))
