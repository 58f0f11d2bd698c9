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
    """One X-ray to evaluate, with the files of the same name that lie beside it. target: the true soft tissue."""
    name: str
    path: Path
    mask: Path | None
    target: Path | None

    @property
    def content(self) -> str:
        """Digests of what the result depends on: the X-ray's file and the mask's."""
        digests = [checkpoint.digest(self.path)]
        if self.mask is not None:
            digests.append(checkpoint.digest(self.mask))
        return "/".join(digests)


def find_cases(source, root, masks) -> list[Case]:
    """The X-rays of eval.input, all read once, so that a bad one is named before a network is built.

    source: an image, a folder of images or a split list of names in <root>/CXR. masks: folder of lung masks; None:
    Mask/ beside the folder CXR/ of the images, as the true soft tissue is looked for in BS/.
    """
    found = lists.inputs(source, root)
    given = images.find(masks) if masks else None
    cases = []
    for name, path in found.items():
        mask = lists.beside(path, "Mask") if given is None else given.get(name)
        cases.append(Case(name, path, mask, lists.beside(path, "BS")))

    # every image and mask is read
    hidden = len(cases) < FEW or processes.rank() > 0
    for case in tqdm(cases, desc="checking", unit="image", leave=False, disable=hidden):
        check_case(case)
    if given is not None:
        missing = [case.name for case in cases if case.mask is None]
        if missing:
            raise UserError(f"{masks} has no mask for {lists.some(missing)}")
    return cases


def check_case(case: Case) -> None:
    """Raise UserError for an image that cannot be read or is no X-ray, and for a mask of another size; note dark
    bones."""
    scan = images.check(images.read(case.path))
    if images.inverted(scan.pixels):
        processes.say(f"note: bones look dark in {case.path}; the methods expect bright ones")
    if case.mask is not None:
        mask = images.read_mask(case.mask)
        if mask.shape != scan.pixels.shape:
            mask_size = lists.size_text(mask)
            scan_size = lists.size_text(scan.pixels)
            raise UserError(f"the mask {case.mask} is {mask_size}, but {case.path} {scan_size}")
