"""The X-rays to evaluate, with what lies beside them."""

import os
from dataclasses import dataclass
from pathlib import Path

from .. import images
from ..data import lists
from ..runtime import checkpoint, processes
from ..runtime.files import UserError


@dataclass(frozen=True)
class Case:
    """One X-ray to evaluate, with the files of the same name that lie beside it. target: the true soft tissue.

    limits: the grey values of black and white with which the X-ray is read (see images.read).
    """

    name: str
    path: Path
    mask: Path | None
    target: Path | None
    limits: images.Limits = "auto"

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
        stamps = []
        for path in (self.path, self.mask):
            if path is None:
                continue
            try:
                status = os.stat(path)
            except OSError:
                return ""
            stamps.append(f"{status.st_size}.{status.st_mtime_ns}")
        return "/".join(stamps)


def find_cases(source, root, masks, limits: images.Limits = "auto") -> list[Case]:
    """The X-rays of eval.input, none of which is read yet (see reading.py).

    source: an image, a folder with what lies below it, or a list. masks: folder of lung masks; None: Mask/ beside the
    folder CXR/ of the images, as the true soft tissue is looked for in BS/. limits: see images.read. Files of kinds
    that are not read are named in a note.
    """
    lists.forget_folders()  # files may have come since the last time
    # masks of their own folder replace those beside the X-rays altogether: a mixture of two sources would go unseen
    found = lists.inputs(source, root)
    given = lists.find_tree(masks) if masks else None
    cases = []
    for name, path in found.items():
        mask = lists.neighbour(path, "Mask") if given is None else given.get(name)
        cases.append(Case(name, path, mask, lists.neighbour(path, "BS"), limits))

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
