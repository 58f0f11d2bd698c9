"""Kalisz & Marczyk, "Autoencoder-based bone removal algorithm from X-ray images of the lung" (IEEE BIBE 2021): the best
of fourteen on other hospitals' images. 193,377 parameters.
"""

from torch import Tensor, nn

from .base import Draw, Translator, no_latent_loss

KERNEL = 4  # side of every convolution that halves or doubles the image


class Kalisz(Translator):
    """4 x 4 convolutions of stride 2 with ReLU, one for each width in `channels`, the same transposed, then a 1 x 1
    convolution. No skips."""

    title = "Kalisz & Marczyk"
    data_range = 1

    def __init__(self, channels=(32, 32, 48, 48)):
        super().__init__()
        self.settings = dict(channels=channels)
        self.multiple = 2 ** len(channels)
        layers: list[nn.Module] = []
        width = 1
        for after in channels:
            layers += [nn.Conv2d(width, after, KERNEL, stride=2, padding=1), nn.ReLU()]
            width = after
        for after in reversed(channels):
            layers += [nn.ConvTranspose2d(width, after, KERNEL, stride=2, padding=1), nn.ReLU()]
            width = after
        self.layers = nn.Sequential(*layers, nn.Conv2d(width, 1, 1))

    def forward(self, cxr: Tensor, draw: Draw | None = None) -> tuple[Tensor, Tensor]:
        soft = self.layers(cxr).float()  # (B, 1, S, S)
        return soft, no_latent_loss(soft)


METHOD = Kalisz
