"""Whether an image is an X-ray at all, and whether its bones are bright."""

import numpy as np

from .images import Picture, resize
from .runtime.files import UserError

LEAST_SIDE = 32  # smaller images are doubted, pixels
EXTREME = 0.02  # grey values so close to black or white count as such
MOST_EXTREME = 0.97  # share of such pixels above which an image is doubted
LEAST_CONTRAST = 0.05  # between the first and the last hundredth of the grey values
THUMB = 64  # side at which polarity is judged, pixels


def constant(pixels: np.ndarray) -> bool:
    """Whether all pixels are the same: no radiograph."""
    return bool(np.min(pixels) == np.max(pixels))


def check(picture: Picture) -> Picture:
    """The picture itself; UserError where it is constant."""
    if constant(picture.pixels):
        raise UserError(f"{picture.path} is no X-ray: all its pixels are the same")
    return picture


def doubt(pixels: np.ndarray) -> str:
    """What speaks against an image (H, W) in [0, 1] being an X-ray, as a note; "" if nothing does."""
    height, width = pixels.shape
    shorter_side = min(height, width)
    if shorter_side < LEAST_SIDE:
        return f"hardly an X-ray: it is only {width} x {height} pixels"
    # a window that is too narrow also leaves much black or white, but an X-ray has grey lungs or a grey mediastinum
    step = max(1, shorter_side // THUMB)
    sample = pixels[::step, ::step]  # enough to judge by; all of 16 million pixels would take a second
    black = sample < EXTREME
    white = sample > 1 - EXTREME
    extreme = black | white
    if extreme.mean() > MOST_EXTREME:
        return "hardly an X-ray: nearly all of it is black or white, as in a mask"
    low, high = np.quantile(sample, (0.01, 0.99))
    span = high - low
    if span < LEAST_CONTRAST:
        return f"hardly an X-ray: its grey values span {span:.1%} of the range (eval.range= forces another)"
    return ""


def inverted(pixels: np.ndarray) -> bool:
    """Whether a frontal chest X-ray (H, W) has bright air and dark bones.

    Spine and mediastinum must be brighter than the lungs beside them, the abdomen brighter than the lungs above it, and
    the air beside the neck and the trunk darker than the middle. Each is a difference, so an image and its inverse get
    opposite answers.
    """
    thumb = resize(pixels, (THUMB, THUMB))

    def mean(top: int, bottom: int, left: int, right: int) -> float:
        """Mean grey value of a rectangle that is given in hundredths of the sides."""
        rows = slice(top * THUMB // 100, bottom * THUMB // 100)
        columns = slice(left * THUMB // 100, right * THUMB // 100)
        return thumb[rows, columns].mean()

    # Where these lie in a frontal X-ray that fills its frame, in hundredths; the polarity needs no better.
    left_field = mean(25, 60, 20, 38)
    right_field = mean(25, 60, 62, 80)
    lungs = (left_field + right_field) / 2
    spine = mean(30, 75, 42, 58)
    abdomen = mean(80, 95, 30, 70)
    beside_neck = [mean(0, 10, 2, 12), mean(0, 10, 88, 98)]
    beside_trunk = [mean(80, 95, 0, 6), mean(80, 95, 94, 100)]
    # The median, since a corner may hold a marker, an arm or a collimator's edge.
    air = np.median(beside_neck + beside_trunk)

    # All three are above 0 where bones are bright. The spine counts most and the air least, since what lies beside the
    # trunk is the least certain.
    spine_contrast = spine - lungs
    abdomen_contrast = abdomen - lungs
    air_contrast = thumb.mean() - air
    return bool(2 * spine_contrast + abdomen_contrast + air_contrast / 2 < 0)
