"""The two lung fields of a frontal chest X-ray, for data sets that bring no masks, by a small U-Net that saw simulated patients only.

1. Features: ranks of grey values, and how they differ from those nearby; gamma, window and equalisation hardly matter.
2. Network: models/lungnet.py on the image and on its mirror image, at a small size; the mean counts.
3. A second look at the box around the lungs alone, so that borders and margins do not cost resolution; the mean of both looks decides.
4. Shape: the two largest parts, without holes.
The weights in weights/lungs.safetensors come from tools/train_lungs.py.
"""
from functools import cache
from pathlib import Path

import cv2
import numpy as np
import safetensors
import torch
from safetensors.torch import load_file
from scipy import ndimage

from .lungnet import LungNet
from .runtime.files import UserError

WEIGHTS = Path(__file__).resolve().parents[1] / 'weights' / 'lungs.safetensors'
MIN_SIZE = 64           # px, smaller images do not show a chest wall
WORK_SIZE = 512         # px, longer side of the image that the outlines are found in
NET_SIZE = 128          # px, longer side of the image that the network sees: a rib is 2 to 3 px wide

NOISE_SIGMA = .5        # px, blur before ranking
LOCAL_SIGMA = 8.        # px, neighbourhood of the local contrast: about two rib spaces
FLAT = .02              # spread of ranks below which a neighbourhood is noise, not anatomy
CLIP = 3.               # local standard deviations

EDGE_SIGMA = 1.         # px of the network's image, smoothing of what it says
MARGIN = .1             # of the lungs' longer side, around the box of the second look
LEAST_PART = .1         # of the larger lung's area, below it a second part is a speck


def lung_mask(cxr):
    """Both aerated lung fields of a frontal chest X-ray, without what heart and diaphragm hide.

    cxr: float (H, W) in [0, 1], bones bright, H and W >= 64. Returns bool (H, W). Raises ValueError for anything else, UserError
    without the network's weights.
    """
    _check(cxr)
    work = _resize(cxr.astype(np.float32), min(1, WORK_SIZE / max(cxr.shape)))
    first = _look(work)                                     # (h, w)
    box = _box_around(_two_lungs(first > 0))
    logits = first.copy()
    logits[box] += _look(work[box])
    if not (logits > 0).any():                              # a strip that shows no chest
        logits = first
    logits[_two_lungs(logits > 0) != (logits > 0)] *= -1    # specks and holes
    return cv2.resize(logits, cxr.shape[::-1], interpolation=cv2.INTER_LINEAR) > 0


def lung_faults(mask):
    """What looks wrong with a lung mask by its shape: short phrases with the numbers, an empty list when plausible. mask: bool (H, W)."""
    faults = []
    if not .10 <= mask.mean() <= .55:
        faults.append(f'lungs cover {mask.mean():.1%} of the image, expected 10-55%')
    labels, _ = ndimage.label(mask)
    areas = np.sort(np.bincount(labels.ravel())[1:])[::-1]
    large = areas[areas > .1 * areas.sum()]                 # specks are not counted
    if len(large) != 2:
        faults.append(f'{len(large)} large part{"s" * (len(large) != 1)}, expected 2')
    elif large[1] < .4 * large[0]:
        faults.append(f'unequal lungs: the smaller has {large[1] / large[0]:.0%} of the larger, expected at least 40%')
    rim = int(np.concatenate([mask[0], mask[-1], mask[1:-1, 0], mask[1:-1, -1]]).sum())
    if rim:
        faults.append(f'lungs touch the image border in {rim} pixels')
    return faults


def _check(cxr):
    if not isinstance(cxr, np.ndarray) or not np.issubdtype(cxr.dtype, np.floating):
        raise ValueError(f'lung_mask got {getattr(cxr, "dtype", type(cxr).__name__)}, expected a float array in [0, 1]: '
                         "divide by the largest grey value")
    if cxr.ndim != 2 or min(cxr.shape) < MIN_SIZE:
        raise ValueError(f'lung_mask got shape {cxr.shape}, expected (H, W) with both sides >= {MIN_SIZE}')
    if not (cxr.min() >= 0 and cxr.max() <= 1):
        raise ValueError(f'lung_mask got values from {cxr.min()} to {cxr.max()}, expected [0, 1]')


def _look(cxr):
    """What the network says of float (h, w) and its mirror image: float32 (h, w), above 0 in the lungs."""
    small = _resize(cxr, NET_SIZE / max(cxr.shape))
    both = np.stack([features(small), features(np.ascontiguousarray(small[:, ::-1]))])
    with torch.inference_mode():
        there, mirrored = _network()(torch.from_numpy(both))[:, 0, :small.shape[0], :small.shape[1]].numpy()
    logits = cv2.GaussianBlur(there + mirrored[:, ::-1], (0, 0), EDGE_SIGMA)
    return cv2.resize(logits, cxr.shape[::-1], interpolation=cv2.INTER_CUBIC)


def _box_around(mask):
    """The slices of a box around a mask, with a margin; of the whole where it is empty."""
    if not mask.any():
        return np.s_[:, :]
    ends = [np.flatnonzero(mask.any(axis))[[0, -1]] for axis in (1, 0)]
    margin = round(MARGIN * max(np.ptp(end) for end in ends))
    return tuple(slice(max(0, first - margin), last + margin + 1) for first, last in ends)


@cache
def _network():
    try:
        network = LungNet()
        network.load_state_dict({name: value.float() for name, value in load_file(WEIGHTS).items()})
    except (OSError, RuntimeError, safetensors.SafetensorError) as error:
        raise UserError(f"{WEIGHTS} is missing or damaged, get it back from the repository ({' '.join(str(error).split())[:100]})") from None
    return network.eval()


def _resize(cxr, scale):
    height, width = (max(1, round(side * scale)) for side in cxr.shape)
    return cv2.resize(cxr, (width, height), interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)


def features(cxr):
    """What the network sees of float (h, w), sides up to NET_SIZE: float32 (2, NET_SIZE, NET_SIZE), zero beyond the image.

    First the share of darker pixels, from -1 to 1, which is blind to every monotone change of grey values; then its local z-scores.
    """
    ranks = _ranks(cv2.GaussianBlur(cxr, (0, 0), NOISE_SIGMA))
    mean = cv2.GaussianBlur(ranks, (0, 0), LOCAL_SIGMA)
    spread = np.sqrt(cv2.GaussianBlur((ranks - mean) ** 2, (0, 0), LOCAL_SIGMA)) + FLAT
    result = np.zeros((2, NET_SIZE, NET_SIZE), np.float32)
    result[0, :cxr.shape[0], :cxr.shape[1]] = 2 * ranks - 1
    result[1, :cxr.shape[0], :cxr.shape[1]] = np.clip((ranks - mean) / spread, -CLIP, CLIP)
    return result


def _ranks(cxr):
    """The share of pixels that are darker, float32 in [0, 1]."""
    known = np.sort(cxr, axis=None)
    return (np.searchsorted(known, cxr.ravel()) / len(known)).reshape(cxr.shape).astype(np.float32)


def _two_lungs(mask):
    """The two largest parts of bool (H, W), without specks and holes."""
    labels, count = ndimage.label(mask)
    areas = np.bincount(labels.ravel(), minlength=count + 1)[1:]
    kept = [label for label in np.argsort(areas)[::-1][:2] if areas[label] > LEAST_PART * areas.max()]
    return ndimage.binary_fill_holes(np.isin(labels, np.array(kept, int) + 1))
