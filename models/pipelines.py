"""CXR in, soft tissue out: BS-LDM and GL-LCM, in batches. What the evaluation and a notebook call.

pipeline.py holds what the two share.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch.nn import functional as F

from . import config, fusion, images, sampling, schedulers
from .pipeline import Pipeline, Trace
from .runtime.files import UserError
from .schema import BsldmSampling, GllcmFusion, GllcmSampling
from .settings_file import BASE_PROFILE
from .unet import ConditionalUNet
from .vqgan import MLVQGAN


class BSLDM(Pipeline):
    """BS-LDM. options: the keywords of sampling.sample_bsldm (steps, sampler, clip, clip_rate, clip_lag)."""

    title = "BS-LDM"
    section = "ldm"
    schedule = "squared_cosine"
    qkv_by_head = True
    sampler = "ddpm"
    full_steps = schedulers.TRAIN_STEPS
    sees_lungs = False
    keywords = (BsldmSampling,)

    def __init__(self, vqgan: MLVQGAN, unet: ConditionalUNet, **keywords):
        super().__init__(vqgan, unet, **keywords)
        # refused here, and not after the first image has been encoded
        most = len(schedulers.consistency_timesteps(schedulers.squared_cosine()))
        if self.options.get("sampler") == "lcm" and self.steps > most:
            raise UserError(f"ldm.sampler=lcm takes at most {most} steps, not {self.steps}; say ldm.steps=4")

    def suppress(
        self, cxr: torch.Tensor, names: list[str], masks, progress: sampling.Progress, trace: Trace
    ) -> torch.Tensor:
        latent = self.encode(cxr)  # (B, C, h, w)
        draw = self.draw(names, latent.shape)

        def observe(step: int, z_0: torch.Tensor) -> None:
            if trace.shows(step, self.steps):
                trace.steps[step + 1] = self.image(z_0, cxr, latent).clamp(-1, 1).cpu()

        # One path over the whole X-ray; the sampler's options are those of the settings.
        soft = sampling.sample_bsldm(
            self.estimator,
            latent,
            draw,
            progress=progress,
            observe=observe if trace.snapshots else None,
            **self.options,
        )
        return self.image(soft, cxr, latent).clamp(-1, 1)


class Views(NamedTuple):
    """What GL-LCM sees of a batch of X-rays: whole and masked, as images (B, 1, H, W) and as latents (B, C, h, w)."""

    cxr: torch.Tensor
    masked_cxr: torch.Tensor
    latent: torch.Tensor
    masked_latent: torch.Tensor
    masks: torch.Tensor  # boolean (B, 1, H, W)


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
    full_steps = schedulers.LCM_STEPS
    sees_lungs = True
    keywords = (GllcmSampling, GllcmFusion)

    def __init__(
        self, vqgan: MLVQGAN, unet: ConditionalUNet, *, fusion: str = "poisson", blend: float = 0.5, **keywords
    ):
        super().__init__(vqgan, unet, **keywords)
        self.fusion = fusion
        self.blend = blend

    def suppress(
        self, cxr: torch.Tensor, names: list[str], masks, progress: sampling.Progress, trace: Trace
    ) -> torch.Tensor:
        unit = images.to_unit(cxr)  # (B, 1, H, W) in [0, 1]

        # sample both paths, for the whole X-ray and for the lungs alone
        # Multiplied on [0, 1], so that outside the lungs it is black, -1, and not mid-grey.
        masked_cxr = images.to_signed(unit * masks)
        latent = self.encode(cxr)
        masked_latent = self.encode(masked_cxr)  # (B, C, h, w)
        draw = self.draw(names, latent.shape)
        views = Views(cxr, masked_cxr, latent, masked_latent, masks)

        def observe(step: int, global_z_0: torch.Tensor, local_z_0: torch.Tensor) -> None:
            if trace.shows(step, self.steps):
                trace.steps[step + 1] = self.fuse(global_z_0, local_z_0, views).cpu()

        global_latent, local_latent = sampling.sample_gllcm(
            self.estimator,
            latent,
            masked_latent,
            draw,
            progress=progress,
            observe=observe if trace.snapshots else None,
            **self.options,
        )
        if trace.paths:
            global_soft, local_soft = self.decode_paths(global_latent, local_latent, views)
            trace.global_soft = images.to_signed(global_soft).cpu()
            trace.local_soft = images.to_signed(local_soft).cpu()
        return self.fuse(global_latent, local_latent, views)

    def fuse(self, global_latent: torch.Tensor, local_latent: torch.Tensor, views: "Views") -> torch.Tensor:
        """One image (B, 1, H, W) in [-1, 1] of the latents of both paths, (B, C, h, w) each."""
        cxr, _, latent, masked_latent, masks = views
        unit = images.to_unit(cxr)

        # fusion of the latents
        if self.fusion == "autoencoder":
            height, width = latent.shape[-2:]
            # A latent pixel's weight is the fraction of its image pixels inside the lungs. The residual form needs the
            # latent of the X-ray fused alike.
            weight = F.adaptive_avg_pool2d(masks.float(), (height, width))  # (B, 1, h, w)
            fused_latent = torch.lerp(global_latent, local_latent, weight)
            blended = self.image(fused_latent, cxr, torch.lerp(latent, masked_latent, weight))
            fused = images.to_unit(blended).clamp(0, 1)
            return images.to_signed(fused * (unit > 0))

        # or of the images
        global_soft, local_soft = self.decode_paths(global_latent, local_latent, views)
        fused = []
        for whole, local, mask in zip(global_soft.cpu().numpy(), local_soft.cpu().numpy(), masks.cpu().numpy()):
            fused.append(fusion.fuse(whole[0], local[0], mask[0], method=self.fusion, blend=self.blend))  # (H, W)
        return images.to_signed(torch.from_numpy(np.stack(fused))[:, None])

    def decode_paths(
        self, global_latent: torch.Tensor, local_latent: torch.Tensor, views: "Views"
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The images of both paths as they go into the fusion, (B, 1, H, W) in [0, 1] each."""
        cxr, masked_cxr, latent, masked_latent, masks = views
        unit = images.to_unit(cxr)
        # What is black in the X-ray, such as padding, stays black.
        global_soft = images.to_unit(self.image(global_latent, cxr, latent)).clamp(0, 1)
        local_soft = images.to_unit(self.image(local_latent, masked_cxr, masked_latent)).clamp(0, 1)
        # In the published order: equal mean brightness in the lungs, what is black set to black, then fusion.
        local_soft = match_brightness(global_soft, local_soft, masks)
        global_soft = global_soft * (unit > 0)
        local_soft = local_soft * (unit > 0)
        return global_soft, local_soft


def match_brightness(global_soft: torch.Tensor, local_soft: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """The local image, shifted inside the lungs so that its mean there is the global image's (GL-LCM's script). (B, 1,
    H, W) each.
    """
    # At least 1, so that an empty mask shifts nothing instead of dividing by 0.
    area = masks.sum((2, 3), keepdim=True).clamp(min=1)  # (B, 1, 1, 1)
    shift = ((global_soft - local_soft) * masks).sum((2, 3), keepdim=True) / area
    return local_soft + shift * masks


METHODS = {"bsldm": BSLDM, "gllcm": GLLCM}


def load(
    profile: str = BASE_PROFILE,
    method: str = "gllcm",
    device: str | torch.device = "cpu",
    *,
    precision: str = "float32",
    compiled: bool = False,
    **changes,
) -> Pipeline:
    """A method as a profile of config.yaml has it, for a notebook: load("small").suppress_image(pixels).

    method: "gllcm" or "bsldm". changes: keywords of the method's constructor that replace the profile's, such as steps.
    Raises UserError for an unknown profile and for weights that are missing or damaged.
    """
    if method not in METHODS:
        raise UserError(f"unknown method '{method}'; there are {', '.join(METHODS)}")
    # The same path as the scripts', with an empty command line but for the profile.
    settings = config.parse("", (), ["--profile", profile])
    return METHODS[method].from_settings(settings, device, precision, compiled, **changes)
