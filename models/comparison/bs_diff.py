"""BS-Diff: Chen et al., "BS-Diff: effective bone suppression using conditional diffusion models from chest X-ray
images" (ISBI 2024, arXiv 2311.15328).

A conditional diffusion on pixels, then an autoencoder from its result to the soft tissue. 220,237,762 parameters, and
34,346,249 (published: 34,449,889; the widths inside its residual units are not given).
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .. import sampling, schedulers
from ..layers import GroupNorm32
from ..runtime.checkpoint import Network
from ..unet import TIME_WIDTH, AttentionBlock, time_embedding, zero
from ..vqgan import KERNEL, STRIDE, Convolution, PatchDiscriminator, ResidualUnit, Stack
from .base import Translator

CODE_CHANNELS = 8  # of the autoencoder's latent
CLIP = 1.0  # bound on the predicted image, which lies in [-1, 1]
HEADS = 4  # of the attention
PATCH_LAYERS = 3  # of the discriminator


class TimeBlock(nn.Module):
    """GroupNorm, SiLU, conv; plus the time; GroupNorm, SiLU, conv; plus the skip connection. x (B, C, h, w), embedding
    (B, T) -> (B, C', h, w)."""

    def __init__(self, channels: int, time_channels: int, after: int):
        super().__init__()
        self.norm1 = GroupNorm32(channels)
        self.conv1 = nn.Conv2d(channels, after, 3, padding=1)
        self.time = nn.Linear(time_channels, after)
        self.norm2 = GroupNorm32(after)
        self.conv2 = zero(nn.Conv2d(after, after, 3, padding=1))
        self.skip = nn.Identity() if channels == after else nn.Conv2d(channels, after, 1)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        h = h + self.time(F.silu(embedding))[:, :, None, None]
        return self.skip(x) + self.conv2(F.silu(self.norm2(h)))


class Level(nn.Module):
    """Time blocks, one after the other, each followed by attention if the level has it.

    Called block by block, since the way up takes one skip connection for each.
    """

    def __init__(self, widths: list[tuple[int, int]], time_channels: int, attends: bool):
        super().__init__()
        self.blocks = nn.ModuleList(TimeBlock(before, time_channels, after) for before, after in widths)
        self.attention = nn.ModuleList()
        if attends:
            self.attention.extend(AttentionBlock(after, HEADS, qkv_by_head=False) for _, after in widths)

    def forward(self, number: int, x: Tensor, embedding: Tensor) -> Tensor:
        x = self.blocks[number](x, embedding)
        return self.attention[number](x) if len(self.attention) else x


class PixelUNet(Network):
    """(noisy soft tissue beside CXR (B, 2, h, w), t (B,)) -> (B, 2, h, w), of which the first channel is the noise.

    Attention from the second level on. The other channel is not used; the published network has it.
    """

    repeats = ("blocks",)

    def __init__(self, channels=(64, 128, 256, 512, 768), blocks: int = 3):
        super().__init__()
        self.settings = dict(channels=channels, blocks=blocks)
        self.width = channels[0]
        self.blocks = blocks
        time_channels = TIME_WIDTH * self.width
        self.time_embed = nn.Sequential(
            nn.Linear(self.width, time_channels), nn.SiLU(), nn.Linear(time_channels, time_channels)
        )
        self.first = nn.Conv2d(2, self.width, 3, padding=1)

        # The way down: `blocks` a level, then a convolution of stride 2. skips: the channels that the way up takes.
        self.down = nn.ModuleList()
        self.shrink = nn.ModuleList()
        width = self.width
        skips = [width]
        for level, after in enumerate(channels):
            widths = [(width, after), *[(after, after)] * (blocks - 1)]
            self.down.append(Level(widths, time_channels, attends=level > 0))
            skips += [after] * blocks
            if level < len(channels) - 1:
                self.shrink.append(nn.Conv2d(after, after, 3, stride=2, padding=1))
                skips.append(after)
            width = after

        self.middle = Level([(width, width), (width, width)], time_channels, attends=False)
        self.middle_attention = AttentionBlock(width, HEADS, qkv_by_head=False)

        # The way up: one block more a level, then enlarged by neighbours and convolved.
        self.up = nn.ModuleList()
        self.enlarge = nn.ModuleList()
        for level in reversed(range(len(channels))):
            after = channels[level]
            widths = []
            for _ in range(blocks + 1):
                widths.append((width + skips.pop(), after))
                width = after
            self.up.append(Level(widths, time_channels, attends=level > 0))
            if level > 0:
                self.enlarge.append(nn.Conv2d(after, after, 3, padding=1))
        self.last = nn.Sequential(GroupNorm32(width), nn.SiLU(), zero(nn.Conv2d(width, 2, 3, padding=1)))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        embedding = self.time_embed(time_embedding(t, self.width))
        x = self.first(x)
        skips = [x]
        for number, level in enumerate(self.down):
            for block in range(self.blocks):
                x = level(block, x, embedding)
                skips.append(x)
            if number < len(self.shrink):
                x = self.shrink[number](x)  # (B, C, h/2, w/2)
                skips.append(x)

        x = self.middle(0, x, embedding)
        x = self.middle(1, self.middle_attention(x), embedding)

        for number, level in enumerate(self.up):
            for block in range(self.blocks + 1):
                x = level(block, torch.cat([x, skips.pop()], 1), embedding)
            if number < len(self.enlarge):
                x = self.enlarge[number](F.interpolate(x, scale_factor=2, mode="nearest"))  # (B, C, 2 h, 2 w)
        return self.last(x)


class Enhancer(Network):
    """The second stage: an autoencoder without codebook and KL, (B, 1, h, w) -> (B, 1, h, w), about [-1, 1].

    channels: width after each halving. The residual units' inner widths are the widths themselves but for the deepest,
    which has a third more: so the published count is met within half a percent.
    """

    repeats = ("blocks",)

    def __init__(self, channels=(128, 256, 384), blocks: int = 3):
        super().__init__()
        self.settings = dict(channels=channels, blocks=blocks)
        inner = [*channels[:-1], channels[-1] * 4 // 3]
        down: list[nn.Module] = []
        width = 1
        for after, hidden in zip(channels, inner):
            down.append(Convolution(nn.Conv2d(width, after, KERNEL, STRIDE, padding=1)))
            down.extend(ResidualUnit(after, hidden) for _ in range(blocks))
            width = after
        down.append(Convolution(nn.Conv2d(width, CODE_CHANNELS, 3, padding=1), relu=False))

        up: list[nn.Module] = [Convolution(nn.Conv2d(CODE_CHANNELS, width, 3, padding=1), relu=False)]
        for level in reversed(range(len(channels))):
            up.extend(ResidualUnit(width, inner[level]) for _ in range(blocks))
            after = channels[level - 1] if level > 0 else 1
            up.append(Convolution(nn.ConvTranspose2d(width, after, KERNEL, STRIDE, padding=1), relu=level > 0))
            width = after
        self.layers = nn.Sequential(Stack(down), Stack(up))

    def forward(self, first: Tensor) -> Tensor:
        return self.layers(first).float()


class BSDiff(Translator):
    """Both stages. channels, blocks: of the diffusion's U-Net; enhancer: widths of the second stage, with `blocks`
    residual units a level.

    sampler, steps: "ddpm", "ddim" or "dpmpp" of sampling.sample_bsldm, or "predicted", which is what the authors run:
    each step goes on from the predicted image itself, which is never noised again.
    """

    title = "BS-Diff"
    optimizer = torch.optim.AdamW
    adversary = "leaky_least_squares"
    repeats = ("blocks",)

    def __init__(
        self,
        channels=(64, 128, 256, 512, 768),
        blocks: int = 3,
        enhancer=(128, 256, 384),
        sampler: str = "ddpm",
        steps: int = 1000,
    ):
        super().__init__()
        self.settings = dict(channels=channels, blocks=blocks, enhancer=enhancer, sampler=sampler, steps=steps)
        self.sampler: str = sampler
        self.steps: int = steps
        self.multiple = max(2 ** (len(channels) - 1), 2 ** len(enhancer))
        self.unet = PixelUNet(channels, blocks)
        self.enhancer = Enhancer(enhancer, blocks)

    @classmethod
    def discriminator(cls, channels: int) -> nn.Module:
        return PatchDiscriminator(1, channels, PATCH_LAYERS)

    def first_stage(self, cxr: Tensor, noise: Callable[[str], Tensor], progress: sampling.Progress = iter) -> Tensor:
        """The diffusion's result (B, 1, h, w) in [-1, 1] of X-rays (B, 1, h, w)."""
        if self.sampler == "predicted":
            return sample_predicted(self.unet, cxr, noise, self.steps, progress)
        return sampling.sample_bsldm(
            self.unet, cxr, noise, steps=self.steps, sampler=self.sampler, clip=CLIP, clip_rate=0.0, progress=progress
        )

    def suppress(self, cxr: Tensor, noise: Callable[[str], Tensor], progress: sampling.Progress = iter) -> Tensor:
        return self.enhancer(self.first_stage(cxr, noise, progress))


@torch.no_grad()
def sample_predicted(
    unet: sampling.Estimator,
    cxr: Tensor,
    noise: Callable[[str], Tensor],
    steps: int,
    progress: sampling.Progress = iter,
) -> Tensor:
    """z <- z_0(z, t) at each timestep of the walk, from pure noise: (B, 1, h, w) in [-1, 1]."""
    alpha_bar = schedulers.squared_cosine()
    walk = schedulers.walk(alpha_bar, schedulers.trailing_timesteps(steps), schedulers.TRAIN_STEPS)
    z = noise("initial")
    for step in progress(walk):
        eps = sampling.estimate(unet, [z], step.t, [cxr])[0]
        z = schedulers.predict_z_0(z, eps, step, CLIP)
    return z


METHOD = BSDiff
