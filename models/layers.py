"""Blocks that more than one network uses."""
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

GROUPS = 32  # of every group normalisation in the noise estimator


class GroupNorm32(nn.GroupNorm):
    """Group normalisation over 32 groups, computed in float32 whatever the autocast. x: (B, C, ...) -> the same."""

    def __init__(self, channels: int):
        if channels % GROUPS:
            raise ValueError(f"group normalisation needs a multiple of {GROUPS} channels, got {channels}")
        super().__init__(GROUPS, channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return F.group_norm(x.float(), self.num_groups, self.weight, self.bias, self.eps).to(x.dtype)


def frugally(block: nn.Module, *inputs: torch.Tensor, enabled: bool) -> torch.Tensor:
    """Run a block; when enabled and training, forget its activations and compute them again in the backward pass."""
    if enabled and torch.is_grad_enabled():
        return checkpoint(block, *inputs, use_reentrant=False)
    return block(*inputs)


def checkpoint_activations(network: nn.Module, enabled: bool) -> None:
    """Switch activation checkpointing on or off in all parts of a network that know it."""
    for module in network.modules():
        if hasattr(module, "checkpointing"):
            module.checkpointing = enabled
