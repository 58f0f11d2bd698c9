"""What is wrong with the pairs of a data folder: files, sizes, alignment, masks, and images that are there twice."""
import hashlib
import math
import sys
from pathlib import Path

import cv2
import numpy as np

from .. import images
from ..runtime import workers
from ..runtime.files import UserError
from . import lists
from .lists import Pair, size_text

ALIGN_SIZE = 256                # side at which alignment is judged, pixels
MAX_SHIFT = 4.0                 # larger shifts of a pair at that size are a fault, pixels
BLACK, WHITE = 0.1, 0.9         # shares of a mask's largest value between which it is grey
MAX_GREY = 0.05                 # share of pixels of a mask that may be grey


# --- One pair ----------------------------------------------------------------------------------------------------------------

def check_pair(cxr: Path, soft: Path, mask: Path | None = None) -> list[str]:
    """The faults of one pair, one line each; none: an empty list."""
    faults = []
    pictures = []
    for path in (cxr, soft):
        try:
            pictures.append(images.check(images.read(path)))
        except UserError as error:
            faults.append(str(error))
    if len(pictures) == 2:
        faults += _compare(*pictures)
    if mask is not None and pictures:
        faults += _check_mask(mask, pictures[0])
    return faults


def _compare(cxr: images.Picture, soft: images.Picture) -> list[str]:
    """Whether both images show the same chest in the same place, but are not the same image."""
    if cxr.pixels.shape != soft.pixels.shape:
        return [f"{soft.path} is {size_text(soft.pixels)}, but {cxr.path} {size_text(cxr.pixels)}"]
    if np.array_equal(cxr.pixels, soft.pixels):
        return [f"{soft.path} is the same image as {cxr.path}"]

    small_cxr = images.to_network(cxr.pixels, ALIGN_SIZE)[0].numpy()
    small_soft = images.to_network(soft.pixels, ALIGN_SIZE)[0].numpy()
    window = cv2.createHanningWindow((ALIGN_SIZE, ALIGN_SIZE), cv2.CV_32F)
    (across, down), _ = cv2.phaseCorrelate(small_cxr, small_soft, window)
    if math.hypot(across, down) > MAX_SHIFT:
        scale = max(cxr.pixels.shape) / ALIGN_SIZE
        return [f"{soft.path} is not aligned with {cxr.path}: shifted by {across * scale:.0f} pixels across and "
                f"{down * scale:.0f} down, or not the same chest"]
    return []


def _check_mask(path: Path, cxr: images.Picture) -> list[str]:
    """Whether an image is a mask of the CXR's size."""
    try:
        mask = images.read_mask(path)
        values = images.read(path).pixels
    except UserError as error:
        return [str(error)]
    if mask.shape != cxr.pixels.shape:
        return [f"the mask {path} is {size_text(mask)}, but {cxr.path} {size_text(cxr.pixels)}"]
    grey = np.mean((values > BLACK * values.max()) & (values < WHITE * values.max()))
    if grey > MAX_GREY:
        return [f"{path} is no mask: {grey:.0%} of it is neither black nor white"]
    return []


# --- All pairs ---------------------------------------------------------------------------------------------------------------

def check(pairs: dict[str, Pair], root: Path) -> dict[str, list[str]]:
    """{name: faults} of the pairs that have any; images that look inverted are named in a note."""
    results = dict(zip(pairs, workers.parallel(examine, list(pairs.values()), "checking pairs")))
    faults = {name: list(own) for name, (own, _, _) in results.items() if own}

    first_of: dict[str, str] = {}  # {digest of a CXR's pixels: name of the first that has it}
    dark = []
    for name, (_, digest, inverted) in results.items():
        if any(path is not None and lists.leads_outside(path, root) for path in pairs[name]):
            faults.setdefault(name, []).append(f"{pairs[name][0]}: it, its soft tissue or its mask is a link out of {root}")
        if digest is not None:
            first = first_of.setdefault(digest, name)
            if first != name:
                faults.setdefault(name, []).append(f"{pairs[name][0]} is the same image as {pairs[first][0]}")
        if inverted:
            dark.append(name)

    if dark:
        print(f"note: bones look dark in {lists.shown_names(dark)} (of {len(pairs)}), and the methods expect bright ones; turn "
              f"them, or let data.source={root} data.root=<new folder> do it", file=sys.stderr)
    return faults


def examine(pair: Pair) -> tuple[list[str], str | None, bool]:
    """(faults, digest of the CXR's pixels or None, whether the CXR looks inverted) of one pair."""
    faults = check_pair(*pair)
    if faults:
        return faults, None, False
    pixels = images.read(pair[0]).pixels
    digest = hashlib.sha256(str(pixels.shape).encode() + pixels.tobytes()).hexdigest()
    return [], digest, images.inverted(pixels)


def refuse_or_skip(pairs: dict[str, Pair], lonely: list[str], faults: dict[str, list[str]], skip: bool) -> dict[str, Pair]:
    """The pairs without fault; UserError where there are faults that may not be skipped, after all of them are listed.

    lonely: the lines about images without a partner.
    """
    for line in lonely:
        print(f"fault: {line}", file=sys.stderr)
    for lines in faults.values():
        for line in lines:
            print(f"fault: {line}", file=sys.stderr)

    number = len(lonely) + len(faults)
    if number and not skip:
        raise UserError(f"{number} of {len(pairs) + len(lonely)} names have faults (listed above) and nothing was "
                        "written; mend them, or leave them out with data.skip_faulty=true")
    kept = {name: pair for name, pair in pairs.items() if name not in faults}
    if not kept:
        raise UserError("no pair without fault is left")
    if number:
        print(f"{number} faulty left out, {len(kept)} pairs kept")
    return kept
