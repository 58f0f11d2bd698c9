"""The residual form of a result: what the autoencoder or the network's size loses of the CXR is kept, but for bone's
share."""

import numpy as np
import torch

from . import images
from .blur import gaussian_blur
from .runtime.device import autocast

# Gaussian sigmas, pixels (see `bone_share`)
FINE_SIGMA = 1.0  # what a blur of this width removes is an image's finest detail
ENERGY_SIGMA = 2.0  # the detail's energy is averaged over this neighbourhood
LEAST_ENERGY = 4e-9  # of detail on [-1, 1], far below that of any grain: a ratio of two zeros becomes zero


def bone_share(bone: torch.Tensor, soft: torch.Tensor) -> torch.Tensor:
    """The fraction in [0, 1] of an image's finest detail that belongs to its bone: e_b / (e_b + e_s), all (B, 1, H, W).

    bone, soft: the image's two components, on [-1, 1]. e is the local energy of a component's detail, G_2 * (x - G_1 *
    x)^2 with Gaussians of ENERGY_SIGMA and FINE_SIGMA pixels. The detail that an autoencoder loses is just finer than
    the finest that it reproduces, and is taken to belong to the two components in the same ratio (Wiener's filter for
    two signals).
    """
    # in float32 whatever runs around it: in bf16 the share agrees to 36 dB only, and on a CPU takes three times as long
    with autocast(bone.device, "float32"):
        bone_energy = _detail_energy(bone)
        soft_energy = _detail_energy(soft)
    return bone_energy / (bone_energy + soft_energy + LEAST_ENERGY)


def _detail_energy(x: torch.Tensor) -> torch.Tensor:
    """The local energy (B, 1, H, W) of an image's finest detail."""
    # High-pass, squared, averaged: the local variance of the finest scale.
    detail = x - gaussian_blur(x, FINE_SIGMA)
    return gaussian_blur(detail.square(), ENERGY_SIGMA)


def at_full_size(scan: np.ndarray, cxr: torch.Tensor, result: torch.Tensor, residual: bool) -> np.ndarray:
    """A method's result (1, S, S) in [-1, 1] at the size of its input: (H, W) in [0, 1].

    scan: the input (H, W) in [0, 1]; cxr: the input as the network saw it, (1, S, S) in [-1, 1]. residual: whether the
    result is the CXR less an estimate of bone (Pipeline.image has that form at the network's size). If so, the estimate
    alone is brought to full size, and the input keeps its full-resolution detail: input + (result - CXR).
    """
    soft = images.from_network(result, scan.shape)
    if not residual:
        return soft
    # Both terms have gone through the same resizing, so what it blurs cancels.
    change = soft - images.from_network(cxr, scan.shape)
    return np.clip(scan + change, 0, 1)
