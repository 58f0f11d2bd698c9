"""What is wrong with the pairs of a data folder: files, sizes, alignment, masks, and images that are there twice."""

import hashlib
import math
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from .. import images, plausibility
from ..runtime import processes, workers
from ..runtime.files import UserError
from . import duplicates, lists, patients
from .lists import TWIN, Pair, size_text

ALIGN_SIZE = 256  # side at which alignment is judged, pixels
MAX_SHIFT = 4.0  # larger shifts of a pair at that size are a fault, pixels
BLACK, WHITE = 0.1, 0.9  # shares of a mask's largest value between which it is grey
MAX_GREY = 0.05  # share of pixels of a mask that may be grey
# Edges of ribs are what a difference of two Gaussians of these sigmas leaves, pixels at ALIGN_SIZE
EDGE_SIGMAS = (1.0, 4.0)
MIDDLE = np.s_[40:200, 30:226]  # of an image at ALIGN_SIZE: the chest, without the borders
# So much more of them than the CXR has makes the soft-tissue image suspect. Measured: 0.57 to 0.87 times as much on
# real, drawn and CT pairs, so 1.15 or more where the two are exchanged.
EXCHANGED = 1.05
SAMPLED = 4  # pairs by which a training judges whether its files say which grey values are black and white


# --- One pair ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Findings:
    """What one look at a pair finds. faults: one line each; the rest only of a pair without faults.

    digests, sketches: of the pixels of CXR and soft tissue. inverted: bones look dark. exchanged: the soft-tissue image
    shows more edges of bone than the CXR. guessed: the bits of files that do not say how many are used. stretched: both
    are shown over their own range of values, for want of a window.
    """

    faults: list[str]
    digests: tuple[str, str] | None = None
    sketches: tuple[np.ndarray, np.ndarray] | None = None
    inverted: bool = False
    exchanged: bool = False
    guessed: int | None = None
    stretched: bool = False


def examine(pair: Pair) -> Findings:
    """Read a pair once and look at all that can be seen without the others."""
    # Both images are looked at even if the first is faulty: all faults of a pair are reported at once.
    cxr_path, soft_path, mask_path = pair
    faults = []
    pictures = []
    for path in (cxr_path, soft_path):
        if not lists.can_be_listed(path.name):
            faults.append(
                f"{path.name!r} in {path.parent}: a split list cannot hold this name, rename it (no line breaks, no "
                "blanks at the ends, valid Unicode)"
            )
        try:
            pictures.append(plausibility.check(images.read(path)))
        except UserError as error:
            faults.append(str(error))

    # Comparisons need what they compare; a file that cannot be read is a fault already.
    if len(pictures) == 2:
        faults += _compare(*pictures)
    if mask_path is not None and pictures:
        faults += _check_mask(mask_path, pictures[0])
    if faults:
        return Findings(faults)

    # Only what the comparison with other pairs needs is kept: thousands of images would not fit in memory.
    cxr, soft = (picture.pixels for picture in pictures)
    return Findings(
        [],
        (_digest(cxr), _digest(soft)),
        (duplicates.sketch(cxr), duplicates.sketch(soft)),
        plausibility.inverted(cxr),
        look_exchanged(cxr, soft),
        guessed_bits(pictures[0]),
        pictures[0].stretched and pictures[1].stretched,
    )


def check_pair(cxr: Path, soft: Path, mask: Path | None = None) -> list[str]:
    """The faults of one pair, one line each; none: an empty list."""
    return examine((cxr, soft, mask)).faults


def _digest(pixels: np.ndarray) -> str:
    # Of the pixels: one image saved twice makes two different files. With the shape, which the bytes do not tell.
    return hashlib.sha256(str(pixels.shape).encode() + pixels.tobytes()).hexdigest()


def look_exchanged(cxr: np.ndarray, soft: np.ndarray) -> bool:
    """Whether the soft-tissue image shows more edges of bone than the CXR, both (H, W) in [0, 1]."""
    return _edges(soft) > EXCHANGED * _edges(cxr)


def _edges(pixels: np.ndarray) -> float:
    """How much of the contrast in the middle of an image is as fine as the edges of ribs."""
    small = images.to_network(pixels, ALIGN_SIZE)[0].numpy()
    # Band-pass by a difference of Gaussians, over the contrast, so that window and tone curve hardly matter.
    fine, coarse = (cv2.GaussianBlur(small, (0, 0), sigma) for sigma in EDGE_SIGMAS)
    contrast = small[MIDDLE].std()
    return float((fine - coarse)[MIDDLE].std() / contrast) if contrast > 0 else 0.0


def _compare(cxr: images.Picture, soft: images.Picture) -> list[str]:
    """Whether both images show the same chest in the same place, but are not the same image."""
    # The first fault is enough: the later checks presuppose the earlier ones.
    if cxr.pixels.shape != soft.pixels.shape:
        return [f"{soft.path} is {size_text(soft.pixels)}, but {cxr.path} {size_text(cxr.pixels)}"]
    if _are_of_two_patients(cxr.path, soft.path):
        return [f"{soft.path} has another PatientID than {cxr.path}"]
    if np.array_equal(cxr.pixels, soft.pixels):
        return [f"{soft.path} is the same image as {cxr.path}"]
    if of_different_greys(cxr, soft):
        return [different_greys(cxr, soft)]

    # Phase correlation finds the shift between both images; the window keeps their borders from counting as content.
    small_cxr = images.to_network(cxr.pixels, ALIGN_SIZE)[0].numpy()
    small_soft = images.to_network(soft.pixels, ALIGN_SIZE)[0].numpy()
    window = cv2.createHanningWindow((ALIGN_SIZE, ALIGN_SIZE), cv2.CV_32F)
    (across, down), _ = cv2.phaseCorrelate(small_cxr, small_soft, window)
    if math.hypot(across, down) > MAX_SHIFT:
        # In the file's own pixels, as a person would look them up.
        scale = max(cxr.pixels.shape) / ALIGN_SIZE
        return [
            f"{soft.path} is not aligned with {cxr.path}: shifted by {across * scale:.0f} pixels across and "
            f"{down * scale:.0f} down, or not the same chest"
        ]
    return []


def of_different_greys(cxr: images.Picture, soft: images.Picture) -> bool:
    """Whether the bits of two images were found from their content and came out differently."""
    # Grey values then mean different things in the two.
    return bool(cxr.note or soft.note) and cxr.scale != soft.scale


def different_greys(cxr: images.Picture, soft: images.Picture) -> str:
    """One line about a pair `of_different_greys`."""
    return (
        f"{soft.path} is read as {soft.bits} bits, but {cxr.path} as {cxr.bits}, since a file does not say how "
        "many are used: declare them (PNG sBIT, TIFF MaxSampleValue), save both over all 16, or say data.range= with "
        "data.source=, which makes copies that declare them"
    )


def check_ranges(pairs: dict[str, Pair], root: str | Path) -> None:
    """What dataSegmentation.py says of grey values that are not declared, before a training; the first process looks.

    A few pairs are read, and all of them if one of these does not declare its range. Raises UserError for pairs
    `of_different_greys`, and for a file that cannot be read.
    """
    if processes.rank() > 0:
        return
    # the lists may be somebody else's, made without this project's checks
    step = max(1, len(pairs) // SAMPLED)
    sample = [look_at_range(pair) for pair in list(pairs.values())[::step][:SAMPLED]]
    if not any(findings.faults or findings.guessed or findings.stretched for findings in sample):
        return
    # threads, since processes for this alone would stay as long as the training
    with ThreadPoolExecutor(workers.cores()) as pool:
        results = dict(zip(pairs, pool.map(look_at_range, pairs.values())))
    note_ranges(results, root)
    differing = [findings.faults[0] for findings in results.values() if findings.faults]
    if differing:
        more = f" ({len(differing)} such pairs of {len(pairs)})" if len(differing) > 1 else ""
        raise UserError(differing[0] + more)


def look_at_range(pair: Pair) -> Findings:
    """Findings of the grey scale alone."""
    cxr, soft = (images.read(path) for path in pair[:2])
    return Findings(
        [different_greys(cxr, soft)] if of_different_greys(cxr, soft) else [],
        guessed=guessed_bits(cxr),
        stretched=cxr.stretched and soft.stretched,
    )


def guessed_bits(picture: images.Picture) -> int | None:
    """The bits of a file that does not say how many of them are used; None if it does. Of one read with limits
    "auto"."""
    return picture.bits if picture.note else None


def _are_of_two_patients(cxr: Path, soft: Path) -> bool:
    """Whether both are DICOM files that name different patients."""
    first = patients.patient_number(cxr)
    second = patients.patient_number(soft)
    # None is no patient: a PNG beside a DICOM file is no contradiction.
    return first is not None and second is not None and first != second


def _check_mask(path: Path, cxr: images.Picture) -> list[str]:
    """Whether an image is a mask of the CXR's shape."""
    try:
        images.read_mask_of(path, cxr.pixels.shape)
        values = images.read(path).pixels
    except UserError as error:
        return [str(error)]
    # A picture in Mask/ by mistake is grey; a mask may be a little, from JPEG or resizing.
    grey = np.mean((values > BLACK * values.max()) & (values < WHITE * values.max()))
    if grey > MAX_GREY:
        return [f"{path} is no mask: {grey:.0%} of it is neither black nor white"]
    return []


# --- All pairs --------------------------------------------------------------------------------------------------------


def check(pairs: dict[str, Pair], root: Path) -> dict[str, list[str]]:
    """{name: faults} of the pairs that have any; images that look inverted or exchanged are named in notes."""
    results = dict(zip(pairs, workers.parallel(examine, list(pairs.values()), "checking pairs")))
    faults: dict[str, list[str]] = {
        name: list(findings.faults) for name, findings in results.items() if findings.faults
    }
    for name, pair in pairs.items():
        # Such a link may lead to images that nobody meant to be part of the data set.
        if any(path is not None and lists.leads_outside(path, root) for path in pair):
            faults.setdefault(name, []).append(f"{pair[0]}: it, its soft tissue or its mask is a link out of {root}")
    for name, line in find_duplicates(pairs, results).items():
        faults.setdefault(name, []).append(line)

    # Notes, not faults: both are judged by the content, which may mislead, and nothing is lost by going on.
    dark = [name for name, findings in results.items() if findings.inverted]
    if dark:
        print(
            f"note: bones look dark in {lists.shown_names(dark)} (of {len(pairs)}), and the methods "
            "expect bright ones; turn "
            f"them, or let data.source={root} data.root=<new folder> do it",
            file=sys.stderr,
        )
    exchanged = [name for name, findings in results.items() if findings.exchanged]
    if exchanged:
        print(
            "note: the soft-tissue image shows more bone than the CXR in "
            f"{lists.shown_names(exchanged)} (of {len(pairs)}); "
            "are the two exchanged?",
            file=sys.stderr,
        )
    note_ranges(results, root)
    return faults


def note_ranges(results: dict[str, Findings], root: str | Path) -> None:
    """Say which pairs' black and white are not declared by their files, and what was taken for them. root: their
    folder."""
    by_bits: dict[int, list[str]] = {}
    for name, findings in results.items():
        if findings.guessed is not None:
            by_bits.setdefault(findings.guessed, []).append(name)
    for bits, names in sorted(by_bits.items()):
        print(
            f"note: read as {bits} bits, since their 16-bit files use no more and do not say how many: "
            f"{lists.shown_names(names)} (of {len(results)}); if that is wrong, declare them (PNG sBIT, TIFF "
            f"MaxSampleValue), or let data.source={root} data.root=<new folder> data.range=4095 do it",
            file=sys.stderr,
        )
    stretched = [name for name, findings in results.items() if findings.stretched]
    if stretched:
        print(
            "note: no window in the DICOM files of "
            f"{lists.shown_names(stretched)} (of {len(results)}), so each is shown from its least to its largest "
            "value, and the difference of a pair is not bone alone; write one window into both files, or let "
            f"data.source={root} data.root=<new folder> data.range=BLACK..WHITE make copies of one range",
            file=sys.stderr,
        )


def find_duplicates(pairs: dict[str, Pair], results: dict[str, Findings]) -> dict[str, str]:
    """{name: one line} of the pairs whose CXR or soft-tissue image an earlier pair has too, equal or nearly so.

    The simulated twins of one patient, with and without lesions, are meant to be nearly equal.
    """
    # Equal images, found by their digests. CXRs are compared with CXRs only, soft tissue with soft tissue.
    lines: dict[str, str] = {}
    first_of: dict[tuple[int, str], str] = {}  # {(0: CXR or 1: soft tissue, digest): name of the first that has it}
    sketches_of = {}  # {name: sketches} of those that have no equal before them
    for name, findings in results.items():
        if findings.digests is None or findings.sketches is None:
            continue
        for place, path in enumerate(pairs[name][:2]):
            first = first_of.setdefault((place, findings.digests[place]), name)
            if first != name:
                lines.setdefault(name, f"{path} is the same image as {pairs[first][place]}")
        if name not in lines:
            sketches_of[name] = findings.sketches

    # Nearly equal ones: their sketches tell which images are looked at again.
    single = list(sketches_of)
    near = []
    for place in (0, 1):
        near.append(duplicates.near_pairs([sketches[place] for sketches in sketches_of.values()]))
    for number, name in enumerate(single):
        twins = (name + TWIN, name.removesuffix(TWIN))
        for place, path in enumerate(pairs[name][:2]):
            earlier = [single[other] for other in near[place].get(number, [])]
            # Only with faultless ones, so that each copy is reported against the original.
            others = [other for other in earlier if other not in lines and other not in twins]
            match = duplicates.first_equal(path, {other: pairs[other][:2][place] for other in others})
            if match is not None:
                lines.setdefault(name, f"{path} is nearly the same image as {pairs[match][place]}")
    return {name: lines[name] for name in results if name in lines}


def refuse_or_skip(
    pairs: dict[str, Pair], lonely: list[str], faults: dict[str, list[str]], skip: bool
) -> dict[str, Pair]:
    """The pairs without fault; UserError where there are faults that may not be skipped, after all of them are listed.

    lonely: the lines about images without a partner.
    """
    # All of them before the refusal: a data set is mended in one go.
    for line in lonely:
        print(f"fault: {line}", file=sys.stderr)
    for lines in faults.values():
        for line in lines:
            print(f"fault: {line}", file=sys.stderr)

    number = len(lonely) + len(faults)
    if number and not skip:
        raise UserError(
            f"{number} of {len(pairs) + len(lonely)} names have faults (listed above) and nothing was "
            "written; mend them, or leave them out with data.skip_faulty=true"
        )
    kept = {name: pair for name, pair in pairs.items() if name not in faults}
    if not kept:
        raise UserError("no pair without fault is left")
    if number:
        print(f"{number} faulty left out, {len(kept)} pairs kept")
    return kept
