"""The noise estimator of both methods: a U-Net with residual blocks, scale-shift time conditioning and self-attention.

The architecture is that of Dhariwal & Nichol, "Diffusion models beat GANs" (2021); its input is the noisy soft-tissue
latent concatenated with the CXR's latent. Parameter names are the released checkpoints' own.
"""

import math

import torch
from torch import nn
from torch.nn import functional as F

from . import schedulers
from .layers import GroupNorm32, checkpointed
from .runtime.checkpoint import Network

MAX_PERIOD = 10000  # of the time embedding's sinusoids, timesteps (Vaswani 2017)
TIME_WIDTH = 4  # width of the time embedding as a multiple of the network's width


def time_embedding(t: torch.Tensor, width: int) -> torch.Tensor:
    """Sinusoids of the timestep, cosines then sines (Vaswani 2017). t (B,) -> (B, width)."""
    half = width // 2
    place = torch.arange(half, dtype=torch.float32, device=t.device)
    # Geometric from 1 down to nearly 1 / MAX_PERIOD, in radians per timestep.
    frequency = torch.exp(-math.log(MAX_PERIOD) * place / half)
    angle = t.float()[:, None] * frequency  # (B, width / 2)
    return torch.cat([angle.cos(), angle.sin()], 1)


class ResidualBlock(nn.Module):
    """GroupNorm, SiLU, conv; GroupNorm scaled and shifted by time, SiLU, conv; plus the skip connection.

    x (B, channels, h, w), embedding (B, time_channels) -> (B, out_channels, h', w').
    resample: None, "down" (2 x 2 average) or "up" (nearest neighbour), applied to both branches after the first SiLU.
    """

    def __init__(self, channels: int, time_channels: int, out_channels: int, resample: str | None = None):
        super().__init__()
        if resample not in (None, "down", "up"):
            raise ValueError(f"resample={resample!r} is not one of: None, 'down', 'up'")
        self.resample = resample
        self.in_layers = nn.Sequential(
            GroupNorm32(channels), nn.SiLU(), nn.Conv2d(channels, out_channels, 3, padding=1)
        )
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(time_channels, 2 * out_channels))
        # nn.Identity stands in for the published dropout of rate 0, so that the convolution keeps its released name
        # out_layers.3
        self.out_layers = nn.Sequential(
            GroupNorm32(out_channels),
            nn.SiLU(),
            nn.Identity(),
            zero(nn.Conv2d(out_channels, out_channels, 3, padding=1)),
        )
        self.skip_connection = nn.Identity() if out_channels == channels else nn.Conv2d(channels, out_channels, 1)

    def forward(self, x: torch.Tensor, embedding: torch.Tensor) -> torch.Tensor:
        # first normalisation and activation, resampling, first convolution
        norm, activation, conv = self.in_layers
        h = activation(norm(x))
        if self.resample == "down":
            h = F.avg_pool2d(h, 2)  # (B, C, h/2, w/2)
            x = F.avg_pool2d(x, 2)
        elif self.resample == "up":
            h = F.interpolate(h, scale_factor=2, mode="nearest")  # (B, C, 2h, 2w)
            x = F.interpolate(x, scale_factor=2, mode="nearest")
        h = conv(h)

        # the time enters between the second normalisation and its activation
        scale, shift = self.emb_layers(embedding)[:, :, None, None].chunk(2, 1)  # (B, C, 1, 1) each
        norm, activation, dropout, conv = self.out_layers
        h = norm(h) * (1 + scale) + shift
        h = conv(dropout(activation(h)))
        return self.skip_connection(x) + h


class AttentionBlock(nn.Module):
    """Self-attention over all pixels, x (B, C, h, w) -> the same.

    qkv_by_head: the order of the 3 C channels of `qkv`.
    True: q, k, v of head 1, then of head 2, ...; False: q of all heads, then k of all, then v of all.
    Raises ValueError if the heads do not divide the channels.
    """

    def __init__(self, channels: int, heads: int, qkv_by_head: bool):
        super().__init__()
        if channels % heads:
            raise ValueError(f"{channels} channels cannot be shared by {heads} attention heads")
        self.heads = heads
        self.qkv_by_head = qkv_by_head
        self.norm = GroupNorm32(channels)
        self.qkv = nn.Conv1d(channels, 3 * channels, 1)
        self.proj_out = zero(nn.Conv1d(channels, channels, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        flat = x.flatten(2)  # (B, C, N) with N = h w
        qkv = self.qkv(self.norm(flat))  # (B, 3 C, N)
        if self.qkv_by_head:
            q, k, v = qkv.unflatten(1, (self.heads, 3, -1)).unbind(2)  # (B, heads, C / heads, N) each
        else:
            q, k, v = qkv.unflatten(1, (3, self.heads, -1)).unbind(1)
        # torch has the pixels before the channels. It scales by 1 / sqrt(C / heads), as the published code does in two
        # halves.
        q = q.transpose(2, 3)  # (B, heads, N, C / heads), as the two that follow
        k = k.transpose(2, 3)
        v = v.transpose(2, 3)
        h = F.scaled_dot_product_attention(q, k, v)  # (B, heads, N, C / heads)
        h = h.transpose(2, 3).flatten(1, 2)  # (B, C, N)
        return x + self.proj_out(h).view_as(x)


class Stage(nn.Sequential):
    """The layers at one place of the U, run in order; those that depend on time receive its embedding."""

    def forward(self, x: torch.Tensor, embedding: torch.Tensor) -> torch.Tensor:
        for layer in self:
            if isinstance(layer, ResidualBlock):
                x = layer(x, embedding)
            else:
                x = layer(x)
        return x


class ConditionalUNet(Network):
    """(x (B, in_channels, h, w), t (B,)) -> (B, out_channels, h, w).

    x: the noisy soft-tissue latent, then the CXR's latent. The first half of the output's channels is the predicted
    noise. h and w must be multiples of 2 ** (levels - 1).
    width, multipliers: the channels of each level are width times its multiplier.
    blocks: residual blocks per level on the way down; one more on the way up.
    heads, attention: heads of the self-attention, and downsampling factors of the levels that have it.
    qkv_by_head: True for BS-LDM's checkpoints, False for GL-LCM's, see AttentionBlock.

    prior: 0, as published: the layers predict the noise itself. prior > 0: EDM preconditioning (Karras 2022, table 1)
    about the CXR's latent instead of 0, with sigma_data = prior, the expected standard deviation of soft-tissue latent
    minus CXR latent. The layers predict the normalised residual that this expectation leaves open, and `forward`
    converts it to noise with the alpha_bar of `schedule`, a name in schedulers.SCHEDULES. Before any training, such a
    network takes the CXR for the soft tissue, so it has to learn the bone alone.

    condition: how the network was trained to see the CXR's latent, "scaled" or "plain" (schedulers.scale_condition). It
    is the caller who scales, in training and in sampling; here it is kept for the header. Raises ValueError for
    another word.
    """

    repeats = ("blocks",)
    earlier = {"condition": "plain"}  # headers that do not name it are of versions that trained so
    alpha_bar: torch.Tensor  # (1000,), of networks with a prior

    def __init__(
        self,
        in_channels: int = 8,
        out_channels: int = 8,
        width: int = 128,
        multipliers=(1, 1, 2, 2, 4, 4),
        blocks: int = 8,
        heads: int = 8,
        attention=(8, 16, 32),
        qkv_by_head: bool = False,
        prior: float = 0.0,
        condition: str = "scaled",
        schedule: str = "scaled_linear",
    ):
        super().__init__()
        if condition not in schedulers.CONDITIONS:
            raise ValueError(f"condition={condition!r} is not one of: {', '.join(schedulers.CONDITIONS)}")
        self.settings = dict(
            in_channels=in_channels,
            out_channels=out_channels,
            width=width,
            multipliers=multipliers,
            blocks=blocks,
            heads=heads,
            attention=attention,
            qkv_by_head=qkv_by_head,
            prior=prior,
            condition=condition,
            schedule=schedule,
        )
        self.width = width
        self.levels = len(multipliers)
        self.checkpointing = False
        self.prior = prior
        if prior:
            with torch.device("cpu"):  # a real table even while `load` builds the network on the meta device
                alpha_bar = schedulers.SCHEDULES[schedule]()  # (1000,)
            self.register_buffer("alpha_bar", alpha_bar, persistent=False)  # no checkpoint holds it
        self.build_layers()

    def build_layers(self) -> None:
        """Build the U of `self.settings`. The order of building decides which weights a seed gives."""
        width = self.settings["width"]
        multipliers = self.settings["multipliers"]
        blocks = self.settings["blocks"]
        heads = self.settings["heads"]
        qkv_by_head = self.settings["qkv_by_head"]
        time_channels = TIME_WIDTH * width
        self.time_embed = nn.Sequential(
            nn.Linear(width, time_channels), nn.SiLU(), nn.Linear(time_channels, time_channels)
        )

        def residual_layers(before: int, after: int, level: int) -> list[nn.Module]:
            """A residual block, then self-attention on the levels that have it."""
            # The attention is built first, so it takes its weights from the seed first.
            attends = []
            if 2**level in self.settings["attention"]:
                attends.append(AttentionBlock(after, heads, qkv_by_head))
            return [ResidualBlock(before, time_channels, after), *attends]

        # The way down. skips: the channels of each stage's output, which the way up concatenates to its input.
        channels = multipliers[0] * width
        down = [Stage(nn.Conv2d(self.settings["in_channels"], channels, 3, padding=1))]
        skips = [channels]
        for level, multiplier in enumerate(multipliers):
            level_channels = multiplier * width
            for _ in range(blocks):
                down.append(Stage(*residual_layers(channels, level_channels, level)))
                channels = level_channels
                skips.append(channels)
            if level < self.levels - 1:
                down.append(Stage(ResidualBlock(channels, time_channels, channels, "down")))
                skips.append(channels)
        self.input_blocks = nn.ModuleList(down)

        # The bottom of the U always has attention.
        self.middle_block = Stage(
            ResidualBlock(channels, time_channels, channels),
            AttentionBlock(channels, heads, qkv_by_head),
            ResidualBlock(channels, time_channels, channels),
        )

        # The way up; the last stage of every level but the top one doubles the size.
        up = []
        for level in reversed(range(self.levels)):
            level_channels = multipliers[level] * width
            for block in range(blocks + 1):
                layers = residual_layers(channels + skips.pop(), level_channels, level)
                channels = level_channels
                if level > 0 and block == blocks:
                    layers.append(ResidualBlock(channels, time_channels, channels, "up"))
                up.append(Stage(*layers))
        self.output_blocks = nn.ModuleList(up)
        self.out = nn.Sequential(
            GroupNorm32(channels),
            nn.SiLU(),
            zero(nn.Conv2d(channels, self.settings["out_channels"], 3, padding=1)),
        )

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """x (B, in_channels, h, w), t (B,) integers in 0..999 -> (B, out_channels, h, w).

        Raises ValueError for sides that cannot be halved that often.
        """
        if not self.prior:
            return self.layers(x, t)

        # EDM preconditioning: the layers see the normalised difference from the CXR and predict the normalised residual
        alpha_bar = self.alpha_bar[t].view(-1, 1, 1, 1)  # (B, 1, 1, 1)
        z_t, cxr = x.float().chunk(2, 1)
        k, c_in, c_out = schedulers.precondition(self.prior**2, alpha_bar)
        difference = z_t / alpha_bar.sqrt() - cxr  # (B, C, h, w)
        output = self.layers(torch.cat([c_in * difference, cxr], 1), t)
        residual, rest = output.float().chunk(2, 1)
        z_0 = cxr + k * difference + c_out * residual

        # the noise that leads from this z_0 to z_t
        eps = (z_t - alpha_bar.sqrt() * z_0) / (1 - alpha_bar).sqrt()
        return torch.cat([eps, rest], 1)

    def loss_weight(self, t: torch.Tensor) -> torch.Tensor:
        """Weights (B,) of the noise's squared error at timesteps t (B,), for a network with a prior.

        Weighted so, the error in the noise equals the error in the normalised residual, which is what the layers
        predict.
        """
        # eps = (z_t - sqrt(alpha_bar) z_0) / sqrt(1 - alpha_bar), so an error in the residual is c_out / sqrt(v) times
        # as large in eps; its square is variance / (variance + v) = k.
        k, _, _ = schedulers.precondition(self.prior**2, self.alpha_bar[t])
        return 1 / k

    def layers(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """The U itself, without preconditioning: x (B, in_channels, h, w), t (B,) -> (B, out_channels, h, w)."""
        side = 2 ** (self.levels - 1)
        if x.shape[-1] % side or x.shape[-2] % side:
            raise ValueError(f"the latent's sides must be multiples of {side}, got {tuple(x.shape[-2:])}")
        embedding = self.time_embed(time_embedding(t, self.width))
        # The way down keeps every stage's output; the way up takes them back, last first.
        skips = []
        for block in self.input_blocks:
            x = checkpointed(block, x, embedding, enabled=self.checkpointing)
            skips.append(x)
        x = checkpointed(self.middle_block, x, embedding, enabled=self.checkpointing)
        for block in self.output_blocks:
            x = checkpointed(block, torch.cat([x, skips.pop()], 1), embedding, enabled=self.checkpointing)
        return self.out(x)

    @staticmethod
    def settings_of(state: dict, modules: dict) -> dict:
        """The keywords that a released checkpoint's tensors, and its pickled attention modules, imply.

        A residual block's tensor in_layers.0.weight is at <stage>.<layer>.in_layers.0.weight. See Network for the
        arguments and what is raised.
        """
        width = state["time_embed.0.weight"].shape[1]

        # On the way up every level but the top one ends with an upsampling block, which is no stage's first layer. The
        # first of them ends the first level, which has blocks + 1 stages; without any there is one level.
        stages = 0
        upsampling = []
        for name in state:
            place, _, rest = name.partition(".")
            if place == "output_blocks":
                stage, layer, parameter = rest.split(".", 2)
                stages = max(stages, int(stage) + 1)
                if layer != "0" and parameter == "in_layers.0.weight":
                    upsampling.append(int(stage))
        if stages == 0:
            raise KeyError("output_blocks")
        blocks = min(upsampling) if upsampling else stages - 1
        levels = stages // (blocks + 1)

        # On the way down the first residual block of a level tells its width and whether it has attention.
        multipliers = []
        attention = []
        for level in range(levels):
            first = 1 + level * (blocks + 1)
            multipliers.append(state[f"input_blocks.{first}.0.out_layers.3.weight"].shape[0] // width)
            if f"input_blocks.{first}.1.qkv.weight" in state:
                attention.append(2**level)

        settings = dict(
            in_channels=state["input_blocks.0.0.weight"].shape[1],
            out_channels=state["out.2.weight"].shape[0],
            width=width,
            blocks=blocks,
            multipliers=tuple(multipliers),
            attention=tuple(attention),
            condition="scaled",  # as both published trainings had it [S]
        )

        # The published code names its attention block and, in it, one of two classes by the order of the qkv channels.
        classes = set()
        for attributes in modules.values():
            classes.add(attributes["class"])
            if attributes["class"] == "AttentionBlock" and "heads" not in settings:
                settings["heads"] = attributes["num_heads"]
        orders = classes & {"QKVAttentionLegacy", "QKVAttention"}
        if orders:
            settings["qkv_by_head"] = orders == {"QKVAttentionLegacy"}
        return settings


def zero(layer: nn.Module) -> nn.Module:
    """The layer with all its parameters set to zero, so that its block starts as the identity. In place."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer
