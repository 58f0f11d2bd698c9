"""The scores against the published numbers on real pairs, written-out definitions, scikit-image and the lpips
package."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.signal import convolve2d
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from models import images, scores

SHARED = Path(__file__).resolve().parents[2] / "shared"
GOLDEN = json.loads((Path(__file__).parent / "golden" / "metrics.json").read_text())
PAIRWISE = (scores.mse, scores.psnr, scores.ssim)
WITH_CXR = (scores.bsr, scores.bsr_two_sided, scores.bsr_residual)


@pytest.fixture
def triple():
    """(cxr, gt, pred), float64 (64, 48) in [0, 1]: bone in a band, half of it left, a shift in tone and noise."""
    rng = np.random.default_rng(0)
    gt = 0.2 + 0.4 * rng.random((64, 48))
    bone = np.zeros_like(gt)
    bone[20:40] = 0.3
    pred = gt + 0.5 * bone + 0.03 + 0.02 * rng.standard_normal(gt.shape)
    return gt + bone, gt, pred


@pytest.mark.slow
@pytest.mark.parametrize("method", ["pred", "identity"])
def test_published_numbers_on_real_pairs(method, lpips):
    if not (SHARED / "szch").is_dir():
        pytest.skip(f"{SHARED} with the real pairs is not here")
    for expected in GOLDEN[method]:
        cxr, gt = (images.read(SHARED / "szch" / part / expected["file"]).pixels for part in ("CXR", "BS"))
        pred = images.read(SHARED / "golden" / "pred" / expected["file"]).pixels if method == "pred" else cxr
        found = {"BSR": scores.bsr(cxr, gt, pred), "MSE": scores.mse(gt, pred), "PSNR": scores.psnr(gt, pred)}
        assert found == pytest.approx({key: expected[key] for key in found}, rel=1e-6)
        assert lpips(gt, pred) == pytest.approx(expected["LPIPS"], abs=1e-5)


def test_bsr_counted_by_hand():
    cxr, gt = np.array([[0.5, 0.5], [0.2, 0.2]]), np.array([[0.3, 0.1], [0.2, 0.2]])
    pred = np.array(
        [[0.4, 0.0], [0.2, 0.2]]
    )  # mean(gt - pred) = 0; bone 0.2, 0.4; residues -0.1 (bone left), +0.1 (tissue lost)
    assert scores.bsr(cxr, gt, pred) == pytest.approx(1 - 0.01 / 0.20)
    assert scores.bsr_two_sided(cxr, gt, pred) == pytest.approx(1 - 0.02 / 0.20)
    lopsided = np.array([[0.3, 0.1], [0.2, 0.6]])  # pred' = pred - 0.1: residues +0.1 three times, -0.3 once
    assert scores.bsr(cxr, gt, lopsided) == pytest.approx(1 - 0.03 / 0.20)
    assert scores.bsr_two_sided(cxr, gt, lopsided) == pytest.approx(1 - 0.12 / 0.20)
    assert scores.bsr_residual(cxr, gt, lopsided) == pytest.approx(1 - 0.09 / 0.20)


@pytest.mark.parametrize("masked", [False, True])
def test_every_pixel_score_written_out_in_loops(triple, masked):
    cxr, gt, pred = (array.tolist() for array in triple)
    mask = np.zeros((64, 48), bool)
    mask[10:50, 5:30] = True
    places = [(y, x) for y in range(64) for x in range(48) if mask[y, x] or not masked]
    shift = sum(gt[y][x] - pred[y][x] for y, x in places) / len(places)
    bone = sum((cxr[y][x] - gt[y][x]) ** 2 for y, x in places)
    residues = [gt[y][x] - (pred[y][x] + shift) for y, x in places]
    error = sum((gt[y][x] - pred[y][x]) ** 2 for y, x in places) / len(places)
    expected = {
        "BSR": 1 - sum(max(r, 0) ** 2 for r in residues) / bone,
        "BSR_residual": 1 - sum(max(-r, 0) ** 2 for r in residues) / bone,
        "BSR_two_sided": 1 - sum(r**2 for r in residues) / bone,
        "MSE": error,
        "PSNR": 20 * math.log10(1 / math.sqrt(error)),
    }
    found = scores.pixel_scores(*triple[:2], {"ours": triple[2]}, mask)["ours"]
    assert {key: found[key + "_lungs" * masked] for key in expected} == pytest.approx(expected)
    only = (mask,) if masked else ()
    assert scores.bsr(*triple, *only) == pytest.approx(expected["BSR"])
    assert scores.bsr_two_sided(*triple, *only) == pytest.approx(expected["BSR_two_sided"])
    assert scores.bsr_residual(*triple, *only) == pytest.approx(expected["BSR_residual"])
    assert scores.mse(*triple[1:], *only) == pytest.approx(error)
    assert scores.psnr(*triple[1:], *only) == pytest.approx(expected["PSNR"])


def test_no_mask_an_empty_one_and_no_bone_in_the_lungs_are_nan(triple):
    cxr, gt, pred = triple
    empty = np.zeros(gt.shape, bool)
    for mask in (None, empty):
        found = scores.pixel_scores(cxr, gt, {"ours": pred}, mask)["ours"]
        assert all(math.isnan(found[column.key]) for column in scores.IN_LUNGS) and math.isfinite(found["BSR"])
    boneless = empty.copy()
    boneless[:20] = True  # the bone begins below
    found = scores.pixel_scores(cxr, gt, {"ours": pred}, boneless)["ours"]
    assert (
        math.isnan(found["BSR_lungs"])
        and math.isnan(found["BSR_residual_lungs"])
        and math.isfinite(found["PSNR_lungs"])
    )
    for wrong in (empty.astype(np.uint8), empty[1:]):
        with pytest.raises(ValueError, match="expected a mask of bool"):
            scores.mse(gt, pred, wrong)


@pytest.mark.parametrize("score", WITH_CXR)
def test_bsr_at_its_ends(score, triple):
    cxr, gt, pred = triple
    assert score(cxr, gt, gt) == 1
    assert score(cxr, gt, pred + 0.1) == pytest.approx(score(cxr, gt, pred))  # the mean is not judged
    assert math.isnan(score(gt, gt, pred))
    assert score(cxr, gt, cxr) < 1


def test_published_bsr_rewards_doing_nothing_and_the_two_sided_form_does_not(triple):
    cxr, gt, _ = triple
    mean, bone = np.mean(gt - cxr), cxr - gt
    assert scores.bsr_two_sided(cxr, gt, cxr) == pytest.approx(bone.mean() ** 2 * bone.size / np.sum(bone**2))
    assert scores.bsr(cxr, gt, cxr) == pytest.approx(1 - np.sum(bone == 0) * mean**2 / np.sum(bone**2))


def test_mse_and_psnr_of_noisy_identical_and_16_bit_images(triple):
    _, gt, pred = triple
    assert scores.mse(gt, pred) == pytest.approx(sum((a - b) ** 2 for a, b in zip(gt.ravel(), pred.ravel())) / gt.size)
    assert scores.psnr(gt, pred) == pytest.approx(peak_signal_noise_ratio(gt, pred, data_range=1))
    assert scores.mse(gt, gt) == 0 and scores.psnr(gt, gt) == math.inf
    levels = np.random.default_rng(1).integers(0, 65535, (64, 64))
    fine, next_level = (levels / 65535).astype(np.float32), ((levels + 1) / 65535).astype(np.float32)
    assert scores.psnr(fine, next_level) == pytest.approx(20 * math.log10(65535), abs=0.01)


def test_ssim_is_the_papers_definition(triple):
    _, gt, pred = triple
    grid = np.arange(-5, 6)
    window = np.exp(-(grid[:, None] ** 2 + grid[None, :] ** 2) / (2 * 1.5**2))
    window /= window.sum()
    m_x, m_y, xx, yy, xy = (
        convolve2d(image, window, mode="valid") for image in (gt, pred, gt * gt, pred * pred, gt * pred)
    )
    c_1, c_2 = 0.01**2, 0.03**2
    expected = (
        (2 * m_x * m_y + c_1)
        * (2 * (xy - m_x * m_y) + c_2)
        / ((m_x**2 + m_y**2 + c_1) * (xx - m_x**2 + yy - m_y**2 + c_2))
    ).mean()
    assert scores.ssim(gt, pred) == pytest.approx(expected, rel=1e-9)
    assert expected == pytest.approx(
        structural_similarity(gt, pred, data_range=1.0, gaussian_weights=True, sigma=1.5, use_sample_covariance=False)
    )
    with pytest.raises(ValueError, match="at least 11"):
        scores.ssim(gt[:10], pred[:10])
    assert scores.ssim(gt, gt) == pytest.approx(1) and scores.ssim(0 * gt, 0 * gt) == pytest.approx(1)


@pytest.mark.parametrize("score", [*PAIRWISE, *WITH_CXR, "lpips"])
def test_what_is_not_a_float_image_is_refused(score, triple, request):
    score = request.getfixturevalue("lpips") if score == "lpips" else score
    arguments = [array.astype(np.float32) for array in triple[: 3 if score in WITH_CXR else 2]]
    score(*arguments)  # float32 itself is welcome
    wrong = {
        "uint8": (arguments[-1] * 255).astype(np.uint8),
        "uint16": (arguments[-1] * 65535).astype(np.uint16),
        "bool": arguments[-1] > 0.5,
        "one shape": arguments[-1][:, 1:],
        r"\(1, 64, 48\)|one shape": arguments[-1][None],
        "NaN": np.where(arguments[-1] > 0.5, np.nan, arguments[-1]),
        "expected 0 to 1": arguments[-1] * 255,
        "-1 to 1": np.where(arguments[-1] > 0.5, np.float32(1), np.float32(-1)),
        "got list": arguments[-1].tolist(),
    }
    for message, array in wrong.items():
        for place in range(len(arguments)):
            with pytest.raises(ValueError, match=message):
                score(*arguments[:place], array, *arguments[place + 1 :])


def test_lpips_of_stacks_and_ranges(lpips, triple):
    cxr, gt, pred = (array.astype(np.float32) for array in triple)
    stack = lpips(np.stack([gt, gt, gt]), np.stack([cxr, pred, gt]))
    assert stack.shape == (3,) and stack == pytest.approx([lpips(gt, cxr), lpips(gt, pred), 0], rel=1e-5)
    tensors = [torch.from_numpy(array)[None, None].expand(-1, 3, -1, -1) for array in (gt, cxr)]
    assert lpips(gt, cxr) == pytest.approx(
        float(lpips.network(*tensors)), rel=1e-5
    )  # the package's own way through the network
    assert lpips(gt, cxr, normalize=True) == pytest.approx(
        float(lpips.network(*(2 * x - 1 for x in tensors))), rel=1e-5
    )
    assert abs(lpips(gt, cxr, normalize=True) / lpips(gt, cxr) - 1) > 0.01
    before = lpips.micro_batch
    lpips.micro_batch = 2
    shared = lpips.against(gt, np.stack([cxr, pred, gt]))
    lpips.micro_batch = before
    assert shared == pytest.approx(stack, rel=1e-5) and shared[2] == 0
    with pytest.raises(ValueError, match="at least 32"):
        lpips(gt[:31], pred[:31])


def test_place_tells_bone_left_from_tissue_changed():
    gt = np.full((256, 256), 0.5)
    bone = np.zeros_like(gt)
    bone[100:106] = 0.1
    on_bone = bone > 0
    cxr = 0.9 * gt + bone  # another tone curve: it differs from the truth everywhere
    stripes = 0.03 * (-1) ** np.arange(256)  # without a mean
    predictions = {"left": gt + stripes * on_bone, "changed": gt + stripes * ~on_bone}
    found = scores.pixel_scores(cxr, gt, predictions)
    assert found["left"]["MSE_on_bone"] == pytest.approx(0.03**2)
    assert found["left"]["MSE_off_bone"] == 0
    assert found["changed"]["MSE_on_bone"] == 0
    assert found["changed"]["MSE_off_bone"] == pytest.approx(0.03**2)
    nothing = scores.pixel_scores(gt, gt, {})[scores.REFERENCE]
    assert math.isnan(nothing["MSE_on_bone"]) and math.isnan(nothing["BSR_rib"])


PERIODS = {"fine": 0.006, "narrow": 0.025, "rib": 0.1, "broad": 0.5}  # shares of the side; structures are half as wide


@pytest.mark.parametrize("band", PERIODS)
def test_a_structure_that_stays_is_charged_to_the_band_of_its_width(band):
    place = np.arange(500) / 500
    waves = {name: 0.02 * np.cos(2 * np.pi * place / period) for name, period in PERIODS.items()}
    gt = np.full((500, 500), 0.5)
    found = scores.pixel_scores(gt + sum(waves.values()), gt, {"left": gt + waves[band], "truth": gt})
    left = {name: found["left"][f"BSR_{name}"] for name in scores.BANDS}
    assert left.pop(band) < 0.4 and min(left.values()) > 0.8
    for name in scores.BANDS:
        assert found["truth"][f"BSR_{name}"] == 1
        assert found[scores.REFERENCE][f"BSR_{name}"] == 0


def test_one_image_has_every_column_and_the_untouched_cxr_first(lpips, triple):
    found = scores.score(*triple[:2], {"ours": triple[2], "truth": triple[1]}, lpips, triple[0] > triple[1])
    assert list(found) == [scores.REFERENCE, "ours", "truth"]
    for row in found.values():
        columns = scores.PUBLISHED + scores.BESIDE + scores.BY_PLACE_AND_WIDTH + scores.IN_LUNGS
        assert row.keys() == {column.key for column in columns}
    assert found["truth"] == pytest.approx(
        {
            "BSR": 1,
            "BSR_two_sided": 1,
            "BSR_residual": 1,
            "MSE": 0,
            "PSNR": math.inf,
            "SSIM": 1,
            "SSIM_uniform": 1,
            "MAE": 0,
            "MSE_on_bone": 0,
            "MSE_off_bone": 0,
            "BSR_fine": math.nan,  # nothing is finer than a pixel of so small an image
            "BSR_narrow": 1,
            "BSR_rib": 1,
            "BSR_broad": 1,
            "BSR_lungs": 1,
            "BSR_two_sided_lungs": 1,
            "BSR_residual_lungs": 1,
            "MSE_lungs": 0,
            "PSNR_lungs": math.inf,
            "LPIPS": 0,
            "LPIPS_normalized": 0,
        },
        nan_ok=True,
    )
    ours = found["ours"]
    assert (1 - ours["BSR"]) + (1 - ours["BSR_residual"]) == pytest.approx(1 - ours["BSR_two_sided"])
    assert ours["LPIPS"] == pytest.approx(lpips(triple[1], triple[2]))
