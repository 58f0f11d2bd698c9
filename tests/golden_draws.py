"""How the reference figures' inputs and weights are drawn again (golden/README.md of the project's shared
documents)."""

import json
import zlib
from math import prod
from pathlib import Path

import numpy as np
import torch

GOLDEN = Path(__file__).parent / "golden"
SHARED = Path(__file__).resolve().parents[2] / "shared"


def draw(name: str, shape) -> torch.Tensor:
    """Standard normal numbers by name."""
    return torch.from_numpy(
        np.random.default_rng(zlib.crc32(name.encode())).standard_normal(tuple(shape), dtype=np.float32)
    )


def weight(key: str, shape) -> torch.Tensor:
    """A parameter of a reference network by its name."""
    if len(shape) > 1:
        return draw(key, shape) / prod(shape[1:]) ** 0.5
    return 0.1 * draw(key, shape) + (1.0 if key.endswith("weight") else 0.0)


def fill(network: torch.nn.Module) -> torch.nn.Module:
    """Give a network the reference weights; buffers keep their initial values, but a codebook's sums become its
    codes."""
    buffers = {name for name, _ in network.named_buffers()}
    state = network.state_dict()
    for key, tensor in state.items():
        if key not in buffers:
            tensor.copy_(weight(key, tensor.shape))
    for key in buffers:
        if key.endswith("ema_w"):
            state[key].copy_(state[key.replace("ema_w", "embedding.weight")])
    return network.eval().requires_grad_(False)


def figures(name: str):
    """A file of reference figures."""
    path = GOLDEN / name
    return json.loads(path.read_text()) if path.suffix == ".json" else dict(np.load(path))
