"""The pairs of a data folder, CXR/ with BS/ and Mask/, and the split lists that name some of them."""

import hashlib
import os
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from .. import images
from ..runtime import processes
from ..runtime.files import UserError

FOLDERS = ("CXR", "BS", "Mask")  # of a data set: chest X-rays, soft tissue, lung masks
MASKED_FOLDERS = ("Masked_CXR", "Masked_BS")  # of the published projects
SETS = ("trainset", "valset", "testset")
TWIN = "_normal"  # ends the name of a simulated pair without lesions beside the same patient's pair with them
SHOWN = 5  # names that a message gives before it counts the rest
Pair = tuple[Path, Path, Path | None]  # CXR, soft tissue, lung mask where there is one


# --- Split lists ------------------------------------------------------------------------------------------------------


def list_path(folder: str | Path, name: str, set_name: str) -> Path:
    """Where the list of a set (one of SETS) lies: <folder>/<name>_<set>.txt, as published, or the list without a name
    that is there instead (see `find_list`)."""
    return find_list(Path(folder) / f"{name}_{set_name}.txt")


def find_list(path: Path) -> Path:
    """<folder>/<name>_trainset.txt, or, if only that one is there, <folder>/train_set.txt, as some published folders
    have it; so for the validation and the test list."""
    named = re.fullmatch(r".+_(train|val|test)set\.txt", path.name)
    if named is None or path.exists():
        return path
    nameless = path.with_name(f"{named[1]}_set.txt")
    return nameless if nameless.is_file() else path


def write_list(path: str | Path, names: list[str]) -> None:
    """One name a line; written beside its place and moved into it. UserError for a name that `read_list` would not give
    back."""
    for name in names:
        if not can_be_listed(name):
            raise UserError(f"{path} cannot hold the name {name!r}, which would not be read back; rename the image")
    # Checked before writing: a list that cannot be read back would be found out only at the training.
    text = "".join(f"{name}\n" for name in names)
    images.write_file(Path(path), text.encode())


def can_be_listed(name: str) -> bool:
    """Whether a list gives this file name back: no line breaks of any kind, no blanks at its ends, valid Unicode, no
    path."""
    try:
        content = f"{name}\n".encode()
    except UnicodeEncodeError:  # a name that is not UTF-8 on the disk
        return False
    # By the reader itself, so that both agree on what Unicode counts as a line break.
    return _lines(content) == [name] and not _is_path(name)


def read_list(path: str | Path, folder: str | Path | None = None) -> list[str]:
    """The image names (without ending) of a split list: one file name, with or without ending, a line; what follows
    it after a tab is not read.

    folder: where the images lie; names that it lacks or that lead out of it through a link are refused then. Blank
    lines, CRLF and a BOM are no faults. Raises UserError for what is missing or empty, for paths instead of names, and
    for repeated names.
    """
    lines = read_lines(path)
    for line in lines:
        if _is_path(line):
            # A list may come from others; a path in it could name any file of the machine.
            raise UserError(f"{path}: '{line}' is a path; a list holds plain file names")

    # Endings are no part of the names: the images may be stored in another format here.
    names = [images.stem(line) for line in lines]
    if twice := repeated(names):
        raise UserError(f"{path} names the same image more than once: {shown_names(twice)}")

    if folder is not None:
        found = images.find(folder)
        if missing := [name for name in names if name not in found]:
            raise UserError(f"{path} names images that {folder} does not hold: {shown_names(missing)}")
        if strange := [name for name in names if leads_outside(found[name], folder)]:
            raise UserError(f"{path} names links that lead out of {folder}: {shown_names(strange)}")
    return names


def read_lines(path: str | Path) -> list[str]:
    """What stands in a list, line by line (see `_lines`); UserError where it is missing, unreadable or empty."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"no list {path}; python dataSegmentation.py writes the lists")
    try:
        lines = _lines(path.read_bytes())
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read the list {path}: {error}") from None
    if not lines:
        raise UserError(f"the list {path} is empty")
    return lines


def _lines(content: bytes) -> list[str]:
    """The first columns of a list's lines, as far as they are not blank, without blanks at their ends and without a
    BOM."""
    # utf-8-sig takes away the BOM that Windows editors write.
    lines = content.decode("utf-8-sig").splitlines()
    # published lists may have further columns, separated by tabs
    columns = [line.strip().split("\t")[0].rstrip() for line in lines]
    return [column for column in columns if column]


def _is_path(line: str) -> bool:
    """Whether a line of a list is more than a plain file name, on any system."""
    # Both separators and NUL, whatever the system: a list is carried from one to another.
    return "/" in line or "\\" in line or "\0" in line or line in (".", "..") or Path(line).is_absolute()


def repeated(names: list[str]) -> list[str]:
    """The names that a list holds more than once, in natural order."""
    twice = [name for name, count in Counter(names).items() if count > 1]
    return sorted(twice, key=images.natural)


def shown_names(names: list[str], separator: str = ", ") -> str:
    """The first names for a message, and how many more there are."""
    rest = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return separator.join(names[:SHOWN]) + rest


# --- Pairs ------------------------------------------------------------------------------------------------------------


def match(root: str | Path) -> tuple[dict[str, Pair], list[str]]:
    """({name: (CXR, soft tissue, mask or None)}, faults: one line for each image without its partner)."""
    root = Path(root)
    for folder in ("CXR", "BS"):
        if not (root / folder).is_dir() and jsrt_folders(root):
            raise UserError(
                f"{root} holds JSRT with its soft tissue, which is converted first: data.source={root} "
                "data.root=FOLDER (a new one)"
            )
        if not (root / folder).is_dir():
            raise UserError(
                f"no folder {root / folder}; data.root={root} should hold CXR/ (chest X-rays) and BS/ (soft tissue), "
                "the same file names in both (simulate.count=200 makes a set)"
            )

    # Pairs are made by name alone. Masks are optional, one by one: an image without one has its lungs found.
    cxr = find_images(root / "CXR")
    soft = find_images(root / "BS")
    masks = images.find(root / "Mask") if _holds_files(root / "Mask") else {}
    _say_what_is_not_read(root, bool(masks))

    # Every image without partner is a line, so that all of them can be mended at once.
    pairs: dict[str, Pair] = {}
    faults = []
    for name, path in cxr.items():
        if name in soft:
            pairs[name] = (path, soft[name], masks.get(name))
        else:
            faults.append(f"{path}: no soft-tissue image of this name in {root / 'BS'}")
    for name, path in soft.items():
        if name not in cxr:
            faults.append(f"{path}: no CXR of this name in {root / 'CXR'}")
    return pairs, faults


def jsrt_folders(root: Path) -> list[Path]:
    """The folders of JSRT's soft-tissue images below a folder: BSE_JSRT, as Kaggle has it."""
    if not root.is_dir():
        return []
    return [path for path in sorted(root.rglob("*")) if path.is_dir() and re.fullmatch(r"(?i)BSE[-_ ]?JSRT", path.name)]


def _say_what_is_not_read(root: Path, has_masks: bool) -> None:
    """A note on the published projects' folders of masked images, where they are there."""
    there = [name for name in MASKED_FOLDERS if _holds_files(root / name)]
    if not there:
        return
    # A masked image is a function of image and mask, and a copy of it could disagree with both.
    source = f"the image and its mask in {root / 'Mask'}" if has_masks else "the image and the lungs found in it"
    processes.say(f"note: {' and '.join(there)} in {root} are not read; masked images are made from {source}")


def _holds_files(folder: Path) -> bool:
    """Whether a folder is there and holds more than hidden files: an empty Mask/ is no mistake."""
    return folder.is_dir() and any(not path.name.startswith(".") for path in folder.iterdir())


def find_pairs(root: str | Path) -> dict[str, Pair]:
    """{name: (CXR, soft tissue, mask or None)} of <root>/CXR, <root>/BS and <root>/Mask; UserError where a partner is
    missing."""
    pairs, faults = match(root)
    if faults:
        raise UserError(f"images without partner: {shown_names(faults, '; ')}")
    return pairs


def select(pairs: dict[str, Pair], path: str | Path, optional: bool = False) -> dict[str, Pair]:
    """The pairs that a split list names, in its order. An optional list that is not there, or empty, selects none."""
    # dataSegmentation.py writes an empty list for a share of 0
    if optional and not (Path(path).is_file() and Path(path).stat().st_size):
        return {}
    names = read_list(path)
    if missing := [name for name in names if name not in pairs]:
        raise UserError(f"{path} names images that the data folder does not hold: {shown_names(missing)}")
    return {name: pairs[name] for name in names}


def training_pairs(root: str | Path, lists: str | Path, name: str) -> tuple[dict[str, Pair], dict[str, Pair]]:
    """The training and the validation pairs; without a validation list there are none of the latter."""
    pairs = find_pairs(root)
    training = select(pairs, list_path(lists, name, "trainset"))
    # The validation list is optional: BS-LDM's published split is 80 / 20, without one.
    validation = select(pairs, list_path(lists, name, "valset"), optional=True)
    return training, validation


def with_twins(names: Iterable[str]) -> list[str]:
    """The names that have a twin without lesions, <name>_normal, if that is so for all; else none."""
    with_lesions = []
    without = []
    for name in names:
        group = without if name.endswith(TWIN) else with_lesions
        group.append(name)
    # All or none: a real data set may hold a name that ends in _normal by chance.
    expected = sorted(name + TWIN for name in with_lesions)
    return with_lesions if expected == sorted(without) else []


def describe(pairs: dict[str, Pair]) -> str:
    """A data list in a few characters, to tell whether two trainings had the same."""
    # Names in their order, which decides the order of training; their content is no part of it.
    digest = hashlib.sha256("/".join(pairs).encode()).hexdigest()
    return f"{len(pairs)} pairs, {digest[:8]}"


# --- Folders of images ------------------------------------------------------------------------------------------------


def find_images(folder: Path) -> dict[str, Path]:
    """As images.find: {name: path} of the images directly in a folder; those in folders below it are counted in a
    note."""
    # Images in sub-folders are named in the message, since "no image" alone would puzzle whoever sees them there.
    below = _count_below(folder)
    hint = f"{below} {'image lies' if below == 1 else 'images lie'} in sub-folders of {folder}"
    try:
        found = images.find(folder)
    except UserError as error:
        if below == 0:
            raise
        raise UserError(f"{error}; {hint}, which are not read: name one of them") from None
    if below:
        processes.say(f"note: {hint} and {'is' if below == 1 else 'are'} not read")
    return found


def _count_below(folder: Path) -> int:
    """How many images lie in the folders below this one, hidden ones apart."""
    count = 0
    for place, folders, files in os.walk(folder):
        # In place: os.walk then stays out of hidden folders.
        folders[:] = [name for name in folders if not name.startswith(".")]
        if Path(place) != folder:
            count += sum(looks_like_image(Path(place) / name) for name in files)
    return count


def looks_like_image(path: Path) -> bool:
    """By its ending, or for a file without a known one by DICOM's magic number."""
    if path.name.startswith(".") or path.name == "DICOMDIR" or not path.is_file():
        return False
    return path.suffix.lower() in images.SUFFIXES or images.is_dicom(path)


def leads_outside(path: str | Path, folder: str | Path) -> bool:
    """Whether a path leads out of a folder, by itself or through links."""
    # Resolved on both sides: the data folder itself may well be a link.
    return not Path(path).resolve().is_relative_to(Path(folder).resolve())


def size_text(pixels: np.ndarray) -> str:
    """'width x height' of (H, W), for messages."""
    height, width = pixels.shape
    return f"{width} x {height}"
