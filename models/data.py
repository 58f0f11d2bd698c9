"""Which images there are, which belong together, and what the trainings get of them."""
import glob
import hashlib
import math
import signal
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from . import UserError, augment, checkpoint, images, replacing
from .augment import Augmentation

# --- Pairs and split lists ---------------------------------------------------------------------------------------------------

PARTS = ("CXR", "BS", "Mask")   # folders of a data set: chest X-rays, soft tissue, lungs
SETS = ("trainset", "valset", "testset")
SHOWN = 5                       # names that a message gives before it counts the rest
ALIGN_SIZE = 256                # side at which alignment is judged, pixels
MAX_SHIFT = 4.0                 # larger shifts of a pair at that size are a fault, pixels
MAX_GREY = 0.05                 # share of pixels of a mask that may lie between black and white


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
        return [f"{soft.path} is {_size(soft.pixels)}, but {cxr.path} {_size(cxr.pixels)}"]
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
        return [f"the mask {path} is {_size(mask)}, but {cxr.path} {_size(cxr.pixels)}"]
    grey = np.mean((values > 0.1 * values.max()) & (values < 0.9 * values.max()))
    return [f"{path} is no mask: {grey:.0%} of it is neither black nor white"] if grey > MAX_GREY else []


def _size(pixels: np.ndarray) -> str:
    return f"{pixels.shape[1]} x {pixels.shape[0]}"


def some(names: list[str], separator: str = ", ") -> str:
    """The first names, and how many more."""
    rest = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return separator.join(names[:SHOWN]) + rest


# --- What the trainings load -------------------------------------------------------------------------------------------------

Pair = tuple[Path, Path, Path | None]   # CXR, soft tissue, lung mask where there is one
FindLungs = Callable[[np.ndarray], np.ndarray]
WHOLE, MASKED = ("cxr", "soft"), ("masked_cxr", "masked_soft")
KEEP_BYTES = 2 << 30                    # decoded images up to this size stay in memory


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


def load(pair: Pair, kind: str, size: int, find_lungs: FindLungs) -> torch.Tensor:
    """One image of a pair as the networks see it, float32 (1, size, size) in [-1, 1]; a masked one is black outside the lungs."""
    cxr, soft, mask = pair
    pixels = images.check(images.read(soft if kind.endswith("soft") else cxr)).pixels
    if kind in WHOLE:
        return images.to_network(pixels, size)
    lungs = images.read_mask(mask) if mask else find_lungs(images.read(cxr).pixels)
    if lungs.shape != pixels.shape:
        raise UserError(f"the mask {mask} is {_size(lungs)}, but {cxr} {_size(pixels)}")
    return images.to_network(pixels * lungs, size)


def augmented(fetch: Callable[[str], torch.Tensor], kind: str, how: Augmentation, key: str) -> torch.Tensor:
    """An image of a pair, (1, size, size) in [-1, 1], changed as `key` decides (models/augment.py): images of one key are changed alike.

    fetch(kind): what `load` gives of the pair; a CXR whose bone is to be changed needs its soft tissue as well.
    """
    image = fetch(kind)
    if how == augment.NONE:
        return image  # to the bit
    pixels = images.to_unit(image)[0].numpy()
    if how.changes_bone and kind.endswith("cxr"):
        cxr, soft = (pixels if whole == kind else images.to_unit(fetch(whole))[0].numpy() for whole in WHOLE)
        share = pixels / np.maximum(cxr, 1e-6) if kind in MASKED else 1  # of the pixel that lies in the mask
        pixels = augment.change_bone(cxr, soft, how, key) * np.clip(share, 0, 1)
    return images.to_signed(torch.from_numpy(augment.augment(pixels, how, key)))[None]


def cut(image: torch.Tensor, side: int, key: str) -> torch.Tensor:
    """(1, S, S) -> (1, side, side), from a place that `key` decides; 0: the whole image."""
    if not side:
        return image
    top, left = np.random.default_rng(zlib.crc32(key.encode())).integers(0, np.subtract(image.shape[-2:], side) + 1)
    return image[:, top:top + side, left:left + side]


class ImageSource(Dataset):
    """Single images of the pairs, for the autoencoder: batches {"image": (B, 1, size, size)}.

    workers: processes that load; with 0 the images are decoded once and kept, as far as KEEP_BYTES allow.
    how: augmentation; crop: side of the part that is cut out of each, 0: none. Both are others in each epoch, functions of
    (seed, epoch, name).
    """

    def __init__(self, pairs: dict[str, Pair], size: int, masked: bool, find_lungs: FindLungs, workers: int,
                 how: Augmentation = augment.NONE, crop: int = 0, seed: int = 0):
        kinds = WHOLE + MASKED if masked else WHOLE
        self.items = [(name, pair, kind) for name, pair in pairs.items() for kind in kinds]
        self.how, self.crop, self.seed = how, crop, seed
        self.names = [f"{name} ({kind})" for name in pairs for kind in kinds]
        self.size, self.find_lungs, self.workers = size, find_lungs, workers
        self.kept: dict[tuple[str, str], torch.Tensor] = {}
        self.keeps = workers == 0 and len(self.items) * size * size * 4 <= KEEP_BYTES

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, place: tuple[int, int]) -> torch.Tensor:
        """place: (index, epoch)."""
        index, epoch = place
        name, pair, kind = self.items[index]

        def fetch(kind: str) -> torch.Tensor:
            image = self.kept.get((name, kind))
            if image is None:
                image = load(pair, kind, self.size, self.find_lungs)
            if self.keeps:
                self.kept[name, kind] = image
            return image

        key = f"{self.seed}/{epoch}/{name}"
        return cut(augmented(fetch, kind, self.how, key), self.crop, f"{key}/{kind}")

    def batches(self, index_lists: list[list[int]], epoch: int = 0) -> Iterator[dict[str, torch.Tensor]]:
        places = [[(index, epoch) for index in indices] for indices in index_lists]
        loader = DataLoader(self, batch_sampler=places, num_workers=min(self.workers, len(index_lists)),
                            pin_memory=torch.cuda.is_available(), worker_init_fn=leave_signals)
        return ({"image": images} for images in loader)


def leave_signals(worker: int) -> None:
    """Ctrl-C and a scheduler's SIGTERM reach the loading processes too; they go on until the training has finished its step."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


class LatentSource:
    """Pairs of latents, for the noise estimators: batches {"cxr", "soft": (B, C, h, w)}; masked pairs count as pairs of their own.

    versions: what `cached_latents` gave for each augmented version of the images; the epochs take them in turn.
    """

    def __init__(self, *versions: dict[str, dict[str, torch.Tensor]]):
        kinds = next(iter(versions[0].values()))
        roles = [WHOLE, MASKED] if MASKED[0] in kinds else [WHOLE]
        self.names = [f"{name} ({cxr})" for cxr, _ in roles for name in versions[0]]

        def stacks(place: int) -> list[torch.Tensor]:
            return [torch.stack([latents[role[place]] for role in roles for latents in version.values()]) for version in versions]

        self.cxr, self.soft = stacks(0), stacks(1)

    def batches(self, index_lists: list[list[int]], epoch: int = 0) -> Iterator[dict[str, torch.Tensor]]:
        cxr, soft = (part[epoch % len(part)] for part in (self.cxr, self.soft))
        return ({"cxr": cxr[indices], "soft": soft[indices]} for indices in index_lists)


def cached_latents(encode: Callable[[torch.Tensor], torch.Tensor], key: str, pairs: dict[str, Pair], size: int, masked: bool,
                   find_lungs: FindLungs, folder, batch_size: int, mine: slice = slice(None), how: Augmentation = augment.NONE,
                   version: str = "") -> dict[str, dict[str, torch.Tensor]]:
    """{name: {kind: latent (C, h, w)}}; each image is encoded once and its latent kept in <folder>/<key>_<size>/.

    encode: images (B, 1, size, size) -> latents. key: digest of the autoencoder's weights; a latent's file is named by the digest
    of its image's (and mask's) content, so a changed image is encoded anew. mine: the part of the missing latents that this
    process encodes; the others are read as their processes write them, so a barrier has to lie between two calls. how, version:
    the augmentation and which of its versions; their latents are files of their own.
    """
    folder = Path(folder) / f"{key}_{size}"
    kinds = WHOLE + MASKED if masked else WHOLE
    change = "" if how == augment.NONE else f"{how}/{version}"
    files = {(name, kind): folder / f"{_content(pair, kind, change and f'{change}/{name}')}.npy"
             for name, pair in pairs.items() for kind in kinds}
    missing = [item for item, path in files.items() if not path.is_file()][mine]
    starts = range(0, len(missing), batch_size)
    for start in tqdm(starts, desc="encoding", unit="batch", disable=not missing or mine.start not in (None, 0)):
        items = missing[start:start + batch_size]
        loaded = [augmented(lambda kind, name=name: load(pairs[name], kind, size, find_lungs), kind, how, f"{version}/{name}")
                  for name, kind in items]
        latents = encode(torch.stack(loaded)).float().cpu()
        for item, latent in zip(items, latents):
            with replacing(files[item]) as temporary, open(temporary, "wb") as file:
                np.save(file, latent.numpy())
    if mine != slice(None):
        return {}
    return {name: {kind: torch.from_numpy(_load_latent(files[name, kind])) for kind in kinds} for name in pairs}


def _load_latent(path: Path) -> np.ndarray:
    try:
        return np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"the cached latent {path} is damaged ({error}); remove it, and it is made again") from None


def _content(pair: Pair, kind: str, change: str) -> str:
    """What a latent depends on: its image's content, the kind, for a masked one the mask's content (or the CXR's), augmentation."""
    cxr, soft, mask = pair
    paths = [soft if kind.endswith("soft") else cxr] + ([mask or cxr] if kind in MASKED else [])
    return hashlib.sha256("/".join([kind, *map(checkpoint.digest, paths), *([change] if change else [])]).encode()).hexdigest()[:24]
