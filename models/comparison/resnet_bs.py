"""ResNet-BS: Rajaraman et al., "Chest X-ray bone suppression for improving classification of tuberculosis-consistent
findings" (Diagnostics 2021, 11, 840). 1,219,841 parameters.
"""

from torch import Tensor, nn

from .base import Draw, Translator, no_latent_loss

SCALE = 0.1  # of what a residual block adds


class Block(nn.Module):
    """x + 0.1 conv(relu(conv(x))), without normalisation. (B, C, S, S) -> the same."""

    def __init__(self, channels: int):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + SCALE * self.layers(x)


class ResNetBS(Translator):
    """A convolution, `blocks` residual blocks and a convolution, with a skip over them, then one to one channel.

    channels: the one width of all layers. saturate: share of the pixels at each end of the grey scale that is cut off
    before (paper: 0.01). Of a pair both images would have limits of their own, and the result could not be put back on
    the CXR's grey scale. So the network sees the CXR between the CXR's own limits, and its result is brought back by
    the inverse; what lay outside of the limits is added again as it was.
    """

    title = "ResNet-BS"
    data_range = 1
    repeats = ("blocks",)

    def __init__(self, channels=(64,), blocks: int = 16, saturate: float = 0.01):
        super().__init__()
        if len(channels) != 1:
            raise ValueError(f"all layers of ResNet-BS have one width, not {len(channels)}")
        self.settings = dict(channels=channels, blocks=blocks, saturate=saturate)
        self.saturate = saturate

        width = channels[0]
        self.first = nn.Conv2d(1, width, 3, padding=1)
        residual_blocks = [Block(width) for _ in range(blocks)]
        self.body = nn.Sequential(*residual_blocks, nn.Conv2d(width, width, 3, padding=1))
        self.last = nn.Conv2d(width, 1, 3, padding=1)

    def forward(self, cxr: Tensor, draw: Draw | None = None) -> tuple[Tensor, Tensor]:
        # The CXR between its own limits, scaled to [-1, 1]
        low, high = limits(cxr, self.saturate)  # (B, 1, 1, 1) each
        inside = cxr.float().clamp(low, high)
        span = (high - low).clamp_min(1e-3)  # of an image of one grey value it would be 0
        scaled = 2 * (inside - low) / span - 1  # (B, 1, S, S)

        h = self.first(scaled)  # (B, C, S, S)
        h = h + self.body(h)
        output = self.last(h).float()  # (B, 1, S, S)

        # The inverse of the scaling; what lay outside of the limits is added again.
        outside = cxr - inside
        soft = low + span * (output + 1) / 2 + outside
        return soft, no_latent_loss(soft)


def limits(image: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """The grey values (B, 1, 1, 1) below and above which `share` of an image's pixels lie; with 0 those of [-1, 1]."""
    if share == 0:
        low = image.new_full((len(image), 1, 1, 1), -1.0)
        return low, -low

    # Both quantiles from the sorted pixels, since torch.quantile refuses large images
    pixels = image.detach().float().flatten(1)  # (B, S S)
    ordered = pixels.sort(1).values
    last = ordered.shape[1] - 1
    cut_off = round(share * last)
    low = ordered[:, cut_off]  # (B,)
    high = ordered[:, last - cut_off]
    return low.view(-1, 1, 1, 1), high.view(-1, 1, 1, 1)


METHOD = ResNetBS
