"""A contact sheet: simulated pairs beside real ones, to see by eye in what they differ.

    python -m tools.contact_sheet runs/small/data sheet.png --real SZCH

Both folders hold CXR/ and BS/; dataSegmentation.py leaves the first. Every pair is shown as CXR and soft-tissue image
side by side, the real ones last.
"""

import argparse
from pathlib import Path

import numpy as np

from models import images
from models.data import lists
from models.runtime import entry
from tools.arguments import positive


def tiles(root: Path, count: int, side: int) -> list[np.ndarray]:
    """The first `count` pairs of a data folder by name: CXR and soft-tissue image, float32 (side, 2 side) in [0, 1]."""
    pairs = lists.find_pairs(root)
    shown = []
    for name in sorted(pairs)[:count]:
        cxr, soft, _ = pairs[name]
        both = [images.resize(images.read(path).pixels, (side, side)) for path in (cxr, soft)]
        shown.append(np.hstack(both))
    return shown


def sheet(shown: list[np.ndarray], columns: int) -> np.ndarray:
    """Tiles (h, w) row by row, black where there are too few: (rows * h, columns * w)."""
    missing = -len(shown) % columns
    filled = shown + [np.zeros_like(shown[0])] * missing
    rows = []
    for first in range(0, len(filled), columns):
        rows.append(np.hstack(filled[first : first + columns]))
    return np.vstack(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("simulated", type=Path, help="data folder of simulated pairs")
    parser.add_argument("output", type=Path, help="PNG to write")
    parser.add_argument("--real", type=Path, help="data folder of real pairs")
    parser.add_argument("--count", type=positive, default=9, help="pairs of each folder")
    parser.add_argument("--columns", type=positive, default=3, help="pairs side by side")
    parser.add_argument("--side", type=positive, default=384, help="side of an image on the sheet, pixels")
    options = parser.parse_args()

    shown = tiles(options.simulated, options.count, options.side)
    if options.real is not None:
        shown += tiles(options.real, options.count, options.side)
    images.write(options.output, sheet(shown, options.columns))


if __name__ == "__main__":
    entry.run(main)
