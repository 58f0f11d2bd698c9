"""Lung masks for a data folder: written where there are none, doubted by their shape, drawn on the CXRs to look
through."""

import math
import sys
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from .. import images, lungs
from ..runtime import workers
from ..runtime.files import UserError
from .lists import Pair

TILE = 160  # side of an image in the overview of masks, pixels
COLUMNS, ROWS = 8, 6  # tiles of one overview picture
GOOD = (0.2, 1.0, 0.3)  # colours of outlines
DOUBTFUL = (1.0, 0.2, 0.2)


@dataclass(frozen=True, eq=False)
class Outline:
    """tile: a CXR with the lungs' outline, (TILE, TILE, 3) in [0, 1]; doubts: what looks wrong with the mask."""

    tile: np.ndarray
    doubts: list[str]


def write_masks(pairs: dict[str, Pair], root: Path, folder: Path, name: str) -> None:
    """Write the masks that <root>/Mask lacks, say which masks look wrong by their shape, and draw all outlines on the
    CXRs.

    The drawings are <folder>/<name>_masks_1.png, _2.png, ...
    """
    # Before any work: a picture in the way is refused before masks are written.
    pages = overview_pages(pairs, folder, name)
    # Masks that are there are drawn and doubted too, but never written over.
    jobs = [(cxr, mask or root / "Mask" / f"{stem}.png") for stem, (cxr, _, mask) in pairs.items()]
    columns = min(COLUMNS, len(jobs))
    tiles: list[np.ndarray] = []  # of the page that is next
    doubted: list[tuple[Path, list[str]]] = []
    waiting = iter(pages)
    # page by page: the tiles of 100 000 masks would take 30 GB
    for (_, path), result in zip(jobs, workers.stream(outline, jobs, "finding lungs")):
        if result.doubts:
            doubted.append((path, result.doubts))
        # Shape alone cannot tell a good mask; the overview lets a person look through hundreds in minutes.
        tiles.append(result.tile)
        if len(tiles) == COLUMNS * ROWS:
            images.write_rgb(next(waiting), _sheet(tiles, columns))
            tiles = []
    if tiles:
        images.write_rgb(next(waiting), _sheet(tiles, columns))

    for path, doubts in doubted:
        print(f"doubtful mask {path}: {'; '.join(doubts)}", file=sys.stderr)
    print(f"{root / 'Mask'}: {len(jobs)} masks, {len(doubted)} doubtful; look through {pages[0]}")


def overview_pages(pairs: dict[str, Pair], folder: Path, name: str) -> list[Path]:
    """The files of the overview. UserError where one is there that no earlier run drew: it is not made of whole
    tiles."""
    # The user's own pictures in data.lists must not be written over because they have such a name.
    count = math.ceil(len(pairs) / (COLUMNS * ROWS))
    pages = [folder / f"{name}_masks_{page}.png" for page in range(1, count + 1)]
    for page in pages:
        if page.exists() and not _is_overview(page):
            raise UserError(
                f"{page} is in the way of the masks' overview, and no earlier run drew it; move it, or choose another "
                "data.lists"
            )
    return pages


def _is_overview(path: Path) -> bool:
    """Whether a file is an image of whole tiles."""
    try:
        height, width = images.read(path).pixels.shape
    except UserError:
        return False
    return height % TILE == 0 and width % TILE == 0


def _sheet(tiles: list[np.ndarray], columns: int) -> np.ndarray:
    """The tiles row by row, (rows TILE, columns TILE, 3); black where the last row is short."""
    black = np.zeros_like(tiles[0])
    # -n % columns: how many tiles the last row lacks.
    padded = tiles + [black] * (-len(tiles) % columns)
    rows = [np.hstack(padded[first : first + columns]) for first in range(0, len(padded), columns)]
    return np.vstack(rows)


def outline(job: tuple[Path, Path]) -> Outline:
    """The outline of one mask on its CXR; job: both paths. A missing mask is found and written."""
    cxr_path, mask_path = job
    cxr = images.read(cxr_path).pixels
    if mask_path.is_file():
        mask = images.read_mask_of(mask_path, cxr.shape)
    else:
        try:
            mask = lungs.lung_mask(cxr)
        except ValueError as error:
            raise UserError(f"no lungs found in {cxr_path}: {error}") from None
        images.write(mask_path, mask.astype(np.float32))

    # Doubts are about the shape: they concern the user's masks as well as those found here.
    doubts = lungs.lung_faults(mask)

    # Both on the same padded square, so that the outline lies where the mask does.
    small = images.to_unit(images.to_network(cxr, TILE)).numpy()[0]
    tile = np.repeat(small[..., None], 3, axis=-1)  # (TILE, TILE, 3)
    inside = images.mask_to_network(mask, TILE).astype(np.uint8)
    # Inside the mask, but not inside the eroded one: a line of one pixel.
    rim = inside > cv2.erode(inside, np.ones((3, 3), np.uint8))
    tile[rim] = DOUBTFUL if doubts else GOOD
    return Outline(tile, doubts)
