"""models.lungs: contract, invariance, Dice on drawn chests, on phantoms and (where they are) on real films, and the shape check."""
from pathlib import Path

import cv2
import numpy as np
import pytest

from models.lungs import lung_faults, lung_mask

REAL = Path(__file__).resolve().parents[2] / 'shared' / 'szch' / 'CXR'
real = pytest.mark.skipif(not REAL.is_dir(), reason=f'no real X-rays in {REAL}')


def dice(one, other):
    return 2 * (one & other).sum() / (one.sum() + other.sum())


def drawn_chest(height=256, width=256, shift=0.):
    """A body ellipse with two dark lungs, spine, heart and diaphragm on a dark ground: (cxr, mask). Shift in widths."""
    y, x = np.mgrid[:height, :width].astype(np.float32)
    x, y = x / width - .5 - shift, y / height
    ellipse = lambda cx, cy, rx, ry: ((x - cx) / rx) ** 2 + ((y - cy) / ry) ** 2 < 1
    lungs = (ellipse(-.19, .55, .15, .40) | ellipse(.19, .55, .15, .40)) & (y < .78 + 1.2 * (np.abs(x) - .17) ** 2)
    lungs &= ~ellipse(.06, .66, .13, .16) & (np.abs(x) > .06)
    cxr = np.where(ellipse(0, .6, .46, .62), .6, .05)
    cxr[np.abs(x) < .04] = .8
    cxr[lungs] = .3
    noise = np.random.default_rng(0).normal(0, .01, cxr.shape)
    return np.clip(cv2.GaussianBlur(cxr, (0, 0), width / 128) + noise, 0, 1).astype(np.float32), lungs


@pytest.mark.parametrize('cxr, words', [
    (np.zeros((128, 128), np.uint8), 'uint8'),
    (np.zeros((128, 128, 3), np.float32), r'\(128, 128, 3\)'),
    (np.zeros((128, 63), np.float32), '63'),
    (np.full((128, 128), 1.5, np.float32), '1.5'),
    (np.full((128, 128), np.nan, np.float32), 'nan'),
    ([[0.]], 'list'),
])
def test_wrong_input_is_refused_with_what_came_and_what_is_expected(cxr, words):
    with pytest.raises(ValueError, match=words) as refusal:
        lung_mask(cxr)
    assert 'expected' in str(refusal.value)


@pytest.mark.parametrize('shape', [(64, 64), (97, 131), (64, 400), (400, 64)])
def test_any_size_gives_a_boolean_mask_of_that_size_and_keeps_the_input(shape):
    cxr = drawn_chest(*shape)[0].astype(np.float64)
    before = cxr.copy()
    mask = lung_mask(cxr)
    assert mask.shape == shape and mask.dtype == bool and mask.any()
    assert np.array_equal(cxr, before)


def test_a_flat_image_does_not_fail():
    assert lung_mask(np.full((80, 80), .5, np.float32)).shape == (80, 80)


@pytest.mark.parametrize('shape, shift', [((256, 256), 0.), ((320, 256), .05)])
def test_drawn_chests(shape, shift):
    cxr, lungs = drawn_chest(*shape, shift)
    mask = lung_mask(cxr)
    assert dice(mask, lungs) > .9
    assert lung_faults(mask) == []


def test_gamma_window_and_size_hardly_matter():
    cxr, _ = drawn_chest(512, 512)
    mask = lung_mask(cxr)
    assert dice(lung_mask((.1 + .6 * cxr) ** 1.6), mask) > .95
    half = lung_mask(cv2.resize(cxr, (256, 256), interpolation=cv2.INTER_AREA))
    assert dice(cv2.resize(half.astype(np.uint8), (512, 512)) > 0, mask) > .95


def test_black_collimator_border_and_white_marker():
    cxr, lungs = drawn_chest()
    framed = cxr.copy()
    framed[:12], framed[-12:], framed[:, :12], framed[:, -12:] = 0, 0, 0, 0
    framed[16:40, 20:32] = 1
    assert dice(lung_mask(framed), lungs) > .9


@pytest.mark.parametrize('seed', range(2))
def test_phantoms_both_ways_round(seed):
    phantom = pytest.importorskip('models.phantom').simulate(seed, 256)
    cxr, lungs = np.asarray(phantom.cxr, np.float32), np.asarray(phantom.mask) > .5
    assert dice(lung_mask(cxr), lungs) > .94                # .96 when written; placing and fitting alone reach .93
    mirrored = np.ascontiguousarray(cxr[:, ::-1])
    assert dice(lung_mask(mirrored), lungs[:, ::-1]) > .94  # .96 when written; without the mirrored shape seed 1 has .90


@real
@pytest.mark.parametrize('name', ['0.png', '1.png', '2.png'])
def test_real_films(name):
    cxr = cv2.imread(str(REAL / name), cv2.IMREAD_GRAYSCALE).astype(np.float32) / 255
    mask = lung_mask(cxr)                   # (1024, 1024)
    for x in (300, 770):
        assert mask[300:650:50, x].all()    # down the middle of either lung
    assert .15 < mask.mean() < .45
    outside = np.ones_like(mask)
    outside[130:980, 80:920] = False        # neck and shoulders, arms and outer air, abdomen
    outside[:, 515:540] = True              # spine and trachea
    outside[900:, 200:820] = True           # below the diaphragm
    assert not mask[outside].any()
    assert lung_faults(mask) == []


def square_mask(*boxes):
    mask = np.zeros((100, 100), bool)
    for top, bottom, left, right in boxes:
        mask[top:bottom, left:right] = True
    return mask


@pytest.mark.parametrize('mask, words', [
    (square_mask(), '0.0% of the image'),
    (square_mask((40, 50, 20, 30), (40, 50, 60, 70)), '2.0% of the image'),
    (square_mask((5, 95, 5, 45), (5, 95, 50, 95)), '76.5% of the image'),
    (square_mask((20, 80, 20, 60)), '1 large part,'),
    (square_mask((20, 80, 10, 30), (20, 80, 40, 60), (20, 80, 70, 90)), '3 large parts'),
    (square_mask((20, 80, 10, 50), (20, 40, 60, 90)), '25%'),
    (square_mask((20, 80, 0, 30), (20, 80, 60, 90)), 'border in 60 pixels'),
])
def test_faults_of_bad_masks_are_named_with_their_numbers(mask, words):
    assert any(words in fault for fault in lung_faults(mask))


def test_two_equal_lungs_with_a_speck_have_no_fault():
    assert lung_faults(square_mask((20, 80, 15, 40), (20, 80, 60, 85), (5, 7, 5, 7))) == []
