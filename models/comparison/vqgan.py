"""VQGAN: Esser et al., "Taming transformers for high-resolution image synthesis" (CVPR 2021), as a translator from CXR
to soft tissue: VQ-VAE with a perceptual and an adversarial term. 38.3 million parameters.
"""

from torch import nn

from ..vqgan import PatchDiscriminator
from .vq_vae import VQVAE

PATCH_LAYERS = 3  # of the discriminator


class VQGAN(VQVAE):
    """VQ-VAE's network; the discriminator sees images alone, as ML-VQGAN's does."""

    title = "VQGAN"
    adversary = "leaky_least_squares"

    @classmethod
    def discriminator(cls, channels: int) -> nn.Module:
        return PatchDiscriminator(1, channels, PATCH_LAYERS)


METHOD = VQGAN
