"""ML-VQGAN: the autoencoder in whose quantised latent space the diffusion works, and its patch discriminator.

BS-LDM (JBHI 2025), section on the multi-level hybrid loss-constrained VQGAN; GL-LCM (MICCAI 2025). Parameter names are
the released checkpoints' own.
"""

import cv2
import torch
from torch import nn
from torch.nn import functional as F

from .layers import checkpointed
from .runtime import processes
from .runtime.checkpoint import Network

KERNEL = 4  # side of every convolution that halves or doubles the image
STRIDE = 2  # of these convolutions
TREE_CHANNELS = 8  # channels of a code, above which a search tree is no faster than comparing with all codes
ROWS = 1 << 16  # latent vectors compared with the codebook at a time, to bound memory
# OpenCV's search tree that finds the nearest for certain, and how it is asked to [opencv2/flann/defines.h]
EXACT_TREE: dict[str, bool | int | float | str] = {"algorithm": 4}  # KDTREE_SINGLE
TO_THE_END: dict[str, bool | int | float | str] = {"checks": -1}  # FLANN_CHECKS_UNLIMITED
LARGEST = 1e15  # numbers up to which squared distances are far from overflowing in float32
ROUNDING = 1e-5  # relative difference of two squared distances in float32 that is none
LAPLACE = 1e-5  # Laplace smoothing of the codebook's counts [published script]
RESTART_BELOW = 0.1  # a code whose moving count is smaller is restarted, if restarting is on
START_DEVIATION = 0.02  # of the discriminator's first weights (Isola 2017) [published script]
SLOPE = 0.2  # LeakyReLU of the discriminator (Isola 2017)


class Convolution(nn.Module):
    """A convolution under its released name `conv`, then ReLU if `relu`. (B, C, H, W) -> (B, C', H', W')."""

    def __init__(self, conv: nn.Conv2d | nn.ConvTranspose2d, relu: bool = True):
        super().__init__()
        self.conv = conv
        self.relu = relu

    def forward(self, x):
        x = self.conv(x)
        if self.relu:
            x = F.relu(x)
        return x


class ResidualUnit(nn.Module):
    """relu(x + conv(relu(conv(x)))) with 3 x 3 convolutions and the inner width `hidden`. (B, C, H, W) -> the same."""

    def __init__(self, channels: int, hidden: int):
        super().__init__()
        self.conv1 = Convolution(nn.Conv2d(channels, hidden, 3, padding=1))
        self.conv2 = Convolution(nn.Conv2d(hidden, channels, 3, padding=1), relu=False)

    def forward(self, x):
        return F.relu(x + self.conv2(self.conv1(x)))


class Stack(nn.Module):
    """Blocks in sequence: the encoder or the decoder."""

    def __init__(self, blocks: list[nn.Module]):
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.checkpointing = False

    def forward(self, x):
        for block in self.blocks:
            x = checkpointed(block, x, enabled=self.checkpointing)
        return x


def _compare(flat: torch.Tensor, codes: torch.Tensor, rows: int) -> torch.Tensor:
    """(N, C), (codes, C) -> (N,) index of the nearest code, by comparing with all; `rows` of the N at a time."""
    # |z - e|^2 / 2 without its term |z|^2 / 2, which is the same for all codes
    half_norm = codes.square().sum(1) / 2  # (codes,)
    found = []
    for block in flat.split(rows):
        distances = torch.addmm(half_norm, block, codes.t(), alpha=-1)  # (rows, codes)
        found.append(distances.argmin(1))
    return torch.cat(found)


def _search(flat: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
    """As `_compare` in float64, by a search tree: float32 (N, C) and (codes, C) -> (N,)."""
    tree = cv2.flann.Index(codes.numpy(), EXACT_TREE)
    two, squares = tree.knnSearch(flat.contiguous().numpy(), 2, params=TO_THE_END)  # (N, 2), the nearest first
    nearest = torch.from_numpy(two[:, 0]).long()
    squares = torch.from_numpy(squares)

    # where float32 does not tell, all are compared
    unclear = squares[:, 1] <= squares[:, 0] * (1 + ROUNDING)
    if unclear.any():
        nearest[unclear] = _compare(flat[unclear].double(), codes.double(), ROWS)
    return nearest


class Codebook(nn.Module):
    """Nearest-code quantisation; the codes are learnt by moving averages (van den Oord 2017, appendix A.1).

    N_k <- decay N_k + (1 - decay) n_k
    m_k <- decay m_k + (1 - decay) (sum of the z whose nearest code is k)
    e_k = m_k / N_k, with N_k Laplace-smoothed
    The counts n_k and the sums are taken over all processes. In float32 whatever the autocast.

    commitment: weight of the commitment loss. restart: whether unused codes are set to latents of the batch.
    """

    ema_cluster_size: torch.Tensor  # N_k, (codes,)
    ema_w: torch.Tensor  # m_k, (codes, channels)

    def __init__(self, codes: int, channels: int, decay: float, commitment: float, restart: bool):
        super().__init__()
        self.decay = decay
        self.commitment = commitment
        self.restart = restart
        self.batch_weight = 1.0  # of this process's images in sums over all processes, see processes.set_batch_weight
        # On the meta device, where a network is built to be filled from a file, nothing is drawn: drawing there would
        # import PyTorch's compiler, which takes seconds.
        weight = torch.empty(codes, channels)
        if not weight.is_meta:
            nn.init.normal_(weight)
        self.embedding = nn.Embedding(codes, channels, _weight=weight)
        self.embedding.weight.requires_grad_(False)
        # Buffers and not parameters: they are saved with the weights, and no optimiser touches them.
        self.register_buffer("ema_cluster_size", torch.zeros(codes))
        self.register_buffer("ema_w", self.embedding.weight.detach().clone())

    def nearest(self, flat: torch.Tensor) -> torch.Tensor:
        """(N, C) -> (N,) index of the nearest code by Euclidean distance.

        On a CPU a search tree does it ten times as fast for 4096 codes of 4 channels. It refuses numbers that are not
        finite; with those, which a diverging training may bring, all distances are compared and some code is found.
        """
        codes = self.embedding.weight
        # A fake tensor, with which tools/benchmarks/memory.py computes memory, has no content to look at.
        has_content = type(flat) is torch.Tensor
        tree_pays = has_content and codes.device.type == "cpu" and codes.shape[1] <= TREE_CHANNELS
        # Training keeps to scipy's tree: where two codes are equal it counts which of them is found.
        if tree_pays and not self.training and len(codes) > 1 and flat.abs().max() < LARGEST > codes.abs().max():
            return _search(flat, codes)
        if tree_pays and flat.isfinite().all() and codes.isfinite().all():
            from scipy.spatial import KDTree  # imported here, since scipy takes a quarter of a second

            _, indices = KDTree(codes.numpy()).query(flat.numpy(), workers=torch.get_num_threads())
            return torch.from_numpy(indices)

        return _compare(flat, codes, ROWS)

    def forward(self, z_e: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """z_e (B, C, h, w) -> (z_q with the straight-through gradient; commitment loss; indices (B, h, w)).

        In training mode the codes are updated after the lookup.
        """
        with torch.autocast(z_e.device.type, enabled=False):
            z_e = z_e.float()
            flat = z_e.detach().permute(0, 2, 3, 1).flatten(1, 2)  # (B, h w, C)
            nearest = self.nearest(flat.flatten(0, 1))  # (B h w,)
            indices = nearest.view(z_e.shape[0], *z_e.shape[2:])  # (B, h, w)
            z_q = self.lookup(indices)
            # After the lookup, so that the loss and the output belong to the codes that were found.
            if self.training:
                self.update(flat, nearest)
            # Only the encoder gets this gradient; the codes follow by moving averages.
            loss = self.commitment * F.mse_loss(z_e, z_q)
            # Straight through: the value of z_q, the gradient of z_e.
            return z_e + (z_q - z_e).detach(), loss, indices

    def lookup(self, indices: torch.Tensor) -> torch.Tensor:
        """The codes of indices: (B, h, w) -> (B, C, h, w)."""
        return self.embedding.weight[indices].permute(0, 3, 1, 2).contiguous()

    @torch.no_grad()
    def update(self, flat: torch.Tensor, indices: torch.Tensor) -> None:
        """One step of the moving averages, from the latents (B, h w, C) of this batch and their codes (B h w,)."""
        codes = len(self.ema_cluster_size)

        # n_k and the sums of the latents by code, over all processes
        counts = torch.bincount(indices, minlength=codes).to(flat.dtype)
        counts = processes.all_reduce_sum(counts, self.batch_weight)
        sums = torch.zeros_like(self.ema_w).index_add_(0, indices, flat.flatten(0, 1))
        sums = processes.all_reduce_sum(sums, self.batch_weight)

        # N_k and m_k
        self.ema_cluster_size.mul_(self.decay).add_(counts, alpha=1 - self.decay)
        self.ema_w.mul_(self.decay).add_(sums, alpha=1 - self.decay)
        if self.restart:
            self._restart_unused(flat)

        # e_k
        # Laplace smoothing keeps codes without latents from dividing by 0, and leaves the total as it is.
        total = self.ema_cluster_size.sum()
        smoothed = (self.ema_cluster_size + LAPLACE) / (total + codes * LAPLACE) * total
        self.embedding.weight.copy_(self.ema_w / smoothed[:, None])

    def _restart_unused(self, flat: torch.Tensor) -> None:
        """Set every unused code to a latent of this batch (B, h w, C), evenly spaced, with a count of one."""
        unused = (self.ema_cluster_size < RESTART_BELOW).nonzero().flatten()
        if len(unused) == 0:
            return
        # From all processes, so that every one of them restarts the codes with the same latents.
        latents = processes.all_gather_batch(flat, self.batch_weight).flatten(0, 1)
        places = torch.linspace(0, len(latents) - 1, len(unused), device=flat.device).long()
        self.ema_w[unused] = latents[places]
        self.ema_cluster_size[unused] = 1.0


class _Quantizer(nn.Module):
    """The checkpoints' name for the codebook has two levels: quantizer.quantizer."""

    def __init__(self, codebook: Codebook):
        super().__init__()
        self.quantizer = codebook


class MLVQGAN(Network):
    """Encoder, codebook, decoder. x: (B, in_channels, H, W) in [-1, 1]; z: (B, code_channels, h, w).

    Each entry of `channels` halves the image, so three of them make h = H/8, w = W/8.
    channels: width after each halving.
    residual_channels, residual_layers: inner width and number of residual units per level.
    codes, code_channels: entries and channels of the codebook. decay, commitment, restart: see Codebook.
    """

    repeats = ("residual_layers",)

    def __init__(
        self,
        in_channels: int = 1,
        channels=(128, 256, 512),
        residual_channels: int = 512,
        residual_layers: int = 2,
        codes: int = 1024,
        code_channels: int = 4,
        decay: float = 0.5,
        commitment: float = 0.25,
        restart: bool = False,
    ):
        super().__init__()
        self.settings = dict(
            in_channels=in_channels,
            channels=channels,
            residual_channels=residual_channels,
            residual_layers=residual_layers,
            codes=codes,
            code_channels=code_channels,
            decay=decay,
            commitment=commitment,
            restart=restart,
        )
        self.factor = STRIDE ** len(channels)  # an image's side over its latent's

        def residual_units(width: int) -> list[nn.Module]:
            return [ResidualUnit(width, residual_channels) for _ in range(residual_layers)]

        # The encoder: each level halves the image, then refines it.
        down: list[nn.Module] = []
        width = in_channels
        for after in channels:
            down.append(Convolution(nn.Conv2d(width, after, KERNEL, STRIDE, padding=1)))
            down.extend(residual_units(after))
            width = after
        down.append(Convolution(nn.Conv2d(width, code_channels, 3, padding=1), relu=False))

        # The decoder: the same in reverse. The last convolution gives the image, so no ReLU follows it. Each doubling
        # is built before the units that run ahead of it: the order of building decides which weights a seed gives.
        up: list[nn.Module] = [Convolution(nn.Conv2d(code_channels, width, 3, padding=1), relu=False)]
        for level in reversed(range(len(channels))):
            after = channels[level - 1] if level > 0 else in_channels
            doubling = Convolution(nn.ConvTranspose2d(width, after, KERNEL, STRIDE, padding=1), relu=level > 0)
            up.extend(residual_units(width))
            up.append(doubling)
            width = after

        self.encoder = Stack(down)
        self.decoder = Stack(up)
        self.quantizer = _Quantizer(Codebook(codes, code_channels, decay, commitment, restart))

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        """(B, 1, H, W) in [-1, 1] -> z_e (B, C, h, w), before quantisation.

        Raises ValueError for sides that cannot be halved that often.
        """
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
        """Scale the latents to a mean square of one, like the diffusion's noise, without changing the images. In place.

        Exact: the scale goes into the encoder's last convolution and the codes, its inverse into the decoder's first
        convolution. All channels have the same scale, so that the nearest code stays the nearest.
        """
        # the mean square of the codes, each counted as often as it is used
        codebook = self.quantizer.quantizer
        frequency = codebook.ema_cluster_size / codebook.ema_cluster_size.sum()  # (codes,)
        scale = (frequency[:, None] * codebook.embedding.weight.square()).mean(1).sum().rsqrt()

        # The codes e_k and the sums m_k scale with the latents; the counts N_k do not.
        for tensor in self.encoder.blocks[-1].parameters():  # weight and bias of a convolution
            tensor.mul_(scale)
        codebook.embedding.weight.mul_(scale)
        codebook.ema_w.mul_(scale)
        self.decoder.get_parameter("blocks.0.conv.weight").div_(scale)
        return self

    @staticmethod
    def settings_of(state: dict, modules: dict) -> dict:
        """The keywords that a released checkpoint's tensors imply. See Network for the arguments and what is raised."""
        # which of the encoder's blocks halve the image (those with the larger kernel), and which are residual units
        halvings = []
        units = []
        for name, tensor in state.items():
            words = name.split(".")
            if words[0] != "encoder" or words[-1] != "weight":
                continue
            block = int(words[2])
            if tensor.shape[-1] == KERNEL:
                halvings.append(block)
            if words[3] == "conv1":
                units.append(block)
        channels = tuple(state[f"encoder.blocks.{block}.conv.weight"].shape[0] for block in halvings)
        residual_layers = sum(block > halvings[-1] for block in units)

        # What tensors do not show, the training's constants, the pickled module may tell.
        codes, code_channels = state["quantizer.quantizer.embedding.weight"].shape
        codebook = modules.get("quantizer.quantizer", {})
        return dict(
            in_channels=state["encoder.blocks.0.conv.weight"].shape[1],
            channels=channels,
            residual_channels=state["encoder.blocks.1.conv1.conv.weight"].shape[0],
            residual_layers=residual_layers,
            codes=codes,
            code_channels=code_channels,
            # the published class names them so; a plain state_dict has the published values
            decay=codebook.get("_decay", 0.5),
            commitment=codebook.get("_commitment_cost", 0.25),
        )


class BatchNorm(nn.BatchNorm2d):
    """Batch normalisation (Ioffe & Szegedy 2015) over the images of all processes, x (B, C, H, W) -> the same.

    In one process it is nn.BatchNorm2d itself.
    """

    batch_weight = 1.0  # as the codebook's

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training or processes.world_size() == 1:
            return super().forward(x)
        with torch.autocast(x.device.type, enabled=False):
            values = x.float()
            channels = values.shape[1]

            # the mean, with the sums and the number of pixels in one exchange; then the variance about it
            pixels = values.new_tensor([values.numel() / channels])
            totals = torch.cat([values.sum((0, 2, 3)), pixels])  # (C + 1,)
            totals = processes.all_reduce_sum(totals, self.batch_weight)
            sums, n = totals.split([channels, 1])
            mean = sums / n  # (C,)
            centred = values - mean[:, None, None]
            squares = processes.all_reduce_sum(centred.square().sum((0, 2, 3)), self.batch_weight)
            variance = squares / n

            # the running statistics, as nn.BatchNorm2d keeps them (with the unbiased variance)
            with torch.no_grad():
                assert self.num_batches_tracked is not None and self.momentum is not None
                assert self.running_mean is not None and self.running_var is not None
                self.num_batches_tracked += 1
                self.running_mean.lerp_(mean, self.momentum)
                self.running_var.lerp_(variance * n / (n - 1), self.momentum)
            # The batch's own statistics, with the biased variance, normalise it.
            scale = self.weight * (variance + self.eps).rsqrt()
            return (centred * scale[:, None, None] + self.bias[:, None, None]).to(x.dtype)


class PatchDiscriminator(Network):
    """Patch discriminator (pix2pix, Isola 2017): x (B, in_channels, H, W) -> logits (B, 1, h, w), no activation.

    4 x 4 convolutions, the first `layers` of which halve the image; batch normalisation after all but the first and the
    last convolution; LeakyReLU 0.2. channels: width of the first convolution, doubled by each following one.
    """

    repeats = ("layers",)

    def __init__(self, in_channels: int = 1, channels: int = 64, layers: int = 3):
        super().__init__()
        self.settings = dict(in_channels=in_channels, channels=channels, layers=layers)
        self.layers = layers

        # nn.ModuleDict gives the tensors their released names: initial_conv.conv, 0.conv, 0.adn.N, ..., final_conv.conv
        self.initial_conv = nn.ModuleDict({"conv": nn.Conv2d(in_channels, channels, KERNEL, STRIDE, padding=1)})
        width = channels
        for layer in range(layers):
            # The last of the layers keeps the size, as in pix2pix; no bias, since normalisation follows and would
            # cancel it.
            stride = STRIDE if layer < layers - 1 else 1
            conv = nn.Conv2d(width, 2 * width, KERNEL, stride, padding=1, bias=False)
            width = 2 * width
            normalisation = nn.ModuleDict({"N": BatchNorm(width)})
            self.add_module(str(layer), nn.ModuleDict({"conv": conv, "adn": normalisation}))
        self.final_conv = nn.ModuleDict({"conv": nn.Conv2d(width, 1, KERNEL, 1, padding=1)})

        # first weights: convolutions N(0, 0.02), batch normalisation N(1, 0.02); biases stay as PyTorch draws them
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, 0, START_DEVIATION)
            elif isinstance(module, BatchNorm):
                nn.init.normal_(module.weight, 1, START_DEVIATION)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        # Each logit judges one patch of the image: the receptive field of the convolutions.
        x = F.leaky_relu(self.initial_conv["conv"](x), SLOPE)  # (B, channels, H/2, W/2)
        for layer in range(self.layers):
            x = self.get_submodule(f"{layer}.conv")(x)
            x = self.get_submodule(f"{layer}.adn.N")(x)
            x = F.leaky_relu(x, SLOPE)
        return self.final_conv["conv"](x)
