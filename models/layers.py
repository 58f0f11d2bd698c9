"""Blocks that more than one network uses, and activation checkpointing."""

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

GROUPS = 32  # of every group normalisation in the noise estimator


class GroupNorm32(nn.GroupNorm):
    """Group normalisation over 32 groups, computed in float32 whatever the autocast. x: (B, C, ...) -> the same.

    Raises ValueError if the channels are not a multiple of 32.
    """

    def __init__(self, channels: int):
        if channels % GROUPS:
            raise ValueError(f"group normalisation needs a multiple of {GROUPS} channels, got {channels}")
        super().__init__(GROUPS, channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        # bf16 sums over a group's thousands of values would lose the small ones.
        with torch.autocast(x.device.type, enabled=False):
            normalised = F.group_norm(x.float(), self.num_groups, self.weight, self.bias, self.eps)
        return normalised.to(x.dtype)


def checkpointed(block: nn.Module, *inputs: torch.Tensor, enabled: bool) -> torch.Tensor:
    """block(*inputs). If enabled and training, its activations are computed again in the backward pass, not kept."""
    # Without gradients nothing is kept anyway. use_reentrant=False is the form that torch recommends.
    if enabled and torch.is_grad_enabled():
        return checkpoint(block, *inputs, use_reentrant=False)
    return block(*inputs)


def checkpoint_activations(network: nn.Module, enabled: bool) -> None:
    """Switch activation checkpointing on or off in all modules of a network that have the attribute `checkpointing`."""
    for module in network.modules():
        if hasattr(module, "checkpointing"):
            module.checkpointing = enabled  # pyright: ignore[reportArgumentType]
