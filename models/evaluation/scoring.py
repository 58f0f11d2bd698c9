"""Folders of predictions -> the scores of every image. What metrics.py and the ablations call first; report.py writes
what comes out."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from .. import images, scores
from ..data import checks, lists
from ..runtime.files import UserError
from ..runtime.progress import Bar
from .record import UNFINISHED
from .score_table import FileTable, ImageFiles, Listing, Row, ScoreTable
from .summary import read_summary, recorded_names

MOST_THREADS = 16  # that work on images beside each other, each with at most 0.3 GB at 1024 x 1024 and one method


@dataclass(frozen=True)
class Scored:
    """What `score_folders` found.

    values: {image: {method: {score's key: value}}}, the untouched CXR first. files: of these images, and of those that
    could not be scored. faults: a line for each file that could not be used. size: the side at which was scored.
    resized: how many images were brought to it. masked: how many had a lung mask. stretched: how many are DICOM pairs
    without a window. guessed: of how many CXR and truth do not say how many of their bits are used.
    """

    values: ScoreTable
    files: Mapping[str, ImageFiles]
    faults: list[str]
    size: int
    resized: int
    masked: int
    stretched: int = 0
    guessed: int = 0

    @property
    def heading(self) -> str:
        # Size and resizing stand above every table: scores at different sizes cannot be compared.
        heading = f"{len(self.values)} images at {self.size} x {self.size}"
        if self.resized:
            rule = "area average where a side shrinks, cubic where it grows"
            heading += f", {self.resized} of them resized to that ({rule})"
        if self.stretched:
            heading += (
                f", {self.stretched} of them DICOM pairs without a window, each image shown over its own range of "
                "values: their scores mean little"
            )
        if self.guessed:
            heading += (
                f", of {self.guessed} of them CXR and truth read as the bits that they use, since they do not say how "
                "many"
            )
        return heading

    @property
    def groups(self) -> dict[str, tuple[scores.Score, ...]]:
        """{title: columns} of the tables; the lungs only if there are masks."""
        groups: dict[str, tuple[scores.Score, ...]] = {
            "Scores as published": scores.PUBLISHED,
            "Further scores": scores.BESIDE,
            "By place and by width of structure": scores.BY_PLACE_AND_WIDTH,
        }

        # without any mask that table would hold nothing but gaps
        if self.masked:
            groups["Scores inside the lungs"] = scores.IN_LUNGS
        return groups

    @property
    def columns(self) -> list[scores.Score]:
        """The columns of all tables in a row."""
        columns: list[scores.Score] = []
        for group in self.groups.values():
            columns += group
        return columns

    @property
    def methods(self) -> list[str]:
        """The untouched CXR, then the methods."""
        return list(self.values.methods)

    def series(self, method: str, key: str) -> np.ndarray:
        """A score of every image, float64 (images,), in their order."""
        return self.values.series(method, key)


@dataclass(frozen=True)
class ImageScores:
    """What a thread found out about one image.

    row: {method: {score's key: value}}. stack: (2 + methods, S, S), target, CXR, predictions, if LPIPS is still to be
    computed. resized: whether any of the image's files had another size. stretched: whether CXR and target are DICOM
    files without a window. guessed: whether one of them does not say how many of its bits are used. mask_fault: why it
    has no scores inside the lungs, if it should.
    """

    row: Row
    stack: np.ndarray | None
    resized: bool
    stretched: bool
    guessed: bool
    mask_fault: str | None


def score_folders(
    folders: Mapping[str, str | Path],
    cxr,
    target,
    *,
    masks=None,
    names: Iterable[str] | None = None,
    size: int = 1024,
    device: str | torch.device = "cpu",
    features: str | None = None,
) -> Scored:
    """Score {method: folder of predictions}. Only images with a CXR, a target and a prediction of every method are
    scored.

    Files are matched by name. cxr, target: folders. masks: folder of lung masks. names: only these images. size: the
    side of the square to which all are brought. features: see models/features.py. What is missing or unreadable is a
    fault and the rest is scored. Raises UserError for a missing or empty folder, a size that is too small, and if
    nothing is left to score.
    """

    # Refused before any file is read.
    if size < scores.LEAST_SIDE:
        raise UserError(f"metrics.size={size} is too small for LPIPS; at least {scores.LEAST_SIDE}")
    if scores.REFERENCE in folders:
        raise UserError(f"'{scores.REFERENCE}' names the row of the CXR itself; give the predictions another name")

    # which images are complete
    # Only images that every method has are scored, so that all rows of a table are means over the same images.
    predictions = {method: _find("prediction", folder) for method, folder in folders.items()}
    mask_files = _find("masks", masks) if masks else None
    files, faults = _match(_find("cxr", cxr), _find("target", target), mask_files, predictions, names)

    # their scores, by threads

    values = ScoreTable()
    resized = 0
    masked = 0
    stretched = 0
    guessed = 0
    # The threads read images and compute the scores of pixels; their results come back here in the images' order.
    if files:
        lpips = scores.Lpips("alex", features, device)
        futures = _ahead(lambda image: _score(image, size, lpips), files.values())
        for name, future in Bar(zip(files, futures), total=len(files), desc="scoring", unit="image"):
            try:
                found = future.result()
            # one bad file costs its own image, not the whole table
            except UserError as error:
                faults.append(f"{name} is not scored: {error}")
                continue
            # on a GPU LPIPS is left to this thread, see `_score`
            if found.stack is not None:
                scores.add_lpips(found.row, found.stack[0], found.stack[1:], lpips)
            values.add(name, found.row)

            if found.resized:
                resized += 1
            stretched += found.stretched
            guessed += found.guessed
            if found.mask_fault:
                faults.append(f"{name} is not scored inside the lungs: {found.mask_fault}")
            # counted only if the mask could be used: it decides whether there is a table of the lungs
            elif files[name].mask is not None:
                masked += 1

    # A table of nothing is a mistake in a path or in the names; the reasons tell which.
    if not values:
        reasons = lists.shown_names(faults, "; ")
        raise UserError(
            f"nothing to score: no prediction has a readable CXR in {cxr} and truth in {target} by its name ({reasons})"
        )
    return Scored(values, files, faults, size, resized, masked, stretched, guessed)


def name_methods(folders: Iterable[str]) -> dict[str, str]:
    """{name in the tables: prediction folder}.

    The name is the method that the folder's summary.json names, else the folder's last name; the whole path if two are
    alike.
    """
    folders = tuple(folders)
    # absolute, so that "runs/a" and "./runs/a/" are noticed to be one folder
    places = {os.path.abspath(folder) for folder in folders}
    if not folders or len(places) < len(folders):
        raise UserError(f"metrics.prediction={list(folders)} should be one folder, or several different ones")
    short_names = []
    for folder in folders:
        # the record's name reads better in a table than a folder's
        method = read_summary(folder).get("method")
        short_names.append(str(method or Path(folder).resolve().name))
    named = {}
    for name, folder in zip(short_names, folders):
        unique = short_names.count(name) == 1
        named[name if unique else folder] = folder
    return named


def doubtful(folders: Mapping[str, str | Path]) -> list[str]:
    """A line for each folder of predictions that may hold more than one method's results, by its record."""
    lines = []
    for folder in map(Path, folders.values()):
        # A run that was stopped may have left results of earlier settings beside its own.
        if any(folder.glob(UNFINISHED.format(process="*"))):
            lines.append(f"note: an evaluation in {folder} has not ended; its results may be of different settings")

        # Images that the record does not know were copied here, or are left from another method.
        summary = read_summary(folder)
        if folder.is_dir() and "seconds_per_image" in summary:
            recorded = set(recorded_names(summary))
            strange = [name for name in images.find(folder) if name not in recorded]
            if strange:
                names = lists.shown_names(strange)
                lines.append(
                    f"note: {folder} holds images that its summary.json does not list, "
                    f"perhaps another method's: {names}"
                )
    return lines


def masks_beside(cxr) -> Path | None:
    """The folder Mask/ beside the folder of the CXRs, if it holds images."""
    # resolved, since "." and a link have another parent
    folder = Path(cxr).resolve().parent / "Mask"
    if not folder.is_dir():
        return None
    holds_images = any(path.suffix.lower() in images.SUFFIXES for path in folder.iterdir())
    return folder if holds_images else None


def _find(key: str, folder) -> Listing:
    try:
        return Listing.of(images.find(folder))
    except UserError as error:
        raise UserError(f"{error}; set metrics.{key}") from None


def _match(
    cxr: Listing,
    target: Listing,
    masks: Listing | None,
    predictions: dict[str, Listing],
    names: Iterable[str] | None,
) -> tuple[FileTable, list[str]]:
    """(files of what is complete, a line for each name that is not). names: the wanted ones; None: all with a
    prediction."""
    # Without a list whatever any method has predicted is wanted, so a method that lacks an image is noticed.
    if names is None:
        names = {}
        for listing in predictions.values():
            names |= dict.fromkeys(listing.endings)  # a set that keeps the order
    method_folders = {method: listing.folder for method, listing in predictions.items()}
    complete = FileTable(cxr.folder, target.folder, masks.folder if masks else None, method_folders)
    faults = []

    # Every reason is told at once: whoever adds the prediction should not learn of the missing truth only then.
    for name in names:
        missing = [f"no prediction of {method}" for method in predictions if name not in predictions[method].endings]
        if name not in cxr.endings:
            missing.append("no CXR")
        if name not in target.endings:
            missing.append("no truth")
        if missing:
            faults.append(f"{name} is not scored: {', '.join(missing)}")
            continue
        # a mask is optional: without one the image counts everywhere but inside the lungs
        mask = masks.endings.get(name) if masks else None
        of_methods = [listing.endings[name] for listing in predictions.values()]
        complete.add(name, cxr.endings[name], target.endings[name], mask, of_methods)
    return complete, faults


def _score(files: ImageFiles, size: int, lpips: scores.Lpips) -> ImageScores:
    """Read and score one image at size x size. Raises UserError for a file that cannot be read.

    On a CPU LPIPS is computed here too: images beside each other keep the cores busier than one network call on all of
    them. A GPU gets the images from one thread, see `score_folders`.
    """
    # images
    resized = False
    squares = []
    target = images.read(files.target)
    cxr = images.read(files.cxr)
    if checks.of_different_greys(cxr, target):
        raise UserError(checks.different_greys(cxr, target))
    target_shape = target.pixels.shape
    for path in (files.target, files.cxr, *files.predictions.values()):
        given = {files.target: target, files.cxr: cxr}.get(path)
        picture = given or images.read(path)
        if given is None and _of_another_range(picture, cxr):
            raise UserError(checks.different_greys(cxr, picture))
        pixels = picture.pixels
        # Resizing to a square hides another aspect ratio, and every score would then compare shifted anatomy.
        if not _same_aspect(pixels.shape, target_shape):
            raise UserError(_aspect_fault(path, pixels.shape, target_shape))

        # Results of different sizes meet at one size; an image of that size already is not interpolated.
        if pixels.shape != (size, size):
            pixels = images.resize(pixels, (size, size))
            resized = True
        squares.append(pixels)
    stack = np.stack(squares)  # (2 + methods, S, S)
    stretched = target.stretched and cxr.stretched
    guessed = bool(target.note or cxr.note)

    # lungs; without a usable mask the rest is scored all the same
    mask = None
    mask_fault = None
    if files.mask is not None:
        try:
            # images are squeezed to the scores' square, and a mask may already be a square
            pixels = images.read_mask_of(files.mask, target_shape)
            mask = images.resize_mask(pixels, (size, size))
        except UserError as error:
            mask_fault = str(error)

    # scores
    # the stack starts with target and CXR
    predictions = dict(zip(files.predictions, stack[2:]))
    row = scores.pixel_scores(stack[1], stack[0], predictions, mask)
    if lpips.device.type != "cpu":
        return ImageScores(row, stack, resized, stretched, guessed, mask_fault)
    scores.add_lpips(row, stack[0], stack[1:], lpips)
    return ImageScores(row, None, resized, stretched, guessed, mask_fault)


def _of_another_range(prediction: images.Picture, cxr: images.Picture) -> bool:
    """Whether a prediction has grey values of another range than its CXR, where one of the two had to be found.

    A result is written in its CXR's range, in all of 16 bits, or in 8; another range is a CXR that was read otherwise
    when it was evaluated (eval.range), or a wrong finding.
    """
    fills_its_bits = prediction.scale is None
    return not fills_its_bits and checks.of_different_greys(cxr, prediction)


def _same_aspect(a: tuple[int, int], b: tuple[int, int]) -> bool:
    """Whether two shapes (H, W) have the same ratio of their sides, but for the rounding of a side to whole pixels."""
    # Cross-multiplied: a / b = c / d without division. Rounding a side by one pixel moves this by the other's length.
    difference = abs(a[0] * b[1] - b[0] * a[1])  # a pixel more in the height of one adds the width of the other
    return difference <= max(*a, *b)


def _aspect_fault(path: Path, shape: tuple[int, int], target_shape: tuple[int, int]) -> str:
    return (
        f"{path} is {shape[1]} x {shape[0]}, but the truth {target_shape[1]} x {target_shape[0]}: "
        "of another aspect ratio, it would be squeezed"
    )


def _ahead(work: Callable, items: Iterable) -> Iterator[Future]:
    """work(item) of each item, in order, by threads that are a few items ahead: memory does not grow with the number of
    items."""
    # PyTorch's own threads and these would compete for the same cores.
    cores = torch.get_num_threads()  # that this process may use
    threads = min(MOST_THREADS, cores)
    # every thread computes with one core, as there are as many threads
    with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        waiting: deque[Future] = deque()
        try:
            # At most threads + 1 images wait: the oldest is handed out before a further one is started.
            for item in items:
                waiting.append(pool.submit(work, item))
                if len(waiting) > threads:
                    yield waiting.popleft()
            while waiting:  # what is still at work after the last item
                yield waiting.popleft()
        finally:
            # Also if the caller stops early, on an error or Ctrl-C: what has not begun is dropped.
            for future in waiting:
                future.cancel()
            torch.set_num_threads(cores)  # for what this process computes next
