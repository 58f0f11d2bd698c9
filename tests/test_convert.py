"""Another folder's pairs, and JSRT's, made a data folder by dataSegmentation.py."""

import shutil

import cv2
import numpy as np
import pytest
from data_preparation import call, contents, copy_pairs, refused

from models import images, plausibility

pytestmark = pytest.mark.slow


@pytest.fixture
def folder(simulated, tmp_path):
    """A copy of the simulated pairs, to spoil."""
    return copy_pairs(simulated, tmp_path)


def test_converting_turns_shrinks_and_never_overwrites(folder):
    source = folder / "source"
    target = folder / "set" / "new"
    (folder / "set").rename(source)
    # one pair of dark bones, not square, of 16 bits
    cxr = images.read(source / "CXR" / "3.png").pixels
    wide = np.hstack([cxr, cxr[:, :16]])  # 64 x 80
    images.write(source / "CXR" / "3.png", 1 - wide, 16)
    images.write(source / "BS" / "3.png", 1 - 0.7 * wide, 16)
    images.write(source / "Mask" / "3.png", wide > 0.5)
    before = contents(source)
    settings = (f"data.source={source}", f"data.root={target}", "data.image_size=40")
    out, (note,) = call(folder, *settings)
    assert contents(source) == before
    assert "5 pairs" in out
    assert "15 images newly written" in out
    assert "bright now in 3.png, 3.png" in note
    picture = images.read(target / "CXR" / "3.png")
    assert picture.bits == 16
    assert images.read(target / "CXR" / "2.png").bits == 8
    np.testing.assert_allclose(picture.pixels, images.resize(wide, (32, 40)), atol=1e-4)
    (target / "BS" / "2.png").unlink()
    out, _ = call(folder, *settings)
    assert "1 images newly written" in out

    # an image that is not the source's, by content or by ending, is neither taken for it nor written over
    images.write(target / "CXR" / "1.png", images.read(target / "CXR" / "2.png").pixels)
    (target / "BS" / "2.png").unlink()
    before = contents(target)
    (message,) = refused(folder, *settings)
    assert "set/new/CXR/1.png: not what data.source=" in message
    assert contents(target) == before
    (target / "CXR" / "1.png").rename(target / "CXR" / "1.jpg")
    assert "1.jpg is in the way of" in refused(folder, *settings)[0]
    (target / "CXR" / "1.jpg").unlink()
    assert "CXR/0.png, " in refused(folder, *settings, "data.range=0..200")[0]  # nor with other settings
    for part in ("CXR", "BS"):
        mirrored = images.read(source / part / "0.png").pixels[:, ::-1]
        images.write(target / part / "mine.png", mirrored)
    _, errors = call(folder, *settings)
    assert "new holds images that are not of" in errors[0]
    assert "new/CXR/mine.png" in errors[0]
    assert "into another" in refused(folder, f"data.source={source}", f"data.root={source}")[0]
    assert "neither" in refused(folder, f"data.source={folder / 'lists'}", f"data.root={target}")[0]


def test_converting_forces_the_grey_values_and_says_what_it_found(simulated, folder):
    """12 bits in 16 that nobody declares: found pair by pair, said, and the copies declare what was found or forced."""
    source = folder / "set"
    target = folder / "new"
    for index, white in ((0, 4095), (1, 4095), (2, 1000), (3, 4095), (4, 4095)):
        for part in ("CXR", "BS"):
            path = source / part / f"{index}.png"
            levels = np.rint(images.read(path).pixels * white).astype(np.uint16)
            cv2.imwrite(str(path), levels)
    settings = (f"data.source={source}", f"data.root={target}")
    assert "data.range=4095 is for a folder that is converted" in refused(folder, "data.range=4095")[0]

    # found: the dark pair as 10 bits, which its own values suggest
    _, errors = call(folder, *settings)
    assert len(errors) == 2  # of the source alone: the copies declare theirs
    (dark,) = [line for line in errors if "read as 10 bits" in line]
    assert ": 2 (of 5)" in dark
    assert "data.range=4095" in dark
    (others,) = [line for line in errors if "read as 12 bits" in line]
    assert ": 0, 1, 3, 4 (of 5)" in others
    assert images.read(target / "CXR" / "2.png").pixels.max() > 0.8
    assert images.read(target / "CXR" / "0.png").note == ""

    # forced: the pair is as dark as it was
    shutil.rmtree(target)
    _, errors = call(folder, *settings, "data.range=4095")
    assert errors == []
    forced = images.read(target / "CXR" / "2.png")
    assert forced.note == ""
    assert 0.2 < forced.pixels.max() < 0.25

    # cut, and said; and a file that cannot hold the values is a fault, beside which the others are written
    shutil.rmtree(target)
    _, errors = call(folder, *settings, "data.range=2000")
    assert "outside data.range are cut in 0, 1, 3, 4 (of 5)" in errors[0]
    shutil.rmtree(target)
    images.write(source / "BS" / "3.png", images.read(source / "BS" / "3.png").pixels)
    _, errors = call(folder, *settings, "data.range=4095", status=2)
    assert "BS/3.png: its 8 bits hold at most 255" in errors[0]
    assert len(images.find(target / "CXR")) == 4
    shutil.rmtree(folder / "lists")  # which name the pair
    out, _ = call(folder, *settings, "data.range=4095", "data.skip_faulty=true")
    assert "0 images newly written" in out

    # two ranges in one pair are no pair, which the copies could not show any more
    shutil.rmtree(target)
    _, errors = call(folder, *settings, status=2)
    assert "BS/3.png is read as 8 bits, but" in errors[2]
    assert "1 faults in" in errors[3]
    assert not (target / "CXR" / "3.png").exists()


def test_jsrt_is_matched_by_name_and_turned(simulated, tmp_path):
    for name, index in (("JPCLN001", 0), ("JPCNN002", 1), ("JPCNN003", 2)):
        cxr = images.read(simulated / "set" / "CXR" / f"{index}.png").pixels
        soft = images.read(simulated / "set" / "BS" / f"{index}.png").pixels
        place = tmp_path / "jsrt" / name[:5]
        images.write(place / f"{name.lower()}.png", images.resize(1 - soft, (512, 512)))
        raw = (1 - images.resize(cxr, (2048, 2048))) * 4095
        raw.astype(">u2").tofile(place / f"{name}.IMG")
    settings = (f"data.source={tmp_path / 'jsrt'}", "data.image_size=128")
    out, errors = call(tmp_path, *settings)
    assert "3 pairs" in out
    assert "trainset.txt: 1 images" in out
    assert "bright now in jpcln001.png" in errors[0]
    for name, path in images.find(tmp_path / "set" / "CXR").items():
        cxr = images.read(path)
        assert cxr.bits == 16
        assert cxr.pixels.shape == (128, 128)
        assert not plausibility.inverted(cxr.pixels)
        soft = images.read(tmp_path / "set" / "BS" / f"{name}.png")
        assert not plausibility.inverted(soft.pixels)
    (tmp_path / "jsrt" / "JPCNN" / "jpcnn002.png").unlink()
    assert "JPCNN002.IMG has no PNG" in refused(tmp_path, *settings)[0]
