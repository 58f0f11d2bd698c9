"""Where a run computes, and in which precision."""
import os

import torch

from .files import UserError


def pick_device(name: str) -> torch.device:
    """'auto' -> this process's GPU where there is one, else the CPU; 'cuda' -> this process's GPU."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda":
        name = f"cuda:{os.environ.get('LOCAL_RANK', 0)}"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"device={name} cannot be used here: {str(error).splitlines()[0]}") from None
    return device


def pick_precision(name: str, device: torch.device) -> str:
    """'auto' -> bf16 on a GPU that has it, else float32."""
    if name != "auto":
        return name
    return "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False) else "float32"


def autocast(device: torch.device, precision: str):
    """The context in which networks run."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")
