"""Where a run computes, and in which precision."""
import os

import torch

from .files import UserError


def pick_device(name: str) -> torch.device:
    """The setting `device`: 'auto' is this process's GPU if there is one, else the CPU; 'cuda' is this process's GPU.

    Raises UserError where this machine has no such device.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda":
        gpu = os.environ.get("LOCAL_RANK", 0)  # torchrun's number of this process on its machine
        name = f"cuda:{gpu}"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"device={name} cannot be used here: {reason}") from None
    return device


def pick_precision(name: str, device: torch.device) -> str:
    """The setting `precision`: 'auto' is bf16 on a GPU that computes in it, else float32."""
    if name != "auto":
        return name
    if device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False):
        return "bf16"
    return "float32"


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """The context in which networks run."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")
