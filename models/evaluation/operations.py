"""How many operations a method takes per image, two for each multiplication with its addition, as torch counts them.

Networks are counted on fake tensors, which have shapes and no numbers: nothing is computed, and compiled or
half-precision networks count as the plain ones. (The meta device would do, but autocast does not know it.)
Convolutions, matrix products and attention are counted, as in torch's
FlopCounterMode; element by element operations, resizing and fusion are not.
"""

from collections.abc import Callable
from functools import wraps
from typing import TypeVar

import torch

from .. import pipelines, sampling
from ..comparison import Translator
from ..comparison.bs_diff import BSDiff
from ..runtime.checkpoint import Network

# Fake tensors and the counter are imported where something is counted: they take a second, of every evaluation.

AnyNetwork = TypeVar("AnyNetwork", bound=Network)  # plain returns the class that it is given


def for_costs(images: int, counted: Callable[..., int], *arguments) -> dict[str, int]:
    """{"operations": per image, by of_translator or of_pipeline}, for the table of costs; of one X-ray nothing, since
    counting takes seconds."""
    return {"operations": counted(*arguments)} if images > 1 else {}


def without_numbers(function: Callable[..., int]) -> Callable[..., int]:
    """The function, with every tensor that it makes a fake one."""

    @wraps(function)
    def on_fakes(*arguments) -> int:
        from torch._subclasses.fake_tensor import FakeTensorMode

        # the random numbers that a network's first weights would take are not drawn either
        with FakeTensorMode():
            return function(*arguments)

    return on_fakes


def count(network: Callable, *inputs: torch.Tensor) -> int:
    """Operations of one call. network and inputs: fake."""
    from torch.utils.flop_counter import FlopCounterMode

    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(*inputs)
    return counter.get_total_flops()


def plain(network: AnyNetwork) -> AnyNetwork:
    """A network of the same settings in eval mode; fake, where it is built under FakeTensorMode."""
    return type(network)(**network.settings).eval()


@without_numbers
def of_translator(network: Translator, size: int) -> int:
    """Operations of a comparison method on an image of `size` x `size`."""
    image = torch.zeros(1, 1, size, size)
    twin = plain(network)
    if not isinstance(twin, BSDiff):
        return count(twin, image)
    timestep = torch.zeros(1, dtype=torch.long)
    step = count(twin.unet, torch.cat([image, image], 1), timestep)
    return twin.steps * step + count(twin.enhancer, image)


def of_pipeline(method: pipelines.Pipeline, size: int) -> int:
    """Operations of BS-LDM or GL-LCM on an image of `size` x `size`. The lungs' segmentation is not among them."""
    return _of_pipeline(method, size, estimates(method))


@without_numbers
def _of_pipeline(method: pipelines.Pipeline, size: int, calls: int) -> int:
    vqgan = plain(method.vqgan)
    unet = plain(method.unet)
    image = torch.zeros(1, 1, size, size)
    channels = method.vqgan.settings["code_channels"]
    side = size // method.vqgan.factor
    latent = torch.zeros(1, channels, side, side)
    pair = torch.cat([latent, latent], 1)  # (1, 2 C, h, w)
    timestep = torch.zeros(1, dtype=torch.long)

    # GL-LCM encodes the X-ray and its lungs, and decodes both paths, unless it fuses their latents
    paths = 2 if isinstance(method, pipelines.GLLCM) else 1
    decoded = 1 if isinstance(method, pipelines.GLLCM) and method.fusion == "autoencoder" else paths
    if method.residual:
        decoded *= 2  # the CXR's own latent as well
    total = paths * count(vqgan.encode, image) + decoded * count(vqgan.decode, latent)
    return total + calls * count(unet, pair, timestep)


def estimates(method: pipelines.Pipeline) -> int:
    """How often the sampler estimates the noise in a latent, per image: its walk with an estimator that only counts."""
    calls = 0

    def unet(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += len(x)
        return x

    def draw(name: str) -> torch.Tensor:
        return torch.zeros(1, 1, 2, 1)

    latent = draw("latent")
    if isinstance(method, pipelines.GLLCM):
        sampling.sample_gllcm(unet, latent, latent, draw, **method.options)
    else:
        sampling.sample_bsldm(unet, latent, draw, **method.options)
    return calls
