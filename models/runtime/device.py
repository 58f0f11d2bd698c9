"""Where a run computes, and in which precision."""

import os
from pathlib import Path

import torch

from .files import UserError


def pick_device(name: str) -> torch.device:
    """The setting `device`: 'auto' is this process's GPU if there is one, else the CPU; 'cuda' is this process's GPU.

    Raises UserError where this machine has no such device.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda":
        # torchrun's number of this process on its machine; more processes than GPUs share them, as in processes.joined
        local_rank = int(os.environ.get("LOCAL_RANK", 0))
        name = f"cuda:{local_rank % max(1, torch.cuda.device_count())}"

    # A device is one that computes and gives the result back. PyTorch knows the names of many that are not built in,
    # and of "meta", whose tensors have no numbers.
    try:
        device = torch.device(name)
        answer = torch.ones(1, device=device).add(1).item()
    except Exception as error:  # each of PyTorch's backends has a type of its own for not being there
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(f"device={name} cannot be used here: {reason}; take auto, cpu, cuda or cuda:N") from None
    if answer != 2:
        raise UserError(f"device={name} cannot be used here: it computes 1 + 1 = {answer}; take another one")
    return device


def pick_precision(name: str, device: torch.device) -> str:
    """The setting `precision`: 'auto' is bf16 on a GPU that has it and a CPU that is faster with it, else float32."""
    if name != "auto":
        return name
    if device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False):
        return "bf16"
    if device.type == "cpu" and cpu_computes_bf16():
        return "bf16"
    return "float32"


def cpu_computes_bf16() -> bool:
    """Whether this CPU computes faster in bf16 than in float32."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:  # not Linux
        return False
    flags = next((line.split() for line in lines if line.startswith("flags")), [])
    return bf16_pays(set(flags))


def bf16_pays(flags: set[str]) -> bool:
    """Whether a CPU with these instructions (lscpu) is faster in bf16 than in float32.

    With amx_bf16 it is, and with avx512_bf16, unless it was built for amx_bf16 and that is hidden, as in some virtual
    machines. avx512_fp16 came with those processors: their avx512_bf16 has half the speed of float32 (measured: 88
    against 160 GFLOP/s of a convolution on one core of an Intel Xeon, family 6, model 207). Without any of these
    instructions bf16 is slower still.
    """
    return "amx_bf16" in flags or ("avx512_bf16" in flags and "avx512_fp16" not in flags)


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """The context in which networks run."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")
