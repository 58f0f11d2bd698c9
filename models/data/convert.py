"""The pairs of another folder, JSRT's among them, as a data folder: PNGs with bright bones, no larger than the networks
see."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .. import images, plausibility
from ..runtime import workers
from ..runtime.files import MachineError, UserError
from . import checks, lists
from .checks import Findings
from .lists import Pair

SAME = 1 / 255  # mean difference up to which two images are one: versions of OpenCV round differently


@dataclass(frozen=True)
class Job:
    """One pair to be converted. targets: where its images go, in the order of the pair; size: the longer side of the
    results is at most this, pixels; limits: those with which the X-ray and the soft tissue are read."""

    pair: Pair
    targets: tuple[Path, Path, Path]
    size: int
    limits: images.Limits

    def missing(self) -> list[int]:
        """The places in the pair of the images that are still to be written."""
        places = range(len(self.pair))
        return [place for place in places if self.pair[place] is not None and not self.targets[place].is_file()]


@dataclass(frozen=True)
class Converted:
    """What was seen of a pair, see checks.Findings. dark: names of images that were turned; cut: whether grey values
    lie outside the limits that were given."""

    findings: Findings
    dark: list[str]
    cut: bool = False


def convert(source: Path, root: Path, size: int, limits: images.Limits = "auto", skip_faulty: bool = False) -> None:
    """Write the pairs of another folder into root, bones bright and no side above size; what is there already stays as
    it is.

    limits: the grey values of black and white in X-rays and soft tissue (see images.read). The PNGs use all of their
    range, so that nobody has to find it again. Raises UserError for images in root that are not those of the source,
    and for pairs that cannot be read or compared; the other pairs are written, and with skip_faulty that is all.
    """
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
    jobs = {}
    for name, pair in pairs.items():
        cxr, soft, mask = (root / folder / f"{name}.png" for folder in lists.FOLDERS)
        jobs[name] = Job(pair, (cxr, soft, mask), size, limits)
    refuse_others(list(jobs.values()), source, root)

    # A conversion that was cut off goes on; every file is written whole or not at all.
    unfinished = {name: job for name, job in jobs.items() if job.missing()}
    count = sum(len(job.missing()) for job in unfinished.values())
    converted = workers.parallel(convert_pair, list(unfinished.values()), "converting")
    results = dict(zip(unfinished, converted))
    count -= sum(len(job.missing()) for job in unfinished.values())
    print(f"{root}: {len(pairs)} pairs of {source}, {count} images newly written")

    # Reported, since whether bones are dark is judged by the content and may be wrong.
    dark = [name for result in results.values() for name in result.dark]
    if dark:
        print(f"note: bones were dark and are bright now in {lists.shown_names(dark)}", file=sys.stderr)
    # Nobody can see it in the copies any more.
    checks.note_ranges({name: result.findings for name, result in results.items()}, source)
    cut = [name for name, result in results.items() if result.cut]
    if cut:
        print(
            f"note: grey values outside data.range are cut in {lists.shown_names(cut)} (of {len(results)})",
            file=sys.stderr,
        )

    # All of them, so that they can be mended in one go.
    faults = [fault for result in results.values() for fault in result.findings.faults]
    for fault in faults:
        print(f"fault: {fault}", file=sys.stderr)
    if faults and not skip_faulty:
        raise UserError(
            f"{len(faults)} faults in {source} (listed above), the pairs without are in {root}; mend them and call "
            "again, or leave them out with data.skip_faulty=true"
        )


def refuse_others(jobs: list[Job], source: Path, root: Path) -> None:
    """Raise UserError if the place of a result is taken by an image that is not this result; say what else lies
    there."""
    # By stem, since x.png beside an x.jpg would leave open which is meant.
    others = []
    for place, folder in enumerate(lists.FOLDERS):
        own = {job.targets[place].stem: job for job in jobs if job.pair[place] is not None}
        for path in sorted((root / folder).glob("*"), key=lambda path: images.natural(path.name)):
            job = own.get(images.stem(path))
            if path.suffix.lower() not in images.SUFFIXES or path.name.startswith("."):
                continue
            if job is None:
                others.append(str(path))
            elif path != job.targets[place]:
                raise UserError(f"{path} is in the way of {job.targets[place]}; choose another data.root")

    # Results of an earlier call are made again and compared: no record can tell an image that was put there since.
    started = [job for job in jobs if any(target.is_file() for target in job.targets)]
    strange = [path for found in workers.parallel(find_strange, started, "comparing") for path in found]
    if strange:
        raise UserError(
            f"{lists.shown_names(strange)}: not what data.source={source} becomes with these settings; choose another "
            "data.root, or leave data.source away"
        )
    if others:
        print(f"note: {root} holds images that are not of {source}: {lists.shown_names(others)}", file=sys.stderr)


def find_strange(job: Job) -> list[str]:
    """The files in the places of a pair's results that are not its results."""
    strange = []
    for place, target in enumerate(job.targets):
        path = job.pair[place]
        if path is None or not target.is_file():
            continue
        pixels = convert_image(job, place)[0]
        try:
            there = images.read(target).pixels
        except UserError:
            # What cannot be read was not written here: files are written whole or not at all.
            strange.append(str(target))
            continue
        if there.shape != pixels.shape or np.abs(there - pixels).mean() > SAME:
            strange.append(str(target))
    return strange


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


def convert_pair(job: Job) -> Converted:
    """Write the images of a pair that are not there yet. A pair of different grey values is a fault, and nothing of it
    is written."""
    dark = []
    try:
        pictures = [images.read(path, job.limits) for path in job.pair[:2] if path is not None]
        cxr, soft = pictures
        # With limits that are given, a note says that values were cut.
        found = job.limits == "auto"
        if found and checks.of_different_greys(cxr, soft):
            return Converted(Findings([checks.different_greys(cxr, soft)]), dark)
        for place in job.missing():
            pixels, bits, was_dark = convert_image(job, place, pictures)
            images.write(job.targets[place], pixels, bits)
            if was_dark:
                dark.append(pictures[place].path.name)
    except MachineError:  # a full disk is no fault of the pair
        raise
    except UserError as error:
        return Converted(Findings([str(error)]), dark)
    guessed = checks.guessed_bits(cxr) if found else None
    findings = Findings([], guessed=guessed, stretched=cxr.stretched and soft.stretched)
    return Converted(findings, dark, cut=not found and bool(cxr.note or soft.note))


def convert_image(job: Job, place: int, pictures: Sequence[images.Picture] = ()) -> tuple[np.ndarray, int, bool]:
    """An image of a pair as it is written: ((H, W) in [0, 1], its bits, whether its bones were dark and are turned).

    pictures: X-ray and soft tissue, where they are read already.
    """
    path = job.pair[place]
    if lists.FOLDERS[place] == "Mask":
        # A mask is neither inverted nor interpolated in grey: half of the area decides.
        mask = images.read_mask(path)
        smaller = images.resize_mask(mask, _within(mask.shape, job.size))
        return smaller.astype(np.float32), 8, False

    # The networks expect bright bones (JSRT's raw files have dark ones). Judged for each image of a pair by itself.
    picture = pictures[place] if pictures else images.read(path, job.limits)
    dark = plausibility.inverted(picture.pixels)
    pixels = 1 - picture.pixels if dark else picture.pixels
    # As many bits as the source: 12-bit JSRT stays finer than 8.
    return images.resize(pixels, _within(pixels.shape, job.size)), picture.bits, dark


def _within(shape: tuple[int, ...], size: int) -> tuple[int, int]:
    """The shape (H, W), its longer side cut to size."""
    # Never enlarged, and the aspect is kept: the networks' input is padded to a square elsewhere.
    scale = min(1, size / max(shape))
    height, width = (max(1, round(side * scale)) for side in shape)
    return height, width
