"""Devices of a drawn patient: tubes and lines, implants, what lies on the skin, and text beside the patient.

    drawn = devices.draw(anatomy, size=512)

None of it is bone. Both images of a pair show text, gel and buttons alike. Of metal, of barium in catheters, and of the
chlorine in PVC the soft-tissue image keeps a share (`RADIOPAQUE_KEPT`): where two spectra are weighted so that bone
vanishes, most of what absorbs as steeply or more so vanishes too, which is why devices are looked for in the bone image
(Kuhlman et al., RadioGraphics 2006; 26:79).

Rates: RANZCR CLiP labels the tubes and catheters of 30 083 of the 112 120 radiographs of NIH ChestX-ray14 (Tang et al.,
Scientific Data 2021; 8:285), about a quarter; so many of these patients have one. How they divide into kinds, and the
rates of all else, are set by eye: patients in intensive care have several devices at once, and where nobody undresses,
what patients wear is the largest of the reasons for which nearly a third of the radiographs are of no use (object-CXR,
JF Healthcare 2020). Shapes and places were drawn by eye, in the coordinates of geometry.py.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ..runtime.seeding import detail_generator
from . import implants, tubes
from .anatomy import Anatomy
from .canvas import Canvas

VERSION = 2  # of what `draw` draws; patients of two versions are never mixed
INTENSIVE = 0.12  # share of the patients who lie in an intensive care unit
# Share of the log exposure of what is radiopaque that the subtraction leaves. In the two of three public pairs of
# SZCH-X-Rays that show a port, the target had 0.20 and 0.33 of the contrast of its brightest parts, and 0.1 to 0.2 of
# that of its faint ones.
RADIOPAQUE_KEPT = (0.1, 0.4)


@dataclass(frozen=True)
class Kind:
    """A kind of device. rate, intensive_rate: share of the other patients and of those in intensive care who have it;
    add: draws it on a canvas."""

    rate: float
    intensive_rate: float
    add: Callable[[Canvas, np.random.Generator], None]


KINDS = {
    "endotracheal tube": Kind(0.0, 0.5, tubes.add_endotracheal_tube),
    "gastric tube": Kind(0.02, 0.6, tubes.add_gastric_tube),
    "central venous catheter": Kind(0.08, 0.7, tubes.add_central_venous_catheter),
    "chest tube": Kind(0.02, 0.2, tubes.add_chest_tube),
    "electrodes": Kind(0.08, 0.9, tubes.add_electrodes),
    "pacemaker": Kind(0.04, 0.08, implants.add_pacemaker),
    "port": Kind(0.05, 0.03, implants.add_port),
    "sternal wires": Kind(0.05, 0.15, implants.add_sternal_wires),
    "clips": Kind(0.06, 0.1, implants.add_clips),
    "buttons": Kind(0.05, 0.02, implants.add_buttons),
    "zip": Kind(0.02, 0.0, implants.add_zip),
    "hooks": Kind(0.03, 0.0, implants.add_hooks),
    "marker": Kind(0.6, 0.6, implants.add_marker),
}


@dataclass(frozen=True, eq=False)
class Devices:
    """Thickness as tissue, float32 (size, size) each, in units of the side: of what both images show, and of what the
    CXR alone shows. names: the kinds that the patient has."""

    both: np.ndarray
    cxr_alone: np.ndarray
    names: list[str]


def draw(anatomy: Anatomy, size: int) -> Devices:
    """The patient's devices; a pure function of the patient and the size."""
    names = choose(anatomy.seed)
    canvas = Canvas(anatomy, size)
    for name in names:
        # A generator for each kind: a patient's port does not depend on whether there is a pacemaker.
        random = detail_generator(anatomy.seed, f"device {name}")
        KINDS[name].add(canvas, random)

    kept = detail_generator(anatomy.seed, "device metal").uniform(*RADIOPAQUE_KEPT)
    both = canvas.tissue + np.float32(kept) * canvas.radiopaque
    cxr_alone = np.float32(1 - kept) * canvas.radiopaque
    return Devices(both, cxr_alone, names)


def choose(seed: int) -> list[str]:
    """Names of the kinds that patient `seed` has."""
    random = detail_generator(seed, "device kinds")
    is_intensive = random.random() < INTENSIVE
    names = []
    for name, kind in KINDS.items():
        rate = kind.intensive_rate if is_intensive else kind.rate
        if random.random() < rate:
            names.append(name)
    return names
