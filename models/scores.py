"""The scores of images as float arrays in [0, 1].

Sources: [B] BS-LDM, JBHI 2025; [G] GL-LCM, MICCAI 2025; [S] the published scripts.
"""

import math
import sys
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import torch

from .features import lpips_network

LEAST_SIDE = 32  # pixels; AlexNet leaves nothing of a smaller image
RANGE_SLACK = 0.5  # noise may leave [0, 1] a little; beyond this the image has another range
WINDOW = 11  # side of SSIM's Gaussian window, pixels [Wang et al. 2004]
SIGMA = 1.5  # of that Gaussian, pixels
UNIFORM_WINDOW = 7  # side of the uniform window that scikit-image's SSIM has by default, pixels
SSIM_K1 = 0.01  # Wang's constants that keep the quotient finite, for a range of 1
SSIM_K2 = 0.03
GPU_MICRO_BATCH = 8  # images that go through LPIPS's network at once on a GPU; on a CPU one is as fast in less memory
LENGTH_FLOOR = 1e-10  # keeps LPIPS from dividing by 0, as in the package
BONE = 0.01  # grey values; where CXR - truth exceeds its own broad part by more, there is bone
# Sigmas of the Gaussians that bound the bands of width, shares of the image's side: a structure of width w passes those
# below about w / 2. So the bands hold edges and noise; vessels and cortices; ribs; what is broader.
BAND_SIGMAS = (0.002, 0.008, 0.03)
BANDS = ("fine", "narrow", "rib", "broad")
REFERENCE = "untouched CXR"  # the method that does nothing, in every table


# --- Columns of the tables --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Score:
    """A column of the tables. key: its name in files; label: its heading; scale: what the table multiplies it by."""

    key: str
    label: str
    scale: float
    larger_is_better: bool

    @property
    def heading(self) -> str:
        arrow = "↑" if self.larger_is_better else "↓"
        return f"{self.label} {arrow}"


# The columns of the published tables, with their scales.
PUBLISHED = (
    Score("BSR", "BSR (%)", 100, True),
    Score("MSE", "MSE (10⁻³)", 1000, False),
    Score("PSNR", "PSNR (dB)", 1, True),
    Score("LPIPS", "LPIPS", 1, False),
)
# What the published scores miss: bone left over, structure, and LPIPS on the range it was made for.
BESIDE = (
    Score("BSR_two_sided", "two-sided BSR (%)", 100, True),
    Score("BSR_residual", "residual-bone BSR (%)", 100, True),
    Score("SSIM", "SSIM", 1, True),
    Score("SSIM_uniform", "SSIM 7 x 7", 1, True),
    Score("MAE", "MAE (10⁻³)", 1000, False),
    Score("LPIPS_normalized", "LPIPS on [-1, 1]", 1, False),
)
# Inside the lungs, where nodules are looked for; borders and neck do not count.
IN_LUNGS = (
    Score("BSR_lungs", "BSR (%)", 100, True),
    Score("BSR_two_sided_lungs", "two-sided BSR (%)", 100, True),
    Score("BSR_residual_lungs", "residual-bone BSR (%)", 100, True),
    Score("MSE_lungs", "MSE (10⁻³)", 1000, False),
    Score("PSNR_lungs", "PSNR (dB)", 1, True),
)
# Bone left is told from tissue changed by place, and ribs from their edges by width.
BY_PLACE_AND_WIDTH = (
    Score("MSE_on_bone", "MSE on bone (10⁻³)", 1000, False),
    Score("MSE_off_bone", "MSE off bone (10⁻³)", 1000, False),
    Score("BSR_fine", "fine BSR (%)", 100, True),
    Score("BSR_narrow", "narrow BSR (%)", 100, True),
    Score("BSR_rib", "rib-wide BSR (%)", 100, True),
    Score("BSR_broad", "broad BSR (%)", 100, True),
)


# --- Scores of one image ----------------------------------------------------------------------------------------------


def bsr(cxr: np.ndarray, gt: np.ndarray, pred: np.ndarray, mask: np.ndarray | None = None) -> float:
    """Bone suppression ratio as published [B, G]: 1 - sum(max(gt - pred', 0)^2) / sum((cxr - gt)^2), pred' = pred +
    mean(gt - pred).

    cxr, gt, pred: float (H, W) in [0, 1]; bones bright. mask: bool (H, W); sums and mean are taken where it is true.
    The sign counts over-suppression only: the CXR itself scores high. NaN if there is no bone to suppress (cxr == gt),
    or no pixel in the mask. Raises ValueError as `_checked` says.
    """
    checked = _checked(cxr, gt, pred)
    ratios = _ratios(*_inside(mask, *checked))
    return ratios["BSR"]


def bsr_residual(cxr: np.ndarray, gt: np.ndarray, pred: np.ndarray, mask: np.ndarray | None = None) -> float:
    """BSR of the other sign, which counts bone left only: 1 - sum(max(pred' - gt, 0)^2) / sum((cxr - gt)^2); else as
    `bsr`."""
    checked = _checked(cxr, gt, pred)
    ratios = _ratios(*_inside(mask, *checked))
    return ratios["BSR_residual"]


def bsr_two_sided(cxr: np.ndarray, gt: np.ndarray, pred: np.ndarray, mask: np.ndarray | None = None) -> float:
    """BSR that counts bone left and tissue lost alike: 1 - sum((gt - pred')^2) / sum((cxr - gt)^2); else as `bsr`."""
    checked = _checked(cxr, gt, pred)
    ratios = _ratios(*_inside(mask, *checked))
    return ratios["BSR_two_sided"]


def mse(gt: np.ndarray, pred: np.ndarray, mask: np.ndarray | None = None) -> float:
    """Mean squared error of float (H, W) in [0, 1], inside the mask if one is given; NaN for an empty mask."""
    checked = _checked(gt, pred)
    errors = _errors(*_inside(mask, *checked))
    return errors["MSE"]


def psnr(gt: np.ndarray, pred: np.ndarray, mask: np.ndarray | None = None) -> float:
    """Peak signal-to-noise ratio, 20 log10(1 / sqrt(MSE)) dB; infinite for equal images; else as `mse`."""
    checked = _checked(gt, pred)
    errors = _errors(*_inside(mask, *checked))
    return errors["PSNR"]


def ssim(gt: np.ndarray, pred: np.ndarray) -> float:
    """Structural similarity, Wang et al. (TIP 2004): Gaussian window of 11, sigma 1.5. float (H, W) in [0, 1], sides of
    at least 11."""
    return _ssim(*_checked(gt, pred))


def ssim_uniform(gt: np.ndarray, pred: np.ndarray) -> float:
    """As `ssim`, with a uniform window of 7, as skimage.metrics.structural_similarity has it by default."""
    return _ssim_uniform(*_checked(gt, pred))


def mae(gt: np.ndarray, pred: np.ndarray) -> float:
    """Mean absolute error of float (H, W) in [0, 1]."""
    gt, pred = _checked(gt, pred)
    return float(np.mean(np.abs(gt - pred)))


def pixel_scores(
    cxr: np.ndarray, gt: np.ndarray, predictions: dict[str, np.ndarray], mask: np.ndarray | None = None
) -> dict:
    """{method: {key: value}} of all scores but LPIPS, the untouched CXR first.

    cxr, gt and each prediction: float (H, W) in [0, 1]. mask: bool (H, W), true in the lungs; if there is none, or an
    empty one, the scores inside the lungs are NaN. Raises ValueError as `_checked` says.
    """
    cxr, gt, *checked = _checked(cxr, gt, *predictions.values())

    # The untouched X-ray is scored like a method: a table's numbers mean little without it.
    methods = {REFERENCE: cxr}
    methods.update(zip(predictions, checked))

    # No mask is an empty mask: all its scores are NaN, but the keys are there.
    if mask is None:
        mask = np.zeros(gt.shape, bool)

    bone_bands = _bands(cxr - gt)  # alike for all methods
    values = {}
    for method, pred in methods.items():
        # The whole image.
        row = {}
        row |= _ratios(cxr, gt, pred)
        row |= _errors(gt, pred)
        row["SSIM"] = _ssim(gt, pred)
        row["SSIM_uniform"] = _ssim_uniform(gt, pred)
        row["MAE"] = float(np.mean(np.abs(gt - pred)))

        # By place and by width of what is left.
        residue = gt - pred
        row |= _by_place(bone_bands, residue)
        row |= _by_width(bone_bands, residue)

        # Inside the lungs. SSIM needs whole windows and has no score there.
        cxr_inside, gt_inside, pred_inside = _inside(mask, cxr, gt, pred)  # (pixels in the lungs,) each
        inside = _ratios(cxr_inside, gt_inside, pred_inside)
        inside |= _errors(gt_inside, pred_inside)
        for key, value in inside.items():
            # one text for all images, of which there may be a hundred thousand
            row[sys.intern(f"{key}_lungs")] = value
        values[method] = row
    return values


class Lpips:
    """LPIPS, Zhang et al. (CVPR 2018), version 0.1. Build it once; the network stays on its device."""

    def __init__(self, net: str = "alex", features: str | None = None, device: str | torch.device = "cpu"):
        """net: "alex" (as published) or "vgg". features: folder with the network's weights, see models/features.py."""
        self.device = torch.device(device)
        network: Any = lpips_network(net, features)  # the package's networks have no types
        network = network.to(self.device)
        self.network = network.to(memory_format=torch.channels_last)  # twice as fast on a CPU
        self.weights = [layer.model[-1].weight.flatten() for layer in self.network.lins]  # (C,) for each level
        self.micro_batch = GPU_MICRO_BATCH if self.device.type == "cuda" else 1

    @torch.inference_mode()
    def __call__(self, gt: np.ndarray, pred: np.ndarray, normalize: bool = False) -> float | np.ndarray:
        """A float for (H, W), an array (B,) for stacks (B, H, W); float in [0, 1], sides of at least 32.

        normalize=False is the published protocol [S]: the network gets [0, 1], although it was made for [-1, 1].
        normalize=True brings the images to [-1, 1] first.
        """
        gt, pred = _checked(gt, pred, stacks=True)
        if gt.ndim == 2:
            return float(self.against(gt, pred[None], normalize)[0])
        # Pair by pair, so that only two images' features are in memory.
        distances = []
        for target, prediction in zip(gt, pred):
            distances.append(self.against(target, prediction[None], normalize))
        return np.concatenate(distances)

    @torch.inference_mode()
    def against(self, gt: np.ndarray, predictions: np.ndarray, normalize: bool = False) -> np.ndarray:
        """(B,): of predictions (B, H, W) with one target (H, W), whose features are computed once; otherwise as a
        call."""
        height, width = gt.shape[-2:]
        if min(height, width) < LEAST_SIDE:
            size = f"{height} x {width}"
            raise ValueError(f"images of {size} are too small for LPIPS; both sides must be at least {LEAST_SIDE}")

        # The target goes first in the batch: its features serve all predictions.
        images = np.concatenate([gt[None], predictions])  # (1 + B, H, W)
        stack = torch.from_numpy(images).float()
        target_levels: list[torch.Tensor] = []
        distances = []
        for micro_batch in stack.split(self.micro_batch):
            levels = self.features(micro_batch.to(self.device), normalize)  # (micro-batch, C, h, w) each
            if not target_levels:  # the first micro-batch begins with the target
                target_levels = [level[:1].clone() for level in levels]  # (1, C, h, w) each

            # Zhang 2018, eq. 1: squared difference of unit-length features, averaged over the level's pixels, weighted
            # by channel, summed over levels.
            distance = torch.zeros(len(micro_batch), device=self.device)
            for level, target_level, weight in zip(levels, target_levels, self.weights):
                square = (level - target_level).square_()  # in place: the levels take most of the memory
                by_channel = square.mean((2, 3))  # (micro-batch, C)
                distance = distance + by_channel @ weight  # (micro-batch,)
            distances.append(distance)

        # The first is the target with itself, 0.
        of_predictions = torch.cat(distances)[1:]  # (B,)
        return of_predictions.double().cpu().numpy()

    def features(self, stack: torch.Tensor, normalize: bool) -> list[torch.Tensor]:
        """The network's five levels of a stack (B, H, W) in [0, 1], each (B, C, h, w) and of length 1 along C."""
        if normalize:
            stack = 2 * stack - 1
        grey = stack[:, None]  # (B, 1, H, W)
        x = self.network.scaling_layer(grey)  # (B, 3, H, W)
        x = x.contiguous(memory_format=torch.channels_last)

        # TF32 would keep 10 bits of the mantissa.
        exact = torch.backends.cudnn.flags(enabled=True, allow_tf32=False) if x.is_cuda else nullcontext()
        with exact:
            levels = self.network.net(x)

        # Unit length along the channels at every pixel, as the paper has it.
        normed = []
        for level in levels:
            length = torch.linalg.vector_norm(level, dim=1, keepdim=True)
            normed.append(level.div_(length.add_(LENGTH_FLOOR)))  # in place: the levels take most of the memory
        return normed


def score(
    cxr: np.ndarray, gt: np.ndarray, predictions: dict[str, np.ndarray], lpips: Lpips, mask: np.ndarray | None = None
) -> dict:
    """{method: {key: value}} of all scores of one image; otherwise as `pixel_scores`."""
    values = pixel_scores(cxr, gt, predictions, mask)
    stack = np.stack([cxr, *predictions.values()])  # (methods, H, W), the untouched CXR first as in `pixel_scores`
    return add_lpips(values, gt, stack, lpips)


def add_lpips(values: dict, gt: np.ndarray, stack: np.ndarray, lpips: Lpips) -> dict:
    """The values of `pixel_scores` with LPIPS on both ranges. gt: (H, W); stack: (methods, H, W), in the order of the
    values."""
    for key, normalize in (("LPIPS", False), ("LPIPS_normalized", True)):
        distances = lpips.against(gt, stack, normalize)
        for row, distance in zip(values.values(), distances):
            row[key] = float(distance)
    return values


def _ratios(cxr: np.ndarray, gt: np.ndarray, pred: np.ndarray) -> dict[str, float]:
    """The three bone suppression ratios of arrays of one shape, NaN where cxr == gt or there is no pixel."""
    bone_energy = float(np.sum((cxr - gt) ** 2))
    if bone_energy == 0:
        return dict.fromkeys(("BSR", "BSR_two_sided", "BSR_residual"), math.nan)
    # The mean is taken out, so that brightness alone is neither bone left nor tissue lost. Where the residue is
    # positive the prediction is too dark: more than bone was removed.
    residue = gt - pred
    residue -= residue.mean()  # gt - pred'
    tissue_lost = np.sum(np.maximum(residue, 0) ** 2)
    bone_left = np.sum(np.minimum(residue, 0) ** 2)
    return {
        "BSR": float(1 - tissue_lost / bone_energy),
        "BSR_two_sided": float(1 - (tissue_lost + bone_left) / bone_energy),
        "BSR_residual": float(1 - bone_left / bone_energy),
    }


def _errors(gt: np.ndarray, pred: np.ndarray) -> dict[str, float]:
    """MSE and PSNR of arrays of one shape, NaN where there is no pixel."""
    if gt.size == 0:
        return {"MSE": math.nan, "PSNR": math.nan}
    error = float(np.mean((gt - pred) ** 2))
    # 20 log10(1 / sqrt(MSE)) = -10 log10(MSE), since the largest value is 1.
    psnr_db = -10 * math.log10(error) if error > 0 else math.inf
    return {"MSE": error, "PSNR": psnr_db}


def _by_place(bone_bands: list[np.ndarray], residue: np.ndarray) -> dict[str, float]:
    """MSE where there is bone and where there is none, the mean error taken out; NaN where there is no pixel.

    bone_bands: of CXR - truth, (H, W) each; residue: truth - prediction. Bone is what stands out of CXR - truth: makers
    show the two with different tone curves, so that they differ by more than bone everywhere.
    """
    # All bands but the broad one.
    fine, narrow, rib, _ = bone_bands
    on_bone = fine + narrow + rib > BONE

    # MSE is the mean of these squares over a region.
    squares = (residue - residue.mean()) ** 2
    regions = {"MSE_on_bone": on_bone, "MSE_off_bone": ~on_bone}
    scores = {}
    for key, region in regions.items():
        scores[key] = float(squares[region].mean()) if region.any() else math.nan
    return scores


def _by_width(bone_bands: list[np.ndarray], residue: np.ndarray) -> dict[str, float]:
    """The two-sided BSR in each band of width: 1 for the truth, 0 for the CXR; NaN where a band holds no bone."""
    scores = {}
    residue_bands = _bands(residue)
    for name, bone, band_residue in zip(BANDS, bone_bands, residue_bands):
        bone_energy = float(np.sum(bone**2))
        residue_energy = float(np.sum(band_residue**2))
        scores[sys.intern(f"BSR_{name}")] = 1 - residue_energy / bone_energy if bone_energy > 0 else math.nan
    return scores


def _bands(x: np.ndarray) -> list[np.ndarray]:
    """(H, W) as the sum of its BANDS, finest first, the mean taken out: differences of Gaussian blurs."""
    side = max(x.shape)
    rest = (x - x.mean()).astype(np.float32)  # what is broader than the bands so far
    bands = []
    for share in BAND_SIGMAS:
        broader = cv2.GaussianBlur(rest, (0, 0), share * side)
        bands.append(rest - broader)
        rest = broader
    bands.append(rest)
    return bands


def _ssim(gt: np.ndarray, pred: np.ndarray) -> float:
    """Wang et al. (TIP 2004), equation 13, averaged where the window lies inside the image."""
    if min(gt.shape) < WINDOW:
        size = f"{gt.shape[0]} x {gt.shape[1]}"
        raise ValueError(f"images of {size} are too small for SSIM; both sides must be at least {WINDOW}")
    gaussian = cv2.getGaussianKernel(WINDOW, SIGMA, cv2.CV_64F)
    # Only where the window lies inside the image: OpenCV would mirror at the border.
    edge = WINDOW // 2

    def local_mean(image: np.ndarray) -> np.ndarray:
        return cv2.sepFilter2D(image, cv2.CV_64F, gaussian, gaussian)[edge:-edge, edge:-edge]

    mean_gt = local_mean(gt)
    mean_pred = local_mean(pred)
    mean_squares = mean_gt**2 + mean_pred**2
    mean_product = mean_gt * mean_pred

    # Window moments: cov = E[xy] - E[x] E[y]; the two variances are needed as a sum only.
    covariance = local_mean(gt * pred) - mean_product
    variances = local_mean(gt * gt) + local_mean(pred * pred) - mean_squares

    # Equation 13, with a range of 1.
    c_1 = SSIM_K1**2
    c_2 = SSIM_K2**2
    numerator = (2 * mean_product + c_1) * (2 * covariance + c_2)
    denominator = (mean_squares + c_1) * (variances + c_2)
    return float((numerator / denominator).mean())


def _ssim_uniform(gt: np.ndarray, pred: np.ndarray) -> float:
    """SSIM as scikit-image has it by default: means over windows of 7 x 7, covariances of samples (over 48 instead of
    49), averaged where the window lies inside the image. The successors of both methods print this one."""
    edge = UNIFORM_WINDOW // 2
    window = (UNIFORM_WINDOW, UNIFORM_WINDOW)

    def local_mean(image: np.ndarray) -> np.ndarray:
        return cv2.blur(image, window)[edge:-edge, edge:-edge]

    mean_gt = local_mean(gt)
    mean_pred = local_mean(pred)

    # Covariance, and the sum of the two variances, over n - 1.
    pixels = UNIFORM_WINDOW**2
    of_sample = pixels / (pixels - 1)
    covariance = of_sample * (local_mean(gt * pred) - mean_gt * mean_pred)
    variances = of_sample * (local_mean(gt * gt) + local_mean(pred * pred) - mean_gt**2 - mean_pred**2)

    # Equation 13 of Wang et al. (TIP 2004), with a range of 1.
    c_1 = SSIM_K1**2
    c_2 = SSIM_K2**2
    luminance = (2 * mean_gt * mean_pred + c_1) / (mean_gt**2 + mean_pred**2 + c_1)
    similarity = luminance * (2 * covariance + c_2) / (variances + c_2)
    return float(similarity.mean())


def _inside(mask: np.ndarray | None, *arrays: np.ndarray) -> list[np.ndarray]:
    """The arrays (H, W), or what the mask bool (H, W) selects of each."""
    if mask is None:
        return list(arrays)
    if mask.dtype != bool or mask.shape != arrays[0].shape:
        raise ValueError(f"expected a mask of bool {arrays[0].shape}, got {mask.dtype} {mask.shape}")
    return [array[mask] for array in arrays]


def _checked(*arrays: np.ndarray, stacks: bool = False) -> list[np.ndarray]:
    """The arrays as float64. stacks: whether (B, H, W) is welcome too.

    Raises ValueError for integers (they would wrap), shapes that differ or are not (H, W), NaN, and other ranges than
    [0, 1].
    """
    # Each check has its own message, since these are what a wrong script passes: bytes, unequal sizes, NaN, and [0,
    # 255] or [-1, 1].
    dimensions = (2, 3) if stacks else (2,)
    for array in arrays:
        if not isinstance(array, np.ndarray) or array.dtype.kind != "f":
            found = getattr(array, "dtype", type(array).__name__)
            raise ValueError(
                f"expected float arrays in [0, 1], got {found}; divide integer images by their largest possible value"
            )
        if array.shape != arrays[0].shape or array.ndim not in dimensions or array.size == 0:
            shapes = ", ".join(str(other.shape) for other in arrays)
            raise ValueError(f"expected images of one shape (H, W), got {shapes}")
        if not np.isfinite(array).all():
            raise ValueError("an image holds NaN or infinity")
        if array.min() < -RANGE_SLACK or array.max() > 1 + RANGE_SLACK:
            raise ValueError(f"an image runs from {array.min():g} to {array.max():g}; expected 0 to 1")
    return [array.astype(np.float64) for array in arrays]
