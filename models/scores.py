"""The scores of two images as float arrays in [0, 1], and their table.

Sources: [B] BS-LDM, JBHI 2025; [G] GL-LCM, MICCAI 2025; [S] the published scripts.
"""
import math
from dataclasses import dataclass

import numpy as np
import torch
from skimage.metrics import structural_similarity

from .features import lpips_network

LEAST_SIDE = 32      # pixels; AlexNet leaves nothing of a smaller image
RANGE_SLACK = 0.5    # noise may leave [0, 1] a little; beyond this the image has another range
REFERENCE = "untouched CXR"  # the method that does nothing, in every table


# --- Scores of one image -----------------------------------------------------------------------------------------------------

def bsr(cxr: np.ndarray, gt: np.ndarray, pred: np.ndarray) -> float:
    """Bone suppression ratio as published [B, G]: 1 - sum(max(gt - pred', 0)^2) / sum((cxr - gt)^2), pred' = pred + mean(gt - pred).

    cxr, gt, pred: float (H, W) in [0, 1]; bones bright. The sign counts over-suppression only: the CXR itself scores high.
    NaN where there is no bone to suppress, cxr == gt. Raises ValueError as `_checked` says.
    """
    cxr, gt, pred = _checked(cxr, gt, pred)
    residue = gt - (pred + np.mean(gt - pred))
    return _one_minus_ratio(np.maximum(residue, 0), cxr - gt)


def bsr_two_sided(cxr: np.ndarray, gt: np.ndarray, pred: np.ndarray) -> float:
    """BSR that counts bone left and tissue lost alike: 1 - sum((gt - pred')^2) / sum((cxr - gt)^2); else as `bsr`."""
    cxr, gt, pred = _checked(cxr, gt, pred)
    return _one_minus_ratio(gt - (pred + np.mean(gt - pred)), cxr - gt)


def mse(gt: np.ndarray, pred: np.ndarray) -> float:
    """Mean squared error; float (H, W) in [0, 1]."""
    gt, pred = _checked(gt, pred)
    return float(np.mean((gt - pred) ** 2))


def psnr(gt: np.ndarray, pred: np.ndarray) -> float:
    """Peak signal-to-noise ratio, 20 log10(1 / sqrt(MSE)) dB; infinite for equal images. float (H, W) in [0, 1]."""
    error = mse(gt, pred)
    return -10 * math.log10(error) if error > 0 else math.inf


def ssim(gt: np.ndarray, pred: np.ndarray) -> float:
    """Structural similarity, Wang et al. (TIP 2004): Gaussian window of 11, sigma 1.5. float (H, W) in [0, 1], sides of at least 11."""
    gt, pred = _checked(gt, pred)
    return float(structural_similarity(gt, pred, data_range=1.0, gaussian_weights=True, sigma=1.5, use_sample_covariance=False))


class Lpips:
    """LPIPS, Zhang et al. (CVPR 2018), version 0.1. Build it once; the network stays on its device."""

    def __init__(self, net: str = "alex", features: str | None = None, device: str | torch.device = "cpu"):
        """net: "alex" (as published) or "vgg". features: folder with the network's weights, see models/features.py."""
        self.device = torch.device(device)
        self.network = lpips_network(net, features).to(self.device)

    @torch.no_grad()
    def __call__(self, gt: np.ndarray, pred: np.ndarray, normalize: bool = False) -> float | np.ndarray:
        """A float for (H, W), an array (B,) for stacks (B, H, W); float in [0, 1], sides of at least 32.

        normalize=False is the published protocol [S]: the network gets [0, 1], although it was made for [-1, 1].
        normalize=True brings the images to [-1, 1] first.
        """
        gt, pred = _checked(gt, pred, stacks=True)
        if min(gt.shape[-2:]) < LEAST_SIDE:
            raise ValueError(f"images of {gt.shape[-2]} x {gt.shape[-1]} are too small for LPIPS; both sides must be at least {LEAST_SIDE}")
        pair = [torch.from_numpy(x).float().reshape(-1, 1, *x.shape[-2:]).to(self.device).expand(-1, 3, -1, -1) for x in (gt, pred)]
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):  # TF32 keeps 10 bits of each factor
            distances = self.network(*pair, normalize=normalize).double().flatten().cpu().numpy()  # (B,)
        return distances if gt.ndim == 3 else float(distances[0])


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


def _one_minus_ratio(residue: np.ndarray, bone: np.ndarray) -> float:
    energy = np.sum(bone ** 2)
    return float(1 - np.sum(residue ** 2) / energy) if energy > 0 else math.nan


# --- Scores of many images ---------------------------------------------------------------------------------------------------

@dataclass(frozen=True)
class Score:
    """A column of the table. key: its name in files; label: its heading; scale: what the table multiplies it by."""
    key: str
    label: str
    scale: float
    larger_is_better: bool

    @property
    def heading(self) -> str:
        return f"{self.label} {'↑' if self.larger_is_better else '↓'}"


SCORES = (
    Score("BSR", "BSR (%)", 100, True),
    Score("MSE", "MSE (10^-3)", 1000, False),
    Score("PSNR", "PSNR (dB)", 1, True),
    Score("LPIPS", "LPIPS", 1, False),
    Score("BSR_two_sided", "two-sided BSR (%)", 100, True),
    Score("SSIM", "SSIM", 1, True),
    Score("LPIPS_normalized", "LPIPS on [-1, 1]", 1, False),
)


def score(cxr: np.ndarray, gt: np.ndarray, predictions: dict[str, np.ndarray], lpips: Lpips) -> dict[str, dict[str, float]]:
    """{method: {score's key: value}} of one image, the untouched CXR first. predictions: {method: soft-tissue image}."""
    methods = {REFERENCE: cxr} | predictions
    stack = np.stack(list(methods.values()))  # (methods, H, W)
    truth = np.broadcast_to(gt, stack.shape)
    published, normalized = lpips(truth, stack), lpips(truth, stack, normalize=True)
    return {method: {"BSR": bsr(cxr, gt, pred), "MSE": mse(gt, pred), "PSNR": psnr(gt, pred), "LPIPS": float(published[i]),
                     "BSR_two_sided": bsr_two_sided(cxr, gt, pred), "SSIM": ssim(gt, pred), "LPIPS_normalized": float(normalized[i])}
            for i, (method, pred) in enumerate(methods.items())}


def summarise(values: dict[str, dict[str, dict[str, float]]]) -> dict[str, dict[str, dict[str, float]]]:
    """{image: {method: {key: value}}} -> {method: {key: {"mean", "std", "count", "undefined"}}}.

    Mean and population standard deviation over the images where the score is finite (NaN where it is so nowhere); `undefined`
    counts the others: no bone, or the PSNR of equal images.
    """
    summary = {}
    for method in next(iter(values.values())):
        summary[method] = {}
        for column in SCORES:
            every = np.array([scores[method][column.key] for scores in values.values()])
            finite = every[np.isfinite(every)]
            mean, std = (float(finite.mean()), float(finite.std())) if finite.size else (math.nan, math.nan)
            summary[method][column.key] = {"mean": mean, "std": std, "count": int(finite.size),
                                           "undefined": int(every.size - finite.size)}
    return summary


def table(summary: dict, markdown: bool = False) -> str:
    """The summary as text, mean ± standard deviation a cell; as Markdown with the best of several methods in bold."""
    methods = [method for method in summary if method != REFERENCE]
    rows = [["method", *(column.heading for column in SCORES)]]
    for method, cells in summary.items():
        row = [method]
        for column in SCORES:
            cell = f"{cells[column.key]['mean'] * column.scale:.3f} ± {cells[column.key]['std'] * column.scale:.3f}"
            best = markdown and len(methods) > 1 and method != REFERENCE and _is_best(method, methods, column, summary)
            row.append(f"**{cell}**" if best else cell)
        rows.append(row)
    if markdown:
        rows.insert(1, ["---"] + ["---:"] * len(SCORES))
        lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    else:
        widths = [max(map(len, column)) for column in zip(*rows)]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]
    return "\n".join(lines + [""] + _footnotes(summary)) + "\n"


def _is_best(method: str, methods: list[str], column: Score, summary: dict) -> bool:
    means = {name: summary[name][column.key]["mean"] for name in methods}
    defined = [mean for mean in means.values() if not math.isnan(mean)]
    return bool(defined) and means[method] == (max(defined) if column.larger_is_better else min(defined))


def _footnotes(summary: dict) -> list[str]:
    """What the means leave out, and what the columns are."""
    notes = ["mean ± population standard deviation over images; BSR and LPIPS follow the published protocol; "
             "the first row is what doing nothing scores"]
    for method, cells in summary.items():
        for key, cell in cells.items():
            if cell["undefined"]:
                reason = "equal images" if key == "PSNR" else "no bone"
                total = cell["undefined"] + cell["count"]
                notes.append(f"{method}: {key} is undefined for {cell['undefined']} of {total} images ({reason}), left out of its mean")
    return notes
