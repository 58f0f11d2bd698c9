"""Images that are there twice, also where grey values, size or compression differ: a sketch finds the candidates, the
images decide.

The sketch of an image has one bit for each place of a coarse grid: whether it gets brighter to the right there. Other
brightness, contrast and size leave it nearly as it is; two chests differ in a tenth of the bits or more.
"""

from array import array
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from .. import images

GRID = 16  # rows and columns of a sketch
LEAST_STEP = 0.004  # a grey level of 8 bits: what rises by less, such as noise on black, does not rise
MAX_BITS = 7  # in which the sketches of two candidates differ
BANDS = MAX_BITS + 1  # so many bands cannot all differ by then: two candidates share one of them
ROOM = 1024  # sketches for which a Finder has room at first
WORD = 64  # bits of a sketch that are compared at once
SIDE = 128  # at which two candidates are compared, pixels
LEAST_CORRELATION = (
    0.999  # measured: 0.9991 or more after noise of 0.01, JPEG, a gamma of 1.1; other chests 0.97 or less
)


def sketch(pixels: np.ndarray) -> np.ndarray:
    """bool (GRID * GRID,) of an image (H, W) in [0, 1]."""
    # One column more than bits in a row, as differences take one.
    small = images.resize(pixels, (GRID, GRID + 1))
    rises = np.diff(small, axis=1) > LEAST_STEP
    return rises.ravel()


def nearly_equal(one: np.ndarray, other: np.ndarray) -> bool:
    """Whether two images (H, W) in [0, 1] of any size are the same but for brightness, contrast, size and a little
    noise."""
    first = images.to_network(one, SIDE).double().numpy().ravel()
    second = images.to_network(other, SIDE).double().numpy().ravel()
    # A constant image has no correlation.
    if np.ptp(first) == 0 or np.ptp(second) == 0:
        return False
    return bool(np.corrcoef(first, second)[0, 1] >= LEAST_CORRELATION)


class Finder:
    """Finds, of images that come one after another, an earlier one that is nearly equal; `add` and `find` by name."""

    def __init__(self):
        self.paths: dict[str, Path] = {}
        self.names: list[str] = []
        self.sketches = np.zeros((ROOM, GRID * GRID // WORD), np.uint64)  # packed; of self.names, then room for more
        self.places_of: dict[tuple[int, bytes], array[int]] = {}  # {(band, its bits): places in self.names}

    def add(self, name: str, path: Path, bits: np.ndarray) -> None:
        """Remember an image and its sketch."""
        place = len(self.names)
        if place == len(self.sketches):
            self.sketches = np.concatenate([self.sketches, np.zeros_like(self.sketches)])
        self.paths[name] = path
        self.names.append(name)
        self.sketches[place] = _packed(bits)
        for band in _bands(bits):
            if band not in self.places_of:
                self.places_of[band] = array("I")
            self.places_of[band].append(place)

    def find(self, path: Path, bits: np.ndarray, ignored: Iterable[str] = ()) -> str | None:
        """The first remembered image that is nearly equal to this one, or None."""
        sharing = []
        for band in _bands(bits):
            if band in self.places_of:
                sharing.append(np.frombuffer(self.places_of[band], np.uintc))
        if not sharing:
            return None

        # Cheap before dear: most candidates share one band by chance, and their sketches already tell them apart. All
        # at once and as numbers from the start, since of 100 000 chests a thousand share a band with each. What shares
        # several bands comes several times.
        places = np.concatenate(sharing)
        differing = np.bitwise_count(self.sketches[places] ^ _packed(bits)).sum(1)
        near = {self.names[place] for place in places[differing <= MAX_BITS]}
        for name in sorted(near.difference(ignored), key=images.natural):
            if nearly_equal(images.read(self.paths[name]).pixels, images.read(path).pixels):
                return name
        return None


def _packed(bits: np.ndarray) -> np.ndarray:
    """bool (GRID * GRID,) -> uint64 (GRID * GRID / WORD,)."""
    return np.packbits(bits).view(np.uint64)


def _bands(bits: np.ndarray) -> list[tuple[int, bytes]]:
    """The bits dealt out into bands, each spread over the whole image, so that none lies in the black border alone."""
    return [(band, bits[band::BANDS].tobytes()) for band in range(BANDS)]
