"""The shoulders of a CT: taken apart with known bone, refused where it shows something else, and put onto others."""

import dataclasses

import numpy as np
import pytest
from ct_files import write_nifti

from models import config
from models.runtime.files import UserError
from models.simulate import folder, girdle, phantom, shoulder_ct, volumes
from models.simulate.anatomy import draw_anatomy
from models.simulate.extras import Extras

SPACING = (3.0, 3.0, 3.0)  # mm along front-back, head-foot, right-left
SIZE = 64
APEX = 30.0  # mm below the middle of the CT


def neck(arms_raised=False, one_lung=False, columns=84):
    """(Hounsfield units (D, H, W), where the girdle is): neck on shoulders, two apices, spine, first ribs, collar bones
    and shoulder blades that the sides cut off."""
    shape = (60, 64, columns)
    z, y, x = np.meshgrid(*(3.0 * (np.arange(count) - (count - 1) / 2) for count in shape), indexing="ij")
    torso = (y > -45) & ((z / 80) ** 2 < 1 - (x / 190) ** 2)
    head = (np.hypot(x, z) < 62) & (y <= -20)
    volume = np.where(torso | head, 40, -1000)
    if arms_raised:
        volume[np.hypot(np.abs(x) - 121, z) < 12] = 40

    # Lungs as half-ellipsoids about their lower ends, each under a shell of bone
    depth = ((np.abs(x) - 55) / 40) ** 2 + ((y - 96) / 66) ** 2 + (z / 50) ** 2
    lungs = depth < 1
    if one_lung:
        lungs &= x < 0
    ribs = (depth > 1.1) & (depth < 1.3) & ((y - 40) % 24 < 8) & (y > APEX)
    spine = (np.abs(x) < 16) & (np.abs(z - 40) < 16)
    shaft = y - 62 + 0.5 * (np.abs(x) - 25)  # falls towards the middle
    collar_bones = (np.hypot(shaft, z + 62 - 0.2 * np.abs(x)) < 9) & (np.abs(x) > 25)
    blades = (np.abs(z - 68) < 5) & (np.abs(x) > 75) & (y > 10)
    volume[lungs] = -850
    volume[ribs | spine] = 600
    girdle_bone = (collar_bones | blades) & torso
    volume[girdle_bone] = 800
    volume[(np.hypot(np.abs(x) - 165, z) < 22) & (y > 10) & torso] = 800  # upper arms
    noise = np.random.default_rng(0).normal(0, 10, shape)
    noise[ribs | spine | girdle_bone] *= 12  # spongy bone is uneven
    return (volume + noise).astype(np.int16), girdle_bone, ribs | spine


@pytest.fixture(scope="module")
def taken():
    """A CT of neck and shoulders, taken apart."""
    return shoulder_ct.parts(neck()[0], SPACING)


def test_the_girdles_mineral_is_told_from_ribs_spine_and_tissue(taken):
    volume, truth, others = neck()
    in_ct = ((volume - 40) / 1580).clip(0) * np.prod(SPACING)  # mm^3 of compact bone
    values = taken.volume.values.astype(float) * taken.volume.unit * np.prod(taken.volume.spacing)
    first = values.shape[1] - volume.shape[1]  # rows left away above
    assert first <= 0
    seen = values[..., 1:3].sum(-1)  # collar bones and shoulder blades
    kept = truth[:, -first:] if first else truth
    assert 0.8 < seen[kept].sum() / in_ct[truth].sum() < 1.25
    elsewhere = others[:, -first:] if first else others
    assert seen[elsewhere].sum() < 0.03 * in_ct[truth].sum()
    assert seen[~kept].sum() < 0.2 * seen.sum()
    # All of the tissue, and no air in the lungs
    assert values[..., 0][kept].mean() / np.prod(SPACING) == pytest.approx(1.04, abs=0.1)
    assert taken.middle == pytest.approx(0, abs=3) and taken.apex == pytest.approx(APEX, abs=7)


def test_shoulders_come_back_from_their_file(taken, tmp_path):
    shoulder_ct.save(taken, tmp_path / "shoulders.npz")
    back = shoulder_ct.load(tmp_path / "shoulders.npz")
    np.testing.assert_array_equal(back.volume.values, taken.volume.values)
    np.testing.assert_array_equal(back.collar_bones, taken.collar_bones)
    assert (back.middle, back.apex, back.inlet) == (taken.middle, taken.apex, taken.inlet)


def test_a_ct_with_both_arms_is_cut_off_before_them(taken):
    wide = shoulder_ct.parts(neck(columns=128)[0], SPACING)
    reach = wide.volume.spacing[2] * wide.volume.values.shape[2] / 2
    assert reach == pytest.approx(shoulder_ct.ASIDE, abs=4)
    assert np.abs(wide.collar_bones[:, 1, 0]) == pytest.approx(shoulder_ct.SIDE_SHARE * reach, abs=6)
    # The collar bones lie where they do in the narrow one.
    assert wide.collar_bones[:, 0] == pytest.approx(taken.collar_bones[:, 0], abs=4)


@pytest.mark.parametrize(
    "volume, words",
    [
        (np.pad(np.full((40, 40, 40), 30, np.int16), 10, constant_values=-1000), "apices of two lungs"),
        (neck(one_lung=True)[0], "apices of two lungs .1 airs"),
        (neck(arms_raised=True)[0], "arms are raised"),
        (neck()[0][:, 32:], "of the neck are needed"),
        (neck()[0][:, :, 20:64], "collar bones reach|not whole|apices"),
    ],
    ids=["water", "one lung", "arms raised", "no neck", "cut off"],
)
def test_what_shows_no_shoulders_is_refused(volume, words):
    with pytest.raises(ValueError, match=words):
        shoulder_ct.parts(volume, SPACING)


def test_shoulders_are_a_pure_function_of_the_patient_and_end_at_the_sides(taken):
    anatomy = draw_anatomy(4)
    around = phantom.surroundings(4, SIZE)
    one = girdle.with_shoulders(around, taken, anatomy)
    again = girdle.with_shoulders(around, taken, anatomy)
    for field in dataclasses.fields(one):
        np.testing.assert_array_equal(getattr(one, field.name), getattr(again, field.name))
    inside = np.s_[8:24, 16:48]
    assert np.abs(one.girdle - around.girdle)[inside].max() > 0.2
    assert np.abs(one.body - around.body)[inside].max() > 0.2
    # The arms, and all that lies below the CT's end, stay drawn.
    for edge in (np.s_[:, :3], np.s_[:, -3:], np.s_[40:]):
        for name in ("body", "arms", "girdle", "spine"):
            np.testing.assert_allclose(getattr(one, name)[edge], getattr(around, name)[edge], atol=1e-5)
    np.testing.assert_array_equal(one.cage, around.cage)


def test_half_of_the_patients_wear_them_mirrored(taken):
    placings = [girdle.place(taken, (8, 56, 10, 48), seed, SIZE) for seed in range(40)]
    assert placings == [girdle.place(taken, (8, 56, 10, 48), seed, SIZE) for seed in range(40)]
    assert 0.25 < np.mean([placing.mirrored for placing in placings]) < 0.75
    # The apices lie where the chest's do, mirrored or not.
    for placing in placings[:8]:
        own_middle = -taken.middle if placing.mirrored else taken.middle
        seen = placing.pose.centre[0] + placing.pose.stretch[0] * own_middle
        assert seen == pytest.approx(0, abs=1e-6)
    chosen = [girdle.wears(seed, 2) for seed in range(200)]
    assert chosen == [girdle.wears(seed, 2) for seed in range(200)] and {*chosen} == {None, 0, 1}
    assert np.mean([number is not None for number in chosen]) == pytest.approx(girdle.SHARE, abs=0.1)
    assert girdle.wears(0, 0) is None


def test_a_drawn_patient_with_a_cts_shoulders_keeps_chest_and_mask(taken):
    drawn = phantom.simulate(4, SIZE)
    worn = phantom.simulate(4, SIZE, extras=Extras(shoulders=taken))
    np.testing.assert_array_equal(worn.mask, drawn.mask)
    assert np.abs(worn.cxr - drawn.cxr)[:24].max() > 0.1
    bone = worn.cxr - worn.soft
    assert (bone < -0.05).mean() < 0.05


# --- The script's folder ----------------------------------------------------------------------------------------------


def test_a_ct_of_shoulders_is_told_by_its_name(tmp_path):
    small = neck()[0][::6, ::6, ::6]
    write_nifti(tmp_path / "a_chest.nii", small)
    write_nifti(tmp_path / "neck_Shoulders.nii", small)
    chest, shoulders = volumes.find(tmp_path)
    assert not chest.shows_shoulders and shoulders.shows_shoulders
    with pytest.raises(UserError, match="neck_Shoulders.nii for its shoulders, which its name promises"):
        folder.take_apart((folder.Scan(shoulders, "1"), tmp_path / "1.npz"))
    with pytest.raises(UserError, match="a_chest.nii.*has to have 'shoulder' in its name"):
        folder.take_apart((folder.Scan(chest, "2"), tmp_path / "2.npz"))
    chest.path.unlink()
    settings = config.parse("", ("simulate",), ["simulate.count=1", f"simulate.ct={tmp_path}", "simulate.source=both"])
    with pytest.raises(UserError, match="neck_Shoulders.nii is a CT of shoulders.*chest is needed"):
        folder.simulate(tmp_path / "set", settings.simulate, SIZE)


def test_patients_get_shoulders_by_their_number_and_the_record_says_so(taken, tmp_path):
    chest = folder.Scan(volumes.Source(tmp_path / "chest.nii"), "c")
    lent = folder.Scan(volumes.Source(tmp_path / "shoulders.nii"), "s")
    settings = config.parse("", ("simulate",), ["simulate.source=both"]).simulate
    before = folder._describe(settings, SIZE, [chest])
    after = folder._describe(settings, SIZE, [chest, lent])
    assert before["shoulders"] == [] and "shoulders" not in before["version"]
    assert after["cts"] == before["cts"] == ["c"] and after["shoulders"] == ["s"]
    assert after["version"]["shoulders"] == girdle.VERSION
    assert not any(folder._shoulders_of(seed, [chest], tmp_path) for seed in range(20))
    worn = [folder._shoulders_of(seed, [chest, lent], tmp_path) for seed in range(20)]
    assert {*worn} == {None, tmp_path / "s.npz"}

    shoulder_ct.save(taken, tmp_path / "s.npz")
    for name, job in (("with", folder.Job(4, None, False, tmp_path / "s.npz")), ("without", folder.Job(4, None))):
        folder.simulate_patient(tmp_path / name, 0, SIZE, False, job)
    images = [(tmp_path / name / "CXR" / "4.png").read_bytes() for name in ("with", "without")]
    assert images[0] != images[1]
