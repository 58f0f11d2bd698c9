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

from .. import images, lungs
from ..config import Augment
from ..runtime import checkpoint
from ..runtime.files import UserError, replacing
from . import augment
from .lists import Pair, size_text

WHOLE, MASKED = ("cxr", "soft"), ("masked_cxr", "masked_soft")
KEEP_BYTES = 2 << 30                    # decoded images up to this size stay in memory


def load(pair: Pair, variant: str, size: int) -> torch.Tensor:
    """One image of a pair as the networks see it, float32 (1, size, size) in [-1, 1]; a masked one is black outside the lungs."""
    cxr, soft, mask = pair
    pixels = images.check(images.read(soft if variant.endswith("soft") else cxr)).pixels
    if variant in WHOLE:
        return images.to_network(pixels, size)
    inside = images.read_mask(mask) if mask else lungs.lung_mask(images.read(cxr).pixels)
    if inside.shape != pixels.shape:
        raise UserError(f"the mask {mask} is {size_text(inside)}, but {cxr} {size_text(pixels)}")
    return images.to_network(pixels * inside, size)


def augmented(fetch: Callable[[str], torch.Tensor], variant: str, augmentation: Augment | None, key: str) -> torch.Tensor:
    """An image of a pair, (1, size, size) in [-1, 1], changed as `key` decides (models/augment.py): images of one key are changed alike.

    fetch(variant): what `load` gives of the pair; a CXR whose bone is to be changed needs its soft tissue as well.
    """
    image = fetch(variant)
    if augment.changes_nothing(augmentation):
        return image  # to the bit
    pixels = images.to_unit(image)[0].numpy()
    if augment.changes_bone(augmentation) and variant.endswith("cxr"):
        cxr, soft = (pixels if whole == variant else images.to_unit(fetch(whole))[0].numpy() for whole in WHOLE)
        share = pixels / np.maximum(cxr, 1e-6) if variant in MASKED else 1  # of the pixel that lies in the mask
        pixels = augment.change_bone(cxr, soft, augmentation, key) * np.clip(share, 0, 1)
    return images.to_signed(torch.from_numpy(augment.augment(pixels, augmentation, key)))[None]


def cut(image: torch.Tensor, side: int, key: str) -> torch.Tensor:
    """(1, S, S) -> (1, side, side), from a place that `key` decides; 0: the whole image."""
    if not side:
        return image
    top, left = np.random.default_rng(zlib.crc32(key.encode())).integers(0, np.subtract(image.shape[-2:], side) + 1)
    return image[:, top:top + side, left:left + side]


class ImageSource(Dataset):
    """Single images of the pairs, for the autoencoder: batches {"image": (B, 1, size, size)}.

    workers: processes that load; with 0 the images are decoded once and kept, as far as KEEP_BYTES allow.
    augmentation: None for none; crop: side of the part that is cut out of each, 0: none. Both are others in each epoch, functions of
    (seed, epoch, name).
    """

    def __init__(self, pairs: dict[str, Pair], size: int, masked: bool, workers: int,
                 augmentation: Augment | None = None, crop: int = 0, seed: int = 0):
        variants = WHOLE + MASKED if masked else WHOLE
        self.items = [(name, pair, variant) for name, pair in pairs.items() for variant in variants]
        self.augmentation, self.crop, self.seed = augmentation, crop, seed
        self.names = [f"{name} ({variant})" for name in pairs for variant in variants]
        self.size, self.workers = size, workers
        self.kept: dict[tuple[str, str], torch.Tensor] = {}
        self.keeps = workers == 0 and len(self.items) * size * size * 4 <= KEEP_BYTES

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, place: tuple[int, int]) -> torch.Tensor:
        """place: (index, epoch)."""
        index, epoch = place
        name, pair, variant = self.items[index]

        def fetch(variant: str) -> torch.Tensor:
            image = self.kept.get((name, variant))
            if image is None:
                image = load(pair, variant, self.size)
            if self.keeps:
                self.kept[name, variant] = image
            return image

        key = f"{self.seed}/{epoch}/{name}"
        return cut(augmented(fetch, variant, self.augmentation, key), self.crop, f"{key}/{variant}")

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
        variants = next(iter(versions[0].values()))
        roles = [WHOLE, MASKED] if MASKED[0] in variants else [WHOLE]
        self.names = [f"{name} ({cxr})" for cxr, _ in roles for name in versions[0]]

        def stacks(place: int) -> list[torch.Tensor]:
            return [torch.stack([latents[role[place]] for role in roles for latents in version.values()]) for version in versions]

        self.cxr, self.soft = stacks(0), stacks(1)

    def batches(self, index_lists: list[list[int]], epoch: int = 0) -> Iterator[dict[str, torch.Tensor]]:
        cxr, soft = (part[epoch % len(part)] for part in (self.cxr, self.soft))
        return ({"cxr": cxr[indices], "soft": soft[indices]} for indices in index_lists)


def cached_latents(encode: Callable[[torch.Tensor], torch.Tensor], key: str, pairs: dict[str, Pair], size: int, masked: bool,
                   folder, batch_size: int, shard: slice = slice(None), augmentation: Augment | None = None,
                   version: str = "") -> dict[str, dict[str, torch.Tensor]]:
    """{name: {variant: latent (C, h, w)}}; each image is encoded once and its latent kept in <folder>/<key>_<size>/.

    encode: images (B, 1, size, size) -> latents. key: digest of the autoencoder's weights; a latent's file is named by the digest
    of its image's (and mask's) content, so a changed image is encoded anew. shard: the part of the missing latents that this
    process encodes; the others are read as their processes write them, so a barrier has to lie between two calls. augmentation, version:
    its amounts and which of its versions; their latents are files of their own.
    """
    folder = Path(folder) / f"{key}_{size}"
    variants = WHOLE + MASKED if masked else WHOLE
    change = "" if augment.changes_nothing(augmentation) else f"{_description(augmentation)}/{version}"
    files = {(name, variant): folder / f"{_content(pair, variant, change and f'{change}/{name}')}.npy"
             for name, pair in pairs.items() for variant in variants}
    missing = [item for item, path in files.items() if not path.is_file()][shard]
    starts = range(0, len(missing), batch_size)
    for start in tqdm(starts, desc="encoding", unit="batch", disable=not missing or shard.start not in (None, 0)):
        items = missing[start:start + batch_size]
        loaded = [augmented(lambda variant, name=name: load(pairs[name], variant, size), variant, augmentation, f"{version}/{name}")
                  for name, variant in items]
        latents = encode(torch.stack(loaded)).float().cpu()
        for item, latent in zip(items, latents):
            with replacing(files[item]) as temporary, open(temporary, "wb") as file:
                np.save(file, latent.numpy())
    if shard != slice(None):
        return {}
    return {name: {variant: torch.from_numpy(_load_latent(files[name, variant])) for variant in variants} for name in pairs}


def _description(augmentation: Augment) -> str:
    """The amounts as text, for the name of a latent's file; how many versions there are does not change a version."""
    amounts = [f"{name}={value!r}" for name, value in vars(augmentation).items() if name != "versions"]
    return f"Augmentation({', '.join(amounts)})"


def _load_latent(path: Path) -> np.ndarray:
    try:
        return np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"the cached latent {path} is damaged ({error}); remove it, and it is made again") from None


def _content(pair: Pair, variant: str, change: str) -> str:
    """What a latent depends on: its image's content, the variant, for a masked one the mask's content (or the CXR's), augmentation."""
    cxr, soft, mask = pair
    paths = [soft if variant.endswith("soft") else cxr] + ([mask or cxr] if variant in MASKED else [])
    return hashlib.sha256("/".join([variant, *map(checkpoint.digest, paths), *([change] if change else [])]).encode()).hexdigest()[:24]
