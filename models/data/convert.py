"""The pairs of another folder, JSRT's among them, as a data folder: PNGs with bright bones, no larger than the networks
see."""

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .. import images
from ..runtime import workers
from ..runtime.files import UserError
from . import lists
from .lists import Pair


@dataclass(frozen=True)
class Job:
    """One image to be written. size: the longer side of the result is at most this, pixels."""

    source: Path
    target: Path
    size: int
    is_mask: bool


def convert(source: Path, root: Path, size: int) -> None:
    """Write the pairs of another folder into root, bones bright and no side above size; what is there already stays as
    it is."""
    if source.resolve() == root.resolve():
        raise UserError(f"data.source and data.root are both {root}; a folder is converted into another one")

    # A folder laid out as a data folder, or JSRT's two archives unpacked anywhere.
    if (source / "CXR").is_dir():
        pairs, lonely = lists.match(source)
    else:
        pairs, lonely = match_jsrt(source)
    if lonely:
        raise UserError(f"{source} holds images without partner: {lists.shown_names(lonely, '; ')}")

    # Names lose their endings here, since everything becomes a PNG.
    jobs = []
    for name, pair in pairs.items():
        for folder, path in zip(lists.FOLDERS, pair):
            if path is not None:
                jobs.append(Job(path, root / folder / f"{name}.png", size, is_mask=folder == "Mask"))
    # A conversion that was cut off goes on; every file is written whole or not at all.
    missing = [job for job in jobs if not job.target.is_file()]
    turned = workers.parallel(convert_one, missing, "converting")

    print(f"{root}: {len(pairs)} pairs of {source}, {len(missing)} images newly written")
    # Reported, since whether bones are dark is judged by the content and may be wrong.
    dark = [job.source.name for job, was_dark in zip(missing, turned) if was_dark]
    if dark:
        print(f"note: bones were dark and are bright now in {lists.shown_names(dark)}", file=sys.stderr)


def match_jsrt(folder: Path) -> tuple[dict[str, Pair], list[str]]:
    """As lists.match, for JSRT: JPCLN001.IMG and JPCLN001.png (BSE-JSRT), wherever they lie in the folder, or, as
    Kaggle has them, JSRT/JPCLN001.png and BSE_JSRT/JPCLN001.png."""
    if not folder.is_dir():
        raise UserError(f"no folder data.source={folder}")

    cxr: dict[str, Path] = {}
    soft: dict[str, Path] = {}
    soft_folders = lists.jsrt_folders(folder)
    for path in sorted(folder.rglob("*")):
        suffix = path.suffix.lower()
        if suffix not in (".img", ".png") or path.name.startswith("."):
            continue
        # JSRT's own X-rays are raw .IMG files. Kaggle's are PNGs as the soft tissue is, and the folder tells which is
        # which; what it has beside both folders (augmented copies) is neither.
        in_folders = [part.upper() for part in path.relative_to(folder).parts[:-1]]
        if any(soft_folder in path.parents for soft_folder in soft_folders):
            found = soft
        elif suffix == ".img" or "JSRT" in in_folders:
            found = cxr
        elif not soft_folders:
            found = soft
        else:
            continue
        name = path.stem.upper()  # the two archives do not agree in upper and lower case
        # Two images of one name: which of them is the pair's would be a guess.
        if name in found:
            raise UserError(f"{folder} holds {path.name} more than once")
        found[name] = path

    if not cxr:
        raise UserError(f"{folder} holds neither CXR/ and BS/, nor JSRT's .IMG files, nor JSRT/ and BSE_JSRT/")
    lonely = [f"{path.name} has no PNG" for name, path in cxr.items() if name not in soft]
    lonely += [f"{path.name} has no .IMG or PNG in JSRT/" for name, path in soft.items() if name not in cxr]
    pairs: dict[str, Pair] = {name: (path, soft[name], None) for name, path in cxr.items() if name in soft}
    return pairs, lonely


def convert_one(job: Job) -> bool:
    """Write one image; whether its bones were dark and were turned."""
    if job.is_mask:
        # A mask is neither inverted nor interpolated in grey: half of the area decides.
        mask = images.read_mask(job.source)
        smaller = images.resize_mask(mask, _within(mask.shape, job.size))
        images.write(job.target, smaller.astype(np.float32))
        return False

    # The networks expect bright bones (JSRT's raw files have dark ones). Judged for each image of a pair by itself.
    picture = images.read(job.source)
    dark = images.inverted(picture.pixels)
    pixels = 1 - picture.pixels if dark else picture.pixels
    # As many bits as the source: 12-bit JSRT stays finer than 8.
    images.write(job.target, images.resize(pixels, _within(pixels.shape, job.size)), picture.bits)
    return dark


def _within(shape: tuple[int, ...], size: int) -> tuple[int, int]:
    """The shape (H, W), its longer side cut to size."""
    # Never enlarged, and the aspect is kept: the networks' input is padded to a square elsewhere.
    scale = min(1, size / max(shape))
    height, width = (max(1, round(side * scale)) for side in shape)
    return height, width
