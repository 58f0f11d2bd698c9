"""What the trainings load: images, and latents that are encoded once."""
import hashlib
import signal
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from .. import images
from ..runtime import checkpoint
from ..runtime.files import UserError, replacing
from . import augment, lists
from .augment import Augmentation
from .lists import Pair, size_text

FindLungs = Callable[[np.ndarray], np.ndarray]
WHOLE, MASKED = ("cxr", "soft"), ("masked_cxr", "masked_soft")
KEEP_BYTES = 2 << 30                    # decoded images up to this size stay in memory


def load(pair: Pair, kind: str, size: int, find_lungs: FindLungs) -> torch.Tensor:
    """One image of a pair as the networks see it, float32 (1, size, size) in [-1, 1]; a masked one is black outside the lungs."""
    cxr, soft, mask = pair
    pixels = images.check(images.read(soft if kind.endswith("soft") else cxr)).pixels
    if kind in WHOLE:
        return images.to_network(pixels, size)
    lungs = images.read_mask(mask) if mask else find_lungs(images.read(cxr).pixels)
    if lungs.shape != pixels.shape:
        raise UserError(f"the mask {mask} is {size_text(lungs)}, but {cxr} {size_text(pixels)}")
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

    If every pair has a twin without lesions (see lists.with_twins), the batches also hold the twins: {"twin_cxr", "twin_soft"}.

    versions: what `cached_latents` gave for each augmented version of the images; the epochs take them in turn.
    """

    def __init__(self, *versions: dict[str, dict[str, torch.Tensor]]):
        kinds = next(iter(versions[0].values()))
        roles = [WHOLE, MASKED] if MASKED[0] in kinds else [WHOLE]
        names = lists.with_twins(versions[0])
        self.names = [f"{name} ({cxr})" for cxr, _ in roles for name in names or versions[0]]

        def stacks(place: int, names: list[str]) -> list[torch.Tensor]:
            return [torch.stack([version[name][role[place]] for role in roles for name in names]) for version in versions]

        self.stacks = {"cxr": stacks(0, names or list(versions[0])), "soft": stacks(1, names or list(versions[0]))}
        if names:
            twins = [name + lists.TWIN for name in names]
            self.stacks |= {"twin_cxr": stacks(0, twins), "twin_soft": stacks(1, twins)}

    def batches(self, index_lists: list[list[int]], epoch: int = 0) -> Iterator[dict[str, torch.Tensor]]:
        latents = {name: stack[epoch % len(stack)] for name, stack in self.stacks.items()}
        return ({name: stack[indices] for name, stack in latents.items()} for indices in index_lists)


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
        loaded = [augmented(lambda kind, name=name: load(pairs[name], kind, size, find_lungs), kind, how,
                            f"{version}/{name.removesuffix(lists.TWIN)}")  # twins are changed alike
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
