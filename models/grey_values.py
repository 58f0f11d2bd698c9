"""Grey values of any file -> [0, 1]: which of them are black and white, and how many bits count.

What the decoders (raster.py, dicom.py) share. Levels are arrays (H, W) of the file's own numbers.
"""

from dataclasses import dataclass

import numpy as np

MAX_PIXELS = 2**26  # four times the largest detectors; a header that claims more is damaged or hostile
GREY = (0.299, 0.587, 0.114)  # luma of red, green, blue (Rec. 601)
DETECTOR_BITS = (8, 10, 12, 14)  # depths that exports put into 16 bits without saying so
Limits = str | tuple[float, float]  # "auto", "container", or the grey values of black and white


@dataclass(frozen=True)
class Scale:
    """Which grey values of a file are black and white, and in how many bits it holds them (8 or 16)."""

    black: float  # the file's grey value that is shown as 0
    white: float  # the one that is shown as 1
    container: int  # bits that a PNG needs for it


@dataclass(frozen=True, eq=False)
class Decoded:
    """What a reader finds. pixels: (H, W) in [0, 1], upright; bits: the significant ones.

    scale: where it is not black = 0 and white = all bits set. note: what the user should know. orientation: EXIF's, as
    the file lies; 1: upright. stretched: shown from its own least to its own largest value, as nothing else is said.
    """

    pixels: np.ndarray
    bits: int
    scale: Scale | None = None
    note: str = ""
    orientation: int = 1
    stretched: bool = False


def refuse_size(height: int, width: int) -> None:
    """Raise ValueError for a size, known from a header, that no X-ray has."""
    if height < 1 or width < 1:
        raise ValueError(f"it holds no pixels ({width} x {height})")
    if height * width > MAX_PIXELS:
        raise ValueError(f"it claims {width} x {height} pixels, more than {MAX_PIXELS}")
    # The networks see squares: a thin image is padded to one.
    side = max(height, width)
    if side**2 > MAX_PIXELS:
        raise ValueError(
            f"it is {width} x {height}; padded to a square it has {side} x {side} pixels, more than {MAX_PIXELS}"
        )


def to_grey(levels: np.ndarray) -> np.ndarray:
    """(H, W) or (H, W, 3 or 4), red first -> (H, W). Alpha is dropped."""
    if levels.ndim == 2:
        return levels
    # In float64, so that 16-bit colour keeps fractions of a level.
    return levels[..., :3].astype(np.float64) @ np.array(GREY)


# --- Range ------------------------------------------------------------------------------------------------------------


def scaled(
    levels: np.ndarray,
    container: int,
    limits: Limits,
    *,
    bits: int | None = None,
    white: int | None = None,
    white_is_zero: bool = False,
) -> Decoded:
    """Grey levels (H, W) -> [0, 1].

    container: bits in which the file holds them. bits, white: significant bits and the level of white, where the header
    says so; a header is believed, and a level above its white is an error. Without, levels that stay below a quarter of
    16 bits are read as the next of DETECTOR_BITS, with a note: to the networks such an image is black otherwise.
    limits: as in `images.read`.
    """
    # What the user says needs no guess: numbers first, then the whole container.
    if isinstance(limits, tuple):
        return scaled_between(levels, container, limits, white_is_zero)
    full = int(2**container - 1)
    if limits == "container":
        bits = container
        white = full

    # The header is silent. A 12-bit image in 16 bits would come out almost black, so the content decides, and the user
    # is told.
    note = ""
    if white is None:
        bits = _bits_used(levels, container)
        white = int(2**bits - 1)
        if bits < container:
            note = (
                f"no grey value is above {white} of {full}, so it is read as {bits} bits "
                f"(eval.range=container reads all 16, eval.range={white} forces this)"
            )
    # A header that its own pixels contradict is wrong, and clipping would hide it.
    if levels.max() > white:
        raise ValueError(f"its largest value {levels.max():.0f} is above what its header declares, {white}")
    # In int64: unsigned levels would wrap.
    if white_is_zero:
        levels = int(white) - levels.astype(np.int64)
    unit = levels / np.float64(white)
    return Decoded(unit, bits or container, _unless_full(0, white, container), note)


def _bits_used(levels: np.ndarray, container: int) -> int:
    """The least of DETECTOR_BITS into which all levels fit, where the file holds 16; else what it holds."""
    largest = levels.max()
    fitting = [bits for bits in DETECTOR_BITS if largest <= 2**bits - 1]
    # In 8-bit files a small largest value is a dark image, not a shallower detector.
    return fitting[0] if container == 16 and fitting else container


def scaled_between(
    levels: np.ndarray, container: int, limits: tuple[float, float], white_is_zero: bool = False
) -> Decoded:
    """Levels of any type between two that the user names; those outside are cut."""
    black, white = limits
    # A limit that no value can reach is a slip of the keyboard.
    if levels.dtype.kind in "bu" and white > 2**container - 1:
        raise ValueError(f"its {container} bits hold at most {2**container - 1}, less than the given white, {white:g}")

    # What lies outside is cut, as a window does it, but never without a word.
    unit = (levels - np.float64(black)) / (np.float64(white) - black)
    outside = np.mean((unit < 0) | (unit > 1))
    note = ""
    if outside:
        note = f"{outside:.1%} of the grey values lie outside the given range (eval.range, data.range) and are cut"
    unit = np.clip(unit, 0, 1)
    if white_is_zero:
        unit = 1 - unit
    # Only what fits into a PNG can be written back as it was.
    limits_are_whole = float(black).is_integer() and float(white).is_integer()
    fits = levels.dtype.kind in "bu" and black >= 0 and limits_are_whole
    if not fits:
        return Decoded(unit, 16, note=note)
    bits = min(int(white).bit_length(), container)
    return Decoded(unit, bits, _unless_full(black, white, container), note)


def _unless_full(black: float, white: float, container: int) -> Scale | None:
    """The scale in which a PNG can hold the same grey values, 8 or 16 bits; None where its whole range is the usual
    one."""
    png_container = 8 if container <= 8 else 16
    full = 2**png_container - 1
    # None is the usual case: results are then written with the container's whole range.
    if white > full or (black == 0 and white == full):
        return None
    return Scale(black, white, png_container)


def scaled_floats(values: np.ndarray, limits: Limits) -> Decoded:
    """Floats that lie in [0, 1] or between given limits; those that are not finite are refused by `images.read`."""
    values = np.asarray(values)
    # Left to `images.read`, whose message is clearer than that of the range below.
    if not np.isfinite(values).all():
        return Decoded(values, 16)
    if isinstance(limits, tuple):
        return scaled_between(values, 16, limits)
    # Floats in other units (-1 to 1, 0 to 255, Hounsfield) cannot be told apart by their content.
    if not 0 <= values.min() <= values.max() <= 1:
        raise ValueError(
            f"its floats run from {values.min():g} to {values.max():g}; expected 0 to 1 "
            "(or eval.range=BLACK..WHITE; of training pairs data.source=, data.range=)"
        )
    return Decoded(values, 16)
