"""The files of one evaluated X-ray: its result in the input's size and depth, a panel, the deviation of several
results, DICOM."""
import hashlib
import json
from pathlib import Path

import numpy as np
import torch

from .. import images
from .cases import Case

SERIES = "bone-suppressed, not for diagnosis"  # description of a DICOM result's series
RESULT_KEYS = ("seed", "samples", "residual", "strength", "range")  # of eval, those that change a result
FOLDERS = ("panels", "latents", "deviation", "overlays", "dicom")  # below the output folder, beside the results


def write_result(output: Path, name: str, scan: images.Picture, soft: np.ndarray, target: Path | None) -> None:
    """<name>.png, and its panel CXR | result | truth if known | what was taken away (grey: nothing)."""
    images.write_like(output / f"{name}.png", soft, scan)
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


def write_dicom(output: Path, case: Case, soft: np.ndarray, about: dict) -> None:
    """dicom/<name>.dcm, derived from the DICOM file of the input. about: what summary.json says of the run."""
    place = output / "dicom" / f"{case.name}.dcm"
    images.write_dicom(place, soft, case.path, SERIES, software(about), case.limits)


def software(about: dict) -> tuple[str, ...]:
    """What tells the results of two runs apart in an archive: the method, then digests of the code, of the weights and
    of the settings that change a result."""
    code = hashlib.sha256()
    for path in sorted(Path(__file__).resolve().parents[1].rglob("*.py")):
        code.update(path.read_bytes())
    # Where the images lie and what is written beside the results changes nothing in them.
    settings = dict(about.get("settings", {}))
    settings["eval"] = {key: settings.get("eval", {}).get(key) for key in RESULT_KEYS}
    form = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode())
    weights = [f"weights {digest}" for digest in about.get("weights", {}).values()]
    method = about.get("method", "unknown method")
    return method, f"code {code.hexdigest()[:16]}", *weights, f"settings {form.hexdigest()[:16]}"


def taken_away(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """The difference of two images (H, W) in [0, 1] as one: bright where something was taken away, grey where nothing
    was."""
    return np.clip(0.5 + before - after, 0, 1)
