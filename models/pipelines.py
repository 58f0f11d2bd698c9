"""CXR in, soft tissue out: encode, sample, decode, fuse, in batches. What the evaluation and a notebook call."""
import hashlib
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

from . import config, fusion, images, lungs, sampling
from .runtime import checkpoint, compiling, processes
from .runtime.device import autocast
from .runtime.files import UserError
from .unet import ConditionalUNet
from .vqgan import MLVQGAN

# Gaussian sigmas of the residual form, pixels (see `bone_share`).
FINE_SIGMA = 1.0    # what a blur of this width removes is an image's finest detail
ENERGY_SIGMA = 2.0  # the detail's energy is averaged over this neighbourhood
LEAST_ENERGY = 4e-9  # of detail on [-1, 1], far below that of any grain: a ratio of two zeros becomes zero


class Pipeline:
    """A method: the two networks, and how its sampler and its results are set. Call it with X-rays.

    vqgan, unet: in eval mode. seed: of the sampling noise, which is drawn from (seed, image name, draw name), so that
    an image's result depends on nothing else. precision: "float32" or "bf16". compiled: see runtime/compiling.py.
    residual: see `image`. strength: fraction in [0, 1] of the estimated bone that is removed. options: keywords of the
    method's sampler.
    """
    title: str         # the method's name in reports
    section: str       # its section of the settings
    schedule: str      # its noise schedule, a name in schedulers.SCHEDULES
    qkv_by_head: bool  # the attention order of its released checkpoints
    sampler: str       # its sampler, unless the options name another
    keywords: tuple[type, ...]  # the objects of config.py whose fields are the keywords of its constructor

    def __init__(self, vqgan: MLVQGAN, unet: ConditionalUNet, *, seed: int = 0, precision: str = "float32", compiled: bool = False,
                 residual: bool = False, strength: float = 1.0, **options):
        self.vqgan = vqgan
        self.unet = unet
        self.seed = seed
        self.precision = precision
        self.residual = residual
        self.strength = strength
        self.options = options
        self.device = next(vqgan.parameters()).device

        # what is called: the networks themselves, or each of them compiled
        self.parts = [unet, vqgan.encode, vqgan.decode]
        if compiled:
            self.parts = [compiling.Compiled(network, processes.say) for network in self.parts]
        self.estimator, self.encoder, self.decoder = self.parts

    @classmethod
    def load(cls, vqgan_path: str | Path, unet_path: str | Path, device: str | torch.device = "cpu", *,
             precision: str = "float32", compiled: bool = False, **keywords) -> "Pipeline":
        """The method with the networks of two weights files, of this project or released ones. keywords: of the
        constructor.

        Raises UserError for files that are missing, damaged or do not belong together.
        """
        checkpoint.require(vqgan_path, unet_path)
        vqgan = MLVQGAN.load(vqgan_path)
        unet = ConditionalUNet.load(unet_path, defaults={"qkv_by_head": cls.qkv_by_head})

        # the noise estimator sees a noisy latent and the CXR's latent
        latent_channels = vqgan.settings["code_channels"]
        in_channels = unet.settings["in_channels"]
        if in_channels != 2 * latent_channels:
            raise UserError(f"{unet_path} takes {in_channels} channels, but twice the latent of {vqgan_path} is {2 * latent_channels}")

        vqgan = compiling.prepare_for_inference(vqgan, torch.device(device), precision, compiled).to(device)
        unet = compiling.prepare_for_inference(unet, torch.device(device), precision, compiled).to(device)
        return cls(vqgan, unet, precision=precision, compiled=compiled, **keywords)

    @classmethod
    def sampling_keywords(cls, settings: config.Settings) -> dict:
        """The constructor's keywords that the method's section of the settings has: those of the sampler and of the
        fusion.
        """
        section = getattr(settings, cls.section)
        found = {}
        for kind in cls.keywords:
            found.update(asdict(config.part(section, kind)))
        return found

    @classmethod
    def from_settings(cls, settings: config.Settings, device: str | torch.device = "cpu", precision: str = "float32",
                      compiled: bool = False) -> "Pipeline":
        """The method as the settings have it: its weights, its sampler, and what section eval says of results. Raises
        as `load`.
        """
        unet_path = getattr(settings, cls.section).weights
        return cls.load(settings.vqgan.weights, unet_path, device, precision=precision, compiled=compiled, seed=settings.eval.seed,
                        residual=settings.eval.residual, strength=settings.eval.strength, **cls.sampling_keywords(settings))

    @property
    def compiled(self) -> bool:
        """Whether all networks are compiled, or will be in the first call."""
        return all(isinstance(part, compiling.Compiled) and part.works for part in self.parts)

    @property
    def multiple(self) -> int:
        """The sides of images must be multiples of this."""
        return self.vqgan.factor * 2 ** (self.unet.levels - 1)

    def describe(self) -> dict:
        """What summary.json says of the sampler and the networks, for the table of costs."""
        parameters = 0
        for network in (self.vqgan, self.unet):
            parameters += sum(parameter.numel() for parameter in network.parameters())
        sampler = self.options.get("sampler", self.sampler)
        return {"sampler": sampler.upper(), "steps": self.options.get("steps"), "parameters": parameters}

    def check_size(self, *sides: int) -> None:
        """Raise UserError if the networks cannot take images with these sides."""
        if any(side % self.multiple for side in sides):
            raise UserError(f"images of {' x '.join(map(str, sides))} do not fit these networks; data.image_size must be a multiple of "
                            f"{self.multiple}")

    @torch.inference_mode()
    def __call__(self, cxr: torch.Tensor, names: list[str], masks=None, progress: sampling.Progress = iter) -> torch.Tensor:
        """The soft tissue (B, 1, H, W) in [-1, 1] of X-rays (B, 1, H, W) in [-1, 1].

        names: one unique name per image, on which its noise depends. masks: one boolean (H, W) per image, true in the
        lungs. If masks is None, or one of them is, GL-LCM finds the lungs in the X-ray; BS-LDM needs none. progress:
        wraps the sampling steps. Raises UserError for a size that the networks cannot take.
        """
        self.check_size(*cxr.shape[-2:])
        if len(names) != len(cxr):
            raise ValueError(f"{len(cxr)} images, but {len(names)} names")
        with autocast(self.device, self.precision):
            soft = self.suppress(cxr.to(self.device), names, masks, progress).cpu()
        if self.strength < 1:
            soft = torch.lerp(cxr.cpu(), soft, self.strength)
        return soft

    def suppress(self, cxr: torch.Tensor, names: list[str], masks, progress: sampling.Progress) -> torch.Tensor:
        """As `__call__`, on the method's device and at full strength."""
        raise TypeError("a pipeline is BSLDM or GLLCM")

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        """Images (B, 1, H, W) -> quantised latents (B, C, h, w), one image at a time: the activations are what takes
        memory.
        """
        latents = [self.vqgan.quantize(self.encoder(image))[0] for image in x.split(1)]
        return torch.cat(latents).float()

    def decode(self, z: torch.Tensor) -> torch.Tensor:
        """Latents (B, C, h, w) -> images (B, 1, H, W), one image at a time."""
        decoded = [self.decoder(latent) for latent in z.split(1)]
        return torch.cat(decoded).float()

    def image(self, soft: torch.Tensor, cxr: torch.Tensor, latent: torch.Tensor) -> torch.Tensor:
        """The image (B, 1, H, W) of a sampled soft-tissue latent `soft` (B, C, h, w).

        As published it is D(soft), with the decoder D. In the residual form it is D(soft) + (1 - w) (CXR - D(latent)):
        what the autoencoder cannot reproduce of the CXR is kept, but for the fraction w that belongs to bone (see
        `bone_share`). If no bone is removed, soft = latent, and the residual form gives the CXR itself.
        cxr (B, 1, H, W), latent (B, C, h, w): the X-ray, and its latent for which `soft` was sampled.
        """
        if not self.residual:
            return self.decode(soft)
        reproduced = self.decode(latent)
        suppressed = self.decode(soft)
        lost = cxr - reproduced
        return suppressed + (1 - bone_share(reproduced - suppressed, suppressed)) * lost

    def draw(self, names: list[str], shape: torch.Size) -> sampling.Draw:
        """The noise of a batch of latents of this shape (B, C, h, w), as a function of the draw's name.

        Each image's noise depends on (seed, image name, draw name) alone and is the same on every device.
        """

        def noise(image: str, draw: str) -> torch.Tensor:
            key = hashlib.sha256(f"{self.seed}/{image}/{draw}".encode()).digest()
            seed = int.from_bytes(key[:8]) >> 1  # torch takes 63 bits
            return torch.randn(shape[1:], generator=torch.Generator().manual_seed(seed))

        def noise_of_all(draw: str) -> torch.Tensor:
            drawn = torch.stack([noise(name, draw) for name in names])  # (B, C, h, w)
            if self.device.type != "cuda":
                return drawn
            return drawn.pin_memory().to(self.device, non_blocking=True)  # copying from pageable memory would wait for the GPU

        return noise_of_all


class BSLDM(Pipeline):
    """BS-LDM. options: the keywords of sampling.sample_bsldm (steps, sampler, clip, clip_rate, clip_lag)."""
    title = "BS-LDM"
    section = "ldm"
    schedule = "squared_cosine"
    qkv_by_head = True
    sampler = "ddpm"
    keywords = (config.BsldmSampling,)

    def suppress(self, cxr, names, masks, progress):
        latent = self.encode(cxr)
        draw = self.draw(names, latent.shape)
        soft = sampling.sample_bsldm(self.estimator, latent, draw, progress=progress, **self.options)
        return self.image(soft, cxr, latent).clamp(-1, 1)


class GLLCM(Pipeline):
    """GL-LCM. options: the keywords of sampling.sample_gllcm (steps, guidance, alpha, clip_global, clip_local,
    clip_rate).

    fusion: how the global and the local path are fused: "poisson", "alpha" or "none", see fusion.fuse; "autoencoder":
    the two latents are averaged by the mask, then decoded. blend: weight of the local image in alpha fusion.
    """
    title = "GL-LCM"
    section = "lcm"
    schedule = "scaled_linear"
    qkv_by_head = False
    sampler = "lcm"
    keywords = (config.GllcmSampling, config.GllcmFusion)

    def __init__(self, vqgan: MLVQGAN, unet: ConditionalUNet, *, fusion: str = "poisson", blend: float = 0.5, **keywords):
        super().__init__(vqgan, unet, **keywords)
        self.fusion = fusion
        self.blend = blend

    def suppress(self, cxr, names, masks, progress):
        unit = images.to_unit(cxr)  # (B, 1, H, W) in [0, 1]
        masks = self.lung_masks(unit, masks)  # (B, 1, H, W)

        # sample both paths, for the whole X-ray and for the lungs alone
        masked_cxr = images.to_signed(unit * masks)
        latent = self.encode(cxr)
        masked_latent = self.encode(masked_cxr)
        draw = self.draw(names, latent.shape)
        global_latent, local_latent = sampling.sample_gllcm(self.estimator, latent, masked_latent, draw, progress=progress, **self.options)

        # fusion of the latents
        if self.fusion == "autoencoder":
            weight = F.adaptive_avg_pool2d(masks.float(), latent.shape[-2:])  # (B, 1, h, w)
            fused_latent = torch.lerp(global_latent, local_latent, weight)
            blended = self.image(fused_latent, cxr, torch.lerp(latent, masked_latent, weight))
            fused = images.to_unit(blended).clamp(0, 1)
            return images.to_signed(fused * (unit > 0))

        # Or of the images. What is black in the X-ray, such as padding, stays black.
        global_soft = images.to_unit(self.image(global_latent, cxr, latent)).clamp(0, 1)
        local_soft = images.to_unit(self.image(local_latent, masked_cxr, masked_latent)).clamp(0, 1)
        local_soft = match_brightness(global_soft, local_soft, masks)
        global_soft = global_soft * (unit > 0)
        local_soft = local_soft * (unit > 0)
        fused = []
        for whole, local, mask in zip(global_soft, local_soft, masks):  # (1, H, W) each
            fused.append(fusion.fuse(whole[0].cpu().numpy(), local[0].cpu().numpy(), mask[0].cpu().numpy(), method=self.fusion,
                                     blend=self.blend))
        return images.to_signed(torch.from_numpy(np.stack(fused))[:, None])

    def lung_masks(self, unit: torch.Tensor, masks) -> torch.Tensor:
        """Boolean (B, 1, H, W) on the method's device: the given masks, or, for each that is None, the lungs found in
        the X-ray.

        unit: X-rays (B, 1, H, W) in [0, 1]. masks: a boolean (H, W) or None per image, or None.
        """
        if masks is None:
            masks = [None] * len(unit)
        complete = []
        for image, mask in zip(unit, masks):
            if mask is None:
                mask = lungs.lung_mask(image[0].cpu().numpy())
            complete.append(mask)
        return torch.as_tensor(np.stack(complete), dtype=torch.bool).to(self.device)[:, None]


def bone_share(bone: torch.Tensor, soft: torch.Tensor) -> torch.Tensor:
    """The fraction in [0, 1] of an image's finest detail that belongs to its bone: e_b / (e_b + e_s), all (B, 1, H, W).

    bone, soft: the image's two components, on [-1, 1]. e is the local energy of a component's detail, G_2 * (x - G_1 *
    x)^2 with Gaussians of ENERGY_SIGMA and FINE_SIGMA pixels. The detail that an autoencoder loses is just finer than
    the finest that it reproduces, and is taken to belong to the two components in the same ratio (Wiener's filter for
    two signals).
    """
    bone_energy = _detail_energy(bone)
    soft_energy = _detail_energy(soft)
    return bone_energy / (bone_energy + soft_energy + LEAST_ENERGY)


def _detail_energy(x: torch.Tensor) -> torch.Tensor:
    """The local energy (B, 1, H, W) of an image's finest detail."""
    detail = x - _blur(x, FINE_SIGMA)
    return _blur(detail.square(), ENERGY_SIGMA)


def _blur(x: torch.Tensor, sigma: float) -> torch.Tensor:
    """Gaussian blur, cut off at four sigma."""
    from torchvision.transforms.functional import gaussian_blur  # imported here, since it takes a second

    side = 2 * round(4 * sigma) + 1
    return gaussian_blur(x, side, sigma)


def match_brightness(global_soft: torch.Tensor, local_soft: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """The local image, shifted inside the lungs so that its mean there is the global image's (GL-LCM's script). (B, 1,
    H, W) each.
    """
    area = masks.sum((2, 3), keepdim=True).clamp(min=1)  # (B, 1, 1, 1)
    shift = ((global_soft - local_soft) * masks).sum((2, 3), keepdim=True) / area
    return local_soft + shift * masks


def result_options(chosen) -> dict:
    """The keywords of any pipeline in the settings of section eval."""
    return {name: getattr(chosen, name) for name in ("seed", "residual", "strength")}


def gllcm_options(lcm) -> dict:
    """The keywords of GLLCM in the settings of section lcm."""
    return asdict(config.part(lcm, config.GllcmSampling)) | asdict(config.part(lcm, config.GllcmFusion))
