"""The X-rays to evaluate, with what lies beside them."""

import os
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from .. import images
from ..data import inputs, lists
from ..runtime import checkpoint, processes
from ..runtime.files import UserError
from ..runtime.garbage import without_collection

ASKING = 16  # threads that ask a slow file system for the inputs
ASKED_TOGETHER = 200  # inputs
SLOW_ANSWER = 1e-4  # seconds from which a file system is slow


class Case(NamedTuple):
    """One X-ray to evaluate, with the files of the same name that lie beside it. file: the X-ray's; target: the true
    soft tissue.

    limits: the grey values of black and white with which the X-ray is read (see images.read).
    """

    name: str
    file: str | Path
    mask: Path | None
    target: Path | None
    limits: images.Limits = "auto"

    @property
    def path(self) -> Path:
        """The X-ray's file."""
        return Path(self.file)  # made when it is needed: to make those of 100 000 X-rays takes a second

    @property
    def content(self) -> str:
        """Digests of what the result depends on: the X-ray's file and the mask's."""
        # The content, not the path or the date: a moved or copied data set is still done, an edited image is not.
        digests = [checkpoint.digest(self.path)]
        if self.mask is not None:
            digests.append(checkpoint.digest(self.mask))
        return "/".join(digests)

    @property
    def stamp(self) -> str:
        """Sizes and times of change of the same files; "" if one is not there. What has kept them is not read again to
        know its content."""
        return "/".join([stamp_of(status) for status in self.statuses()])

    def statuses(self) -> list[os.stat_result]:
        """What the file system says of the same files; empty if one is not there."""
        paths = [self.file] if self.mask is None else [self.file, self.mask]
        try:
            return [os.stat(path) for path in paths]
        except OSError:
            return []


def stamp_of(status: os.stat_result) -> str:
    """A file's share of a stamp (see Case.stamp)."""
    return f"{status.st_size}.{status.st_mtime_ns}"


def stamps_and_numbers(cases: list[Case]) -> tuple[dict[str, str], set[int]]:
    """({name: stamp} of X-rays, the numbers (st_ino) of all files that are read). Each file is asked for once."""
    stamps: dict[str, str] = {}
    first = cases[:ASKED_TOGETHER]
    rest = cases[ASKED_TOGETHER:]
    start = time.perf_counter()
    numbers = _ask_for(first, stamps)
    seconds = (time.perf_counter() - start) / max(1, len(first))
    if seconds < SLOW_ANSWER:
        return stamps, numbers | _ask_for(rest, stamps)

    # A network file system takes half a millisecond to answer: of 100 000 images a minute by one thread, a few seconds
    # by many. On a disk of this machine threads would get in each other's way.
    groups = [rest[place : place + ASKED_TOGETHER] for place in range(0, len(rest), ASKED_TOGETHER)]
    with ThreadPoolExecutor(ASKING) as pool:
        numbers = numbers.union(*pool.map(lambda group: _ask_for(group, stamps), groups))
    return stamps, numbers


def _ask_for(cases: list[Case], stamps: dict[str, str]) -> set[int]:
    """The numbers of the files that are read of some X-rays; adds their stamps."""
    numbers = set()
    for case in cases:
        # the plain case by itself: a hundred thousand calls more would take as long as the questions
        name, file, mask, target, _ = case
        if mask is None and target is None:
            try:
                status = os.stat(file)
            except OSError:
                stamps[name] = ""
                continue
            stamps[name] = stamp_of(status)
            numbers.add(status.st_ino)
            continue
        statuses = case.statuses()
        stamps[name] = "/".join([stamp_of(status) for status in statuses])
        numbers.update([status.st_ino for status in statuses])
        if target is not None:
            with suppress(OSError):
                numbers.add(os.stat(target).st_ino)
    return numbers


@without_collection()
def find_cases(source, root, masks, limits: images.Limits = "auto") -> list[Case]:
    """The X-rays of eval.input, none of which is read yet (see reading.py).

    source: an image, a folder with what lies below it, or a list. masks: folder of lung masks; None: Mask/ beside the
    folder CXR/ of the images, as the true soft tissue is looked for in BS/. limits: see images.read. Files of kinds
    that are not read are named in a note.
    """
    inputs.forget_folders()  # files may have come since the last time
    # masks of their own folder replace those beside the X-rays altogether: a mixture of two sources would go unseen
    found = inputs.find_inputs(source, root)
    given = None
    if masks:
        given = {name: Path(file) for name, file in inputs.find_tree(masks).items()}
    beside: dict[str, tuple[dict[str, Path], dict[str, Path]]] = {}  # folder of X-rays -> {name: mask}, {name: target}
    cases = []
    for name, file in found.items():
        folder = file.rpartition("/")[0] or os.path.dirname(file)  # the second of a file in / itself
        if folder not in beside:
            beside[folder] = ({}, {})
            # asked of the text first: the paths of a hundred thousand folders would take a minute
            if "CXR" in folder.split("/"):
                beside[folder] = (inputs.images_beside(Path(folder), "Mask"), inputs.images_beside(Path(folder), "BS"))
        masks_there, targets_there = beside[folder]
        mask = None
        target = None
        # of a hundred thousand X-rays that have nothing beside them nothing more is asked
        if masks_there or targets_there:
            stem = name.rpartition("/")[2]
            mask = masks_there.get(stem)
            target = targets_there.get(stem)
        if given is not None:
            mask = given.get(name)
        cases.append(Case(name, file, mask, target, limits))

    # files that a person may expect to be evaluated, but that are no images
    if Path(source).is_dir():
        foreign = images.foreign(source)
        if foreign:
            names = [path.name for path in foreign]
            processes.say(f"note: not read in {source}, since of another kind: {lists.shown_names(names)}")

    # With a folder of masks, GL-LCM must not quietly find some of the lungs by itself.
    if given is not None:
        missing = [case.name for case in cases if case.mask is None]
        if missing:
            raise UserError(f"{masks} has no mask for {lists.shown_names(missing)}")
    return cases


def read_target(case: Case) -> images.Picture:
    """The true soft tissue beside an X-ray. If its file does not say how many of its bits are used, the limits that the
    X-ray is read with hold for it too."""
    picture = images.read(case.target)
    if picture.note and case.limits != "auto":
        return images.read(case.target, case.limits)
    return picture
