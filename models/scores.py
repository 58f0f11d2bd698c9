"""The scores of images as float arrays in [0, 1].

Sources: [B] BS-LDM, JBHI 2025; [G] GL-LCM, MICCAI 2025; [S] the published scripts.
"""
import math
from contextlib import nullcontext
from dataclasses import dataclass

import cv2
import numpy as np
import torch

from .features import lpips_network

LEAST_SIDE = 32      # pixels; AlexNet leaves nothing of a smaller image
RANGE_SLACK = 0.5    # noise may leave [0, 1] a little; beyond this the image has another range
WINDOW, SIGMA = 11, 1.5  # of SSIM's Gaussian, pixels
TOGETHER = 8         # images that go through LPIPS's network at once on a GPU; on a CPU one at a time is as fast and takes less memory
LENGTH_FLOOR = 1e-10  # keeps LPIPS from dividing by 0, as in the package
REFERENCE = "untouched CXR"  # the method that does nothing, in every table


# --- Columns of the tables ---------------------------------------------------------------------------------------------------

@dataclass(frozen=True)
class Score:
    """A column of the tables. key: its name in files; label: its heading; scale: what the table multiplies it by."""
    key: str
    label: str
    scale: float
    larger_is_better: bool

    @property
    def heading(self) -> str:
        return f"{self.label} {'↑' if self.larger_is_better else '↓'}"


PUBLISHED = (
    Score("BSR", "BSR (%)", 100, True),
    Score("MSE", "MSE (10⁻³)", 1000, False),
    Score("PSNR", "PSNR (dB)", 1, True),
    Score("LPIPS", "LPIPS", 1, False),
)
BESIDE = (
    Score("BSR_two_sided", "two-sided BSR (%)", 100, True),
    Score("BSR_residual", "residual-bone BSR (%)", 100, True),
    Score("SSIM", "SSIM", 1, True),
    Score("LPIPS_normalized", "LPIPS on [-1, 1]", 1, False),
)
IN_LUNGS = (
    Score("BSR_lungs", "BSR (%)", 100, True),
    Score("BSR_two_sided_lungs", "two-sided BSR (%)", 100, True),
    Score("BSR_residual_lungs", "residual-bone BSR (%)", 100, True),
    Score("MSE_lungs", "MSE (10⁻³)", 1000, False),
    Score("PSNR_lungs", "PSNR (dB)", 1, True),
)


# --- Scores of one image -----------------------------------------------------------------------------------------------------

def bsr(cxr: np.ndarray, gt: np.ndarray, pred: np.ndarray, mask: np.ndarray | None = None) -> float:
    """Bone suppression ratio as published [B, G]: 1 - sum(max(gt - pred', 0)^2) / sum((cxr - gt)^2), pred' = pred + mean(gt - pred).

    cxr, gt, pred: float (H, W) in [0, 1]; bones bright. mask: bool (H, W); sums and mean are taken where it is true.
    The sign counts over-suppression only: the CXR itself scores high. NaN where there is no bone to suppress, cxr == gt, or no
    pixel in the mask. Raises ValueError as `_checked` says.
    """
    return _ratios(*_inside(mask, *_checked(cxr, gt, pred)))["BSR"]


def bsr_residual(cxr: np.ndarray, gt: np.ndarray, pred: np.ndarray, mask: np.ndarray | None = None) -> float:
    """BSR of the other sign, which counts bone left only: 1 - sum(max(pred' - gt, 0)^2) / sum((cxr - gt)^2); else as `bsr`."""
    return _ratios(*_inside(mask, *_checked(cxr, gt, pred)))["BSR_residual"]


def bsr_two_sided(cxr: np.ndarray, gt: np.ndarray, pred: np.ndarray, mask: np.ndarray | None = None) -> float:
    """BSR that counts bone left and tissue lost alike: 1 - sum((gt - pred')^2) / sum((cxr - gt)^2); else as `bsr`."""
    return _ratios(*_inside(mask, *_checked(cxr, gt, pred)))["BSR_two_sided"]


def mse(gt: np.ndarray, pred: np.ndarray, mask: np.ndarray | None = None) -> float:
    """Mean squared error; float (H, W) in [0, 1]; where the mask is true, NaN where it is so nowhere."""
    return _errors(*_inside(mask, *_checked(gt, pred)))["MSE"]


def psnr(gt: np.ndarray, pred: np.ndarray, mask: np.ndarray | None = None) -> float:
    """Peak signal-to-noise ratio, 20 log10(1 / sqrt(MSE)) dB; infinite for equal images; else as `mse`."""
    return _errors(*_inside(mask, *_checked(gt, pred)))["PSNR"]


def ssim(gt: np.ndarray, pred: np.ndarray) -> float:
    """Structural similarity, Wang et al. (TIP 2004): Gaussian window of 11, sigma 1.5. float (H, W) in [0, 1], sides of at least 11."""
    return _ssim(*_checked(gt, pred))


def pixel_scores(cxr: np.ndarray, gt: np.ndarray, predictions: dict[str, np.ndarray], mask: np.ndarray | None = None) -> dict:
    """{method: {key: value}} of all scores but LPIPS, the untouched CXR first.

    cxr, gt and each prediction: float (H, W) in [0, 1]. mask: bool (H, W), true in the lungs; without one, and where it is empty,
    the scores inside the lungs are NaN. Raises ValueError as `_checked` says.
    """
    cxr, gt, *results = _checked(cxr, gt, *predictions.values())
    values = {}
    for method, pred in {REFERENCE: cxr, **dict(zip(predictions, results))}.items():
        values[method] = _ratios(cxr, gt, pred) | _errors(gt, pred) | {"SSIM": _ssim(gt, pred)}
        inside = _inside(np.zeros(gt.shape, bool) if mask is None else mask, cxr, gt, pred)
        values[method] |= {f"{key}_lungs": value for key, value in (_ratios(*inside) | _errors(*inside[1:])).items()}
    return values


class Lpips:
    """LPIPS, Zhang et al. (CVPR 2018), version 0.1. Build it once; the network stays on its device."""

    def __init__(self, net: str = "alex", features: str | None = None, device: str | torch.device = "cpu"):
        """net: "alex" (as published) or "vgg". features: folder with the network's weights, see models/features.py."""
        self.device = torch.device(device)
        self.network = lpips_network(net, features).to(self.device, memory_format=torch.channels_last)  # twice as fast on a CPU
        self.weights = [layer.model[-1].weight.flatten() for layer in self.network.lins]  # (C,) each
        self.together = TOGETHER if self.device.type == "cuda" else 1

    @torch.inference_mode()
    def __call__(self, gt: np.ndarray, pred: np.ndarray, normalize: bool = False) -> float | np.ndarray:
        """A float for (H, W), an array (B,) for stacks (B, H, W); float in [0, 1], sides of at least 32.

        normalize=False is the published protocol [S]: the network gets [0, 1], although it was made for [-1, 1].
        normalize=True brings the images to [-1, 1] first.
        """
        gt, pred = _checked(gt, pred, stacks=True)
        if gt.ndim == 3:
            return np.concatenate([self.against(truth, image[None], normalize) for truth, image in zip(gt, pred)])
        return float(self.against(gt, pred[None], normalize)[0])

    @torch.inference_mode()
    def against(self, gt: np.ndarray, predictions: np.ndarray, normalize: bool = False) -> np.ndarray:
        """(B,): of predictions (B, H, W) with one truth (H, W), whose features are computed once; otherwise as a call."""
        if min(gt.shape[-2:]) < LEAST_SIDE:
            raise ValueError(f"images of {gt.shape[-2]} x {gt.shape[-1]} are too small for LPIPS; both sides must be at least {LEAST_SIDE}")
        stack = torch.from_numpy(np.concatenate([gt[None], predictions])).float()  # (1 + B, H, W)
        truth, distances = None, []
        for part in stack.split(self.together):
            levels = self.features(part.to(self.device), normalize)
            truth = truth or [level[:1].clone() for level in levels]
            distances.append(sum((level - aim).square_().mean((2, 3)) @ weight
                                 for level, aim, weight in zip(levels, truth, self.weights)))
        return torch.cat(distances)[1:].double().cpu().numpy()

    def features(self, stack: torch.Tensor, normalize: bool) -> list[torch.Tensor]:
        """The network's five levels of a stack (B, H, W) in [0, 1], each (B, C, h, w) and of length 1 along C."""
        x = self.network.scaling_layer((2 * stack - 1 if normalize else stack)[:, None])  # (B, 3, H, W)
        exact = torch.backends.cudnn.flags(enabled=True, allow_tf32=False) if x.is_cuda else nullcontext()  # TF32 keeps 10 bits
        with exact:
            levels = self.network.net(x.contiguous(memory_format=torch.channels_last))
        return [level.div_(torch.linalg.vector_norm(level, dim=1, keepdim=True).add_(LENGTH_FLOOR)) for level in levels]


def score(cxr: np.ndarray, gt: np.ndarray, predictions: dict[str, np.ndarray], lpips: Lpips, mask: np.ndarray | None = None) -> dict:
    """{method: {key: value}} of all scores of one image; otherwise as `pixel_scores`."""
    values = pixel_scores(cxr, gt, predictions, mask)
    return add_lpips(values, gt, np.stack([cxr, *predictions.values()]), lpips)


def add_lpips(values: dict, gt: np.ndarray, stack: np.ndarray, lpips: Lpips) -> dict:
    """The values of `pixel_scores` with LPIPS on both ranges. gt: (H, W); stack: (methods, H, W), in the order of the values."""
    for key, normalize in (("LPIPS", False), ("LPIPS_normalized", True)):
        for row, distance in zip(values.values(), lpips.against(gt, stack, normalize)):
            row[key] = float(distance)
    return values


def _ratios(cxr: np.ndarray, gt: np.ndarray, pred: np.ndarray) -> dict[str, float]:
    """The three bone suppression ratios of arrays of one shape, NaN where cxr == gt or there is no pixel."""
    energy = float(np.sum((cxr - gt) ** 2))
    if energy == 0:
        return dict.fromkeys(("BSR", "BSR_two_sided", "BSR_residual"), math.nan)
    residue = gt - pred
    residue -= residue.mean()  # gt - pred'
    lost, left = np.sum(np.maximum(residue, 0) ** 2), np.sum(np.minimum(residue, 0) ** 2)
    return {"BSR": float(1 - lost / energy), "BSR_two_sided": float(1 - (lost + left) / energy), "BSR_residual": float(1 - left / energy)}


def _errors(gt: np.ndarray, pred: np.ndarray) -> dict[str, float]:
    """MSE and PSNR of arrays of one shape, NaN where there is no pixel."""
    if gt.size == 0:
        return {"MSE": math.nan, "PSNR": math.nan}
    error = float(np.mean((gt - pred) ** 2))
    return {"MSE": error, "PSNR": -10 * math.log10(error) if error > 0 else math.inf}


def _ssim(gt: np.ndarray, pred: np.ndarray) -> float:
    if min(gt.shape) < WINDOW:
        raise ValueError(f"images of {gt.shape[0]} x {gt.shape[1]} are too small for SSIM; both sides must be at least {WINDOW}")
    window, edge = cv2.getGaussianKernel(WINDOW, SIGMA, cv2.CV_64F), WINDOW // 2
    mean_gt, mean_pred, gt_2, pred_2, product = (cv2.sepFilter2D(image, cv2.CV_64F, window, window)[edge:-edge, edge:-edge]
                                                 for image in (gt, pred, gt * gt, pred * pred, gt * pred))
    c_1, c_2 = 0.01 ** 2, 0.03 ** 2  # the paper's K_1, K_2 for a range of 1
    squares, both = mean_gt ** 2 + mean_pred ** 2, mean_gt * mean_pred
    similarity = (2 * both + c_1) * (2 * (product - both) + c_2) / ((squares + c_1) * (gt_2 + pred_2 - squares + c_2))
    return float(similarity.mean())


def _inside(mask: np.ndarray | None, *arrays: np.ndarray) -> list[np.ndarray]:
    """The arrays (H, W), or what the mask bool (H, W) selects of each."""
    if mask is None:
        return list(arrays)
    if mask.dtype != bool or mask.shape != arrays[0].shape:
        raise ValueError(f"expected a mask of bool {arrays[0].shape}, got {mask.dtype} {mask.shape}")
    return [array[mask] for array in arrays]


def _checked(*arrays: np.ndarray, stacks: bool = False) -> list[np.ndarray]:
    """The arrays as float64. ValueError for integers (they wrap), other shapes than one (H, W), NaN, and other ranges than [0, 1]."""
    for array in arrays:
        if not isinstance(array, np.ndarray) or array.dtype.kind != "f":
            raise ValueError(f"expected float arrays in [0, 1], got {getattr(array, 'dtype', type(array).__name__)}; "
                             "divide integer images by their largest possible value")
        if array.shape != arrays[0].shape or array.ndim not in ((2, 3) if stacks else (2,)) or array.size == 0:
            raise ValueError(f"expected images of one shape (H, W), got {', '.join(str(a.shape) for a in arrays)}")
        if not np.isfinite(array).all():
            raise ValueError("an image holds NaN or infinity")
        if array.min() < -RANGE_SLACK or array.max() > 1 + RANGE_SLACK:
            raise ValueError(f"an image runs from {array.min():g} to {array.max():g}; expected 0 to 1")
    return [array.astype(np.float64) for array in arrays]
