"""The files of one evaluated X-ray: its result as its input is, panel, deviation of several results, DICOM."""

import hashlib
import io
import json
import math
import os
import stat
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from .. import images
from ..data.inputs import RESULT_FOLDERS
from ..runtime.files import UserError
from .cases import Case

SERIES = "bone-suppressed, not for diagnosis"  # description of a DICOM result's series
RESULT_KEYS = ("seed", "samples", "residual", "strength", "range")  # of eval, those that change a result
FEW = 3  # images of a folder that are asked for one by one
FOLDERS = RESULT_FOLDERS  # below the output folder, beside the results
FRAME_MS = 400  # of an animation, milliseconds
LAST_FRAME_MS = 2000  # of its last picture
LETTERS_PER_COLUMN = 24  # of a panel's titles: so many fit into the width of an image
LEAST_LETTER = 8  # height of the titles' letters, pixels
LINE = 1.5  # height of the titles' strip, letters
THUMB = 96  # longer side of a thumbnail, pixels: twice what the page's list shows, for screens of fine pitch


@dataclass(frozen=True)
class Output:
    """Where an evaluation writes. folder: for everything; file: for the only result, if eval.output names one."""

    folder: Path
    file: Path | None = None

    @classmethod
    def at(cls, place: str | Path, images_count: int) -> "Output":
        """eval.output: a folder, or a PNG for a single image, whose panel and record then lie in <its name>_files/."""
        place = Path(place)
        # a folder may well be called "results.png"
        if place.suffix.lower() not in images.SUFFIXES or place.is_dir():
            return cls(place)

        # Results are lossless and have up to 16 bits like their inputs, which is why only PNG is written.
        if place.suffix.lower() != ".png":
            png = place.with_suffix(".png")
            raise UserError(f"eval.output={place} is not a PNG, which results are; name {png}, or a folder")
        if images_count != 1:
            raise UserError(f"eval.output={place} is one file, but there are {images_count} images; name a folder")
        return cls(place.with_name(f"{place.stem}_files"), place)

    def result(self, name: str) -> Path:
        """The result of an image."""
        return self.folder / f"{name}.png" if self.file is None else self.file

    def files(self, name: str) -> list[Path]:
        """Every file that an evaluation may write for an image; the result first."""
        files = [self.result(name)]
        for folder, endings in FOLDERS.items():
            files += [self.folder / folder / f"{name}.{ending}" for ending in endings]
        return files

    def existing(
        self, names: list[str], known: set[str], inputs: set[int], listing: "Listing"
    ) -> tuple[set[str], list[tuple[str, str]]]:
        """(the images whose results are there, [(image, file), ...] of what `files` says and is there already).

        Left out of the second are files of `known` images whose numbers (st_ino) are none of the inputs': they are no
        inputs by another name. Links stay, and files whose numbers only asking for them tells. listing: of the folder
        of the results.
        """
        present = set()
        found = []
        if self.file is not None:
            for name in names:
                found += [(name, str(path)) for path in self.files(name) if os.path.lexists(path)]
                if os.path.lexists(self.file):
                    present.add(name)
            return present, found

        # Each folder is listed once: ten questions to the file system for each of 100 000 images would take minutes. In
        # folders of few images these are asked for, as listing a folder takes as long as ten questions.
        there_are = listing.numbers("")
        further = [(place, f".{ending}") for place in FOLDERS if place in there_are for ending in FOLDERS[place]]
        for folder, lasts in _by_folder(names).items():
            below = f"{folder}/" if folder else ""
            places = [(below, ".png"), *((f"{place}/{below}", ending) for place, ending in further)]
            for start, ending in places:
                if len(lasts) > FEW:
                    numbers = listing.numbers(start.rstrip("/"))
                else:
                    numbers = _numbers_of([last + ending for last in lasts], f"{self.folder}/{start}")
                if not numbers:
                    continue
                there = [last for last in lasts if last + ending in numbers]
                if start == below:
                    present.update([below + last for last in there])
                # mostly all of them are known, and the folder holds no link and none of the inputs
                of_folder_numbers = numbers.values()
                if None in of_folder_numbers or not inputs.isdisjoint(of_folder_numbers):
                    suspicious = there
                else:
                    suspicious = [last for last in there if below + last not in known]
                for last in suspicious:
                    number = numbers[last + ending]
                    if number is None or number in inputs or below + last not in known:
                        found.append((below + last, f"{self.folder}/{start}{last}{ending}"))
        return present, found


def _by_folder(names: list[str]) -> dict[str, list[str]]:
    """{folder below the input, "" for itself: names of its images without that folder}."""
    of_folder = {"": [name for name in names if "/" not in name]}
    for name in names:
        if "/" not in name:
            continue
        folder, _, last = name.rpartition("/")
        of_folder.setdefault(folder, []).append(last)
    return of_folder


def _numbers_of(files: list[str], start: str) -> dict[str, int | None]:
    """{name: number, None for a link} of those files that are there. start: their folder, with its slash."""
    numbers = {}
    for file in files:
        try:
            status = os.lstat(start + file)
        except OSError:
            continue
        numbers[file] = None if stat.S_ISLNK(status.st_mode) else status.st_ino
    return numbers


class Listing:
    """The folders of a tree, each of which is listed once, and none below a folder that is not there."""

    def __init__(self, top: Path):
        self.top = top
        self.listed: dict[str, dict[str, int | None]] = {}

    def numbers(self, folder: str) -> dict[str, int | None]:
        """{name of a file or folder: its number, None for a link} in a folder, which is named from the top on."""
        if folder not in self.listed:
            above, _, last = folder.rpartition("/")
            is_there = not folder or last in self.numbers(above)
            self.listed[folder] = _list_folder(os.path.join(self.top, folder)) if is_there else {}
        return self.listed[folder]


def _list_folder(folder: str) -> dict[str, int | None]:
    """{name: number} of what is in a folder, dangling links among it; nothing if the folder is not there."""
    try:
        with os.scandir(folder) as scan:
            # a hundred thousand entries are not kept
            numbers = {entry.name: None if entry.is_symlink() else entry.inode() for entry in scan}
    except OSError:
        return {}
    # Some file systems list other numbers than they give when asked; one file of a folder shows whether this one does.
    for name, number in numbers.items():
        if number is None:
            continue
        with suppress(OSError):
            if os.lstat(os.path.join(folder, name)).st_ino != number:
                return dict.fromkeys(numbers)
        break
    return numbers


@dataclass(frozen=True)
class Form:
    """How results are written. size: longest side, pixels, above which they are reduced; None: the input's own. bits:
    8, or None for the input's. panels: whether a panel is written beside each."""

    size: int | None = None
    bits: int | None = None
    panels: bool = True


def write_result(
    output: Output,
    name: str,
    scan: images.Picture,
    soft: np.ndarray,
    target: np.ndarray | None,
    form: Form | None = None,
) -> dict[str, float]:
    """The result, its panel CXR | result | truth if known | what was taken away (grey: nothing), and a thumbnail.

    soft: (H, W) in [0, 1] like scan.pixels; target: of any size. Returns figures by which the page sorts its list: the
    mean absolute change, as a share of the grey scale, and the PSNR where the truth is known (at the result's size;
    metrics.py's is at metrics.size).
    """
    form = form or Form()
    scan = reduced(scan, form)
    soft = images.resize(soft, scan.pixels.shape) if soft.shape != scan.pixels.shape else soft

    # in the input's depth and grey range, so that both open with the same window
    images.write_like(output.result(name), soft, scan)

    # in float64, like the scores
    figures = {"mean_change": round(float(np.abs(scan.pixels - soft).mean(dtype=np.float64)), 6)}
    truth = None
    if target is not None:
        truth = images.resize(target, soft.shape)
        from ..scores import psnr  # scipy takes a second to import, and most runs know no truth

        quality = psnr(truth, soft)
        if math.isfinite(quality):  # JSON has no infinity
            figures["psnr"] = round(quality, 3)
    if not form.panels:
        return figures

    # The panel and the thumbnail are for the eye.
    columns = {"CXR": scan.pixels, "result": soft}
    if truth is not None:
        columns["truth"] = truth
    columns["taken away"] = taken_away(scan.pixels, soft)
    images.write(output.folder / "panels" / f"{name}.png", panel(columns))
    images.write(output.folder / "thumbs" / f"{name}.png", images.resize(soft, fitted(soft.shape, THUMB)))
    return figures


def fitted(shape: tuple[int, ...], side: int) -> tuple[int, int]:
    """(H, W) scaled so that the longer side is `side` pixels; no side falls below one pixel."""
    scale = side / max(shape[:2])
    return max(1, round(shape[0] * scale)), max(1, round(shape[1] * scale))


def reduced(scan: images.Picture, form: Form) -> images.Picture:
    """A picture as its result is to be written: of at most this size, in this depth."""
    height, width = scan.pixels.shape
    longest = max(height, width)
    if form.size is not None and form.size < longest:
        # at least one pixel, of a strip too
        shape = (max(1, round(height * form.size / longest)), max(1, round(width * form.size / longest)))
        scan = replace(scan, pixels=images.resize(scan.pixels, shape))
    if form.bits is not None:
        # all of the 8 bits, whatever range of grey values the input's declare
        scan = replace(scan, bits=form.bits, scale=None)
    return scan


def panel(columns: dict[str, np.ndarray]) -> np.ndarray:
    """Images {title: (H, W) in [0, 1]} beside each other, under a strip with their titles."""
    row = np.concatenate(list(columns.values()), axis=1)  # (H, columns W)
    width = row.shape[1] // len(columns)
    letter = max(LEAST_LETTER, width // LETTERS_PER_COLUMN)
    strip = Image.new("L", (row.shape[1], strip_height(width)))
    draw = ImageDraw.Draw(strip)
    font = ImageFont.load_default(letter)
    for i, title in enumerate(columns):
        centre = ((i + 0.5) * width, strip.height / 2)
        draw.text(centre, title, fill=255, font=font, anchor="mm")  # "mm": its middle lies at the centre
    return np.concatenate([np.asarray(strip) / 255, row], axis=0)


def strip_height(width: int) -> int:
    """Height, in pixels, of the strip of titles above columns of this width."""
    letter = max(LEAST_LETTER, width // LETTERS_PER_COLUMN)
    return round(LINE * letter)


def write_deviation(
    output: Output, name: str, scan: images.Picture, deviation: torch.Tensor, samples: int
) -> dict[str, float]:
    """The standard deviation (1, S, S) of several results of an image, in [-1, 1]: deviation/<name>.png,
    overlays/<name>.png.

    deviation/: 16 bits, white is the image's largest deviation, so that a viewer shows something. overlays/: in colour
    on the CXR, with its scale. Returns the mean over the image and what white is, both as shares of the grey scale.
    """
    from . import pictures  # here, since matplotlib takes a second, which a single result of an image should not cost

    # A deviation has no zero point: on [0, 1] it is half of what it is on [-1, 1], and from_network would add a half.
    on_unit = deviation / 2
    full = images.from_network(images.to_signed(on_unit), scan.pixels.shape)
    white = float(full.max()) or 1.0  # results that are all equal are black
    images.write(output.folder / "deviation" / f"{name}.png", full / white, 16)
    label = f"standard deviation of {samples} results (share of the grey scale)"
    images.write_file(output.folder / "overlays" / f"{name}.png", pictures.overlay(scan.pixels, full, label))
    return {"mean_deviation": round(float(full.mean()), 6), "deviation_white": white}


def write_paths(output: Output, name: str, scan: images.Picture, paths: dict[str, np.ndarray]) -> None:
    """GL-LCM's two results of an image as they went into the fusion, {"global" or "local": (H, W) in [0, 1]}: each in a
    folder of that name, as the result itself is written."""
    for folder, soft in paths.items():
        images.write_like(output.folder / folder / f"{name}.png", soft, scan)


def write_snapshots(output: Output, name: str, steps: dict[int, np.ndarray]) -> None:
    """What some of the sampling steps predict, {number of the step, from 1: (S, S) in [0, 1]}: snapshots/<name>.png,
    beside each other, and snapshots/<name>.gif, one after the other."""
    place = output.folder / "snapshots"
    images.write(place / f"{name}.png", panel({f"step {step}": pixels for step, pixels in steps.items()}))

    # GIF has 256 colours: as many as 8-bit grey has
    frames = []
    for pixels in steps.values():
        frames.append(Image.fromarray(np.rint(255 * np.clip(pixels, 0, 1)).astype(np.uint8)))
    durations = [FRAME_MS] * (len(frames) - 1) + [LAST_FRAME_MS]
    content = io.BytesIO()
    frames[0].save(content, format="GIF", save_all=True, append_images=frames[1:], duration=durations, loop=0)
    images.write_file(place / f"{name}.gif", content.getvalue())


def write_dicom(output: Output, case: Case, soft: np.ndarray, about: dict) -> None:
    """dicom/<name>.dcm, derived from the DICOM file of the input. about: what summary.json says of the run."""
    place = output.folder / "dicom" / f"{case.name}.dcm"
    images.write_dicom(place, soft, case.path, SERIES, software(about), case.limits)


def software(about: dict) -> tuple[str, ...]:
    """What tells the results of two runs apart in an archive: the method, then digests of the code, of the weights and
    of the settings that change a result."""
    # Every source file of models/ counts: a result depends on reading, resizing and fusion too, not on the networks.
    code = _code_digest()
    # Where the images lie and what is written beside the results changes nothing in them.
    settings = dict(about.get("settings", {}))
    settings["eval"] = {key: settings.get("eval", {}).get(key) for key in RESULT_KEYS}
    form = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode())
    weights = [f"weights {digest}" for digest in about.get("weights", {}).values()]
    method = about.get("method", "unknown method")
    return method, f"code {code}", *weights, f"settings {form.hexdigest()[:16]}"


@cache
def _code_digest() -> str:
    """A digest of this project's code, which is read once a run."""
    code = hashlib.sha256()
    for path in sorted(Path(__file__).resolve().parents[1].rglob("*.py")):
        code.update(path.read_bytes())
    return code.hexdigest()[:16]


def taken_away(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """The difference of two images (H, W) in [0, 1] as one: bright where something was taken away, grey where nothing
    was."""
    return np.clip(0.5 + before - after, 0, 1)
