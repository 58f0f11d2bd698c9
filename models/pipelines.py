"""CXR in, soft tissue out: encode, sample, decode, fuse, in batches. What the eval scripts and a notebook call."""
import hashlib
from pathlib import Path

import numpy as np
import torch

from . import config, fusion, images, lungs, sampling
from .runtime import checkpoint, compiling, processes
from .runtime.device import autocast
from .runtime.files import UserError
from .unet import ConditionalUNet
from .vqgan import MLVQGAN

FINE, AROUND = 1.0, 2.0  # pixels: of the finest detail, and of the neighbourhood in which its energy counts
LEAST_ENERGY = 4e-9      # of detail on [-1, 1]: far below that of any grain


class Pipeline:
    """The two networks of a method with the options of its sampler; call it with X-rays.

    vqgan, unet: in eval mode. seed: of the sampling noise, which is drawn from (seed, image name, draw name), so that an image's
    result depends on nothing else. precision: "float32" or "bf16". compiled: see models/compiling.py. residual: see `image`.
    strength: share in [0, 1] of the estimated bone that is taken away.
    options: keywords of the method's sampler.
    """
    title: str                # the method's name in reports and in the headers of weights
    section: str              # its section of the settings
    schedule: str             # its noise schedule, a name in schedulers.SCHEDULES
    qkv_by_head: bool         # attention order of its released checkpoints
    sampler: str              # its sampler, where the options name none
    keywords: tuple[str, ...]  # the settings of its section that are keywords of its constructor

    def __init__(self, vqgan: MLVQGAN, unet: ConditionalUNet, *, seed: int = 0, precision: str = "float32", compiled: bool = False,
                 residual: bool = False, strength: float = 1.0, **options):
        self.vqgan, self.unet, self.seed, self.precision, self.options = vqgan, unet, seed, precision, options
        self.residual, self.strength = residual, strength
        self.device = next(vqgan.parameters()).device
        self.parts = [compiling.Compiled(network, processes.say) if compiled else network for network in (unet, vqgan.encode, vqgan.decode)]
        self.estimator, self.encoder, self.decoder = self.parts

    @classmethod
    def load(cls, vqgan_path: str | Path, unet_path: str | Path, device: str | torch.device = "cpu", *,
             precision: str = "float32", compiled: bool = False, **keywords) -> "Pipeline":
        """From two weights files, of this project or released. Raises UserError for missing, damaged or unfitting ones."""
        checkpoint.require(vqgan_path, unet_path)
        vqgan, unet = MLVQGAN.load(vqgan_path), ConditionalUNet.load(unet_path, {"qkv_by_head": cls.qkv_by_head})
        latent, noisy = vqgan.settings["code_channels"], unet.settings["in_channels"]
        if noisy != 2 * latent:
            raise UserError(f"{unet_path} takes {noisy} channels, but twice the latent of {vqgan_path} is {2 * latent}")
        vqgan, unet = (compiling.settle(network, torch.device(device), precision, compiled).to(device) for network in (vqgan, unet))
        return cls(vqgan, unet, precision=precision, compiled=compiled, **keywords)

    @classmethod
    def sampling_keywords(cls, settings: config.Settings) -> dict:
        """The keywords of the sampler (and of the fusion) as the method's section of the settings has them."""
        section = getattr(settings, cls.section)
        return {name: getattr(section, name) for name in cls.keywords}

    @classmethod
    def from_settings(cls, settings: config.Settings, device: str | torch.device = "cpu", precision: str = "float32",
                      compiled: bool = False) -> "Pipeline":
        """The method with the weights, the sampler and the result options (section eval) of these settings. Raises as `load`."""
        weights = settings.vqgan.weights, getattr(settings, cls.section).weights
        result = {"seed": settings.eval.seed, "residual": settings.eval.residual, "strength": settings.eval.strength}
        return cls.load(*weights, device, precision=precision, compiled=compiled, **result, **cls.sampling_keywords(settings))

    @property
    def compiled(self) -> bool:
        """Whether all networks are compiled, or will be in the first call."""
        return all(isinstance(part, compiling.Compiled) and part.works for part in self.parts)

    @property
    def multiple(self) -> int:
        """Sides of images must be multiples of this."""
        return self.vqgan.factor * 2 ** (self.unet.levels - 1)

    def describe(self) -> dict:
        """What summary.json says of the networks and the sampler, for the table of cost."""
        parameters = sum(p.numel() for network in (self.vqgan, self.unet) for p in network.parameters())
        return {"sampler": self.options.get("sampler", self.sampler).upper(), "steps": self.options.get("steps"), "parameters": parameters}

    def check_size(self, *sides: int) -> None:
        """Raise UserError where the networks cannot take images of these sides."""
        if any(side % self.multiple for side in sides):
            raise UserError(f"images of {' x '.join(map(str, sides))} do not fit these networks; data.image_size must be a multiple of "
                            f"{self.multiple}")

    @torch.inference_mode()
    def __call__(self, cxr: torch.Tensor, names: list[str], masks=None, progress: sampling.Progress = iter) -> torch.Tensor:
        """Soft tissue (B, 1, H, W) in [-1, 1] of X-rays (B, 1, H, W) in [-1, 1].

        names: one a image, unique; the noise depends on it. masks: boolean (H, W) for each image, true in the lungs; where None,
        for all or for one, they are found in the X-ray (GL-LCM; BS-LDM needs none). Raises UserError for a size that the networks cannot take.
        """
        self.check_size(*cxr.shape[-2:])
        if len(names) != len(cxr):
            raise ValueError(f"{len(cxr)} images, but {len(names)} names")
        with autocast(self.device, self.precision):
            soft = self.suppress(cxr.to(self.device), names, masks, progress).cpu()
        return torch.lerp(cxr.cpu(), soft, self.strength) if self.strength < 1 else soft

    def suppress(self, cxr, names, masks, progress):
        raise TypeError("a pipeline is BSLDM or GLLCM")

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        """Latents, an image at a time: the autoencoder's activations are what takes memory."""
        return torch.cat([self.vqgan.quantize(self.encoder(image))[0] for image in x.split(1)]).float()

    def decode(self, z: torch.Tensor) -> torch.Tensor:
        return torch.cat([self.decoder(latent) for latent in z.split(1)]).float()

    def image(self, soft: torch.Tensor, cxr: torch.Tensor, latent: torch.Tensor) -> torch.Tensor:
        """The image of a sampled soft-tissue latent: D(soft), as published, or, if residual, D(soft) + (1 - w) (CXR - D(latent)).

        cxr, latent: what it was sampled for. In the residual form what the autoencoder cannot reproduce of the CXR is kept, less the
        share w of it that belongs to bone (see `bone_share`). Where no bone is taken away the result is the CXR.
        """
        if not self.residual:
            return self.decode(soft)
        seen, suppressed = self.decode(latent), self.decode(soft)
        return suppressed + (1 - bone_share(seen - suppressed, suppressed)) * (cxr - seen)

    def draw(self, names: list[str], shape: torch.Size) -> sampling.Draw:
        """Noise by (seed, image name, draw name), the same on every device."""

        def noise(image: str, draw: str) -> torch.Tensor:
            seed = hashlib.sha256(f"{self.seed}/{image}/{draw}".encode()).digest()[:8]
            return torch.randn(shape[1:], generator=torch.Generator().manual_seed(int.from_bytes(seed) >> 1))

        def together(draw: str) -> torch.Tensor:
            drawn = torch.stack([noise(name, draw) for name in names])
            return drawn.pin_memory().to(self.device, non_blocking=True) if self.device.type == "cuda" else drawn  # pageable memory waits

        return together


class BSLDM(Pipeline):
    """BS-LDM. options: keywords of sampling.sample_bsldm (steps, sampler, clip, clip_rate, clip_lag)."""
    title = "BS-LDM"
    section = "ldm"
    schedule = "squared_cosine"
    qkv_by_head = True
    sampler = "ddpm"
    keywords = ("steps", "sampler", "clip", "clip_rate", "clip_lag")

    def suppress(self, cxr, names, masks, progress):
        latent = self.encode(cxr)
        soft = sampling.sample_bsldm(self.estimator, latent, self.draw(names, latent.shape), progress=progress, **self.options)
        return self.image(soft, cxr, latent).clamp(-1, 1)


class GLLCM(Pipeline):
    """GL-LCM. options: keywords of sampling.sample_gllcm (steps, guidance, alpha, clip_global, clip_local, clip_rate);
    method: how the two paths are fused (poisson, alpha, autoencoder, none); weight: of the local image in alpha fusion.
    """
    title = "GL-LCM"
    section = "lcm"
    schedule = "scaled_linear"
    qkv_by_head = False
    sampler = "lcm"
    keywords = ("steps", "guidance", "alpha", "clip_global", "clip_local", "clip_rate", "fusion", "blend")

    def __init__(self, vqgan, unet, *, fusion: str = "poisson", blend: float = 0.5, **keywords):
        super().__init__(vqgan, unet, **keywords)
        self.method, self.blend = fusion, blend

    def suppress(self, cxr, names, masks, progress):
        unit = images.to_unit(cxr)  # (B, 1, H, W) in [0, 1]
        found = [lungs.lung_mask(image[0].cpu().numpy()) if mask is None else mask
                 for image, mask in zip(unit, [None] * len(unit) if masks is None else masks)]
        masks = torch.as_tensor(np.stack(found), dtype=torch.bool).to(self.device)[:, None]  # (B, 1, H, W)
        masked_cxr = images.to_signed(unit * masks)
        latent, masked_latent = self.encode(cxr), self.encode(masked_cxr)
        paths = sampling.sample_gllcm(self.estimator, latent, masked_latent, self.draw(names, latent.shape), progress=progress, **self.options)
        if self.method == "autoencoder":
            weight = torch.nn.functional.adaptive_avg_pool2d(masks.float(), latent.shape[-2:])
            blended = self.image(torch.lerp(*paths, weight), cxr, torch.lerp(latent, masked_latent, weight))
            fused = images.to_unit(blended).clamp(0, 1)
            return images.to_signed(fused * (unit > 0))
        decoded = self.image(paths[0], cxr, latent), self.image(paths[1], masked_cxr, masked_latent)
        global_soft, local_soft = (images.to_unit(soft).clamp(0, 1) for soft in decoded)
        local_soft = match_brightness(global_soft, local_soft, masks)
        global_soft, local_soft = (soft * (unit > 0) for soft in (global_soft, local_soft))
        fused = [fusion.fuse(*(part[0].cpu().numpy() for part in parts), method=self.method, weight=self.blend)
                 for parts in zip(global_soft, local_soft, masks)]
        return images.to_signed(torch.from_numpy(np.stack(fused))[:, None])


def bone_share(bone: torch.Tensor, soft: torch.Tensor) -> torch.Tensor:
    """The share in [0, 1] of an image's finest detail that is bone's: e_b / (e_b + e_s), (B, 1, H, W) as its two parts.

    e: the local energy of a part's detail, G_2 * (x - G_1 * x)^2 with Gaussians of FINE and AROUND pixels. What an autoencoder loses lies
    just beyond the detail that it shows, and is taken to belong to the parts in the same ratio (Wiener's filter, two signals).
    """
    def energy(part: torch.Tensor) -> torch.Tensor:
        return _blur((part - _blur(part, FINE)).square(), AROUND)

    of_bone = energy(bone)
    return of_bone / (of_bone + energy(soft) + LEAST_ENERGY)


def _blur(x: torch.Tensor, sigma: float) -> torch.Tensor:
    from torchvision.transforms.functional import gaussian_blur  # here, since it takes a second

    return gaussian_blur(x, 2 * round(4 * sigma) + 1, sigma)


def match_brightness(global_soft: torch.Tensor, local_soft: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """The local image (B, 1, H, W), shifted inside the lungs so that its mean there is the global one's (GL-LCM's script)."""
    area = masks.sum((2, 3), keepdim=True).clamp(min=1)
    shift = ((global_soft - local_soft) * masks).sum((2, 3), keepdim=True) / area
    return local_soft + shift * masks


def result_options(chosen) -> dict:
    """The keywords of any pipeline in the settings of section eval."""
    return {name: getattr(chosen, name) for name in ("seed", "residual", "strength")}


def gllcm_options(lcm) -> dict:
    """The keywords of GLLCM in the settings of section lcm."""
    names = ("steps", "guidance", "alpha", "clip_global", "clip_local", "clip_rate", "fusion", "blend")
    return {name: getattr(lcm, name) for name in names}
