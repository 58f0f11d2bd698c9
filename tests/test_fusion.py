"""Poisson fusion against OpenCV's seamlessClone and against its own equations; the other fusions."""

import cv2
import numpy as np
import pytest
from scipy.fft import dst
from scipy.ndimage import gaussian_filter

from models import fusion


@pytest.fixture(scope="module")
def case():
    """(global, local, mask): smooth images (160, 144) in [0.2, 0.8], two lungs."""
    rng = np.random.default_rng(0)
    images = [gaussian_filter(rng.standard_normal((160, 144)), 6) for _ in range(2)]
    global_soft, local_soft = (0.5 + 0.25 * image / np.abs(image).max() for image in images)
    local_soft = 0.7 * global_soft + 0.3 * local_soft
    mask = np.zeros((160, 144), np.uint8)
    cv2.ellipse(mask, (40, 80), (24, 55), 5, 0, 360, 1, -1)
    cv2.ellipse(mask, (104, 80), (24, 55), -5, 0, 360, 1, -1)
    return global_soft, local_soft, mask.astype(bool)


def opencv(global_soft, local_soft, mask):
    """The published fusion: seamlessClone in 8 bits, its centre such that nothing shifts."""
    bgr = [
        cv2.cvtColor(np.rint(image * 255).astype(np.uint8), cv2.COLOR_GRAY2BGR) for image in (global_soft, local_soft)
    ]
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    centre = (int(columns[0] + columns[-1] + 1) // 2, int(rows[0] + rows[-1] + 1) // 2)
    clone = cv2.seamlessClone(bgr[1], bgr[0], mask.astype(np.uint8) * 255, centre, cv2.MONOCHROME_TRANSFER)
    return clone[..., 0] / 255


def test_poisson_is_opencvs_to_a_grey_level_away_from_the_rim(case):
    mask = case[2]
    global_soft, local_soft = (np.rint(image * 255) / 255 for image in case[:2])  # what OpenCV sees
    found, expected = fusion.fuse(global_soft, local_soft, mask), opencv(*case)
    rim = cv2.dilate(mask.astype(np.uint8), np.ones((3, 3)), iterations=2) - cv2.erode(
        mask.astype(np.uint8), np.ones((3, 3)), iterations=5
    )
    away = ~rim.astype(bool)
    assert np.abs(found - expected)[away].max() < 1.05 / 255  # OpenCV cuts off to whole grey levels
    assert np.abs(found - global_soft)[mask].max() > 5 / 255  # it did something


def test_poisson_satisfies_its_equation(case):
    """Inside the eroded mask the fused image's Laplacian is the local image's, outside the global one's, exactly."""
    global_soft, local_soft, mask = case
    fused = fusion.poisson(global_soft, local_soft, mask)
    inner = cv2.erode(mask.astype(np.uint8), np.ones((3, 3)), iterations=fusion.EROSIONS + 1).astype(bool)
    outer = cv2.erode((~mask).astype(np.uint8), np.ones((3, 3)), iterations=1).astype(bool)
    outer[[0, -1]] = outer[:, [0, -1]] = False
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    box = np.zeros_like(mask)
    box[rows[0] + 1 : rows[-1], columns[0] + 1 : columns[-1]] = True
    laplacian = lambda image: cv2.Laplacian(image, cv2.CV_64F, ksize=1)  # noqa: E731
    assert np.abs(laplacian(fused) - laplacian(local_soft))[inner & box].max() < 1e-9
    assert np.abs(laplacian(fused) - laplacian(global_soft))[outer & box].max() < 1e-9
    untouched = np.ones_like(mask)
    untouched[rows[0] + 1 : rows[-1], columns[0] + 1 : columns[-1]] = False
    assert np.array_equal(fused[untouched], global_soft[untouched])


def test_a_shifted_local_image_gives_the_global_one_back(case):
    """Only gradients are taken over: a constant added to the global image changes nothing."""
    global_soft, _, mask = case
    assert np.abs(fusion.fuse(global_soft, global_soft - 0.1, mask) - global_soft).max() < 1e-9


@pytest.mark.parametrize("where", ["top", "whole"])
def test_masks_that_touch_the_border(case, where):
    global_soft, local_soft, mask = case
    mask = np.roll(mask, -30, 0) if where == "top" else np.ones_like(mask)
    fused = fusion.fuse(global_soft, local_soft, mask)
    assert np.isfinite(fused).all() and np.array_equal(fused[0], global_soft[0])
    inner = cv2.erode(mask.astype(np.uint8), np.ones((9, 9)), borderValue=0).astype(bool)
    difference = np.diff(fused, axis=1) - np.diff(local_soft, axis=1)
    assert (
        np.abs(difference)[inner[:, 1:] & inner[:, :-1]].mean()
        < np.abs(np.diff(global_soft - local_soft, axis=1)).mean()
    )


def test_small_parts_are_dropped_and_empty_masks_change_nothing(case):
    global_soft, local_soft, mask = case
    speck = np.zeros_like(mask)
    speck[150:155, 5:15] = True
    assert np.array_equal(fusion.drop_small_regions(mask | speck), mask)
    assert np.array_equal(fusion.fuse(global_soft, local_soft, speck), global_soft)
    assert np.array_equal(fusion.fuse(global_soft, local_soft, np.zeros_like(mask)), global_soft)


def test_alpha_and_none(case):
    global_soft, local_soft, mask = case
    found = fusion.fuse(global_soft, local_soft, mask, "alpha", blend=0.25)
    assert np.allclose(found[mask], 0.75 * global_soft[mask] + 0.25 * local_soft[mask]) and np.array_equal(
        found[~mask], global_soft[~mask]
    )
    assert np.array_equal(fusion.fuse(global_soft, local_soft, mask, "none"), global_soft)


def test_the_callers_arrays_stay(case):
    before = [array.copy() for array in case]
    for method in ("poisson", "alpha", "none"):
        fusion.fuse(*case, method=method)[:] = 0
    assert all(np.array_equal(a, b) for a, b in zip(before, case))


def test_what_does_not_fit_is_refused(case):
    global_soft, local_soft, mask = case
    for arguments in (
        (global_soft, local_soft, mask.astype(np.uint8)),
        (global_soft, local_soft[1:], mask),
        (global_soft, local_soft, mask, "mean"),
    ):
        with pytest.raises(ValueError, match="expected two images|unknown fusion"):
            fusion.fuse(*arguments)


@pytest.mark.parametrize("shape", [(1, 1), (5, 8), (30, 31)])
def test_the_sine_transform_is_scipys(shape):
    image = np.random.default_rng(0).standard_normal(shape)
    for axis in (0, 1):
        assert np.allclose(fusion._sine_transform(image, axis), dst(image, type=1, axis=axis), rtol=1e-12, atol=1e-12)
