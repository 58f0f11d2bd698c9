"""The small U-Net that proposes the lung fields: float (B, 2, H, W) -> logits (B, 1, H, W)."""
import torch
from torch import nn
from torch.nn import functional as F

STRIDE = 16             # px, sides must be multiples: half size at once, three more halvings
GROUPS = 8              # of every group normalisation


class LungNet(nn.Module):
    """A U-Net that works at half the image's size and below, and gives the full size back by sub-pixel shuffling.

    widths: channels at 1/2, 1/4, 1/8, 1/16 of the size.
    """

    def __init__(self, in_channels=2, widths=(16, 32, 64, 128)):
        super().__init__()
        first = (4 * in_channels, *widths[:-1])
        self.down = nn.ModuleList(_block(before, width) for before, width in zip(first, widths))
        self.up = nn.ModuleList(_block(deep + width, width) for width, deep in zip(widths[:-1], widths[1:]))
        self.head = nn.Conv2d(widths[0], 4, 1)

    def forward(self, x):
        x, skips = F.pixel_unshuffle(x, 2), []              # (B, 8, H/2, W/2)
        for level, block in enumerate(self.down):
            x = block(F.max_pool2d(x, 2) if level else x)
            skips.append(x)
        for block, skip in zip(reversed(self.up), reversed(skips[:-1])):
            x = block(torch.cat([skip, F.interpolate(x, scale_factor=2, mode='nearest')], dim=1))
        return F.pixel_shuffle(self.head(x), 2)             # (B, 1, H, W)


def _block(before, width):
    """Two 3 x 3 convolutions."""
    layers = []
    for channels in (before, width):
        layers += [nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.GroupNorm(GROUPS, width), nn.SiLU(inplace=True)]
    return nn.Sequential(*layers)
