"""Images that are there twice, also where grey values, size or compression differ: a sketch finds the candidates, the
images decide.

The sketch of an image has one bit for each place of a coarse grid: whether it gets brighter to the right there. Other
brightness, contrast and size leave it nearly as it is; two chests differ in a tenth of the bits or more.
"""

from itertools import combinations
from pathlib import Path

import numpy as np

from .. import images

GRID = 16  # rows and columns of a sketch
LEAST_STEP = 0.004  # a grey level of 8 bits: what rises by less, such as noise on black, does not rise
MAX_BITS = 7  # in which the sketches of two candidates differ
SHARED = 3  # blocks of bits in which two candidates agree at least, and by which they are found
BLOCKS = MAX_BITS + SHARED  # of them all but SHARED can differ by then
MIXING = 0x9E3779B1  # a large odd number
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


def near_pairs(sketches: list[np.ndarray]) -> dict[int, list[int]]:
    """{place: earlier places, in their order} of N sketches, bool (GRID * GRID,), that differ in MAX_BITS bits or
    fewer.

    The bits are dealt out into BLOCKS blocks. Two sketches that are near differ in MAX_BITS of them at most, so that
    they agree in SHARED others: for each choice of so many blocks, sorting by their bits brings those together. Few
    others agree in so many bits, so that the time grows with N log N (Manku et al., Detecting near-duplicates for web
    crawling, WWW 2007, section 3).
    """
    bits = np.array(sketches, bool).reshape(-1, GRID * GRID)
    words = np.packbits(bits, axis=1).view(np.uint64)  # (N, GRID * GRID / WORD)
    # each block is spread over the whole image, so that none lies in the black border alone
    blocks = [_number(bits[:, block::BLOCKS]) for block in range(BLOCKS)]
    near = np.zeros(0, np.int64)  # later place * N + earlier place
    for group in combinations(blocks, SHARED):
        # one number of all their bits; where it is by chance that of others, these are compared in vain
        keys = np.zeros(len(bits), np.int64)
        for block in group:
            keys = keys * MIXING + block
        near = np.union1d(near, _near_of_equal_keys(keys, words))

    earlier_of: dict[int, list[int]] = {}
    for later, earlier in zip(*divmod(near, max(1, len(sketches)))):
        earlier_of.setdefault(int(later), []).append(int(earlier))
    return earlier_of


def _number(bits: np.ndarray) -> np.ndarray:
    """int64 (N,) with the bits (N, B), bool."""
    return bits @ (1 << np.arange(bits.shape[1]))


def _near_of_equal_keys(keys: np.ndarray, words: np.ndarray) -> np.ndarray:
    """later place * N + earlier place, of all sketches, packed into `words` (N, W), that have the same key (N,) and are
    near each other."""
    count = len(keys)
    order = np.argsort(keys, kind="stable")  # among equal keys earlier places come first
    ordered = keys[order]
    found = []
    # equal keys lie in a row: each is compared with the next, with the one after that, ...
    starts = np.arange(count)
    step = 1
    while True:
        starts = starts[starts + step < count]
        starts = starts[ordered[starts] == ordered[starts + step]]
        if not len(starts):
            break
        earlier = order[starts]
        later = order[starts + step]
        differing = np.bitwise_count(words[earlier] ^ words[later]).sum(1)
        is_near = differing <= MAX_BITS
        found.append(later[is_near] * count + earlier[is_near])
        step += 1
    return np.concatenate(found) if found else np.zeros(0, np.int64)


def first_equal(path: Path, others: dict[str, Path]) -> str | None:
    """The first of other images, {name: file}, in natural order that is nearly equal to an image, or None."""
    if not others:  # of most images; they are not read again
        return None
    pixels = images.read(path).pixels
    for name in images.in_natural_order(others):
        if nearly_equal(images.read(others[name]).pixels, pixels):
            return name
    return None
