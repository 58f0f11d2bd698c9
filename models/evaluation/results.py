"""The files of one evaluated X-ray: its result in the input's size and depth, a panel, the deviation of several
results, DICOM."""
from pathlib import Path

import numpy as np
import torch

from .. import images

SERIES = "bone-suppressed, not for diagnosis"  # description of a DICOM result's series
FOLDERS = ("panels", "latents", "deviation", "overlays", "dicom")  # below the output folder, beside the results


def write_result(output: Path, name: str, scan: images.Picture, soft: np.ndarray, target: Path | None) -> None:
    """<name>.png, and its panel CXR | result | truth if known | what was taken away (grey: nothing)."""
    images.write(output / f"{name}.png", soft, scan.bits)
    columns = [scan.pixels, soft]
    if target is not None:
        columns.append(images.resize(images.read(target).pixels, soft.shape))
    columns.append(taken_away(scan.pixels, soft))
    images.write(output / "panels" / f"{name}.png", np.concatenate(columns, axis=1))


def write_deviation(output: Path, name: str, scan: images.Picture, deviation: torch.Tensor, samples: int) -> float:
    """The standard deviation (1, S, S) of several results of an image, in [-1, 1]: deviation/<name>.png and
    overlays/<name>.png.

    deviation/: 16 bits, white is 1 (all of the grey scale). overlays/: in colour on the CXR, with its scale. Returns
    the mean over the image.
    """
    from . import pictures  # here, since matplotlib takes a second, which a single result of an image should not cost

    # A deviation has no zero point: on [0, 1] it is half of what it is on [-1, 1], and from_network would add a half.
    on_unit = deviation / 2
    full = images.from_network(images.to_signed(on_unit), scan.pixels.shape)
    images.write(output / "deviation" / f"{name}.png", full, 16)
    label = f"standard deviation of {samples} results (share of the grey scale)"
    images.write_file(output / "overlays" / f"{name}.png", pictures.overlay(scan.pixels, full, label))
    return round(float(full.mean()), 6)


def write_dicom(output: Path, name: str, soft: np.ndarray, source: Path) -> None:
    """dicom/<name>.dcm, derived from the DICOM file of the input."""
    images.write_dicom(output / "dicom" / f"{name}.dcm", soft, source, SERIES)


def taken_away(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """The difference of two images (H, W) in [0, 1] as one: bright where something was taken away, grey where nothing
    was."""
    return np.clip(0.5 + before - after, 0, 1)
