"""Simulated pairs: repeatable, right in range and anatomy, and drawn by a projection that obeys geometry."""

import dataclasses

import cv2
import numpy as np
import pytest
from scipy.signal import find_peaks

from models.simulate import field, geometry, phantom, skeleton, soft_tissue
from models.simulate.anatomy import draw_anatomy

SIZE = 128
SEEDS = range(12)


@pytest.fixture(scope="module")
def patients():
    """Phantoms of all SEEDS at SIZE."""
    return [phantom.simulate(seed, SIZE) for seed in SEEDS]


@pytest.fixture
def upright():
    """An anatomy whose pose is the identity, so that patient and image coordinates agree."""
    return dataclasses.replace(draw_anatomy(0), shift=(0.0, 0.0), turn=0.0, yaw=0.0, zoom=1.0)


def psnr(pair):
    return -10 * np.log10(np.mean((pair.cxr - pair.soft) ** 2))


def lungs(mask):
    """The two largest connected parts of a mask as (area share, centre x / side, mask), from image left to right."""
    count, labels, numbers, centres = cv2.connectedComponentsWithStats(mask.astype(np.uint8))
    order = 1 + np.argsort(-numbers[1:, cv2.CC_STAT_AREA])
    assert numbers[order[2:], cv2.CC_STAT_AREA].sum() < 0.002 * mask.size, "parts besides the two lungs"
    parts = [(numbers[i, cv2.CC_STAT_AREA] / mask.size, centres[i, 0] / len(mask), labels == i) for i in order[:2]]
    return sorted(parts, key=lambda part: part[1])


def same(one, other):
    return all(np.array_equal(getattr(one, name), getattr(other, name)) for name in ("cxr", "soft", "mask"))


@pytest.mark.slow
def test_same_seed_same_pair_whatever_the_global_generator(patients):
    np.random.seed(5)
    before = np.random.get_state()[1].copy()
    assert same(phantom.simulate(3, SIZE), patients[3])
    assert np.array_equal(np.random.get_state()[1], before)


def test_other_seeds_are_other_patients(patients):
    for i, one in enumerate(patients):
        for other in patients[:i]:
            assert np.abs(one.cxr - other.cxr).mean() > 0.02
            assert (one.mask != other.mask).mean() > 0.005


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 5])
def test_same_patient_at_another_size(seed, patients):
    large = phantom.simulate(seed, 2 * SIZE)
    for name, least in (("cxr", 0.99), ("soft", 0.99)):
        small = cv2.resize(getattr(large, name), (SIZE, SIZE), interpolation=cv2.INTER_AREA)
        assert np.corrcoef(small.ravel(), getattr(patients[seed], name).ravel())[0, 1] > least
    bone = cv2.resize(large.cxr - large.soft, (SIZE, SIZE), interpolation=cv2.INTER_AREA)
    assert np.corrcoef(bone.ravel(), (patients[seed].cxr - patients[seed].soft).ravel())[0, 1] > 0.9
    mask = cv2.resize(large.mask.astype(np.float32), (SIZE, SIZE), interpolation=cv2.INTER_AREA) > 0.5
    assert (mask != patients[seed].mask).mean() < 0.015


def test_shapes_types_and_ranges(patients):
    for pair in patients:
        for image in (pair.cxr, pair.soft):
            assert image.shape == (SIZE, SIZE) and image.dtype == np.float32
            assert 0 <= image.min() and image.max() <= 1 and np.ptp(image) > 0.7
        assert pair.mask.shape == (SIZE, SIZE) and pair.mask.dtype == bool


@pytest.mark.parametrize("size", [65, 100])
def test_any_size_is_drawn(size):
    assert phantom.simulate(1, size).cxr.shape == (size, size)


def test_a_size_below_the_least_is_refused():
    phantom.simulate(0, 64)
    with pytest.raises(ValueError, match="63.*64"):
        phantom.simulate(0, 63)


def test_bone_only_adds_brightness_and_as_much_as_real_bone(patients):
    for seed, pair in zip(SEEDS, patients):
        bone = pair.cxr - pair.soft
        assert (bone < -0.05).mean() < 0.05, f"seed {seed}: soft brighter than cxr"
        assert 18.5 < psnr(pair) < 27, f"seed {seed}: {psnr(pair):.1f} dB"
    assert 20.5 < np.median([psnr(pair) for pair in patients]) < 24.5


def test_without_bone_both_images_differ_by_noise_alone(monkeypatch):
    monkeypatch.setattr(skeleton, "skeleton", lambda anatomy, size: np.zeros((size, size), np.float32))
    assert min(psnr(phantom.simulate(seed, SIZE)) for seed in range(4)) > 35


def test_two_dark_lungs_one_each_side(patients):
    for pair in patients:
        right, left = lungs(pair.mask)
        assert right[1] < 0.45 and left[1] > 0.55
        for area, _, mask in (right, left):
            assert 0.05 < area < 0.25
            rim = cv2.dilate(mask.astype(np.uint8), np.ones((15, 15))).astype(bool) & ~pair.mask
            assert pair.soft[mask].mean() < pair.soft[rim].mean() - 0.1


def test_heart_and_lower_diaphragm_on_the_left_of_the_patient(patients):
    gaps, bottoms = [], []
    for pair in patients:
        (_, _, right), (_, _, left) = lungs(pair.mask)
        row = int(np.quantile(np.nonzero(pair.mask)[0], 0.9))
        middle = SIZE / 2
        gaps.append((np.nonzero(left[row])[0].min() - middle) - (middle - np.nonzero(right[row])[0].max()))
        bottoms.append([np.nonzero(lung[:, int(np.mean(np.nonzero(lung)[1]))])[0].max() for lung in (right, left)])
    assert np.mean(gaps) > 0.04 * SIZE
    right, left = np.transpose(bottoms)
    assert np.mean(left - right) > 0.01 * SIZE


def test_several_ribs_cross_a_vertical_line_through_each_lung(patients):
    for pair in patients:
        for _, centre, mask in lungs(pair.mask):
            columns = slice(int(centre * SIZE) - 1, int(centre * SIZE) + 2)
            inside = np.nonzero(mask[:, columns].all(1))[0]
            profile = (pair.cxr - pair.soft)[inside[0] : inside[-1] + 1, columns].mean(1)
            assert len(find_peaks(profile, prominence=0.01)[0]) >= 5


def test_twelve_pairs_of_ribs_fall_sideways_and_forward():
    for seed in SEEDS:
        anatomy = draw_anatomy(seed)
        path = skeleton.ribs(anatomy).path
        right, left = path[:12], path[12:]
        assert path.shape == (24, path.shape[1], 3)
        assert (right[..., 0] < 0).all() and (left[..., 0] > 0).all()
        for side in (right, left):
            assert (np.diff(side[:, 0, 1]) > 0.02).all()  # each begins below the one above
            widest = np.abs(side[..., 0]).argmax(1)
            for rib, turn in list(zip(side, widest))[1:6]:
                back, front = rib[: turn + 1], rib[turn:]
                assert back[-1, 1] - back[0, 1] > 0.05 and front[-1, 1] - front[0, 1] > 0.03
                assert np.abs(front[-1, 0]) < np.abs(front[0, 0]) - 0.03 and front[-1, 2] > back[0, 2]


def test_a_hollow_tube_is_bright_at_its_rims(upright):
    size, radius, weight = 400, 0.05, 0.002
    path = np.stack([np.zeros(9), np.linspace(0.3, 0.7, 9), np.zeros(9)], -1)[None]
    tube = geometry.make_tubes(path, radius, radius, weight, 0)
    shell = geometry.shell(tube, tube.cortex, 1.0, upright, size)
    assert shell.sum() / size**2 == pytest.approx(2 * np.pi * radius * 0.4 * weight, rel=0.01)
    x = (np.arange(size) + 0.5) / size - 0.5
    within = np.abs(x) < 0.8 * radius
    chord = 2 * weight / np.sqrt(1 - (x[within] / radius) ** 2)  # a thin shell is crossed obliquely twice
    assert shell[150:250, within].mean(0) == pytest.approx(chord, rel=0.05)


def test_a_solid_tube_has_the_thickness_of_a_cylinder(upright):
    size, radius = 400, 0.03
    thickness = geometry.ribbon(np.array([[(0.0, 0.2), (0.0, 0.5), (0.0, 0.8)]]), radius, upright, size)
    x = (np.arange(size) + 0.5) / size - 0.5
    within = np.abs(x) < 0.8 * radius
    assert thickness[150:250, within].mean(0) == pytest.approx(2 * np.sqrt(radius**2 - x[within] ** 2), rel=0.03)


def test_pixels_and_patient_coordinates_are_inverse():
    anatomy = draw_anatomy(7)
    x, y = geometry.patient_grid(anatomy, SIZE)
    row, column = np.mgrid[:SIZE, :SIZE]
    back = geometry.project(anatomy, np.stack([x, y], -1), SIZE)
    assert np.abs(back - np.stack([column, row], -1)).max() < 1e-3


@pytest.mark.slow
def test_surroundings_are_the_patient_taken_apart():
    anatomy, around = draw_anatomy(3), phantom.surroundings(3, SIZE)
    x, y = geometry.patient_grid(anatomy, SIZE)
    assert (around.body**4 + around.arms**4) ** 0.25 == pytest.approx(
        phantom.SIDE * soft_tissue.body(anatomy, x, y), abs=1e-3
    )
    assert around.girdle + around.spine + around.cage == pytest.approx(
        phantom.SIDE * skeleton.skeleton(anatomy, SIZE), abs=1e-3
    )
    right, left, top, bottom = around.chest
    outside = phantom.simulate(3, SIZE).mask
    outside[int(top) - 4 : int(bottom) + 12, int(right) - 4 : int(left) + 5] = False
    assert outside.mean() < 0.005


def test_textures_are_the_same_picture_at_every_size_and_others_by_name():
    small, large = (field.texture(3, "lung", size, 32) for size in (64, 256))
    assert np.corrcoef(cv2.resize(large, (64, 64), interpolation=cv2.INTER_AREA).ravel(), small.ravel())[0, 1] > 0.98
    assert abs(np.corrcoef(small.ravel(), field.texture(3, "bone", 64, 32).ravel())[0, 1]) < 0.2
    assert 0.5 < small.std() < 1.2


def test_elastic_maps_leave_the_border_where_it_is_and_fold_nothing():
    across, down = field.elastic_maps(5, 4, 0.004, 200)
    index = np.arange(200)
    assert (
        np.abs(across[:, [0, -1]] - index[[0, -1]]).max() < 0.5
        and np.abs(down[[0, -1]] - index[[0, -1]][:, None]).max() < 0.5
    )
    assert (
        np.abs(across - index).max() > 0.5 and np.diff(across, axis=1).min() > 0.5 and np.diff(down, axis=0).min() > 0.5
    )


def test_a_wide_blur_at_reduced_size_is_the_blur():
    picture = phantom.simulate(2, 256).cxr
    exact = cv2.GaussianBlur(picture, (0, 0), 0.05 * 256)
    assert np.abs(field.blur(picture, 0.05) - exact)[20:-20, 20:-20].max() < 0.01


def test_smooth_steps_and_discs():
    assert field.smooth_step(np.array([-1, 0, 0.5, 1, 2]), 0, 1).tolist() == [0, 0, 0.5, 1, 1]
    assert field.smooth_step(np.array([3.0, 5.0]), 5, 3).tolist() == [1, 0]  # downwards too
    assert field.disc(0.2).shape == (3, 3) and field.disc(4).shape == (9, 9) and not field.disc(4)[0, 0]
