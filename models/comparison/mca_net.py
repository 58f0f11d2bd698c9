"""MCA-Net: Zhou et al., "Generation of virtual dual energy images from standard single-shot radiographs using
multi-scale and conditional adversarial network" (ACCV 2018, arXiv 1810.09354). Written from the paper.

Generator 23,134,176 parameters, discriminator 2,760,129.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .base import Draw, Translator, no_latent_loss

SLOPE = 0.2  # LeakyReLU
LAST_WIDTH = 2  # the last level is half as wide as the first
SIDE_OUTPUTS = 3  # further outputs, from 1/8, 1/4 and 1/2 of the resolution
VIEWS = 6  # what the discriminator sees: image and CXR, each with its two Sobel gradients


class Down(nn.Module):
    """3 x 3 convolution of stride 2, instance normalisation but for the first, LeakyReLU.

    (B, C, S, S) -> (B, C', S/2, S/2).
    """

    def __init__(self, channels: int, after: int, normalised: bool):
        super().__init__()
        self.conv = nn.Conv2d(channels, after, 3, stride=2, padding=1)
        self.norm = nn.InstanceNorm2d(after) if normalised else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return F.leaky_relu(self.norm(self.conv(x)), SLOPE)


class Up(nn.Module):
    """2 x 2 transposed convolution and a 3 x 3 convolution, each with instance normalisation and LeakyReLU."""

    def __init__(self, channels: int, after: int):
        super().__init__()
        self.up = nn.ConvTranspose2d(channels, after, 2, stride=2)
        self.conv = nn.Conv2d(after, after, 3, padding=1)
        self.norm = nn.InstanceNorm2d(after)

    def forward(self, x: Tensor) -> Tensor:
        x = F.leaky_relu(self.norm(self.up(x)), SLOPE)  # (B, C', 2 S, 2 S)
        return F.leaky_relu(self.norm(self.conv(x)), SLOPE)


class MCANet(Translator):
    """A U-Net of `channels`, a halving each. The outputs of the three coarser scales are enlarged and summed with the
    last one's, then tanh.

    predicts: "soft", the soft-tissue image; "bone", which is taken from the CXR: on [-1, 1] a bone of b is 2 b - 1.
    """

    title = "MCA-Net"

    def __init__(self, channels=(64, 128, 256, 512, 512, 512, 512), predicts: str = "soft"):
        super().__init__()
        self.settings = dict(channels=channels, predicts=predicts)
        if predicts not in ("soft", "bone"):
            raise ValueError(f"predicts={predicts} is neither soft nor bone")
        self.predicts = predicts
        self.multiple = 2 ** len(channels)
        self.least = 2 * self.multiple  # instance normalisation needs more than one pixel at the coarsest scale

        # The way down.
        down: list[nn.Module] = []
        width = 1
        for level, after in enumerate(channels):
            down.append(Down(width, after, normalised=level > 0))
            width = after
        self.down = nn.ModuleList(down)

        # The way up: each level has the width of the next coarser but one on the way down, whose output joins it.
        widths = [*channels[-2::-1], channels[0] // LAST_WIDTH]
        up: list[nn.Module] = []
        sides: dict[str, nn.Module] = {}
        for level, after in enumerate(widths):
            up.append(Up(width, after))
            skip = channels[-2 - level] if level < len(channels) - 1 else 0
            width = after + skip
            # 1/8, 1/4 and 1/2 are the three levels before the last
            if len(widths) - 1 - SIDE_OUTPUTS <= level < len(widths) - 1:
                sides[str(level)] = nn.Sequential(
                    nn.Conv2d(after, 1, 3, padding=1), nn.Conv2d(1, 1, 3, padding=1), nn.Conv2d(1, 1, 3, padding=1)
                )
        self.up = nn.ModuleList(up)
        self.sides = nn.ModuleDict(sides)
        self.last = nn.Conv2d(width, 1, 1)

    def forward(self, cxr: Tensor, draw: Draw | None = None) -> tuple[Tensor, Tensor]:
        x = cxr
        skips = []
        for layer in self.down:
            x = layer(x)
            skips.append(x)
        skips.pop()  # the coarsest is where the way up begins

        total = torch.zeros_like(cxr, dtype=torch.float32)
        for level, layer in enumerate(self.up):
            x = layer(x)
            if str(level) in self.sides:
                side = self.sides[str(level)](x).float()  # (B, 1, s, s)
                total = total + F.interpolate(side, cxr.shape[-2:], mode="bilinear", align_corners=False)
            if skips:
                x = torch.cat([x, skips.pop()], 1)
        output = torch.tanh(total + self.last(x).float())  # (B, 1, S, S)
        soft = output if self.predicts == "soft" else cxr - (output + 1)
        return soft, no_latent_loss(soft)

    @classmethod
    def discriminator(cls, channels: int) -> nn.Module:
        return Discriminator(channels)

    @staticmethod
    def judged(image: Tensor, cxr: Tensor) -> Tensor:
        """Image and CXR with their Sobel gradients, (B, 6, S, S)."""
        return torch.cat([image, gradients(image), cxr, gradients(cxr)], 1)


class Discriminator(nn.Module):
    """Patches of (B, 6, S, S) -> logits (B, 1, S/16, S/16): 4 x 4 convolutions, widths 1, 2, 4, 8 times `channels`."""

    def __init__(self, channels: int):
        super().__init__()
        layers: list[nn.Module] = []
        width = VIEWS
        for level in range(4):
            after = channels * 2**level
            layers.append(nn.Conv2d(width, after, 4, stride=2, padding=1))
            if level > 0:
                layers.append(nn.InstanceNorm2d(after))
            layers.append(nn.LeakyReLU(SLOPE))
            width = after
        self.layers = nn.Sequential(*layers, nn.Conv2d(width, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


def gradients(image: Tensor) -> Tensor:
    """The horizontal and the vertical Sobel gradient of (B, 1, S, S), (B, 2, S, S); an eighth of their sums."""
    across = image.new_tensor([[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0], [-1.0, 0.0, 1.0]]) / 8
    kernels = torch.stack([across, across.T])[:, None]  # (2, 1, 3, 3)
    return F.conv2d(F.pad(image, (1, 1, 1, 1), mode="replicate"), kernels)


METHOD = MCANet
