"""The X-rays that an evaluation is given: one image, a folder with all folders below it, or a list of paths; and what
lies beside them in Mask/ and BS/.

The split lists and pairs of a training are in lists.py.
"""

import os
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from .. import images
from ..runtime import processes
from ..runtime.files import UserError
from .lists import find_list, looks_like_image, read_lines, repeated, shown_names

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


def find_inputs(source: str | Path, root: str | Path) -> dict[str, str]:
    """{name: file} of what is to be evaluated: one image, a folder with all folders below it, or a list (see
    `read_paths`).

    A name is the path below the folder without its ending, such as patient7/scan2: results mirror the tree.
    """
    source = find_list(Path(source))
    if source.suffix == ".txt":
        return read_paths(source, root)
    if source.is_dir():
        return find_tree(source)
    if not source.is_file():
        raise UserError(f"eval.input={source} is neither an image, nor a folder, nor a split list")
    return {images.stem(source): str(source)}


# --- Trees ------------------------------------------------------------------------------------------------------------


def find_tree(top: str | Path) -> dict[str, str]:
    """{name: file} of the images in a folder and in all folders below it, in natural order. Files are texts here and
    below, since to make the paths of 100 000 takes seconds.

    Left out are hidden files and folders, soft tissue and masks beside a folder CXR/, results of evaluations below the
    folder, and links that lead back to a folder above them. Raises UserError where there is no image, where two have
    one name, and for names that are not UTF-8.
    """
    top = str(Path(top))  # without a slash at its end
    found: dict[str, str] = {}
    left_out: list[str] = []
    clashes: list[str] = []
    top_length = len(os.path.join(top, ""))
    for folder, files in _walk(top, left_out):
        start = os.path.join(folder, "")  # with the slash at its end
        prefix = start[top_length:]
        if not folder.isascii():
            images.refuse_name(folder)
        for name in images.in_natural_order(files):
            # a name with a known ending is one with a stem; what is hidden or has none is looked at
            stem = images.stem_of(name)
            if (stem == name or name.startswith(".")) and not looks_like_image(Path(start + name)):
                continue
            if not name.isascii():
                images.refuse_name(start + name)
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


def _walk(top: str, left_out: list[str]) -> Iterator[tuple[str, list[str]]]:
    """(folder, names of its files) of a folder and of those below it, in natural order. What is left out is named in
    `left_out`."""
    # A link to a folder above it would lead in a circle, so below a link each folder comes with the identities of those
    # above it; without a link on the way (None) none can be met twice. A hundred thousand folders are not asked.
    waiting: list[tuple[str, tuple | None]] = [(top, None)]
    while waiting:
        folder, above = waiting.pop()
        try:
            here = None if above is None else (*above, _identity(folder))
            files, below, links = _list_folder(folder)
        except OSError as error:
            raise UserError(f"cannot read the folder {folder}: {error.strerror or error}") from None
        if here is not None and here[-1] in here[:-1]:
            left_out.append(f"{folder} (a link to a folder above it)")
            continue

        # what an evaluation has written is no input of the next one
        start = os.path.join(folder, "")
        records = [name for name in files if name.endswith(RECORD_ENDINGS) and RECORD_FILE.fullmatch(name)]
        holds_results = any(_is_record(Path(start + name)) for name in records)
        if holds_results and folder != top:
            left_out.append(f"{folder} (results of an evaluation)")
            continue
        apart = set(RESULT_FOLDERS) if holds_results else set()
        if "CXR" in below:
            apart = apart | NO_XRAYS
        left_out += [start + name for name in images.in_natural_order(below & apart)]

        yield folder, files
        # a stack: the first folder in natural order has to lie on top
        for name in reversed(images.in_natural_order(below - apart)):
            above_it = here
            if above_it is None and name in links:
                above_it = _identities(top, folder)
            waiting.append((start + name, above_it))


def _identities(top: str, folder: str) -> tuple:
    """The identities of a folder and of those above it, from `top` on."""
    identities = [_identity(folder)]
    while folder != top:
        folder = os.path.dirname(folder)
        identities.append(_identity(folder))
    return tuple(identities)


def _identity(folder: str) -> tuple[int, int]:
    """The same for two paths of one folder."""
    status = os.stat(folder)
    return status.st_dev, status.st_ino


def _list_folder(folder: str) -> tuple[list[str], set[str], set[str]]:
    """(names of the files, of the folders that are not hidden, of those that are links) in a folder; links are what
    they lead to."""
    files = []
    below = set()
    links = set()
    with os.scandir(folder) as entries:
        for entry in entries:
            # most are plain files, which listing the folder has told
            if entry.is_file(follow_symlinks=False):
                files.append(entry.name)
                continue
            # a link that leads to itself is neither; the entry's own is_dir would raise an error
            is_link = entry.is_symlink()
            is_folder = os.path.isdir(entry.path) if is_link else entry.is_dir()
            if is_folder and not entry.name.startswith("."):
                below.add(entry.name)
                if is_link:
                    links.add(entry.name)
            elif not is_folder and images.is_file(entry):
                files.append(entry.name)
    return files, below, links


def _is_record(path: Path) -> bool:
    """Whether a summary.json or unfinished_*.jsonl is the record of an evaluation, and not of another program."""
    try:
        content = path.read_bytes()
    except OSError:
        return False
    return any(key in content for key in RECORD_KEYS)


# --- Lists of paths --------------------------------------------------------------------------------------------------


def read_paths(path: str | Path, root: str | Path) -> dict[str, str]:
    """{name: file} of the X-rays in a list: plain names as in a split list, or relative or absolute paths, one a line.

    Relative ones lie below <root>/CXR, the list's own folder or the current one: the first of these that holds the
    first line's file. A result mirrors the line; if one line is absolute or leads upwards, it mirrors the path below
    the folder that all files have in common. Raises UserError for a list that is missing or empty, for a file that is
    not there, and where two lines would have one result.
    """
    lines = read_lines(path)
    if any("\0" in line for line in lines):
        raise UserError(f"the list {path} holds a line with a NUL, which no path has")

    # "./a.png" is "a.png", and links among the folders stay as they are
    lines = [str(Path(line)) if "./" in line or "//" in line or line.endswith("/") else line for line in lines]

    # where relative lines begin
    bases = (Path(root) / "CXR", Path(path).parent, Path())
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


# --- Masks and true soft tissue beside them ---------------------------------------------------------------------------


@cache
def images_beside(folder: Path, other: str) -> dict[str, Path]:
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
    images_beside.cache_clear()
