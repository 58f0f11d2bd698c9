"""Gusarev et al., "Deep learning models for bone suppression in chest radiographs" (IEEE CIBCB 2017).

Six 5 x 5 convolutions at full resolution. 1,096,289 parameters, with the batch normalisation of its re-implementations.
"""

from torch import Tensor, nn

from .. import images
from ..vqgan import BatchNorm
from .base import Draw, Translator, no_latent_loss

KERNEL = 5  # side of every convolution


class Gusarev(Translator):
    """Convolution, batch normalisation, ReLU for each width in `channels`; then a convolution to one channel and a
    sigmoid."""

    title = "Gusarev et al."
    data_range = 1  # it ends with a sigmoid

    def __init__(self, channels=(16, 32, 64, 128, 256)):
        super().__init__()
        self.settings = dict(channels=channels)
        layers: list[nn.Module] = []
        width = 1
        for after in channels:
            layers += [nn.Conv2d(width, after, KERNEL, padding=KERNEL // 2), BatchNorm(after), nn.ReLU()]
            width = after
        layers += [nn.Conv2d(width, 1, KERNEL, padding=KERNEL // 2), nn.Sigmoid()]
        self.layers = nn.Sequential(*layers)

    def forward(self, cxr: Tensor, draw: Draw | None = None) -> tuple[Tensor, Tensor]:
        soft = images.to_signed(self.layers(images.to_unit(cxr)))  # (B, 1, S, S)
        return soft, no_latent_loss(soft)


METHOD = Gusarev
