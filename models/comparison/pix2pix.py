"""pix2pix: Isola et al., "Image-to-image translation with conditional adversarial networks" (CVPR 2017).

It stands in the place of Wang et al. in the papers' tables, whose reference could not be identified; by its numbers
that is an adversarial method without a strong pixel loss. 54,408,385 parameters.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..vqgan import BatchNorm, PatchDiscriminator
from .base import Draw, Translator, no_latent_loss

KERNEL = 4  # side of every convolution
SLOPE = 0.2  # LeakyReLU on the way down
DROPPED = 3  # levels of the way up, from the coarsest, with dropout of one half in training
PATCH_LAYERS = 3  # of the discriminator: patches of 70 pixels


class Pix2Pix(Translator):
    """A U-Net that halves the image once for each width in `channels`; tanh at the end.

    The paper keeps its dropout when it tests; here a result does not depend on chance, so evaluation goes without it.
    """

    title = "pix2pix"
    adversary = "cross_entropy"

    def __init__(self, channels=(64, 128, 256, 512, 512, 512, 512, 512)):
        super().__init__()
        self.settings = dict(channels=channels)
        self.multiple = 2 ** len(channels)
        last = len(channels) - 1

        # Batch normalisation everywhere but in the first layer and, of one pixel, in the coarsest.
        down: list[nn.Module] = []
        width = 1
        for level, after in enumerate(channels):
            normalised = 0 < level < last
            conv = nn.Conv2d(width, after, KERNEL, stride=2, padding=1, bias=not normalised)
            down.append(nn.Sequential(conv, BatchNorm(after)) if normalised else conv)
            width = after
        self.down = nn.ModuleList(down)

        up: list[nn.Module] = []
        for level in reversed(range(1, len(channels))):
            after = channels[level - 1]
            conv = nn.ConvTranspose2d(width, after, KERNEL, stride=2, padding=1, bias=False)
            up.append(nn.Sequential(conv, BatchNorm(after)))
            width = 2 * after  # beside the way down's output of this size
        self.up = nn.ModuleList(up)
        self.last = nn.ConvTranspose2d(width, 1, KERNEL, stride=2, padding=1)

        # N(0, 0.02), as in the paper's section 6.2
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
                nn.init.normal_(module.weight, 0, 0.02)

    def forward(self, cxr: Tensor, draw: Draw | None = None) -> tuple[Tensor, Tensor]:
        x = cxr
        skips = []
        for level, layer in enumerate(self.down):
            x = layer(x if level == 0 else F.leaky_relu(x, SLOPE))
            skips.append(x)
        skips.pop()

        for level, layer in enumerate(self.up):
            x = layer(F.relu(x))
            # each value is kept, doubled, with a probability of one half
            if self.training and draw is not None and level < DROPPED:
                x = 2 * x * (draw(f"dropout/{level}", *x.shape[1:]) > 0)
            x = torch.cat([x, skips.pop()], 1)
        soft = torch.tanh(self.last(F.relu(x)).float())  # (B, 1, S, S)
        return soft, no_latent_loss(soft)

    @classmethod
    def discriminator(cls, channels: int) -> nn.Module:
        return PatchDiscriminator(2, channels, PATCH_LAYERS)

    @staticmethod
    def judged(image: Tensor, cxr: Tensor) -> Tensor:
        """Image beside CXR, (B, 2, S, S): whether this image belongs to this CXR."""
        return torch.cat([image, cxr], 1)


METHOD = Pix2Pix
