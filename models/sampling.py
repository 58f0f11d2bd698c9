"""The reverse walks in the latent space: BS-LDM's diffusion and GL-LCM's two consistency paths. The network is passed in.

cxr, masked_cxr: (B, C, h, w) latents of the X-ray and of the X-ray times its lung mask. draw(name) gives standard normal noise
of that shape for "initial", "global/<j>", "local/<j>", "unconditional/<j>" (j counts the steps from 0).
"""
from collections.abc import Callable, Iterable

import torch

from . import schedulers
from .schedulers import LCM_STEPS, TRAIN_STEPS

Draw = Callable[[str], torch.Tensor]
Progress = Callable[[Iterable], Iterable]  # wraps the steps, for a progress bar


def estimate(unet: torch.nn.Module, latents: list[torch.Tensor], t: int, conditions: list[torch.Tensor]) -> list[torch.Tensor]:
    """The predicted noise for each (noisy latent, condition), all in one pass through the network, in float32."""
    x = torch.cat([torch.cat(latents), torch.cat(conditions)], 1)  # (n B, 2 C, h, w)
    eps = unet(x, torch.full((len(x),), t, device=x.device))
    return eps[:, :latents[0].shape[1]].float().chunk(len(latents))  # the first half is the noise


@torch.no_grad()
def sample_bsldm(unet: torch.nn.Module, cxr: torch.Tensor, draw: Draw, *, steps: int = 1000, sampler: str = "ddpm",
                 clip: float = 1.4, clip_rate: float = 0.003, clip_lag: int = 0, progress: Progress = iter) -> torch.Tensor:
    """BS-LDM: the soft-tissue latent (B, C, h, w) for a CXR's latent, with temporal adaptive thresholding.

    Raises ValueError for an unknown sampler or a number of steps outside 1..1000.
    """
    if sampler not in schedulers.DIFFUSION_SAMPLERS:
        raise ValueError(f"unknown sampler '{sampler}'; there are {', '.join(schedulers.DIFFUSION_SAMPLERS)}")
    take_step, noisy = schedulers.DIFFUSION_SAMPLERS[sampler]
    walk = schedulers.walk(schedulers.squared_cosine(), schedulers.trailing_timesteps(steps), TRAIN_STEPS)
    z, before = draw("initial"), None
    for j, step in enumerate(progress(walk)):
        eps, = estimate(unet, [z], step.t, [cxr])
        z_0 = schedulers.predict_z_0(z, eps, step, schedulers.threshold(step.position, clip, clip_rate, clip_lag))
        z = take_step(z, z_0, step, draw(f"global/{j}") if noisy and not step.last else None, before)
        before = step, z_0
    return z


@torch.no_grad()
def sample_gllcm(unet: torch.nn.Module, cxr: torch.Tensor, masked_cxr: torch.Tensor, draw: Draw, *, steps: int = 50,
                 guidance: str = "leg", alpha: float = 3.0, clip_global: float = 2.0, clip_local: float = 3.5,
                 clip_rate: float = 0.025, progress: Progress = iter) -> tuple[torch.Tensor, torch.Tensor]:
    """GL-LCM: dual-path sampling from one start noise -> (global, local) soft-tissue latents, each (B, C, h, w).

    Raises ValueError for an unknown guidance or a number of steps outside 1..50.
    """
    if guidance not in GUIDANCE:
        raise ValueError(f"unknown guidance '{guidance}'; there are {', '.join(GUIDANCE)}")
    walk = schedulers.walk(schedulers.scaled_linear(), schedulers.lcm_timesteps(steps), LCM_STEPS)
    z_g = z_l = draw("initial")
    for j, step in enumerate(progress(walk)):
        eps_g, eps_l = GUIDANCE[guidance](unet, z_g, z_l, step.t, cxr, masked_cxr, alpha, lambda j=j: draw(f"unconditional/{j}"))
        z_0g = schedulers.predict_z_0(z_g, eps_g, step, schedulers.threshold(step.position, clip_global, clip_rate))
        z_0l = schedulers.predict_z_0(z_l, eps_l, step, schedulers.threshold(step.position, clip_local, clip_rate))
        z_g = schedulers.lcm_step(z_g, z_0g, step, None if step.last else draw(f"global/{j}"))
        z_l = schedulers.lcm_step(z_l, z_0l, step, None if step.last else draw(f"local/{j}"))
    return z_g, z_l


def leg(unet, z_g, z_l, t, cxr, masked_cxr, alpha, fresh_noise):
    """Local-enhanced guidance (GL-LCM): eps_l = (1 - alpha) eps(z_l, CXR) + alpha eps(z_l, masked CXR); three estimates."""
    eps_g, whole, masked = estimate(unet, [z_g, z_l, z_l], t, [cxr, cxr, masked_cxr])
    return eps_g, (1 - alpha) * whole + alpha * masked


def leg_shared(unet, z_g, z_l, t, cxr, masked_cxr, alpha, fresh_noise):
    """Local-enhanced guidance with the global path's own estimate as the first term; two estimates."""
    eps_g, masked = estimate(unet, [z_g, z_l], t, [cxr, masked_cxr])
    return eps_g, (1 - alpha) * eps_g + alpha * masked


def cfg(unet, z_g, z_l, t, cxr, masked_cxr, alpha, fresh_noise):
    """What the released script runs: fresh noise over the local estimate's standard deviation as the first term."""
    eps_g, masked = estimate(unet, [z_g, z_l], t, [cxr, masked_cxr])
    return eps_g, (1 - alpha) * fresh_noise() / masked.std((1, 2, 3), keepdim=True) + alpha * masked


def vanilla(unet, z_g, z_l, t, cxr, masked_cxr, alpha, fresh_noise):
    """The masked CXR's estimate alone."""
    return estimate(unet, [z_g, z_l], t, [cxr, masked_cxr])


GUIDANCE = {"leg": leg, "leg_shared": leg_shared, "cfg": cfg, "vanilla": vanilla}
