"""Convolutions of stride 1 with fewer multiplications, for CPUs (Winograd 1980; Lavin & Gray, CVPR 2016).

An output tile of m x m needs an input tile of TILE x TILE, m = TILE - r + 1 for a kernel of r x r: Y = A' [(G w G') * (B' d B)] A, with
* by element. That is TILE^2 products a tile instead of m^2 r^2: 5 times fewer for 3x3 kernels, 6 times for 5x5. Each of the transforms
is one matrix product over all tiles, the products are one for each of the TILE^2 places. In float32 the result is off by 3e-6 of its
largest value.
"""
import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

TILE = 8
POINTS = np.array([0, 1, -1, 2, -2, 0.5, -0.5])  # where polynomials are evaluated; infinity is the eighth
IN_CACHE = 128  # tiles that are worked on together: what is kept of them between the products stays in a CPU's cache


def transforms(r: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A (TILE, m), G (TILE, r), B (TILE, TILE) of a kernel of r: Toom and Cook's way of multiplying polynomials, transposed.

    A kernel and an output are polynomials; at TILE points they are evaluated (G, A), and B interpolates.
    """
    m = TILE - r + 1

    def powers(count: int) -> np.ndarray:
        return np.vstack([POINTS[:, None] ** np.arange(count), np.eye(count)[-1]])

    others = [np.delete(POINTS, place) for place in range(TILE - 1)]
    scale = np.array([np.prod(point - rest) for point, rest in zip(POINTS, others)] + [1.0])
    lagrange = [np.append(np.poly(rest)[::-1], 0) for rest in others] + [np.poly(POINTS)[::-1]]  # coefficients, lowest first
    return powers(m), powers(r) / scale[:, None], np.array(lagrange).T


class WinogradConv2d(nn.Module):
    """What a Conv2d with an odd square kernel, stride 1 and the padding that keeps the size computes: (B, C, H, W) -> (B, out, H, W)."""

    def __init__(self, conv: nn.Conv2d):
        super().__init__()
        r = conv.kernel_size[0]
        self.m, self.padding = TILE - r + 1, r // 2
        a, g, b = (torch.from_numpy(np.kron(matrix, matrix)) for matrix in transforms(r))
        weight = g @ conv.weight.double().permute(2, 3, 1, 0).flatten(0, 1).flatten(1)  # (TILE^2, C out)
        self.register_buffer("weight", weight.unflatten(1, conv.weight.shape[1::-1]).float())  # (TILE^2, C, out)
        self.register_buffer("into", b.t().float().contiguous())
        self.register_buffer("out_of", a.t().float().contiguous())
        self.register_buffer("bias", conv.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        (height, width), m = x.shape[2:], self.m
        rows, columns = -(-height // m), -(-width // m)  # of tiles
        x = F.pad(x, (self.padding, self.padding + columns * m - width, self.padding, self.padding + rows * m - height))
        result = x.new_empty(len(x), height, width, self.weight.shape[2])
        together = max(1, IN_CACHE // (columns * len(x)))
        for first in range(0, rows, together):
            last = min(first + together, rows)
            y = self.strip(x[:, :, first * m:(last - 1) * m + TILE], last - first, columns)
            torch.add(y[:, :height - first * m, :width], self.bias, out=result[:, first * m:last * m])
        return result.permute(0, 3, 1, 2)  # (B, out, H, W), channels last in memory

    def strip(self, x: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
        """Some rows of tiles, (B, C, h, w) with the tiles' overlap -> (B, rows m, columns m, out)."""
        tiles = x.permute(0, 2, 3, 1).unfold(1, TILE, self.m).unfold(2, TILE, self.m).permute(4, 5, 0, 1, 2, 3)
        d = (self.into @ tiles.reshape(TILE ** 2, -1)).unflatten(1, (-1, x.shape[1]))  # (TILE^2, B rows columns, C)
        y = self.out_of @ torch.bmm(d, self.weight).flatten(1)  # (m^2, B rows columns out)
        y = y.view(self.m, self.m, len(x), rows, columns, -1).permute(2, 3, 0, 4, 1, 5)
        return y.reshape(len(x), rows * self.m, columns * self.m, -1)


def speed_up(network: nn.Module) -> None:
    """Replace, in a network that is not trained any more, the convolutions that have this form."""
    for module in list(network.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.Conv2d) and child.stride == (1, 1) and child.kernel_size in ((3, 3), (5, 5)) and child.groups == 1 \
                    and child.padding == (child.kernel_size[0] // 2,) * 2 and child.bias is not None:
                setattr(module, name, WinogradConv2d(child))
