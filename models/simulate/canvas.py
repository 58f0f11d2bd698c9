"""Where devices are drawn: two thickness maps, one of what absorbs as tissue does and one of heavier elements.

Coordinates as in geometry.py, in units of the image's side; the sizes of devices are in cm, which `CM` converts.
"""

import numpy as np

from .anatomy import SIDE, Anatomy
from .geometry import curve, filled, ribbon

CM = 1 / SIDE  # of the side
ROUND = 33  # corners of a disc
PLASTIC = 2.2  # absorption of PVC against tissue; more than half of it is chlorine
CATHETER = 7.0  # of catheters, which hold barium all over


class Canvas:
    """The devices of one patient. tissue, radiopaque: thickness as tissue, float32 (size, size), in units of the side.

    radiopaque: what absorbs as steeply with the rays' energy as bone or more so, from PVC to metal. Whatever is drawn
    belongs there, unless it is said to be like tissue.
    """

    def __init__(self, anatomy: Anatomy, size: int):
        self.anatomy = anatomy
        self.size = size
        self.tissue = np.zeros((size, size), np.float32)
        self.radiopaque = np.zeros((size, size), np.float32)

    def line(self, points, radius: float, gain: float, like_tissue: bool = False) -> None:
        """A round solid line. points: control points (k, 2) of a smooth path; radius: cm; gain: absorption against
        tissue."""
        path = curve([points])  # (1, POINTS, 2)
        self.path(path[0], radius, gain, like_tissue)

    def path(self, points: np.ndarray, radius: float, gain: float, like_tissue: bool = False) -> None:
        """As `line`, through points (k, 2) that already lie close together."""
        thickness = ribbon(np.asarray(points)[None], radius * CM, self.anatomy, self.size)
        self._add(gain * thickness, like_tissue)

    def tube(self, points, outer: float, inner: float, gain: float, stripe: float) -> None:
        """A hollow line of PVC with a radiopaque stripe in its wall. outer, inner: radii, cm; gain, stripe:
        absorption of wall and stripe against tissue."""
        self.line(points, outer, gain)
        self.line(points, inner, -gain)
        # The stripe is thin and runs along one side of the tube.
        beside = np.asarray(points, float) + [0.6 * outer * CM, 0]
        self.line(beside, 0.06, stripe)

    def area(self, outline, thickness: float, like_tissue: bool = False) -> None:
        """An even plate. outline: (k, 2); thickness: cm of tissue that absorbs as much."""
        coverage = filled(np.asarray(outline), self.anatomy, self.size)
        self._add(thickness * CM * coverage, like_tissue)

    def disc(self, x: float, y: float, radius: float, thickness: float, like_tissue: bool = False) -> None:
        """An even round plate; radius, thickness: cm."""
        self.area(circle(x, y, radius), thickness, like_tissue)

    def _add(self, thickness: np.ndarray, like_tissue: bool) -> None:
        """Add a map to the layer that it belongs to."""
        layer = self.tissue if like_tissue else self.radiopaque
        layer += thickness.astype(np.float32)


def circle(x: float, y: float, radius: float, count: int = ROUND) -> np.ndarray:
    """A closed circle (count, 2) about (x, y); radius: cm."""
    angle = np.linspace(0, 2 * np.pi, count)
    across = x + radius * CM * np.cos(angle)
    down = y + radius * CM * np.sin(angle)
    return np.stack([across, down], -1)
