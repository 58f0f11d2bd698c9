"""Augmentation: the amounts that were asked for, the same for a pair, black stays black, a function of its key."""

import numpy as np
import pytest
import scipy.ndimage

from models import config
from models.data import augment
from models.simulate import phantom

NOTHING = {
    "versions": 1,
    "flip": False,
    "rotate": 0.0,
    "scale": 0.0,
    "contrast": 0.0,
    "gamma": 0.0,
    "display": 0.0,
    "display_apart": 0.0,
    "sharpen": 0.0,
    "noise": 0.0,
    "bone": 0.0,
    "bone_flat": (0.0, 0.0),
    "bone_wide": (0.03, 0.12),
    "bone_edge": 0.0,
}


def augmentation(**amounts) -> config.Augment:
    """The settings' section augment with these amounts and nothing else."""
    return config.Augment(**(NOTHING | amounts))


EVERYTHING = augmentation(flip=True, rotate=8, scale=0.1, contrast=0.2, gamma=0.3, display=0.5)


@pytest.fixture(scope="module")
def patient():
    return phantom.simulate(3, 128)


def test_none_changes_nothing(patient):
    for nothing in (None, augmentation()):
        assert augment.augment(patient.cxr, nothing, "key") is patient.cxr


def test_the_key_decides_alone(patient):
    first = augment.augment(patient.cxr, EVERYTHING, "a")
    np.random.random()
    assert np.array_equal(first, augment.augment(patient.cxr, EVERYTHING, "a"))
    assert not np.allclose(first, augment.augment(patient.cxr, EVERYTHING, "b"), atol=0.01)
    assert first.dtype == np.float32 and first.min() >= 0 and first.max() <= 1


def test_both_images_of_a_pair_are_changed_alike(patient):
    """Where the two are equal they stay so, and what differs moves with its image."""
    half = patient.cxr.copy()
    half[:64] = patient.soft[:64]
    geometry = augmentation(flip=True, rotate=8, scale=0.1)
    for key in "abcde":
        cxr, soft, mixed = (augment.augment(image, geometry, key) for image in (patient.cxr, patient.soft, half))
        to_cxr, to_soft = np.abs(mixed - cxr) < 1e-6, np.abs(mixed - soft) < 1e-6
        assert (to_cxr | to_soft).mean() > 0.9 and to_cxr[100:].all() and to_soft[:28].all()


def test_black_stays_black():
    image = np.zeros((64, 64), np.float32)
    image[20:40, 24:40] = 0.7
    for key in "abcdef":
        changed = augment.augment(image, EVERYTHING, key)
        assert np.all(changed[:10] == 0) and np.all(changed[-10:] == 0) and changed[30, 32] > 0.3


def test_flips_half_of_the_time(patient):
    results = [augment.augment(patient.cxr, augmentation(flip=True), str(key)) for key in range(60)]
    flipped = sum(np.array_equal(result, patient.cxr[:, ::-1]) for result in results)
    assert flipped + sum(np.array_equal(result, patient.cxr) for result in results) == 60 and 15 < flipped < 45


def test_rotation_and_scale_are_those_asked_for(patient):
    """The best match among exact rotations lies within the range, and the ranges are used."""
    image, angles = scipy.ndimage.gaussian_filter(patient.cxr, 1), np.arange(-12, 13)
    exact = [scipy.ndimage.rotate(image, angle, reshape=False, order=3)[32:96, 32:96] for angle in angles]
    found = []
    for key in range(12):
        changed = augment.augment(image, augmentation(rotate=8), str(key))[32:96, 32:96]
        errors = [np.mean((changed - other) ** 2) for other in exact]
        found.append(angles[int(np.argmin(errors))])
        assert min(errors) < 0.1 * np.mean((image[32:96, 32:96] - exact[0]) ** 2)
    assert min(found) < -2 and max(found) > 2 and -9 < min(found) and max(found) < 9
    disc = (np.hypot(*(np.indices((128, 128)) - 63.5)) < 40).astype(np.float32)
    sides = [np.sqrt(augment.augment(disc, augmentation(scale=0.1), str(key)).sum() / disc.sum()) for key in range(40)]
    assert 0.89 < min(sides) < 0.94 and 1.06 < max(sides) < 1.11


@pytest.mark.parametrize(
    "amounts, least, most", [({"contrast": 0.2}, 0.4, 0.6), ({"gamma": 0.3}, 0.5**1.3, 0.5 ** (1 / 1.3))]
)
def test_grey_values_stay_within_what_was_asked(amounts, least, most):
    values = [
        augment.augment(np.full((8, 8), 0.5, np.float32), augmentation(**amounts), str(key))[0, 0] for key in range(200)
    ]
    assert least - 1e-6 <= min(values) < least + 0.02 and most - 0.02 < max(values) <= most + 1e-6


def test_sharpness_is_between_half_as_much_softer_and_all_sharper(patient):
    """The gain of fine detail, measured on a grating finer than every blur, lies in the range; black stays black."""
    x = np.arange(256)
    grating = np.tile((0.5 + 0.05 * np.cos(2 * np.pi * x / 4)).astype(np.float32), (256, 1))
    grating[:, :64] = 0
    found = []
    for key in range(60):
        changed = augment.augment(grating, augmentation(sharpen=0.8), str(key))
        assert np.all(changed[:, :64] == 0)
        found.append(np.ptp(changed[100:150, 100:200]) / np.ptp(grating[:, 100:200]) - 1)
    assert -0.4 <= min(found) < -0.1 and 0.3 < max(found) <= 0.81


def test_display_raises_faint_contrast_over_strong_and_keeps_black():
    """A power law in each band: of two gratings of one width the faint one gains, and by (strong / faint)^(1 - p) < 5
    for amounts up to 1."""
    x = np.arange(128)
    grating = np.sin(x * np.pi / 4)[None] * np.where(np.arange(128) < 64, 0.02, 0.2)[:, None]
    pixels = (0.5 + grating).astype(np.float32)
    pixels[:, :16] = 0
    gains = []
    for key in range(40):
        changed = augment.augment(pixels, augmentation(display=1.0), str(key))
        assert np.all(changed[:, :16] == 0) and changed.min() >= 0 and changed.max() <= 1
        faint, strong = (
            np.std(changed[rows, 40:100]) / np.std(pixels[rows, 40:100]) for rows in (slice(8, 40), slice(88, 120))
        )
        gains.append(faint / strong)
    assert min(gains) > 0.99 and 1.5 < max(gains) < 5


def test_half_of_the_pairs_have_two_displays(patient):
    """Apart or not, the CXR is shown as it is without, and so is the soft-tissue image of the other half."""
    together = augmentation(display=1.0)
    apart = augmentation(display=1.0, display_apart=0.5)
    small = patient.soft[::2, ::2]
    differ = []
    for key in range(40):
        alike = augment.augment(small, together, str(key), is_soft=True)
        np.testing.assert_array_equal(alike, augment.augment(small, together, str(key)))
        np.testing.assert_array_equal(alike, augment.augment(small, apart, str(key)))
        own = augment.augment(small, apart, str(key), is_soft=True)
        np.testing.assert_array_equal(own, augment.augment(small, apart, str(key), is_soft=True))
        differ.append(not np.array_equal(own, alike))
    assert 0.25 < np.mean(differ) < 0.75


def test_noise_is_of_the_deviation_asked_for_and_one_for_both_images():
    flat = np.full((128, 128), 0.5, np.float32)
    spreads = [augment.augment(flat, augmentation(noise=0.02), str(key)).std() for key in range(40)]
    assert max(spreads) <= 0.0205 and max(spreads) > 0.017 and min(spreads) < 0.003
    assert np.array_equal(
        augment.augment(flat, augmentation(noise=0.02), "a"), augment.augment(flat, augmentation(noise=0.02), "a")
    )


def test_bone_gets_fainter_flatter_and_sharper_as_asked():
    """A disc of bone on even tissue: its height, its middle against its rim; nothing changes where there is neither
    bone nor image."""
    side = 256
    radius = np.hypot(*(np.indices((side, side)) - side / 2))
    soft = np.where(radius < 120, 0.4, 0).astype(np.float32)
    cxr = soft + np.where(radius < 40, 0.2, 0).astype(np.float32)
    assert augment.change_bone(cxr, soft, augmentation(), "a") is cxr
    for key in map(str, range(20)):
        faint = augment.change_bone(cxr, soft, augmentation(bone=0.7), key)
        height = faint[128, 128] - 0.4
        assert 0.3 * 0.2 - 1e-6 <= height <= 0.2 + 1e-6 and np.allclose(
            faint, soft + (cxr - soft) * height / 0.2, atol=1e-6
        )
        flat, edgy = (
            augment.change_bone(cxr, soft, changes, key) - soft
            for changes in (augmentation(bone_flat=(0.0, 0.9)), augmentation(bone_edge=1.0))
        )
        assert 0.2 - 0.9 * 0.2 <= flat[128, 128] <= 0.2 + 1e-6 and flat[128, 128] <= flat[128, 128 + 38] + 1e-4
        assert edgy[128, 128] == pytest.approx(0.2, abs=1e-3) and edgy[128, 128 + 39] >= 0.2 - 1e-6
        assert np.all(flat[radius > 125] == 0) and np.all(edgy[radius > 125] == 0)
    heights = [augment.change_bone(cxr, soft, augmentation(bone=0.7), str(key))[128, 128] - 0.4 for key in range(40)]
    assert min(heights) < 0.09 and max(heights) > 0.17
