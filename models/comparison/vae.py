"""VAE: Kingma & Welling, "Auto-encoding variational Bayes" (ICLR 2014), as a translator from CXR to soft tissue.

The papers do not document their VAE. Here it has this project's encoder and decoder, so the comparison is one of
latents: 38.3 million parameters.
"""

import torch
from torch import Tensor

from ..vqgan import MLVQGAN
from .base import UNIVERSAL, Draw, Translator

CODE_CHANNELS = 4  # of the latent


class VAE(Translator):
    """Encoder to mean and log-variance of the latent, decoder from a sample of it; when evaluating, from the mean.

    channels, blocks: widths and residual units per level, as of MLVQGAN; their inner width is the last one.
    """

    title = "VAE"
    group = UNIVERSAL
    repeats = ("blocks",)

    def __init__(self, channels=(128, 256, 512), blocks: int = 2):
        super().__init__()
        self.settings = dict(channels=channels, blocks=blocks)
        inner = channels[-1]
        self.multiple = 2 ** len(channels)
        self.encoder = MLVQGAN(1, channels, inner, blocks, 1, 2 * CODE_CHANNELS).encoder  # mean and log-variance
        self.decoder = MLVQGAN(1, channels, inner, blocks, 1, CODE_CHANNELS).decoder

    def forward(self, cxr: Tensor, draw: Draw | None = None) -> tuple[Tensor, Tensor]:
        mean, log_variance = self.encoder(cxr).float().chunk(2, 1)  # (B, 4, S/8, S/8) each
        log_variance = log_variance.clamp(-30, 20)  # beyond it exp() leaves float32
        latent = mean
        if self.training and draw is not None:
            latent = mean + torch.exp(log_variance / 2) * draw("latent", *mean.shape[1:])
        return self.decoder(latent).float(), kl_divergence(mean, log_variance)


def kl_divergence(mean: Tensor, log_variance: Tensor) -> Tensor:
    """KL(N(mean, variance) || N(0, I)), summed over a latent (B, C, h, w), mean over the batch (Kingma & Welling 2014,
    appendix B)."""
    terms = mean.square() + log_variance.exp() - 1 - log_variance
    return terms.sum((1, 2, 3)).mean() / 2


METHOD = VAE
