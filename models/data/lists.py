"""Which images there are, which of them belong together, and the split lists that name them."""

import hashlib
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

import numpy as np

from .. import images
from ..runtime import processes
from ..runtime.files import UserError

FOLDERS = ("CXR", "BS", "Mask")  # of a data set: chest X-rays, soft tissue, lung masks
MASKED_FOLDERS = ("Masked_CXR", "Masked_BS")  # of the published projects
SETS = ("trainset", "valset", "testset")
TWIN = "_normal"  # ends the name of a simulated pair without lesions beside the same patient's pair with them
NO_XRAYS = {"BS", "Mask", "Masked_CXR", "Masked_BS"}  # folders beside CXR/, as published
# What an evaluation leaves in its folder, and the folders in it beside the results: {folder: endings of its files}.
RECORD_FILE = re.compile(r"summary\.json|unfinished_.*\.jsonl")
RECORD_ENDINGS = (".json", ".jsonl")  # asked first, since most files have neither
RESULT_FOLDERS = {
    "panels": ("png",),
    "thumbs": ("png",),
    "latents": ("png",),
    "deviation": ("png",),
    "overlays": ("png",),
    "dicom": ("dcm",),
    "global": ("png",),
    "local": ("png",),
    "snapshots": ("png", "gif"),
}
RECORD_KEYS = (b'"seconds_per_image"', b'"about"')  # one of them stands in a record of ours
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
    path = Path(path)
    if not path.is_file():
        raise UserError(f"no list {path}; python dataSegmentation.py writes the lists")
    try:
        lines = _lines(path.read_bytes())
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read the list {path}: {error}") from None

    for line in lines:
        if _is_path(line):
            # A list may come from others; a path in it could name any file of the machine.
            raise UserError(f"{path}: '{line}' is a path; a list holds plain file names")

    # Endings are no part of the names: the images may be stored in another format here.
    names = [images.stem(line) for line in lines]
    if not names:
        raise UserError(f"the list {path} is empty")
    if twice := repeated(names):
        raise UserError(f"{path} names the same image more than once: {shown_names(twice)}")

    if folder is not None:
        found = images.find(folder)
        if missing := [name for name in names if name not in found]:
            raise UserError(f"{path} names images that {folder} does not hold: {shown_names(missing)}")
        if strange := [name for name in names if leads_outside(found[name], folder)]:
            raise UserError(f"{path} names links that lead out of {folder}: {shown_names(strange)}")
    return names


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


# --- Folders and single images ----------------------------------------------------------------------------------------


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
            count += sum(_looks_like_image(Path(place) / name) for name in files)
    return count


def _looks_like_image(path: Path) -> bool:
    """By its ending, or for a file without a known one by DICOM's magic number."""
    if path.name.startswith(".") or path.name == "DICOMDIR" or not path.is_file():
        return False
    return path.suffix.lower() in images.SUFFIXES or images.is_dicom(path)


def inputs(what: str | Path, root: str | Path) -> dict[str, str]:
    """{name: file} of what is to be evaluated: one image, a folder with all folders below it, or a list (see
    `read_paths`).

    A name is the path below the folder without its ending, such as patient7/scan2: results mirror the tree.
    """
    what = find_list(Path(what))
    if what.suffix == ".txt":
        return read_paths(what, root)
    if what.is_dir():
        return find_tree(what)
    if not what.is_file():
        raise UserError(f"eval.input={what} is neither an image, nor a folder, nor a split list")
    return {images.stem(what): str(what)}


# --- Trees ------------------------------------------------------------------------------------------------------------


def find_tree(top: str | Path) -> dict[str, str]:
    """{name: file} of the images in a folder and in all folders below it, in natural order. Files are texts here and
    below, since to make the paths of 100 000 takes seconds.

    Left out are hidden files and folders, soft tissue and masks beside a folder CXR/, results of evaluations below the
    folder, and links that lead back to a folder above them. Raises UserError where there is no image, where two have
    one name, and for names that are not UTF-8.
    """
    top = Path(top)
    found: dict[str, str] = {}
    left_out: list[str] = []
    clashes: list[str] = []
    for folder, files in _walk(top, left_out):
        prefix = "" if folder == top else f"{folder.relative_to(top).as_posix()}/"
        start = os.path.join(folder, "")  # with the slash at its end
        images.refuse_name(folder)
        for name in images.in_natural_order(files):
            # a name with a known ending is one with a stem; what is hidden or has none is looked at
            stem = images.stem_of(name)
            if (stem == name or name.startswith(".")) and not _looks_like_image(folder / name):
                continue
            if not name.isascii():
                images.refuse_name(folder / name)
            # x.png beside x.tif: both would have the result x.png
            key = prefix + stem
            if key in found:
                clashes.append(f"{found[key]} and {name}")
                continue
            found[key] = start + name

    if clashes:
        pairs = shown_names(clashes, "; ")
        raise UserError(f"{pairs} have the same name but for the ending, so one result; keep one of them, or list them")
    if left_out:
        processes.say(f"note: not read below {top}: {shown_names(left_out)}")
    if not found:
        # the message of a single folder, which also names files of other kinds
        if not left_out:
            images.find(top)
        raise UserError(f"no image in {top}")
    return found


def _walk(top: Path, left_out: list[str]) -> Iterator[tuple[Path, list[str]]]:
    """(folder, names of its files) of a folder and of those below it, in natural order. What is left out is named in
    `left_out`."""
    # Each folder comes with the identities of those above it: a link to one of them would lead in a circle.
    waiting: list[tuple[Path, tuple]] = [(top, ())]
    while waiting:
        folder, above = waiting.pop()
        try:
            status = os.stat(folder)
            files, below = _list_folder(folder)
        except OSError as error:
            raise UserError(f"cannot read the folder {folder}: {error.strerror or error}") from None
        identity = (status.st_dev, status.st_ino)
        if identity in above:
            left_out.append(f"{folder} (a link to a folder above it)")
            continue

        # what an evaluation has written is no input of the next one
        records = [name for name in files if name.endswith(RECORD_ENDINGS) and RECORD_FILE.fullmatch(name)]
        holds_results = any(_is_record(folder / name) for name in records)
        if holds_results and folder != top:
            left_out.append(f"{folder} (results of an evaluation)")
            continue
        apart = set(RESULT_FOLDERS) if holds_results else set()
        if "CXR" in below:
            apart = apart | NO_XRAYS
        left_out += [str(folder / name) for name in sorted(below & apart, key=images.natural)]

        yield folder, files
        # a stack: the first folder in natural order has to lie on top
        for name in sorted(below - apart, key=images.natural, reverse=True):
            waiting.append((folder / name, (*above, identity)))


def _list_folder(folder: Path) -> tuple[list[str], set[str]]:
    """(names of the files, names of the folders that are not hidden) in a folder; links are what they lead to."""
    files = []
    below = set()
    with os.scandir(folder) as entries:
        for entry in entries:
            # most are plain files, which listing the folder has told
            if entry.is_file(follow_symlinks=False):
                files.append(entry.name)
                continue
            # a link that leads to itself is neither; the entry's own is_dir would raise an error
            is_folder = os.path.isdir(entry.path) if entry.is_symlink() else entry.is_dir()
            if is_folder and not entry.name.startswith("."):
                below.add(entry.name)
            elif not is_folder and images.is_file(entry):
                files.append(entry.name)
    return files, below


def _is_record(path: Path) -> bool:
    """Whether a summary.json or unfinished_*.jsonl is the record of an evaluation, and not of another program."""
    try:
        content = path.read_bytes()
    except OSError:
        return False
    return any(key in content for key in RECORD_KEYS)


def read_paths(path: str | Path, root: str | Path) -> dict[str, str]:
    """{name: file} of the X-rays in a list: plain names as in a split list, or relative or absolute paths, one a line.

    Relative ones lie below <root>/CXR, the list's own folder or the current one: the first of these that holds the
    first line's file. A result mirrors the line; if one line is absolute or leads upwards, it mirrors the path below
    the folder that all files have in common. Raises UserError for a list that is missing or empty, for a file that is
    not there, and where two lines would have one result.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"no list {path}; python dataSegmentation.py writes the lists")
    try:
        lines = _lines(path.read_bytes())
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read the list {path}: {error}") from None
    if not lines:
        raise UserError(f"the list {path} is empty")
    if any("\0" in line for line in lines):
        raise UserError(f"the list {path} holds a line with a NUL, which no path has")

    # "./a.png" is "a.png", and links among the folders stay as they are
    lines = [str(Path(line)) if "./" in line or "//" in line or line.endswith("/") else line for line in lines]

    # where relative lines begin
    bases = (Path(root) / "CXR", path.parent, Path())
    relative = [line for line in lines if not os.path.isabs(line)]
    base = bases[0]
    if relative:
        base = next((folder for folder in bases if _listed_file(folder, relative[0]) is not None), bases[0])

    # the files
    files = [_listed_file(base, line) for line in lines]
    missing = [line for line, file in zip(lines, files) if file is None]
    if missing:
        raise UserError(f"{path} names images that {base} does not hold: {shown_names(missing)}")
    given = [file for file in files if file is not None]

    # the folders, of which there are fewer: {folder: what its images' names begin with}
    places = {folder: folder for folder, _ in given}
    common = base
    # Absolute before they are compared, since "a/../b" and "b" are one place; links stay as they are.
    if any(os.path.isabs(line) or ".." in line.split("/") for line in lines):
        places = {folder: Path(os.path.abspath(folder)) for folder in places}
        common = Path(os.path.commonpath(list(places.values())))
    prefixes = {}
    for folder, place in places.items():
        prefixes[folder] = "" if place == common else f"{place.relative_to(common).as_posix()}/"

    # the names
    names = [prefixes[folder] + images.stem_of(name) for folder, name in given]
    if twice := repeated(names):
        raise UserError(f"{path} names the same image more than once: {shown_names(twice)}")
    return dict(zip(names, [os.path.join(places[folder], name) for folder, name in given]))


def _listed_file(base: Path, line: str) -> tuple[Path, str] | None:
    """(folder, name) of the file that a line of a list means, with or without its ending; None if there is none."""
    start, name = os.path.split(line)
    folder = _below(base, start)
    if name in _files(folder):
        return folder, name
    file = _by_stem(folder).get(images.stem_of(name))
    return None if file is None else (folder, file.name)


@cache
def _below(base: Path, start: str) -> Path:
    """A folder below another: one object for all files in it, which are looked up by it."""
    return base / start


@cache
def _files(folder: Path) -> frozenset[str]:
    """The names of the files in a folder, links to files among them; none if it is not there."""
    # read once: a question to a network file system for each of 100 000 images would take minutes
    try:
        with os.scandir(folder) as entries:
            return frozenset([entry.name for entry in entries if images.is_file(entry)])
    except OSError:
        return frozenset()


@cache
def _by_stem(folder: Path) -> dict[str, Path]:
    """{name: file} of the images in a folder by their names without ending; the first by name where several share
    one."""
    found: dict[str, Path] = {}
    for name in sorted(_files(folder)):
        stem = images.stem_of(name)
        if stem != name and not name.startswith("."):
            found.setdefault(stem, folder / name)
    return found


@cache
def beside(folder: Path, other: str) -> dict[str, Path]:
    """{name: file} of the images in another folder (one of FOLDERS) beside the folder CXR/ that holds `folder` or is
    it, in the same place below it; none where there is no CXR/ above."""
    # Only beside a folder CXR/: anywhere else a file of the same name need not belong to this image.
    above = folder
    while above.name != "CXR":
        if above == above.parent:
            return {}
        above = above.parent
    return _by_stem(above.parent / other / folder.relative_to(above))


def forget_folders() -> None:
    """Let the next question read the folders again: files may have come since."""
    _files.cache_clear()
    _by_stem.cache_clear()
    beside.cache_clear()


def neighbour(path: Path, folder: str) -> Path | None:
    """The image of the same name in a folder (one of FOLDERS) beside the folder CXR/ in which the image lies, also in
    folders below both."""
    # Any ending: a mask may be a PNG beside a DICOM file.
    return beside(path.parent, folder).get(images.stem(path))


def leads_outside(path: str | Path, folder: str | Path) -> bool:
    """Whether a path leads out of a folder, by itself or through links."""
    # Resolved on both sides: the data folder itself may well be a link.
    return not Path(path).resolve().is_relative_to(Path(folder).resolve())


def size_text(pixels: np.ndarray) -> str:
    """'width x height' of (H, W), for messages."""
    height, width = pixels.shape
    return f"{width} x {height}"
