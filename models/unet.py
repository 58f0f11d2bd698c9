"""The noise estimator of both methods: a U-Net with residual blocks, scale-shift time conditioning and self-attention.

The architecture is that of Dhariwal & Nichol, "Diffusion models beat GANs" (2021), on the noisy soft-tissue latent beside the
CXR's. Parameter names are the released checkpoints' own.
"""
import math

import torch
from torch import nn
from torch.nn import functional as F

from . import schedulers
from .layers import GroupNorm32, frugally
from .runtime.checkpoint import Network

MAX_PERIOD = 10000  # of the time embedding
TIME_WIDTH = 4      # width of the time embedding over the network's


def time_embedding(t: torch.Tensor, width: int) -> torch.Tensor:
    """Sinusoids of the timestep, cosines then sines (Vaswani 2017). t (B,) -> (B, width)."""
    half = width // 2
    frequency = torch.exp(-math.log(MAX_PERIOD) * torch.arange(half, dtype=torch.float32, device=t.device) / half)
    angle = t.float()[:, None] * frequency
    return torch.cat([angle.cos(), angle.sin()], 1)


class ResidualBlock(nn.Module):
    """GroupNorm, SiLU, conv; GroupNorm scaled and shifted by time, SiLU, conv; plus the skip.

    resample: None, "down" (2x2 average) or "up" (nearest), applied to both branches after the first SiLU.
    """

    def __init__(self, channels: int, time_channels: int, out_channels: int, resample: str | None = None):
        super().__init__()
        self.resample = {None: None, "down": lambda x: F.avg_pool2d(x, 2),
                         "up": lambda x: F.interpolate(x, scale_factor=2, mode="nearest")}[resample]
        self.in_layers = nn.Sequential(GroupNorm32(channels), nn.SiLU(), nn.Conv2d(channels, out_channels, 3, padding=1))
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(time_channels, 2 * out_channels))
        self.out_layers = nn.Sequential(GroupNorm32(out_channels), nn.SiLU(), nn.Identity(),
                                        zero(nn.Conv2d(out_channels, out_channels, 3, padding=1)))
        self.skip_connection = nn.Identity() if out_channels == channels else nn.Conv2d(channels, out_channels, 1)

    def forward(self, x: torch.Tensor, embedding: torch.Tensor) -> torch.Tensor:
        norm, activation, conv = self.in_layers
        h = activation(norm(x))
        if self.resample:
            h, x = self.resample(h), self.resample(x)
        h = conv(h)
        scale, shift = self.emb_layers(embedding)[:, :, None, None].chunk(2, 1)  # (B, C, 1, 1)
        norm, *rest = self.out_layers
        h = norm(h) * (1 + scale) + shift
        for layer in rest:
            h = layer(h)
        return self.skip_connection(x) + h


class AttentionBlock(nn.Module):
    """Self-attention over all pixels. The order of the qkv channels is by head (q, k, v of head 1, of head 2, ...) or by kind."""

    def __init__(self, channels: int, heads: int, qkv_by_head: bool):
        super().__init__()
        if channels % heads:
            raise ValueError(f"{channels} channels cannot be shared by {heads} attention heads")
        self.heads, self.qkv_by_head = heads, qkv_by_head
        self.norm = GroupNorm32(channels)
        self.qkv = nn.Conv1d(channels, 3 * channels, 1)
        self.proj_out = zero(nn.Conv1d(channels, channels, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        flat = x.flatten(2)  # (B, C, N)
        qkv = self.qkv(self.norm(flat))
        if self.qkv_by_head:
            q, k, v = qkv.unflatten(1, (self.heads, 3, -1)).unbind(2)  # each (B, heads, C / heads, N)
        else:
            q, k, v = qkv.unflatten(1, (3, self.heads, -1)).unbind(1)
        h = F.scaled_dot_product_attention(*(part.transpose(2, 3) for part in (q, k, v)))  # (B, heads, N, C / heads)
        return x + self.proj_out(h.transpose(2, 3).flatten(1, 2)).view_as(x)


class Step(nn.Sequential):
    """The layers of one place in the U: a convolution, or a residual block with what follows it."""

    def forward(self, x: torch.Tensor, embedding: torch.Tensor) -> torch.Tensor:
        for layer in self:
            x = layer(x, embedding) if isinstance(layer, ResidualBlock) else layer(x)
        return x


class ConditionalUNet(Network):
    """(x (B, in_channels, h, w), t (B,)) -> (B, out_channels, h, w).

    x is the noisy soft-tissue latent beside the CXR's latent; the first half of the output is the predicted noise.
    width, multipliers: channels of each level. blocks: residual blocks a level going down (one more going up).
    attention: downsamplings that have attention. qkv_by_head: True for BS-LDM's checkpoints, False for GL-LCM's.
    h and w must be multiples of 2 ** (levels - 1).

    prior: 0 as published: the layers give the noise itself. Above 0, the standard deviation by which soft-tissue latents are expected
    to differ from their CXR's: the layers give what this expectation leaves open, and the noise follows from it under `schedule` (a
    name in schedulers.SCHEDULES). Untrained, such a network takes the CXR for the soft tissue; it only has to learn the bone.
    """

    def __init__(self, in_channels: int = 8, out_channels: int = 8, width: int = 128, multipliers=(1, 1, 2, 2, 4, 4),
                 blocks: int = 8, heads: int = 8, attention=(8, 16, 32), qkv_by_head: bool = False, prior: float = 0.0,
                 schedule: str = "scaled_linear"):
        super().__init__()
        self.prior = prior
        if prior:
            with torch.device("cpu"):  # also where the weights are still to be read
                alpha_bar = schedulers.SCHEDULES[schedule]()  # (1000,)
            self.register_buffer("alpha_bar", alpha_bar, persistent=False)  # belongs to no checkpoint
        time_channels = TIME_WIDTH * width
        self.width, self.levels, self.checkpointing = width, len(multipliers), False
        self.time_embed = nn.Sequential(nn.Linear(width, time_channels), nn.SiLU(), nn.Linear(time_channels, time_channels))

        def place(before: int, after: int, level: int) -> list[nn.Module]:
            attends = [AttentionBlock(after, heads, qkv_by_head)] if 2 ** level in attention else []
            return [ResidualBlock(before, time_channels, after), *attends]

        channels = multipliers[0] * width
        skips, down, up = [channels], [Step(nn.Conv2d(in_channels, channels, 3, padding=1))], []
        for level, multiplier in enumerate(multipliers):
            for _ in range(blocks):
                down.append(Step(*place(channels, multiplier * width, level)))
                channels = multiplier * width
                skips.append(channels)
            if level < self.levels - 1:
                down.append(Step(ResidualBlock(channels, time_channels, channels, "down")))
                skips.append(channels)
        self.input_blocks = nn.ModuleList(down)
        self.middle_block = Step(ResidualBlock(channels, time_channels, channels), AttentionBlock(channels, heads, qkv_by_head),
                                 ResidualBlock(channels, time_channels, channels))
        for level, multiplier in reversed(list(enumerate(multipliers))):
            for block in range(blocks + 1):
                layers = place(channels + skips.pop(), multiplier * width, level)
                channels = multiplier * width
                if level and block == blocks:
                    layers.append(ResidualBlock(channels, time_channels, channels, "up"))
                up.append(Step(*layers))
        self.output_blocks = nn.ModuleList(up)
        self.out = nn.Sequential(GroupNorm32(channels), nn.SiLU(), zero(nn.Conv2d(channels, out_channels, 3, padding=1)))

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        if not self.prior:
            return self.layers(x, t)
        alpha_bar = self.alpha_bar[t].view(-1, 1, 1, 1)
        z_t, cxr = x.float().chunk(2, 1)
        k, c_in, c_out = schedulers.precondition(self.prior ** 2, alpha_bar)
        difference = z_t / alpha_bar.sqrt() - cxr
        left, rest = self.layers(torch.cat([c_in * difference, cxr], 1), t).float().chunk(2, 1)
        z_0 = cxr + k * difference + c_out * left
        return torch.cat([(z_t - alpha_bar.sqrt() * z_0) / (1 - alpha_bar).sqrt(), rest], 1)

    def loss_weight(self, t: torch.Tensor) -> torch.Tensor:
        """(B,) weights of the noise's squared error at timesteps t, for a network with a prior: so the layers' own error counts."""
        return 1 / schedulers.precondition(self.prior ** 2, self.alpha_bar[t])[0]

    def layers(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        side = 2 ** (self.levels - 1)
        if x.shape[-1] % side or x.shape[-2] % side:
            raise ValueError(f"the latent's sides must be multiples of {side}, got {tuple(x.shape[-2:])}")
        embedding = self.time_embed(time_embedding(t, self.width))
        skips = []
        for block in self.input_blocks:
            x = frugally(block, x, embedding, enabled=self.checkpointing)
            skips.append(x)
        x = frugally(self.middle_block, x, embedding, enabled=self.checkpointing)
        for block in self.output_blocks:
            x = frugally(block, torch.cat([x, skips.pop()], 1), embedding, enabled=self.checkpointing)
        return self.out(x)

    @staticmethod
    def settings_of(state: dict, modules: dict) -> dict:
        """The keywords that a released checkpoint's tensors stand for; heads and attention order from the pickled module."""
        width = state["time_embed.0.weight"].shape[1]
        output = max(int(name.split(".")[1]) for name in state if name.startswith("output_blocks.")) + 1
        ups = sorted(int(parts[1]) for parts in map(str.split, state, ["."] * len(state)) if parts[0] == "output_blocks"
                     and parts[2] != "0" and parts[3:] == ["in_layers", "0", "weight"])
        blocks = (ups[0] if ups else output - 1)
        levels = output // (blocks + 1)
        first = [1 + level * (blocks + 1) for level in range(levels)]  # the first block of each level going down
        attention = [attributes for attributes in modules.values() if attributes["class"] == "AttentionBlock"]
        order = {attributes["class"] for attributes in modules.values()} & {"QKVAttentionLegacy", "QKVAttention"}
        settings = dict(in_channels=state["input_blocks.0.0.weight"].shape[1], out_channels=state["out.2.weight"].shape[0],
                        width=width, blocks=blocks,
                        multipliers=tuple(state[f"input_blocks.{i}.0.out_layers.3.weight"].shape[0] // width for i in first),
                        attention=tuple(2 ** level for level, i in enumerate(first) if f"input_blocks.{i}.1.qkv.weight" in state))
        if attention:
            settings["heads"] = attention[0]["num_heads"]
        if order:
            settings["qkv_by_head"] = order == {"QKVAttentionLegacy"}
        return settings


def zero(layer: nn.Module) -> nn.Module:
    """A layer that starts at zero, so that its block starts as the identity."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer
