"""ML-VQGAN: the autoencoder whose quantised latent the diffusion works in, and its patch discriminator.

BS-LDM (JBHI 2025), section on the multi-level hybrid loss-constrained VQGAN; GL-LCM (MICCAI 2025). Parameter names are the
released checkpoints' own.
"""
import torch
from scipy.spatial import cKDTree
from torch import nn
from torch.nn import functional as F

from .layers import frugally
from .runtime import processes
from .runtime.checkpoint import Network

KERNEL, STRIDE = 4, 2  # of every convolution that halves or doubles the image
TREE_CHANNELS = 8      # of a code, above which a tree of the codes is of no use
ROWS = 1 << 16         # latent vectors compared with the codebook at a time, to bound memory
LAPLACE = 1e-5         # smoothing of the codebook's counts
RESTART_BELOW = 0.1    # a code with a smaller moving count is restarted, where restarting is on
SLOPE = 0.2            # LeakyReLU of the discriminator


class Convolution(nn.Module):
    """A convolution under the name that the checkpoints give it, then ReLU unless it is the last of its kind."""

    def __init__(self, conv: nn.Module, relu: bool = True):
        super().__init__()
        self.conv = conv
        self.relu = relu

    def forward(self, x):
        x = self.conv(x)
        return F.relu(x) if self.relu else x


class ResidualUnit(nn.Module):
    """relu(x + conv(relu(conv(x)))), 3x3 convolutions, inner width `hidden`."""

    def __init__(self, channels: int, hidden: int):
        super().__init__()
        self.conv1 = Convolution(nn.Conv2d(channels, hidden, 3, padding=1))
        self.conv2 = Convolution(nn.Conv2d(hidden, channels, 3, padding=1), relu=False)

    def forward(self, x):
        return F.relu(x + self.conv2(self.conv1(x)))


class Stack(nn.Module):
    """Blocks one after the other; the encoder and the decoder."""

    def __init__(self, blocks: list[nn.Module]):
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.checkpointing = False

    def forward(self, x):
        for block in self.blocks:
            x = frugally(block, x, enabled=self.checkpointing)
        return x


class Codebook(nn.Module):
    """Nearest-code quantisation; the codes are learnt by exponential moving average (van den Oord 2017, appendix A.1).

    N_k <- decay N_k + (1 - decay) n_k,  m_k <- decay m_k + (1 - decay) sum of the z nearest to k,  e_k = m_k / N_k,
    with N_k smoothed (Laplace) and n_k, sums taken over all processes. In float32 whatever the autocast.
    """

    def __init__(self, codes: int, channels: int, decay: float, commitment: float, restart: bool):
        super().__init__()
        self.decay, self.commitment, self.restart = decay, commitment, restart
        self.batch_weight = 1.0  # see processes.set_batch_weight
        self.embedding = nn.Embedding(codes, channels)
        self.embedding.weight.requires_grad_(False)
        self.register_buffer("ema_cluster_size", torch.zeros(codes))
        self.register_buffer("ema_w", self.embedding.weight.detach().clone())

    def nearest(self, flat: torch.Tensor) -> torch.Tensor:
        """(N, C) -> (N,) index of the nearest code by Euclidean distance; on a CPU by a tree, ten times as fast for 4096 codes of 4."""
        codes = self.embedding.weight
        plain = type(flat) is torch.Tensor  # with content; not a "fake" one, on which tools/benchmarks/memory.py computes memory
        tree_pays = plain and codes.device.type == "cpu" and codes.shape[1] <= TREE_CHANNELS
        if tree_pays and flat.isfinite().all() and codes.isfinite().all():
            return torch.from_numpy(cKDTree(codes.numpy()).query(flat.numpy(), workers=torch.get_num_threads())[1])
        half_norm = codes.square().sum(1) / 2
        return torch.cat([torch.addmm(half_norm, rows, codes.t(), alpha=-1).argmin(1) for rows in flat.split(ROWS)])

    def forward(self, z_e: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """z_e (B, C, h, w) -> (z_q, straight-through in training; commitment loss; indices (B, h, w))."""
        with torch.autocast(z_e.device.type, enabled=False):
            z_e = z_e.float()
            flat = z_e.detach().permute(0, 2, 3, 1).flatten(1, 2)  # (B, h w, C)
            indices = self.nearest(flat.flatten(0, 1))
            z_q = self.lookup(indices.view(z_e.shape[0], *z_e.shape[2:]))
            if self.training:
                self.update(flat, indices)
            loss = self.commitment * F.mse_loss(z_e, z_q)
            return z_e + (z_q - z_e).detach(), loss, indices.view(z_e.shape[0], *z_e.shape[2:])

    def lookup(self, indices: torch.Tensor) -> torch.Tensor:
        """(B, h, w) -> (B, C, h, w)."""
        return self.embedding.weight[indices].permute(0, 3, 1, 2).contiguous()

    @torch.no_grad()
    def update(self, flat: torch.Tensor, indices: torch.Tensor) -> None:
        """One step of the moving averages, from the latents (B, h w, C) of this batch and their codes (B h w,)."""
        codes = len(self.ema_cluster_size)
        counts = processes.all_reduce_sum(torch.bincount(indices, minlength=codes).to(flat.dtype), self.batch_weight)
        sums = processes.all_reduce_sum(torch.zeros_like(self.ema_w).index_add_(0, indices, flat.flatten(0, 1)), self.batch_weight)
        self.ema_cluster_size.mul_(self.decay).add_(counts, alpha=1 - self.decay)
        self.ema_w.mul_(self.decay).add_(sums, alpha=1 - self.decay)
        if self.restart:
            self._restart_unused(flat)
        total = self.ema_cluster_size.sum()
        smoothed = (self.ema_cluster_size + LAPLACE) / (total + codes * LAPLACE) * total
        self.embedding.weight.copy_(self.ema_w / smoothed[:, None])

    def _restart_unused(self, flat: torch.Tensor) -> None:
        """Give codes that nothing uses a latent of this batch each, evenly spaced through it."""
        unused = (self.ema_cluster_size < RESTART_BELOW).nonzero().flatten()
        if len(unused) == 0:
            return
        latents = processes.all_gather_batch(flat, self.batch_weight).flatten(0, 1)
        picks = torch.linspace(0, len(latents) - 1, len(unused), device=flat.device).long()
        self.ema_w[unused] = latents[picks]
        self.ema_cluster_size[unused] = 1.0


class _Quantizer(nn.Module):
    """The checkpoints' name for the codebook has two levels: quantizer.quantizer."""

    def __init__(self, codebook: Codebook):
        super().__init__()
        self.quantizer = codebook


class MLVQGAN(Network):
    """Encoder, codebook, decoder. x: (B, in_channels, H, W) in [-1, 1]; z: (B, code_channels, H/8, W/8) for three levels.

    channels: width after each halving. residual_channels, residual_layers: inner width and number of residual units a level.
    codes, code_channels: entries and channels of the codebook. decay, commitment, restart: see Codebook.
    """

    def __init__(self, in_channels: int = 1, channels=(128, 256, 512), residual_channels: int = 512, residual_layers: int = 2,
                 codes: int = 1024, code_channels: int = 4, decay: float = 0.5, commitment: float = 0.25, restart: bool = False):
        super().__init__()
        units = lambda width: [ResidualUnit(width, residual_channels) for _ in range(residual_layers)]  # noqa: E731
        down, widths = [], (in_channels, *channels)
        for before, after in zip(widths, widths[1:]):
            down += [Convolution(nn.Conv2d(before, after, KERNEL, STRIDE, padding=1)), *units(after)]
        down.append(Convolution(nn.Conv2d(widths[-1], code_channels, 3, padding=1), relu=False))
        up = [Convolution(nn.Conv2d(code_channels, widths[-1], 3, padding=1), relu=False)]
        for level in range(len(channels), 0, -1):
            doubling = nn.ConvTranspose2d(widths[level], widths[level - 1], KERNEL, STRIDE, padding=1)
            up += [*units(widths[level]), Convolution(doubling, relu=level > 1)]
        self.encoder, self.decoder = Stack(down), Stack(up)
        self.quantizer = _Quantizer(Codebook(codes, code_channels, decay, commitment, restart))
        self.factor = STRIDE ** len(channels)  # an image's side over its latent's

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        """(B, 1, H, W) in [-1, 1] -> z_e (B, C, h, w), before quantisation."""
        if x.shape[-1] % self.factor or x.shape[-2] % self.factor:
            raise ValueError(f"the image's sides must be multiples of {self.factor}, got {tuple(x.shape[-2:])}")
        return self.encoder(x)

    def quantize(self, z_e: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """z_e -> (z_q, commitment loss, indices (B, h, w)). In training mode the codebook learns."""
        return self.quantizer.quantizer(z_e)

    def decode(self, z: torch.Tensor) -> torch.Tensor:
        """(B, C, h, w) -> (B, 1, H, W), about [-1, 1]. A sampled latent is decoded as it is."""
        return self.decoder(z)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """x -> (reconstruction, commitment loss)."""
        z_q, loss, _ = self.quantize(self.encode(x))
        return self.decode(z_q), loss

    def latent(self, x: torch.Tensor) -> torch.Tensor:
        """x -> z_q, what the diffusion sees."""
        return self.quantize(self.encode(x))[0]

    @torch.no_grad()
    def unit_latent(self) -> "MLVQGAN":
        """The same function with latents of unit mean square, as the noise of the diffusion has.

        Exact: the scale goes into the encoder's last convolution and the codes, its inverse into the decoder's first. One scale
        for all channels, so that the nearest code stays the nearest.
        """
        codebook = self.quantizer.quantizer
        used = codebook.ema_cluster_size / codebook.ema_cluster_size.sum()
        scale = (used[:, None] * codebook.embedding.weight.square()).mean(1).sum().rsqrt()
        last, first = self.encoder.blocks[-1].conv, self.decoder.blocks[0].conv
        last.weight.mul_(scale)
        last.bias.mul_(scale)
        codebook.embedding.weight.mul_(scale)
        codebook.ema_w.mul_(scale)
        first.weight.div_(scale)
        return self

    @staticmethod
    def settings_of(state: dict, modules: dict) -> dict:
        """The keywords that a released checkpoint's tensors stand for."""
        encoder = [name.split(".") for name in state if name.startswith("encoder.") and name.endswith("weight")]
        strided = [int(name[2]) for name in encoder if state[".".join(name)].shape[-1] == KERNEL]
        codes, code_channels = state["quantizer.quantizer.embedding.weight"].shape
        codebook = modules.get("quantizer.quantizer", {})
        return dict(in_channels=state["encoder.blocks.0.conv.weight"].shape[1],
                    channels=tuple(state[f"encoder.blocks.{i}.conv.weight"].shape[0] for i in strided),
                    residual_channels=state["encoder.blocks.1.conv1.conv.weight"].shape[0],
                    residual_layers=sum(name[2:] == [str(i), "conv1", "conv", "weight"] for name in encoder
                                        for i in range(strided[-1] + 1, len(encoder))),
                    codes=codes, code_channels=code_channels,
                    decay=codebook.get("_decay", 0.5), commitment=codebook.get("_commitment_cost", 0.25))


class BatchNorm(nn.BatchNorm2d):
    """Batch normalisation (Ioffe & Szegedy 2015) over the images of all processes; in one process, nn.BatchNorm2d itself."""
    batch_weight = 1.0  # see processes.set_batch_weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training or processes.world_size() == 1:
            return super().forward(x)
        with torch.autocast(x.device.type, enabled=False):
            values = x.float()  # (B, C, H, W)
            pixels = values.new_tensor([values.numel() / values.shape[1]])
            sums, n = processes.all_reduce_sum(torch.cat([values.sum((0, 2, 3)), pixels]), self.batch_weight).split([values.shape[1], 1])
            mean = sums / n  # (C,)
            centred = values - mean[:, None, None]
            variance = processes.all_reduce_sum(centred.square().sum((0, 2, 3)), self.batch_weight) / n
            with torch.no_grad():
                self.num_batches_tracked += 1
                self.running_mean.lerp_(mean, self.momentum)
                self.running_var.lerp_(variance * n / (n - 1), self.momentum)
            scale = self.weight * (variance + self.eps).rsqrt()
            return (centred * scale[:, None, None] + self.bias[:, None, None]).to(x.dtype)


class PatchDiscriminator(Network):
    """Patch discriminator (pix2pix, Isola 2017): x (B, in_channels, H, W) -> logits (B, 1, h, w), before any activation.

    4x4 convolutions; the first `layers` halve the image; batch normalisation on all but the first and the last; LeakyReLU 0.2.
    """

    def __init__(self, in_channels: int = 1, channels: int = 64, layers: int = 3):
        super().__init__()
        block = lambda **parts: nn.ModuleDict(parts)  # noqa: E731
        self.initial_conv = block(conv=nn.Conv2d(in_channels, channels, KERNEL, STRIDE, padding=1))
        for layer in range(layers):
            stride = STRIDE if layer < layers - 1 else 1
            conv = nn.Conv2d(channels * 2 ** layer, channels * 2 ** (layer + 1), KERNEL, stride, padding=1, bias=False)
            self.add_module(str(layer), block(conv=conv, adn=block(N=BatchNorm(channels * 2 ** (layer + 1)))))
        self.final_conv = block(conv=nn.Conv2d(channels * 2 ** layers, 1, KERNEL, 1, padding=1))
        self.layers = layers

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.leaky_relu(self.initial_conv["conv"](x), SLOPE)
        for layer in range(self.layers):
            parts = self.get_submodule(str(layer))
            x = F.leaky_relu(parts["adn"]["N"](parts["conv"](x)), SLOPE)
        return self.final_conv["conv"](x)
