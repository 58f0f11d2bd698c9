"""A plain U-Net (Ronneberger et al., MICCAI 2015), the reference of the xU-NetFullSharp study of bone suppression,
where it is within 0.1 dB of the best. 31,036,481 parameters.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..vqgan import BatchNorm
from .base import UNIVERSAL, Draw, Translator, no_latent_loss


def twice(channels: int, after: int) -> nn.Sequential:
    """Two 3 x 3 convolutions with batch normalisation and ReLU: (B, C, S, S) -> (B, C', S, S)."""
    layers: list[nn.Module] = []
    for width in (channels, after):
        layers += [nn.Conv2d(width, after, 3, padding=1, bias=False), BatchNorm(after), nn.ReLU()]
    return nn.Sequential(*layers)


class PlainUNet(Translator):
    """Two convolutions a level; maximum of 2 x 2 going down, 2 x 2 transposed convolutions going up. channels: of the
    levels, the first at full resolution."""

    title = "U-Net"
    group = UNIVERSAL
    data_range = 1

    def __init__(self, channels=(64, 128, 256, 512, 1024)):
        super().__init__()
        self.settings = dict(channels=channels)
        self.multiple = 2 ** (len(channels) - 1)
        down: list[nn.Module] = []
        width = 1
        for after in channels:
            down.append(twice(width, after))
            width = after
        self.down = nn.ModuleList(down)
        self.enlarge = nn.ModuleList()
        self.up = nn.ModuleList()
        for after in reversed(channels[:-1]):
            self.enlarge.append(nn.ConvTranspose2d(width, after, 2, stride=2))
            self.up.append(twice(2 * after, after))
            width = after
        self.last = nn.Conv2d(width, 1, 1)

    def forward(self, cxr: Tensor, draw: Draw | None = None) -> tuple[Tensor, Tensor]:
        x = cxr
        skips = []
        for level, layer in enumerate(self.down):
            x = layer(x if level == 0 else F.max_pool2d(x, 2))
            skips.append(x)
        skips.pop()
        for enlarge, layer in zip(self.enlarge, self.up):
            x = layer(torch.cat([enlarge(x), skips.pop()], 1))
        soft = self.last(x).float()  # (B, 1, S, S)
        return soft, no_latent_loss(soft)


METHOD = PlainUNet
