"""What the methods of this room have in common, and how one is found by its name.

A method is a file of this folder that ends with METHOD = its class, a Translator. Its settings are the section
comparison.<name of the file> of config.yaml; training, evaluation and tables know it from these two.
"""

import importlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .. import losses, sampling
from ..runtime import seeding
from ..runtime.checkpoint import Network
from ..schema import COMPARISON_METHODS

METHODS = COMPARISON_METHODS  # names of the files, which are the sections of the settings, too
UNIVERSAL = "Universal Method"  # the groups of the papers' tables
TASK_SPECIFIC = "Task-Specific Method"

# draw(name, *shape) -> standard normal numbers (B, *shape), as training.interfaces.Noise.normal gives
Draw = Callable[..., Tensor]


class Translator(Network):
    """A network from CXR to soft tissue. Subclasses say in class attributes what tables and training need.

    forward(cxr (B, 1, S, S) in [-1, 1], draw) -> (soft (B, 1, S, S), about [-1, 1]; the latent's own loss, a scalar).
    draw: of a training step, for layers that need noise; None outside of training.
    """

    title: str  # in the tables
    group: str = TASK_SPECIFIC  # UNIVERSAL or TASK_SPECIFIC
    multiple: int = 1  # the sides of images must be multiples of this
    least: int = 1  # and at least this long, pixels
    sampler: Any = None  # name of the sampler and number of steps of a method that samples, for the table of cost
    steps: Any = None
    data_range: int = 2  # of the images that the pixel losses see: 2 for [-1, 1], 1 for [0, 1]
    optimizer: Callable[..., torch.optim.Optimizer] = torch.optim.Adam
    adversary: str = "least_squares"  # a name in ADVERSARIES

    def forward(self, cxr: Tensor, draw: Draw | None = None) -> tuple[Tensor, Tensor]:
        raise NotImplementedError(f"{type(self).__name__} has no forward pass")

    @classmethod
    def discriminator(cls, channels: int) -> nn.Module | None:
        """The network that an adversarial method trains against, its first layer `channels` wide; else None."""
        return None

    @staticmethod
    def judged(image: Tensor, cxr: Tensor) -> Tensor:
        """What the discriminator sees of a true or translated image (B, 1, S, S) and its CXR."""
        return image

    def suppress(self, cxr: Tensor, noise: Callable[[str], Tensor], progress: sampling.Progress = iter) -> Tensor:
        """The result (B, 1, S, S) of X-rays, both in [-1, 1].

        noise(name) -> standard normal numbers (B, 1, S, S), for a method that samples. progress: wraps its steps.
        """
        soft, _ = self(cxr)
        return soft

    def describe(self) -> dict[str, object]:
        """What summary.json says of the method, for the tables."""
        parameters = sum(parameter.numel() for parameter in self.parameters())
        return {"group": self.group, "sampler": self.sampler, "steps": self.steps, "parameters": parameters}


def find(name: str) -> type[Translator]:
    """The class of a method; ValueError for an unknown name."""
    if name not in METHODS:
        raise ValueError(f"unknown method '{name}'; there are {', '.join(METHODS)}")
    return importlib.import_module(f"{__package__}.{name}").METHOD


def build(name: str, **keywords: Any) -> Translator:
    """A method's network with new weights, at its published size but for these keywords of its constructor."""
    return find(name)(**keywords)


# --- Adversarial losses: logits of any shape, label 1 (real) or 0 (translated) -> a scalar -------------------------


def plain_least_squares(logits: Tensor, label: float) -> Tensor:
    """Mao et al. (ICCV 2017), eq. 2, on the logits as they are."""
    return (logits.float() - label).square().mean()


def cross_entropy(logits: Tensor, label: float) -> Tensor:
    """Goodfellow et al. (NeurIPS 2014), eq. 1; the generator's with the label of the other class (section 3)."""
    return F.binary_cross_entropy_with_logits(logits.float(), torch.full_like(logits, label, dtype=torch.float32))


ADVERSARIES: dict[str, Callable[[Tensor, float], Tensor]] = {
    "least_squares": plain_least_squares,
    "leaky_least_squares": losses.least_squares,  # that of ML-VQGAN
    "cross_entropy": cross_entropy,
}


def image_noise(seed: int, names: list[str], like: Tensor) -> Callable[[str], Tensor]:
    """noise(draw) -> standard normal numbers of the shape of `like` (B, C, h, w), for `Translator.suppress`.

    Each image's depend on (seed, image name, draw name) alone, as in pipelines.Pipeline.draw.
    """

    def noise(draw: str) -> Tensor:
        drawn = []
        for name in names:
            generator = seeding.latent_generator(f"{seed}/{name}/{draw}")
            drawn.append(torch.randn(like.shape[1:], generator=generator))
        return torch.stack(drawn).to(like.device)

    return noise


def no_latent_loss(image: Tensor) -> Tensor:
    """0, for networks whose latent has no loss of its own."""
    return image.new_zeros(())
