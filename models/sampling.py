"""The reverse walks in latent space: BS-LDM's diffusion and GL-LCM's two consistency paths. The network is an argument.

Names used throughout: cxr and masked_cxr are the latents (B, C, h, w) of the X-ray and of the X-ray times its lung
mask. draw(name) returns standard normal noise of that shape for the names "initial", "global/<j>", "local/<j>" and
"unconditional/<j>", where j counts the steps from 0.
"""

from collections.abc import Callable, Iterable
from functools import partial

import torch

from . import schedulers
from .schedulers import LCM_STEPS, TRAIN_STEPS

Estimator = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]  # unet.ConditionalUNet, plain or compiled
Draw = Callable[[str], torch.Tensor]
Observe = Callable[..., None]  # called in each step with its number and the latents z_0 that are predicted in it
Progress = Callable[[Iterable], Iterable]  # wraps the list of steps, for a progress bar


def estimate(
    unet: Estimator, latents: list[torch.Tensor], t: int, conditions: list[torch.Tensor]
) -> list[torch.Tensor]:
    """The predicted noise of several (noisy latent, condition) pairs, computed in one pass through the network.

    latents, conditions: n tensors (B, C, h, w) each. Returns n tensors (B, C, h, w) in float32.
    """
    # One batch instead of several calls: the paths and conditions of a step share one pass through the weights.
    z_t = torch.cat(latents)  # (n B, C, h, w)
    condition = torch.cat(conditions)  # (n B, C, h, w)
    x = torch.cat([z_t, condition], 1)  # (n B, 2 C, h, w)
    timesteps = torch.full((len(x),), t, device=x.device)
    output = unet(x, timesteps)  # (n B, 2 C, h, w)

    # The first half is the noise; no sampler reads the other.
    channels = z_t.shape[1]
    eps = output[:, :channels].float()  # (n B, C, h, w)
    return list(eps.chunk(len(latents)))


@torch.no_grad()
def sample_bsldm(
    unet: Estimator,
    cxr: torch.Tensor,
    draw: Draw,
    *,
    steps: int = 1000,
    sampler: str = "ddpm",
    clip: float = 1.4,
    clip_rate: float = 0.003,
    clip_lag: int = 0,
    condition: str = "plain",
    progress: Progress = iter,
    observe: Observe | None = None,
) -> torch.Tensor:
    """BS-LDM: sample the soft-tissue latent (B, C, h, w) of a CXR latent, with temporal adaptive thresholding.

    sampler: a name in schedulers.DIFFUSION_SAMPLERS.
    clip, clip_rate, clip_lag: the bound on |z_0|, see schedulers.threshold.
    condition: how the network sees the CXR's latent, "plain" as published or "scaled", see schedulers.scale_condition.
    observe: called in each step j with (j, z_0).
    Raises ValueError for an unknown sampler or a number of steps outside 1..1000, with sampler lcm 1..47.
    """
    if sampler not in schedulers.DIFFUSION_SAMPLERS:
        raise ValueError(f"unknown sampler '{sampler}'; there are {', '.join(schedulers.DIFFUSION_SAMPLERS)}")
    take_step, draws_noise, timesteps = schedulers.DIFFUSION_SAMPLERS[sampler]
    alpha_bar = schedulers.squared_cosine()  # (1000,)
    walk = schedulers.walk(alpha_bar, timesteps(steps), TRAIN_STEPS)

    # Noise at the first timestep; each step lowers it by one timestep of the walk.
    z = draw("initial")
    previous = None
    for j, step in enumerate(progress(walk)):
        # The network's estimate of the noise gives one of z_0, which is clipped before the step uses it: early
        # estimates of z_0 are far too large, by sqrt((1 - alpha_bar) / alpha_bar) times the error in eps.
        cxr_condition = schedulers.scale_condition(cxr, step.alpha_bar, condition)
        (eps,) = estimate(unet, [z], step.t, [cxr_condition])
        bound = schedulers.threshold(step.position, clip, clip_rate, clip_lag)
        z_0 = schedulers.predict_z_0(z, eps, step, bound)
        if observe is not None:
            observe(j, z_0)

        # The step. Its noise is named by its number, so that a draw depends on nothing that happened before.
        noise = None
        if draws_noise and not step.last:
            noise = draw(f"global/{j}")
        z = take_step(z, z_0, step, noise, previous)
        previous = (step, z_0)  # second-order samplers extrapolate from the step before
    return z


@torch.no_grad()
def sample_gllcm(
    unet: Estimator,
    cxr: torch.Tensor,
    masked_cxr: torch.Tensor,
    draw: Draw,
    *,
    steps: int = 50,
    guidance: str = "leg",
    alpha: float = 3.0,
    clip_global: float = 2.0,
    clip_local: float = 3.5,
    clip_rate: float = 0.025,
    condition: str = "plain",
    progress: Progress = iter,
    observe: Observe | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """GL-LCM: dual-path sampling from one initial noise -> (global, local) soft-tissue latents, (B, C, h, w) each.

    guidance: a name in GUIDANCE. alpha: its scale.
    clip_global, clip_local, clip_rate: the bounds on |z_0| of the two paths, see schedulers.threshold.
    condition: as in `sample_bsldm`. observe: called in each step j with (j, global z_0, local z_0).
    Raises ValueError for an unknown guidance or a number of steps outside 1..50.
    """
    if guidance not in GUIDANCE:
        raise ValueError(f"unknown guidance '{guidance}'; there are {', '.join(GUIDANCE)}")
    guide = GUIDANCE[guidance]
    alpha_bar = schedulers.scaled_linear()
    walk = schedulers.walk(alpha_bar, schedulers.lcm_timesteps(steps), LCM_STEPS)

    z_g = draw("initial")
    z_l = z_g  # both paths start from the same noise
    for j, step in enumerate(progress(walk)):
        # Both paths' noise at once, since the guidance of the local one can use the global estimate.
        fresh_noise = partial(draw, f"unconditional/{j}")
        cxr_condition = schedulers.scale_condition(cxr, step.alpha_bar, condition)
        masked_condition = schedulers.scale_condition(masked_cxr, step.alpha_bar, condition)
        eps_g, eps_l = guide(unet, z_g, z_l, step.t, cxr_condition, masked_condition, alpha, fresh_noise)

        # The global path.
        bound = schedulers.threshold(step.position, clip_global, clip_rate)
        global_z_0 = schedulers.predict_z_0(z_g, eps_g, step, bound)
        noise = None if step.last else draw(f"global/{j}")
        z_g = schedulers.lcm_step(z_g, global_z_0, step, noise)

        # The local path.
        bound = schedulers.threshold(step.position, clip_local, clip_rate)
        local_z_0 = schedulers.predict_z_0(z_l, eps_l, step, bound)
        noise = None if step.last else draw(f"local/{j}")
        z_l = schedulers.lcm_step(z_l, local_z_0, step, noise)
        if observe is not None:
            observe(j, global_z_0, local_z_0)
    return z_g, z_l


# The guidances: (network, latents of both paths, timestep, both conditions, scale, fresh_noise() -> (B, C, h, w)) ->
# (eps of the global path, eps of the local path). They differ in what the local path is pushed away from.


def leg(unet, z_g, z_l, t, cxr, masked_cxr, alpha, fresh_noise):
    """Local-enhanced guidance (GL-LCM): eps_l = (1 - alpha) eps(z_l, CXR) + alpha eps(z_l, masked CXR).

    Three estimates per step.
    """
    eps_g, whole, masked = estimate(unet, [z_g, z_l, z_l], t, [cxr, cxr, masked_cxr])
    # At alpha = 3: 3 eps(masked) - 2 eps(whole), an extrapolation away from the whole X-ray's estimate.
    eps_l = (1 - alpha) * whole + alpha * masked
    return eps_g, eps_l


def leg_shared(unet, z_g, z_l, t, cxr, masked_cxr, alpha, fresh_noise):
    """Local-enhanced guidance with the global path's own estimate in place of eps(z_l, CXR). Two estimates."""
    eps_g, masked = estimate(unet, [z_g, z_l], t, [cxr, masked_cxr])
    eps_l = (1 - alpha) * eps_g + alpha * masked
    return eps_g, eps_l


def cfg(unet, z_g, z_l, t, cxr, masked_cxr, alpha, fresh_noise):
    """What the released script runs: fresh noise, over the local estimate's deviation, in place of eps(z_l, CXR)."""
    eps_g, masked = estimate(unet, [z_g, z_l], t, [cxr, masked_cxr])
    deviation = masked.std((1, 2, 3), keepdim=True)  # (B, 1, 1, 1), of each image's estimate
    unconditional = (1 - alpha) * fresh_noise() / deviation
    eps_l = unconditional + alpha * masked
    return eps_g, eps_l


def vanilla(unet, z_g, z_l, t, cxr, masked_cxr, alpha, fresh_noise):
    """No guidance: eps(z_l, masked CXR) alone."""
    eps_g, eps_l = estimate(unet, [z_g, z_l], t, [cxr, masked_cxr])
    return eps_g, eps_l


GUIDANCE = {"leg": leg, "leg_shared": leg_shared, "cfg": cfg, "vanilla": vanilla}
