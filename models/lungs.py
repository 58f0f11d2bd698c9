"""The two lung fields of a frontal chest X-ray, found by a small U-Net trained on simulated patients.

1. Features: the rank of each grey value, and how it differs from the ranks nearby, so gamma and window hardly matter.
2. Network: a small U-Net, run at a small size on the image and on its mirror image; the two answers are averaged.
3. A second look at the box around the lungs, so that wide borders do not cost resolution; the sum of both decides.
4. Shape: the two largest connected regions, without holes.
The weights in weights/lungs.safetensors come from tools/train_lungs.py.
"""

from functools import cache
from pathlib import Path

import cv2
import numpy as np
import safetensors
import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F

from .runtime.files import UserError

WEIGHTS = Path(__file__).resolve().parents[1] / "weights" / "lungs.safetensors"

# Sizes, pixels.
MIN_SIZE = 64  # smaller images do not show a chest wall
WORK_SIZE = 512  # longer side of the image in which the outlines are found
NET_SIZE = 128  # longer side of the image that the network sees: a rib is 2 to 3 pixels wide
STRIDE = 16  # the network's sides must be multiples: it works at half size, and there are three more halvings
NORM_GROUPS = 8  # of every group normalisation

# Features.
NOISE_SIGMA = 0.5  # pixels of the network's image, blur before ranking
LOCAL_SIGMA = 8.0  # pixels, neighbourhood of the local contrast: about two rib spaces
FLAT = 0.02  # added to the spread of ranks: a neighbourhood with less is noise, not anatomy
CLIP = 3.0  # local contrast is cut off at so many standard deviations

# Shape.
EDGE_SIGMA = 1.0  # pixels of the network's image, smoothing of its answer
MARGIN = 0.1  # margin of the second look around the lungs, as a fraction of their longer side
LEAST_SHARE = 0.1  # a second region smaller than this fraction of the largest is a speck, not a lung

# What a plausible mask looks like, for `lung_faults`.
PLAUSIBLE_SHARE = (0.10, 0.55)  # fraction of the image that the lungs cover
SPECK_SHARE = 0.1  # regions below this fraction of the mask are not counted
LEAST_RATIO = 0.4  # area of the smaller lung over the larger one's


class TooSmall(UserError, ValueError):
    """An X-ray in which no lungs are looked for. Wherever it comes from, it is a matter of the settings."""


def lung_mask(cxr: np.ndarray) -> np.ndarray:
    """Both aerated lung fields of a frontal chest X-ray, without what heart and diaphragm hide.

    cxr: float (H, W) in [0, 1], bones bright, H and W >= 64. Returns bool (H, W).
    Raises ValueError for anything else (TooSmall, which is also a UserError, for its size) and UserError if the
    network's weights are missing.
    """
    _check(cxr)

    # The outlines are found at a moderate size, and smaller images are not enlarged.
    scale = min(1, WORK_SIZE / max(cxr.shape))
    work = _resize(cxr.astype(np.float32), scale)  # (h, w)

    # The first look at the whole image, the second at the box around the lungs found in it.
    first = _look(work)  # (h, w)
    box = _box_around(_two_lungs(first > 0))
    logits = first.copy()
    logits[box] += _look(work[box])
    if not (logits > 0).any():  # the second look may see no chest at all, for example in a narrow strip
        logits = first

    # Specks and holes change their sign, so that the outline stays smooth when the logits are enlarged.
    found = logits > 0
    wrong = _two_lungs(found) != found
    logits[wrong] *= -1
    height, width = cxr.shape
    enlarged = cv2.resize(logits, (width, height), interpolation=cv2.INTER_LINEAR)  # (H, W)
    return enlarged > 0


def lung_faults(mask: np.ndarray) -> list[str]:
    """What looks wrong with the shape of a lung mask, bool (H, W): short phrases with the numbers, or none."""
    faults = []

    # How much of the image they cover.
    share = mask.mean()
    low, high = PLAUSIBLE_SHARE
    if not low <= share <= high:
        faults.append(f"lungs cover {share:.1%} of the image, expected {100 * low:.0f}-{100 * high:.0f}%")

    # How many they are, and how large: the areas of the regions, the largest first.
    labels, _ = _regions(mask)
    areas = np.bincount(labels.ravel())[1:]  # without the background
    areas = np.sort(areas)[::-1]
    large = areas[areas > SPECK_SHARE * areas.sum()]
    if len(large) != 2:
        plural = "" if len(large) == 1 else "s"
        faults.append(f"{len(large)} large part{plural}, expected 2")
    elif large[1] < LEAST_RATIO * large[0]:
        ratio = large[1] / large[0]
        faults.append(f"unequal lungs: the smaller has {ratio:.0%} of the larger, expected at least {LEAST_RATIO:.0%}")

    # Whether they are cut off: the outermost pixels, each once.
    border_rows = [mask[0], mask[-1]]
    border_columns = [mask[1:-1, 0], mask[1:-1, -1]]
    touching = int(np.concatenate(border_rows + border_columns).sum())
    if touching:
        faults.append(f"lungs touch the image border in {touching} pixels")
    return faults


def _check(cxr: np.ndarray) -> None:
    if not isinstance(cxr, np.ndarray) or not np.issubdtype(cxr.dtype, np.floating):
        found = getattr(cxr, "dtype", type(cxr).__name__)
        raise ValueError(f"lung_mask got {found}, expected a float array in [0, 1]: divide by the largest grey value")
    if cxr.ndim != 2:
        raise ValueError(f"lung_mask got shape {cxr.shape}, expected (H, W) with both sides >= {MIN_SIZE}")
    if min(cxr.shape) < MIN_SIZE:
        raise TooSmall(
            f"no lungs can be found in an X-ray of {cxr.shape[0]} x {cxr.shape[1]}, expected both sides >= "
            f"{MIN_SIZE}; raise data.image_size, or give masks (Mask/ beside the X-rays, or eval.masks=)"
        )
    in_range = cxr.min() >= 0 and cxr.max() <= 1  # false for NaN too
    if not in_range:
        raise ValueError(f"lung_mask got values from {cxr.min()} to {cxr.max()}, expected [0, 1]")


def _look(cxr: np.ndarray) -> np.ndarray:
    """The network's answer for float (h, w) and its mirror image, added: float32 (h, w), above 0 in the lungs."""
    # The image and its mirror image at the network's size, as one batch.
    small = _resize(cxr, NET_SIZE / max(cxr.shape))
    mirrored = np.ascontiguousarray(small[:, ::-1])
    batch = np.stack([features(small), features(mirrored)])  # (2, 2, NET_SIZE, NET_SIZE)
    with torch.inference_mode(), torch.autocast("cpu", enabled=False):  # the caller's networks may run in bf16
        output = _network()(torch.from_numpy(batch))  # (2, 1, NET_SIZE, NET_SIZE)

    # Back to the image: the features fill the square's upper left corner, and the second answer is mirrored.
    small_height, small_width = small.shape
    answers = output[:, 0, :small_height, :small_width].numpy()  # (2, small_height, small_width)
    answer = answers[0]
    answer_of_mirrored = answers[1][:, ::-1]

    # The sum is as good as the mean, because only its sign counts.
    logits = cv2.GaussianBlur(answer + answer_of_mirrored, (0, 0), EDGE_SIGMA)
    height, width = cxr.shape
    return cv2.resize(logits, (width, height), interpolation=cv2.INTER_CUBIC)  # (h, w)


def _box_around(mask: np.ndarray) -> tuple[slice, slice]:
    """The two slices of a box around a mask (H, W), with a margin; of the whole image if the mask is empty."""
    if not mask.any():
        return np.s_[:, :]
    rows = np.flatnonzero(mask.any(1))
    columns = np.flatnonzero(mask.any(0))
    longer_side = max(np.ptp(rows), np.ptp(columns))
    margin = round(MARGIN * longer_side)

    # A slice may end beyond the image, but a negative start would count from its end.
    top = max(0, rows[0] - margin)
    left = max(0, columns[0] - margin)
    bottom = rows[-1] + margin + 1
    right = columns[-1] + margin + 1
    return np.s_[top:bottom, left:right]


def _resize(cxr: np.ndarray, scale: float) -> np.ndarray:
    """(H, W) with both sides times `scale`, at least 1 pixel each."""
    height, width = cxr.shape
    new_height = max(1, round(height * scale))
    new_width = max(1, round(width * scale))
    interpolation = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    return cv2.resize(cxr, (new_width, new_height), interpolation=interpolation)


def features(cxr: np.ndarray) -> np.ndarray:
    """The network's input for float (h, w) with sides up to NET_SIZE: float32 (2, NET_SIZE, NET_SIZE).

    The first channel is the fraction of darker pixels, scaled to [-1, 1], which no monotone change of grey values
    alters; the second is its local z-score, in [-CLIP, CLIP]. Both are zero beyond the image.
    """
    # Ranks of the grey values, which noise would shuffle where the image is flat.
    quiet = cv2.GaussianBlur(cxr, (0, 0), NOISE_SIGMA)
    ranks = _ranks(quiet)  # (h, w)

    # How far each rank is from those around it, in their standard deviations.
    mean = cv2.GaussianBlur(ranks, (0, 0), LOCAL_SIGMA)
    variance = cv2.GaussianBlur((ranks - mean) ** 2, (0, 0), LOCAL_SIGMA)
    spread = np.sqrt(variance) + FLAT
    z_score = (ranks - mean) / spread

    # The image in the upper left corner of the network's square.
    height, width = cxr.shape
    result = np.zeros((2, NET_SIZE, NET_SIZE), np.float32)
    result[0, :height, :width] = 2 * ranks - 1
    result[1, :height, :width] = np.clip(z_score, -CLIP, CLIP)
    return result


def _ranks(cxr: np.ndarray) -> np.ndarray:
    """The fraction of pixels that are darker, float32 (h, w) in [0, 1]."""
    ascending = np.sort(cxr, axis=None)  # (h w,)
    darker = np.searchsorted(ascending, cxr.ravel())  # (h w,), the number of darker pixels
    share = darker / len(ascending)
    return share.reshape(cxr.shape).astype(np.float32)


def _two_lungs(mask: np.ndarray) -> np.ndarray:
    """The two largest connected regions of bool (H, W), without holes; a second region that is a speck is left out."""
    # The areas of all regions; region i has the label i + 1, because 0 is the background.
    labels, count = _regions(mask)
    areas = np.bincount(labels.ravel(), minlength=count)[1:]

    # The two largest of them.
    by_area = np.argsort(areas)[::-1]
    lung_labels = [region + 1 for region in by_area[:2] if areas[region] > LEAST_SHARE * areas.max()]
    found = np.isin(labels, np.array(lung_labels, int))

    # Holes filled: what is not connected with a rim around the image is a lung or a hole in one.
    background = np.pad(~found, 1, constant_values=True)  # (H + 2, W + 2)
    background_labels, _ = _regions(background)
    outside = background_labels[0, 0]
    filled = background_labels != outside
    return filled[1:-1, 1:-1]  # (H, W)


def _regions(mask: np.ndarray) -> tuple[np.ndarray, int]:
    """(the number of each pixel's region of bool (H, W), 0 outside; how many numbers there are). A pixel has four
    neighbours."""
    # not by scipy.ndimage, whose import takes a fifth of a second
    count, labels = cv2.connectedComponents(mask.astype(np.uint8), connectivity=4)
    return labels, count


def parameter_count() -> int:
    """How many parameters the network has that finds the lungs."""
    return sum(parameter.numel() for parameter in _network().parameters())


@cache
def _network() -> "LungNet":
    """The trained network, read once per process."""
    try:
        stored = load_file(WEIGHTS)  # in half precision
        weights = {name: value.float() for name, value in stored.items()}
        network = LungNet()
        network.load_state_dict(weights)
    except (OSError, RuntimeError, safetensors.SafetensorError) as error:
        reason = " ".join(str(error).split())[:100]
        raise UserError(f"{WEIGHTS} is missing or damaged, get it back from the repository ({reason})") from None
    return network.eval()


class LungNet(nn.Module):
    """A small U-Net, x (B, 2, H, W) -> logits (B, 1, H, W); H and W must be multiples of STRIDE.

    It works at half the image's size and below, and returns to the full size by sub-pixel shuffling.
    widths: channels at 1/2, 1/4, 1/8 and 1/16 of the size.
    """

    def __init__(self, in_channels: int = 2, widths: tuple[int, ...] = (16, 32, 64, 128)):
        super().__init__()
        # Down: a block a level. Four pixels become four channels before the first.
        self.down = nn.ModuleList()
        channels = 4 * in_channels
        for width in widths:
            self.down.append(_block(channels, width))
            channels = width

        # Up: a block for every level but the deepest, fed by the level below and by its own level's skip connection.
        self.up = nn.ModuleList()
        for width, deeper_width in zip(widths[:-1], widths[1:]):
            self.up.append(_block(deeper_width + width, width))
        self.head = nn.Conv2d(widths[0], 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        # Down: half the size before every level but the first, whose input is halved already.
        x = F.pixel_unshuffle(x, 2)  # (B, 8, H/2, W/2)
        skips = []
        for level, block in enumerate(self.down):
            if level > 0:
                x = F.max_pool2d(x, 2)
            x = block(x)
            skips.append(x)

        # Up, from the deepest level: twice the size, beside what the way down had there.
        for block, skip in zip(reversed(self.up), reversed(skips[:-1])):
            x = F.interpolate(x, scale_factor=2, mode="nearest")
            x = block(torch.cat([skip, x], dim=1))
        return F.pixel_shuffle(self.head(x), 2)  # (B, 1, H, W)


def _block(channels: int, width: int) -> nn.Sequential:
    """Two 3 x 3 convolutions, each with group normalisation and SiLU: (B, channels, h, w) -> (B, width, h, w)."""
    return nn.Sequential(
        nn.Conv2d(channels, width, 3, padding=1, bias=False),
        nn.GroupNorm(NORM_GROUPS, width),
        nn.SiLU(inplace=True),
        nn.Conv2d(width, width, 3, padding=1, bias=False),
        nn.GroupNorm(NORM_GROUPS, width),
        nn.SiLU(inplace=True),
    )
