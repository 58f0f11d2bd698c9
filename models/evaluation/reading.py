"""The X-rays of an evaluation, each read and checked once, by threads that are ahead of the network.

A process reads as far ahead as memory allows before the work begins, so that a file that cannot be read is named then;
of a large collection the rest is read while the network computes.
"""

import sys
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
from tqdm import tqdm

from .. import images, plausibility
from ..data import checks, lists
from ..runtime import processes, workers
from ..runtime.files import MachineError, UserError
from .cases import Case, read_target

FEW = 20  # images up to which reading them before the work takes no progress bar
MOST_THREADS = 8  # that read beside each other
AHEAD_BYTES = 1 << 30  # of images that are read and wait for the network
MOST_AHEAD = 1024  # of them; more would only delay the first result
UNKNOWN_BYTES = 64 << 20  # an image's size before the first is read: 4000 x 4000 in float32
DARK = "bones look dark in"  # of the notes, the one that names the images last


@dataclass(frozen=True, eq=False)
class Loaded:
    """What was read of an X-ray. scan: as images.read gives it; mask: bool (H, W); target: float (h, w) in [0, 1];
    content, stamp: see Case; notes: what is to be said of it."""

    case: Case
    scan: images.Picture
    mask: np.ndarray | None
    target: np.ndarray | None
    content: str
    stamp: str
    notes: list[str]


@dataclass(eq=False)
class Reader:
    """Reads batches of X-rays in their order: `for batch in reader` gives lists of Loaded.

    skip_faulty: an X-ray that cannot be read is left out, and `take_failed` tells; without it the error is raised.
    targets: whether the true soft tissue is read too. dicom: whether a DICOM result must be possible. ahead_bytes: of
    images that wait. remedy: what the script's user can do about X-rays that cannot be read.
    """

    batches: list[list[Case]]
    skip_faulty: bool = False
    targets: bool = True
    dicom: bool = False
    ahead_bytes: int = AHEAD_BYTES
    remedy: str = ""
    failed: list[tuple[str, str]] = field(default_factory=list)

    def __post_init__(self):
        # as many threads as cores, since decoding computes
        self.pool = ThreadPoolExecutor(min(MOST_THREADS, workers.cores()))
        self.queue = [case for batch in self.batches for case in batch]
        self.begun = 0  # images of the queue that were handed to the threads
        self.waiting: deque[Future] = deque()
        self.largest = 0  # bytes of the largest image so far
        self.notes: dict[str, list] = {}  # what was noted -> of which images

    @classmethod
    def of(cls, batches: list[list[Case]], dicom: bool) -> "Reader":
        """A reader that has read the first images and raises the errors among them."""
        reader = cls(batches, dicom=dicom)
        reader.preload()
        return reader

    def preload(self) -> None:
        """Read as many images as memory allows, before the work. Raises UserError if one of them cannot be read and
        faulty ones are not to be skipped, after all such are listed; says what reading noted."""
        self._begin_reading()
        faults = []
        if not self.skip_faulty:
            # the room for further images is known only when the first ones are read
            hidden = len(self.queue) < FEW or processes.rank() > 0
            with tqdm(desc="checking", unit="image", leave=False, disable=hidden) as bar:
                place = 0
                while place < len(self.waiting):
                    try:
                        self._result(self.waiting[place])
                    except MachineError:
                        raise
                    except UserError as error:
                        faults.append(error)
                    place += 1
                    bar.update()
                    self._begin_reading()
        self._refuse(faults)
        self.say_notes()

    def __iter__(self) -> Iterator[list[Loaded]]:
        try:
            for batch in self.batches:
                loaded = []
                for case in batch:
                    self._begin_reading()
                    future = self.waiting.popleft()
                    try:
                        loaded.append(self._result(future))
                    except UserError as error:
                        if not self.skip_faulty:
                            raise
                        self.failed.append((case.name, str(error)))
                if loaded:
                    yield loaded
        finally:
            # also after an error: what has not begun is dropped
            self.pool.shutdown(wait=False, cancel_futures=True)

    def take_failed(self) -> list[tuple[str, str]]:
        """[(name, reason), ...] of the X-rays that could not be read since the last call."""
        failed = self.failed
        self.failed = []
        return failed

    def say_notes(self) -> None:
        """Print what reading has noted since the last time, once for all images of which it is true. All processes
        call this together."""
        noted: dict[str, list] = {}
        for notes in processes.all_gather_objects(self.notes):
            for note, paths in notes.items():
                noted.setdefault(note, []).extend(paths)
        self.notes = {}
        for note, paths in noted.items():
            if note == DARK:
                # only said, not corrected: darkness is a guess from the grey values
                names = lists.shown_names([str(path) for path in paths])
                processes.say(f"note: {DARK} {names}; the methods expect bright ones")
                continue
            others = f" and {len(paths) - 1} more" if len(paths) > 1 else ""
            processes.say(f"note: {paths[0]}{others}: {note}")

    def _refuse(self, faults: list[UserError]) -> None:
        """Raise the error of X-rays that cannot be read, with the remedy where there are others."""
        if not faults:
            return
        remedy = f"; {self.remedy}" if self.remedy and len(self.queue) > 1 else ""
        if len(faults) == 1:
            raise UserError(f"{faults[0]}{remedy}")
        for fault in faults:
            print(f"fault: {fault}", file=sys.stderr)
        raise UserError(f"{len(faults)} X-rays cannot be read (listed above){remedy}")

    def _begin_reading(self) -> None:
        """Hand further images to the threads, as far as there is room for them."""
        room = self.ahead_bytes // (self.largest or UNKNOWN_BYTES)
        # always one more than there are threads, however large the images are
        room = max(min(room, MOST_AHEAD), self.pool._max_workers + 1)
        while self.begun < len(self.queue) and len(self.waiting) < room:
            case = self.queue[self.begun]
            self.begun += 1
            self.waiting.append(self.pool.submit(load, case, self.targets, self.dicom))

    def _result(self, future: Future) -> Loaded:
        loaded = future.result()
        size = loaded.scan.pixels.nbytes + (0 if loaded.target is None else loaded.target.nbytes)
        self.largest = max(self.largest, size)
        # once, though preload and the loop both ask
        while loaded.notes:
            self.notes.setdefault(loaded.notes.pop(), []).append(loaded.case.path)
        return loaded


def load(case: Case, targets: bool = True, dicom: bool = False) -> Loaded:
    """Read an X-ray with what lies beside it. Raises UserError for a file that cannot be read or is no X-ray, and for a
    mask of another size.

    targets: whether the true soft tissue is read. dicom: raise UserError also for a DICOM file that no DICOM result can
    be derived from.
    """
    try:
        # before the pixels: if the file is changed meanwhile, the record has the old ones, and the image is made again
        stamp = case.stamp
        content = case.content
        is_dicom = images.is_dicom(case.path)
    except OSError as error:
        raise UserError(f"cannot read {error.filename or case.path}: {error.strerror or error}") from None
    if dicom and is_dicom:
        images.require_dicom_source(case.path)
    scan = plausibility.check(images.read(case.path, case.limits))
    notes = [note for note in (scan.note, plausibility.doubt(scan.pixels)) if note]
    if plausibility.inverted(scan.pixels):
        notes.append(DARK)

    # at the X-ray's size; a mask of another shape belongs to another image
    mask = None
    if case.mask is not None:
        mask = images.read_mask_of(case.mask, scan.pixels.shape)

    target = None
    if targets and case.target is not None:
        truth = read_target(case)
        if case.limits == "auto" and checks.of_different_greys(scan, truth):
            notes.append(checks.different_greys(scan, truth))
        target = truth.pixels
    return Loaded(case, scan, mask, target, content, stamp, notes)
