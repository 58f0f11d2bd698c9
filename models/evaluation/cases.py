"""The X-rays to evaluate, with what lies beside them."""

from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from .. import images
from ..data import lists
from ..runtime import checkpoint, processes
from ..runtime.files import UserError

FEW = 20  # images up to which checking them takes no progress bar


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


def find_cases(source, root, masks, limits: images.Limits = "auto") -> list[Case]:
    """The X-rays of eval.input, all read once, so that a bad one is named before a network is built.

    source: an image, a folder of images or a split list of names in <root>/CXR. masks: folder of lung masks; None:
    Mask/ beside the folder CXR/ of the images, as the true soft tissue is looked for in BS/. limits: see images.read.
    What reading them noted is printed, once for all images of which it is true.
    """
    # masks of their own folder replace those beside the X-rays altogether: a mixture of two sources would go unseen
    found = lists.inputs(source, root)
    given = images.find(masks) if masks else None
    cases = []
    for name, path in found.items():
        mask = lists.neighbour(path, "Mask") if given is None else given.get(name)
        cases.append(Case(name, path, mask, lists.neighbour(path, "BS"), limits))

    # every image and mask is read
    # A bad file found after hours of sampling would cost those hours; reading all first costs seconds.
    hidden = len(cases) < FEW or processes.rank() > 0
    noted: dict[str, list[Path]] = {}  # what was noted -> of which images
    for case in tqdm(cases, desc="checking", unit="image", leave=False, disable=hidden):
        note = check_case(case)
        if note:
            noted.setdefault(note, []).append(case.path)
    for note, paths in noted.items():
        others = f" and {len(paths) - 1} more" if len(paths) > 1 else ""
        processes.say(f"note: {paths[0]}{others}: {note}")

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


def check_case(case: Case) -> str:
    """Raise UserError for an image that cannot be read or is no X-ray, and for a mask of another shape; say that bones
    are dark. Returns what reading the image noted."""
    scan = images.check(images.read(case.path, case.limits))
    # only said, not corrected: darkness is a guess from the grey values, and the result would be inverted with it
    if images.inverted(scan.pixels):
        processes.say(f"note: bones look dark in {case.path}; the methods expect bright ones")

    # one of another shape belongs to another image
    if case.mask is not None:
        images.read_mask_of(case.mask, scan.pixels.shape)
    return scan.note
