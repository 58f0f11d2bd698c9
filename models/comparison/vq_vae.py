"""VQ-VAE: van den Oord et al., "Neural discrete representation learning" (NeurIPS 2017), as a translator from CXR to
soft tissue: this project's autoencoder, trained with pixels and commitment alone. 38.3 million parameters.
"""

from torch import Tensor

from ..vqgan import MLVQGAN
from .base import UNIVERSAL, Draw, Translator

CODES = 1024  # entries of the codebook
CODE_CHANNELS = 4  # of the latent
DECAY = 0.99  # of the codebook's moving averages (van den Oord 2017, appendix A.1)


class VQVAE(Translator):
    """Encoder, codebook, decoder of ML-VQGAN. channels, blocks: its widths and residual units per level, whose inner
    width is the last one."""

    title = "VQ-VAE"
    group = UNIVERSAL
    repeats = ("blocks",)

    def __init__(self, channels=(128, 256, 512), blocks: int = 2):
        super().__init__()
        self.settings = dict(channels=channels, blocks=blocks)
        self.multiple = 2 ** len(channels)
        # codes that no latent uses are restarted: the codebook begins near the latents, or most of it would lie idle
        self.autoencoder = MLVQGAN(1, channels, channels[-1], blocks, CODES, CODE_CHANNELS, DECAY, restart=True)

    def forward(self, cxr: Tensor, draw: Draw | None = None) -> tuple[Tensor, Tensor]:
        soft, commitment = self.autoencoder(cxr)
        return soft.float(), commitment


METHOD = VQVAE
