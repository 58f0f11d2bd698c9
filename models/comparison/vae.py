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
        self.multiple = 2 ** len(channels)

        # Of two autoencoders, since the encoder gives mean and log-variance and the decoder takes one latent
        inner = channels[-1]
        of_encoder = MLVQGAN(1, channels, inner, blocks, codes=1, code_channels=2 * CODE_CHANNELS)
        self.encoder = of_encoder.encoder
        of_decoder = MLVQGAN(1, channels, inner, blocks, codes=1, code_channels=CODE_CHANNELS)
        self.decoder = of_decoder.decoder

    def forward(self, cxr: Tensor, draw: Draw | None = None) -> tuple[Tensor, Tensor]:
        mean, log_variance = self.encoder(cxr).float().chunk(2, 1)  # (B, 4, S/8, S/8) each
        log_variance = log_variance.clamp(-30, 20)  # beyond it exp() leaves float32

        # z = mean + sigma eps (Kingma & Welling 2014, section 2.4)
        latent = mean
        if self.training and draw is not None:
            sigma = torch.exp(log_variance / 2)
            eps = draw("latent", *mean.shape[1:])
            latent = mean + sigma * eps

        soft = self.decoder(latent).float()  # (B, 1, S, S)
        return soft, kl_divergence(mean, log_variance)


def kl_divergence(mean: Tensor, log_variance: Tensor) -> Tensor:
    """KL(N(mean, variance) || N(0, I)), summed over a latent (B, C, h, w), mean over the batch (Kingma & Welling 2014,
    appendix B)."""
    # KL = 1/2 sum (mean^2 + variance - 1 - log variance)
    terms = mean.square() + log_variance.exp() - 1 - log_variance  # (B, C, h, w)
    sum_of_latent = terms.sum((1, 2, 3))  # (B,)
    return sum_of_latent.mean() / 2


METHOD = VAE
