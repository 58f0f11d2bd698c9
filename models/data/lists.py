"""Which images there are, which belong together, and the lists that split them."""
import glob
import hashlib
import math
from collections import Counter
from pathlib import Path

import cv2
import numpy as np

from .. import images
from ..runtime.files import UserError

PARTS = ("CXR", "BS", "Mask")   # folders of a data set: chest X-rays, soft tissue, lungs
SETS = ("trainset", "valset", "testset")
TWIN = "_normal"                # ends the name of a pair without lesions beside the same patient's pair with them
SHOWN = 5                       # names that a message gives before it counts the rest
ALIGN_SIZE = 256                # side at which alignment is judged, pixels
MAX_SHIFT = 4.0                 # larger shifts of a pair at that size are a fault, pixels
MAX_GREY = 0.05                 # share of pixels of a mask that may lie between black and white
Pair = tuple[Path, Path, Path | None]   # CXR, soft tissue, lung mask where there is one


def list_path(folder, name: str, part: str) -> Path:
    """Where the list of a set (one of SETS) lies: <folder>/<name>_<part>.txt, as published."""
    return Path(folder) / f"{name}_{part}.txt"


def split(names, shares, seed: int, patients: dict[str, str] | None = None) -> tuple[list[str], list[str], list[str]]:
    """Names, shuffled by the seed whatever their order was, as (training, validation, test).

    Each share is rounded down and the rest goes to the last one that is not zero, which gives the published 592 / 74 / 75 of 741.
    Every share that is not zero gets a name as long as there are enough. patients: {name: patient}, and then patients are split,
    each with all of its images.
    """
    if len(shares) != len(SETS) or min(shares) < 0 or not math.isclose(sum(shares), 1, abs_tol=1e-6):
        raise UserError(f"data.split={list(shares)} should be the shares of training, validation and test, with the sum 1")
    groups: dict[str, list[str]] = {}
    for name in sorted(names, key=images.natural):
        groups.setdefault((patients or {}).get(name, name), []).append(name)
    wanted = [index for index, share in enumerate(shares) if share > 0]
    counts = [math.floor(share * len(groups) + 1e-9) for share in shares]  # 0.29 * 100 is below 29 in floats
    counts[wanted[-1]] += len(groups) - sum(counts)
    for index in wanted:
        if counts[index] == 0 and len(groups) >= len(wanted):
            counts[int(np.argmax(counts))] -= 1
            counts[index] = 1
    order, members = np.random.default_rng(seed).permutation(len(groups)), list(groups.values())
    ends = np.cumsum(counts)
    return tuple([name for index in order[end - count:end] for name in members[index]] for end, count in zip(ends, counts))


def write_list(path, names) -> None:
    """One name a line; written beside its place and moved into it."""
    images.write_file(Path(path), "".join(f"{name}\n" for name in names).encode())


def read_list(path, folder=None) -> list[str]:
    """The image names (without ending) of a split list: one file name, with or without ending, a line.

    folder: where the images lie; names that it lacks or that lead out of it through a link are refused then. Blank lines, CRLF
    and a BOM are no faults. Raises UserError for what is missing or empty, for paths instead of names, and for repeated names.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"no list {path}; python dataSegmentation.py writes the lists")
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read the list {path}: {error}") from None
    lines = [line.strip() for line in lines if line.strip()]
    for line in lines:
        if "/" in line or "\\" in line or "\0" in line or line in (".", "..") or Path(line).is_absolute():
            raise UserError(f"{path}: '{line}' is a path; a list holds plain file names")
    names = [images.stem(line) for line in lines]
    if not names:
        raise UserError(f"the list {path} is empty")
    if repeated := twice(names):
        raise UserError(f"{path} names the same image more than once: {some(repeated)}")
    if folder is not None:
        found = images.find(folder)
        if missing := [name for name in names if name not in found]:
            raise UserError(f"{path} names images that {folder} does not hold: {some(missing)}")
        if strange := [name for name in names if outside(found[name], folder)]:
            raise UserError(f"{path} names links that lead out of {folder}: {some(strange)}")
    return names


def twice(names: list[str]) -> list[str]:
    """The names that a list holds more than once, in natural order."""
    return sorted((name for name, count in Counter(names).items() if count > 1), key=images.natural)


def with_twins(names) -> list[str]:
    """The names that have a twin without lesions, <name>_normal, if that is so for all; else none."""
    ill = [name for name in names if not name.endswith(TWIN)]
    twins = [name for name in names if name.endswith(TWIN)]
    return ill if sorted(name + TWIN for name in ill) == sorted(twins) else []


def outside(path, folder) -> bool:
    """Whether a path leads out of a folder, by itself or through links."""
    return not Path(path).resolve().is_relative_to(Path(folder).resolve())


def match(root) -> tuple[dict[str, tuple[Path, Path, Path | None]], list[str]]:
    """({name: (CXR, soft tissue, mask or None)}, faults: one line for each image without its partner)."""
    root = Path(root)
    for part in PARTS[:2]:
        if not (root / part).is_dir():
            raise UserError(f"no folder {root / part}; data.root={root} should hold CXR/ (chest X-rays) and BS/ (soft tissue), "
                            "the same file names in both (simulate.count=200 makes a set)")
    cxr, soft = images.find(root / "CXR"), images.find(root / "BS")
    masks = root / "Mask"
    mask = images.find(masks) if masks.is_dir() and any(not path.name.startswith(".") for path in masks.iterdir()) else {}
    faults = [f"{path}: no soft-tissue image of this name in {root / 'BS'}" for name, path in cxr.items() if name not in soft]
    faults += [f"{path}: no CXR of this name in {root / 'CXR'}" for name, path in soft.items() if name not in cxr]
    return {name: (path, soft[name], mask.get(name)) for name, path in cxr.items() if name in soft}, faults


def find_pairs(root) -> dict[str, tuple[Path, Path, Path | None]]:
    """{name: (CXR, soft tissue, mask or None)} of <root>/CXR, <root>/BS and <root>/Mask; UserError where a partner is missing."""
    pairs, faults = match(root)
    if faults:
        raise UserError(f"images without partner: {some(faults, '; ')}")
    return pairs


def check_pair(cxr, soft, mask=None) -> list[str]:
    """The faults of one pair, one line each; none: an empty list."""
    faults, pictures = [], []
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
    if cxr.pixels.shape != soft.pixels.shape:
        return [f"{soft.path} is {size_text(soft.pixels)}, but {cxr.path} {size_text(cxr.pixels)}"]
    if np.array_equal(cxr.pixels, soft.pixels):
        return [f"{soft.path} is the same image as {cxr.path}"]
    small = [images.to_network(picture.pixels, ALIGN_SIZE)[0].numpy() for picture in (cxr, soft)]
    (across, down), _ = cv2.phaseCorrelate(*small, cv2.createHanningWindow((ALIGN_SIZE, ALIGN_SIZE), cv2.CV_32F))
    if math.hypot(across, down) > MAX_SHIFT:
        scale = max(cxr.pixels.shape) / ALIGN_SIZE
        return [f"{soft.path} is not aligned with {cxr.path}: shifted by {across * scale:.0f} pixels across and "
                f"{down * scale:.0f} down, or not the same chest"]
    return []


def _check_mask(path, cxr: images.Picture) -> list[str]:
    try:
        mask, values = images.read_mask(path), images.read(path).pixels
    except UserError as error:
        return [str(error)]
    if mask.shape != cxr.pixels.shape:
        return [f"the mask {path} is {size_text(mask)}, but {cxr.path} {size_text(cxr.pixels)}"]
    grey = np.mean((values > 0.1 * values.max()) & (values < 0.9 * values.max()))
    return [f"{path} is no mask: {grey:.0%} of it is neither black nor white"] if grey > MAX_GREY else []


def size_text(pixels: np.ndarray) -> str:
    return f"{pixels.shape[1]} x {pixels.shape[0]}"


def some(names: list[str], separator: str = ", ") -> str:
    """The first names, and how many more."""
    rest = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return separator.join(names[:SHOWN]) + rest


def select(pairs: dict[str, Pair], path, optional: bool = False) -> dict[str, Pair]:
    """The pairs that a split list names, in its order. An optional list that is not there selects none."""
    if optional and not Path(path).is_file():
        return {}
    names = read_list(path)
    missing = [name for name in names if name not in pairs]
    if missing:
        raise UserError(f"{path} names images that the data folder does not hold: {some(missing)}")
    return {name: pairs[name] for name in names}


def training_pairs(root, lists, name: str) -> tuple[dict[str, Pair], dict[str, Pair]]:
    """The training and the validation pairs; without a validation list there are none of the latter."""
    pairs = find_pairs(root)
    return (select(pairs, list_path(lists, name, SETS[0])), select(pairs, list_path(lists, name, SETS[1]), optional=True))


def describe(pairs: dict[str, Pair]) -> str:
    """A data list in a few characters, to tell whether two trainings had the same."""
    return f"{len(pairs)} pairs, {hashlib.sha256('/'.join(pairs).encode()).hexdigest()[:8]}"


def inputs(what, root) -> dict[str, Path]:
    """{name: path} of what is to be evaluated: one image, a folder of images, or a split list of names in <root>/CXR."""
    what = Path(what)
    if what.suffix == ".txt":
        names, found = read_list(what), images.find(Path(root) / "CXR")
        missing = [name for name in names if name not in found]
        if missing:
            raise UserError(f"{what} names images that {Path(root) / 'CXR'} does not hold: {some(missing)}")
        return {name: found[name] for name in names}
    if what.is_dir():
        return images.find(what)
    if not what.is_file():
        raise UserError(f"eval.input={what} is neither an image, nor a folder, nor a split list")
    return {images.stem(what): what}


def beside(path: Path, part: str) -> Path | None:
    """The image of the same name in a folder (one of PARTS) beside the image's own folder, where that one is CXR/."""
    folder = path.parent.parent / part
    if path.parent.name != "CXR" or not folder.is_dir():
        return None
    return next((file for file in sorted(folder.glob(f"{glob.escape(images.stem(path))}.*")) if file.is_file()), None)
