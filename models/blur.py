"""Gaussian blurs of tensors, for what is measured in an image."""

import torch
from torch.nn import functional as F


def gaussian_blur(x: torch.Tensor, sigma: float, separable: bool = False) -> torch.Tensor:
    """(B, 1, H, W) blurred by a Gaussian of sigma pixels, cut off at four sigma, the image mirrored at its edges.

    separable: along the rows, then along the columns: the same up to rounding, and faster the wider the Gaussian is.
    """
    # Not torchvision's, to the bit the same: importing torchvision takes two seconds, PyTorch's compiler with it.
    reach = round(4 * sigma)
    offsets = torch.arange(-reach, reach + 1, device=x.device, dtype=x.dtype)
    exponent = -0.5 * (offsets / sigma).square()
    profile = torch.exp(exponent)
    profile = profile / profile.sum()  # (side,)

    padded = F.pad(x, (reach, reach, reach, reach), mode="reflect")
    if separable:
        row_kernel = profile[None, None, None, :]  # (1, 1, 1, side)
        column_kernel = profile[None, None, :, None]  # (1, 1, side, 1)
        along_rows = F.conv2d(padded, row_kernel)
        return F.conv2d(along_rows, column_kernel)
    kernel = torch.outer(profile, profile)[None, None]  # (1, 1, side, side)
    return F.conv2d(padded, kernel)
