"""What the trainings load: single images for the autoencoder, and pairs of latents, encoded once, for the noise
estimators."""

import hashlib
import re
import signal
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from itertools import repeat
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, default_collate

from .. import images, lungs, plausibility
from ..config import Augment
from ..runtime import checkpoint, seeding
from ..runtime.files import MachineError, UserError, replacing
from ..runtime.progress import Bar
from . import augment, lists
from .lists import Pair, size_text

# The variants of a pair's images: each is (of the CXR, of the soft tissue)
WHOLE = ("cxr", "soft")
MASKED = ("masked_cxr", "masked_soft")
KEEP_BYTES = 2 << 30  # decoded images up to this size stay in memory, and so do latents
MANY = 1000  # pairs, from which on looking for their latents takes so long that a bar is shown
FLOAT_BYTES = 4  # of one decoded pixel
LOST_WORKER = re.compile(r"DataLoader worker .*(is killed by signal|exited unexpectedly)")  # what DataLoader says
Batches = Generator[dict[str, torch.Tensor]]


# --- One image --------------------------------------------------------------------------------------------------------


def load(pair: Pair, variant: str, size: int) -> torch.Tensor:
    """One image of a pair as the networks see it, float32 (1, size, size) in [-1, 1].

    variant: one of WHOLE or MASKED; a masked image is black outside the lungs, which are found where the pair has no
    mask.
    Raises UserError, which names the file, where an image cannot be read or the mask is of another shape.
    """
    cxr, soft, mask = pair
    path = soft if variant.endswith("soft") else cxr
    pixels = plausibility.check(images.read(path)).pixels
    if variant in WHOLE:
        return images.to_network(pixels, size)

    if mask is not None:
        inside = images.read_mask_of(mask, pixels.shape)
    else:
        # From the CXR for the soft tissue too: both images of a pair have one mask.
        inside = lungs.lung_mask(images.read(cxr).pixels)
    if inside.shape != pixels.shape:
        raise UserError(f"{soft} is {size_text(pixels)}, but {cxr}, in which the lungs were found, {size_text(inside)}")
    return images.to_network(pixels * inside, size)


def augmented(
    fetch: Callable[[str], torch.Tensor], variant: str, augmentation: Augment | None, key: str
) -> torch.Tensor:
    """An image of a pair, (1, size, size) in [-1, 1], changed as `key` decides: images of one key are changed alike.

    fetch(variant): what `load` gives of the pair; a CXR whose bone is to be changed needs its soft tissue as well.
    """
    image = fetch(variant)
    if augment.changes_nothing(augmentation):
        return image  # to the bit
    pixels = images.to_unit(image)[0].numpy()

    # The bone is changed in the whole CXR. Of a masked one, each pixel then keeps the share of it that lay in the mask.
    if augment.changes_bone(augmentation) and variant.endswith("cxr"):
        cxr = images.to_unit(fetch("cxr"))[0].numpy()
        soft = images.to_unit(fetch("soft"))[0].numpy()
        changed = augment.change_bone(cxr, soft, augmentation, key)
        share = pixels / np.maximum(cxr, 1e-6) if variant in MASKED else 1
        pixels = changed * np.clip(share, 0, 1)

    changed = augment.augment(pixels, augmentation, key, is_soft=variant.endswith("soft"))
    return images.to_signed(torch.from_numpy(changed))[None]  # (1, size, size)


def crop(image: torch.Tensor, side: int, key: str) -> torch.Tensor:
    """(1, S, S) -> (1, side, side), from a place that `key` decides; with side 0 the whole image."""
    if not side:
        return image
    last_places = np.subtract(image.shape[-2:], side)
    random = seeding.place_generator(key)
    top, left = random.integers(0, last_places + 1)
    return image[:, top : top + side, left : left + side]


# --- Images for the autoencoder ---------------------------------------------------------------------------------------


class ImageSource(Dataset):
    """Single images of the pairs, for the autoencoder: batches {"image": (B, 1, size, size)}.

    masked: whether the images of the lungs alone take part. workers: processes that load; with 0 the images are decoded
    once and kept, as far as KEEP_BYTES allow. augmentation: the section `augment` of the settings, or None. crop: side
    of what is cut out of each image, 0 for the whole image. Augmentation and crop are others in each epoch: functions
    of (seed, epoch, name).
    """

    def __init__(
        self,
        pairs: dict[str, Pair],
        size: int,
        masked: bool,
        workers: int,
        augmentation: Augment | None = None,
        crop: int = 0,
        seed: int = 0,
    ):
        variants = WHOLE + MASKED if masked else WHOLE
        # The autoencoder sees every image by itself: CXRs and soft tissue are the same to it.
        self.items: list[tuple[str, Pair, str]] = []
        for name, pair in pairs.items():
            self.items += [(name, pair, variant) for variant in variants]
        self.names = [f"{name} ({variant})" for name, _, variant in self.items]
        self.size = size
        self.workers = workers
        self.augmentation = augmentation
        self.crop = crop
        self.seed = seed
        # Kept only without workers: each worker has a copy of this object, and would keep images of its own.
        self.kept: dict[tuple[str, str], torch.Tensor] = {}
        self.keeps = workers == 0 and len(self.items) * size * size * FLOAT_BYTES <= KEEP_BYTES

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, place: tuple[int, int]) -> torch.Tensor:
        """The image of place = (index, epoch), (1, size, size) or, cut, (1, crop, crop), in [-1, 1]."""
        index, epoch = place
        name, pair, variant = self.items[index]
        # The pair's name, not the variant: CXR and soft tissue are changed alike. Where to cut may differ between them.
        key = f"{self.seed}/{epoch}/{name}"
        image = augmented(lambda other: self._fetch(name, pair, other), variant, self.augmentation, key)
        return crop(image, self.crop, f"{key}/{variant}")

    def _fetch(self, name: str, pair: Pair, variant: str) -> torch.Tensor:
        """An image as `load` gives it, decoded once where images are kept."""
        # Before augmentation, which is another in each epoch.
        image = self.kept.get((name, variant))
        if image is None:
            image = load(pair, variant, self.size)
        if self.keeps:
            self.kept[name, variant] = image
        return image

    def __getitems__(self, places: list[tuple[int, int]]) -> list[torch.Tensor] | UserError:
        """The images of a batch, for DataLoader; the error if one cannot be read: it is raised where it can be reported
        in a line."""
        try:
            return [self[place] for place in places]
        except UserError as error:
            return error

    def batches(self, index_lists: list[list[int]], epoch: int = 0) -> Batches:
        """One batch for each list of indices into `names`. Raises UserError for an image that cannot be read."""
        # Each item carries its epoch: a worker's copy of this object is not told of a new one.
        places = [list(zip(indices, repeat(epoch))) for indices in index_lists]
        loader = DataLoader(
            self,
            batch_sampler=places,
            num_workers=min(self.workers, len(index_lists)),
            collate_fn=collate,
            pin_memory=torch.cuda.is_available(),
            worker_init_fn=leave_signals,
        )
        batches = iter(loader)
        try:
            for batch in batches:
                if isinstance(batch, UserError):
                    raise batch
                yield {"image": batch}
        finally:
            # However this ends. Python's own exit would wait for ever for workers that ignore its SIGTERM.
            if loader.num_workers:
                batches._shutdown_workers()  # pyright: ignore[reportAttributeAccessIssue]  # of the class with workers


class PairSource(ImageSource):
    """CXR and soft tissue of each patient, for translators: batches {"cxr", "soft": (B, 1, size, size)}.

    Both images of a pair are augmented and shifted alike. shift: largest shift along each axis, a share of the side;
    other arguments as of ImageSource.
    """

    def __init__(
        self,
        pairs: dict[str, Pair],
        size: int,
        workers: int,
        augmentation: Augment | None = None,
        shift: float = 0.0,
        seed: int = 0,
    ):
        super().__init__({}, size, False, workers, augmentation, 0, seed)
        self.items = [(name, pair, "cxr") for name, pair in pairs.items()]
        self.names = list(pairs)
        self.shift = shift
        self.keeps = workers == 0 and 2 * len(pairs) * size * size * FLOAT_BYTES <= KEEP_BYTES

    def __getitem__(self, place: tuple[int, int]) -> torch.Tensor:
        """CXR and soft tissue of place = (index, epoch), (2, 1, size, size) in [-1, 1]."""
        index, epoch = place
        name, pair, _ = self.items[index]
        key = f"{self.seed}/{epoch}/{name}"
        both = []
        for variant in WHOLE:
            image = augmented(lambda other: self._fetch(name, pair, other), variant, self.augmentation, key)
            both.append(shifted(image, self.shift, key))
        return torch.stack(both)

    def batches(self, index_lists: list[list[int]], epoch: int = 0) -> Batches:
        # closed with this generator, so that loading processes end whatever happens to it
        with closing(super().batches(index_lists, epoch)) as loaded:
            for batch in loaded:
                cxr, soft = batch["image"].unbind(1)  # of (B, 2, 1, size, size)
                yield {"cxr": cxr, "soft": soft}


def shifted(image: torch.Tensor, share: float, key: str) -> torch.Tensor:
    """(1, S, S) in [-1, 1] moved by whole pixels, up to `share` of its side along each axis, as `key` decides; black
    where nothing was."""
    most = round(share * image.shape[-1])
    if most == 0:
        return image
    down, right = seeding.place_generator(f"{key}/shift").integers(-most, most + 1, 2)
    padded = F.pad(image, (most, most, most, most), value=-1.0)
    side = image.shape[-1]
    return padded[:, most - down : most - down + side, most - right : most - right + side]


def collate(images_or_error: list[torch.Tensor] | UserError) -> torch.Tensor | UserError:
    """Images (1, H, W) -> (B, 1, H, W), as DataLoader stacks them; an error passes."""
    if isinstance(images_or_error, UserError):
        return images_or_error
    return default_collate(images_or_error)


@contextmanager
def lost_workers() -> Iterator[None]:
    """Within, a loading process that was killed ends the run in one line. DataLoader reports it at any moment, by a
    signal."""
    try:
        yield
    except RuntimeError as error:
        if not LOST_WORKER.search(str(error)):
            raise
        raise MachineError(
            "a process that loads images was killed; most likely the memory does not suffice (lower train.workers)"
        ) from None


def leave_signals(worker: int) -> None:
    """Ctrl-C and a scheduler's SIGTERM reach the loading processes too; they go on until the training has finished its
    step."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


# --- Latents for the noise estimators ---------------------------------------------------------------------------------

Latents = dict[str, dict[str, torch.Tensor | str]]  # {name: {variant: latent (C, h, w), or its file}}


class FileStack:
    """Latents (N, C, h, w), each of which is read from its file when it is asked for: stack[[3, 1]] is (2, C, h, w).

    What is read again and again stays in the system's memory of files, as far as there is room for it.
    """

    def __init__(self, files: list[str]):
        self.files = files

    def __getitem__(self, indices: list[int]) -> torch.Tensor:
        return torch.stack([_load_latent(self.files[index]) for index in indices])


class LatentSource:
    """Pairs of latents, for the noise estimators: batches {"cxr", "soft": (B, C, h, w)}; masked pairs count as pairs of
    their own.

    If every pair has a twin without lesions (see lists.with_twins), the twins are no pairs of their own: each comes in
    its patient's batch, as {"twin_cxr", "twin_soft": (B, C, h, w)}.
    versions: what `cached_latents` gave for each augmented version of the images; the epochs take them in turn.
    """

    def __init__(self, *versions: Latents):
        names = lists.with_twins(versions[0])
        has_twins = bool(names)
        if not has_twins:
            names = list(versions[0])
        # GL-LCM trains on whole and masked pairs alike; BS-LDM's latents have no masked ones.
        variants = versions[0][names[0]]
        roles = [WHOLE, MASKED] if MASKED[0] in variants else [WHOLE]
        self.names: list[str] = []
        for cxr, _ in roles:
            self.names += [f"{name} ({cxr})" for name in names]

        # One stack (pairs, C, h, w) a version, in the order of `names`.
        cxr_variants = [cxr for cxr, _ in roles]
        soft_variants = [soft for _, soft in roles]
        self.stacks = {
            "cxr": [_stack(version, names, cxr_variants) for version in versions],
            "soft": [_stack(version, names, soft_variants) for version in versions],
        }
        if has_twins:
            twins = [name + lists.TWIN for name in names]
            self.stacks["twin_cxr"] = [_stack(version, twins, cxr_variants) for version in versions]
            self.stacks["twin_soft"] = [_stack(version, twins, soft_variants) for version in versions]

    def batches(self, index_lists: list[list[int]], epoch: int = 0) -> Batches:
        """One batch for each list of indices into `names`, of the epoch's version."""
        # By the epoch alone: a training that is resumed gets the version it would have had.
        latents = {key: versions[epoch % len(versions)] for key, versions in self.stacks.items()}
        for indices in index_lists:
            yield {key: stack[indices] for key, stack in latents.items()}


def _stack(latents: Latents, names: list[str], variants: list[str]) -> torch.Tensor | FileStack:
    """(variants x names, C, h, w): all names of the first variant, then all of the next."""
    # In the order of LatentSource.names, which lists all whole pairs before the masked ones.
    several = [latents[name][variant] for variant in variants for name in names]
    files = [latent for latent in several if isinstance(latent, str)]
    if files:
        return FileStack(files)
    return torch.stack([latent for latent in several if isinstance(latent, torch.Tensor)])


def cached_latents(
    encode: Callable[[torch.Tensor], torch.Tensor],
    key: str,
    pairs: dict[str, Pair],
    size: int,
    masked: bool,
    folder: str | Path,
    batch_size: int,
    shard: slice = slice(None),
    augmentation: Augment | None = None,
    version: str = "",
) -> Latents:
    """{name: {variant: latent (C, h, w)}}; each image is encoded once and its latent kept in <folder>/<key>_<size>/.
    Of more latents than KEEP_BYTES hold, their files instead: memory stays flat, and LatentSource reads them by batch.

    encode: images (B, 1, size, size) -> latents. key: digest of the autoencoder's weights. A latent's file is named by
    the digest of its image's (and mask's) content, so a changed image is encoded anew.
    shard: which of the missing latents this process encodes. With several processes: call with `shard`, wait at a
    barrier, call again without it to read all latents; a call with `shard` returns {}.
    augmentation, version: the amounts, and which of the versions drawn with them; their latents are files of their own.
    """
    # Weights and size in the folder's name: latents of another autoencoder are never taken for these.
    folder = Path(folder) / f"{key}_{size}"
    variants = WHOLE + MASKED if masked else WHOLE
    files: dict[tuple[str, str], Path] = {}
    # Every image's content is read for its latent's name, which takes minutes of many: a bar tells so.
    hidden = len(pairs) < MANY or shard.start not in (None, 0)
    for name, pair in Bar(pairs.items(), desc="looking for latents", unit="pair", leave=False, disable=hidden):
        # Without augmentation the names stay what they are whatever the version, and one latent serves all of them.
        change = ""
        if augmentation is not None and not augment.changes_nothing(augmentation):
            change = f"{_description(augmentation)}/{_augmentation_key(version, name)}"
        for variant in variants:
            files[name, variant] = folder / f"{_content(pair, variant, change)}.npy"

    # Encode what is missing, or this process's share of it.
    # A process that comes late sees a shorter list; what then falls between the shares is encoded by the call
    # without `shard`.
    missing = [item for item, path in files.items() if not path.is_file()][shard]
    shows_progress = bool(missing) and shard.start in (None, 0)
    for start in Bar(range(0, len(missing), batch_size), desc="encoding", unit="batch", disable=not shows_progress):
        items = missing[start : start + batch_size]
        batch = []
        for name, variant in items:
            batch.append(_load_augmented(pairs[name], variant, size, augmentation, _augmentation_key(version, name)))
        # Float32 whatever the autocast, since half precision would round what the diffusion learns from.
        latents = encode(torch.stack(batch)).float().cpu()  # (B, C, h, w)
        for item, latent in zip(items, latents):
            # Whole or not at all, so that a run cut off leaves no damaged latent.
            with replacing(files[item]) as temporary, open(temporary, "wb") as file:
                np.save(file, latent.numpy())
    if shard != slice(None):
        return {}

    # Read them all, or see that they can be read: the first damaged one is named before the training.
    latents_of: Latents = {}
    keeps = sum(path.stat().st_size for path in files.values()) <= KEEP_BYTES
    for name in Bar(pairs, desc="reading latents", unit="pair", leave=False, disable=hidden):
        latents_of[name] = {}
        for variant in variants:
            path = files[name, variant]
            latent = _load_latent(path, mapped=not keeps)
            latents_of[name][variant] = latent if keeps else str(path)
    return latents_of


def _augmentation_key(version: str, name: str) -> str:
    """The text by which `augmented` changes a pair's images: one text for a pair and its twin, which are changed
    alike."""
    return f"{version}/{name.removesuffix(lists.TWIN)}"


def _load_augmented(pair: Pair, variant: str, size: int, augmentation: Augment | None, key: str) -> torch.Tensor:
    return augmented(lambda other: load(pair, other, size), variant, augmentation, key)


def _load_latent(path: Path | str, mapped: bool = False) -> torch.Tensor:
    """The latent (C, h, w) in a file. mapped: it is opened and found whole, but not read; it must not be changed."""
    try:
        # No pickles: a cache folder is shared, and a pickle runs code. "c": mapped pages count as writable, which torch
        # asks for, and never reach the file.
        return torch.from_numpy(np.load(path, mmap_mode="c" if mapped else None, allow_pickle=False))
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"the cached latent {path} is damaged ({error}); remove it, and it is made again") from None


def _description(augmentation: Augment) -> str:
    """The amounts as text, for the names of the latents' files; how many versions there are does not change a
    version."""
    amounts = [f"{name}={value!r}" for name, value in vars(augmentation).items() if name != "versions"]
    return f"Augmentation({', '.join(amounts)})"


def _content(pair: Pair, variant: str, change: str) -> str:
    """A digest of all that a latent depends on: its variant, its image's content, for a masked one the mask's, for an
    augmented CXR the soft tissue's, and the augmentation.

    A pair without a mask has the lungs found in its CXR, whose content then stands for the mask's.
    """
    cxr, soft, mask = pair

    # The content of files, not their names or dates: a folder that is copied keeps its latents.
    paths = [soft if variant.endswith("soft") else cxr]
    if change and variant.endswith("cxr"):
        paths.append(soft)  # changes of the bone are made from both images
    if variant in MASKED:
        paths.append(mask or cxr)
    ingredients = [variant] + [checkpoint.digest(path) for path in paths]
    if change:
        ingredients.append(change)
    # 24 hexadecimal digits are 96 bits: two images of a data set will not share them by chance.
    return hashlib.sha256("/".join(ingredients).encode()).hexdigest()[:24]
