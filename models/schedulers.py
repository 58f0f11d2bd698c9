"""Noise schedules, offset noise, thresholds, and the sampler steps of both methods, all pure functions.

Symbols: alpha_bar_t, the share of the signal's variance left at timestep t (0 = cleanest, 999 = noisiest); z_t the noisy
latent, z_0 the clean one, eps the noise; z_t = sqrt(alpha_bar_t) z_0 + sqrt(1 - alpha_bar_t) eps (Ho 2020, eq. 4).
Tables and coefficients are float32 scalars on the CPU, as in the published scripts: near t = 0 the rounding of
1 - alpha_bar moves a whole BS-LDM walk by 3e-4, and the published numbers have it. No step waits for the device.
To add a sampler, write its step here and name it in DIFFUSION_SAMPLERS.
"""
from dataclasses import dataclass

import numpy as np
import torch

TRAIN_STEPS = 1000            # timesteps of both schedules
LCM_STEPS = 50                # steps of the full consistency walk
LCM_SIGMA, LCM_SCALE = 0.5, 10.0   # sigma_data and the timestep scaling of the boundary condition (Luo 2023)


@dataclass(frozen=True)
class Step:
    """One step of a walk down: from timestep t to the next one."""
    t: int                        # timestep that the network is told
    alpha_bar: torch.Tensor       # at t
    alpha_bar_prev: torch.Tensor  # at the timestep that follows; 1 at the last step, where z_0 itself is reached
    position: float               # steps of the full walk already behind, 0 at the noisiest
    last: bool


def squared_cosine(offset: float = 0.008, beta_max: float = 0.999) -> torch.Tensor:
    """alpha_bar (1000,) of BS-LDM: beta_t = min(1 - f(t + 1) / f(t), 0.999) (Nichol & Dhariwal 2021, eq. 17)."""
    f = np.cos((np.arange(TRAIN_STEPS + 1) / TRAIN_STEPS + offset) / (1 + offset) * np.pi / 2) ** 2
    return _accumulate(torch.from_numpy(np.minimum(1 - f[1:] / f[:-1], beta_max)).float())


def scaled_linear(beta_start: float = 0.00085, beta_end: float = 0.012) -> torch.Tensor:
    """alpha_bar (1000,) of GL-LCM: betas whose square roots are evenly spaced (Rombach 2022)."""
    return _accumulate(torch.linspace(beta_start ** 0.5, beta_end ** 0.5, TRAIN_STEPS) ** 2)


SCHEDULES = {"squared_cosine": squared_cosine, "scaled_linear": scaled_linear}


def _accumulate(betas: torch.Tensor) -> torch.Tensor:
    """The products of (1 - beta) in float32: to the bit the tables that the published weights were trained with."""
    return torch.cumprod(1 - betas, 0)


def trailing_timesteps(steps: int) -> list[int]:
    """`steps` of the 1000 timesteps, evenly spaced from 999 down (Lin 2024)."""
    _check_steps(steps, TRAIN_STEPS)
    return [round(TRAIN_STEPS - i * TRAIN_STEPS / steps) - 1 for i in range(steps)]


def lcm_timesteps(steps: int) -> list[int]:
    """`steps` of the 50 timesteps 999, 979, ..., 19 of the consistency walk (Luo 2023)."""
    _check_steps(steps, LCM_STEPS)
    stride = TRAIN_STEPS // LCM_STEPS
    return [TRAIN_STEPS - 1 - stride * (i * LCM_STEPS // steps) for i in range(steps)]


def walk(alpha_bar: torch.Tensor, timesteps: list[int], full: int) -> list[Step]:
    """The steps through `timesteps` (descending); `full`: number of steps of the whole walk, the unit of `position`."""
    following = [*alpha_bar[timesteps[1:]], torch.ones(())]
    return [Step(t, alpha_bar[t], after, (TRAIN_STEPS - 1 - t) * full / TRAIN_STEPS, i == len(timesteps) - 1)
            for i, (t, after) in enumerate(zip(timesteps, following))]


def threshold(position: float, start: float, rate: float, lag: int = 0) -> float:
    """Temporal adaptive thresholding (BS-LDM): the bound c_j = start + rate * j of |z_0| at position j.

    j counts steps of the full walk, so a walk of fewer steps meets the same bound at the same noise level. With lag 1 the
    first two steps use c_0, as in the published loop.
    """
    return start + rate * max(position - lag, 0)


def add_noise(z_0: torch.Tensor, noise: torch.Tensor, alpha_bar: torch.Tensor) -> torch.Tensor:
    """z_t for each image: z_0, noise (B, C, h, w), alpha_bar (B,) at its timestep (Ho 2020, eq. 4)."""
    alpha_bar = alpha_bar.view(-1, 1, 1, 1)
    return alpha_bar.sqrt() * z_0 + (1 - alpha_bar).sqrt() * noise


def offset_noise(noise: torch.Tensor, offset: torch.Tensor, coefficient: float) -> torch.Tensor:
    """Gaussian noise (B, C, h, w) plus coefficient times one normal draw (B, C, 1, 1) a channel (BS-LDM, offset noise)."""
    return noise + coefficient * offset


def precondition(variance: torch.Tensor, alpha_bar: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(k, c_in, c_out) for a clean latent that is the CXR's plus something of this variance; alpha_bar: of any shape, as the results.

    The mean of z_0 given z_t is then CXR + k d with d = z_t / sqrt(alpha_bar) - CXR; c_in d and (z_0 - mean) / c_out have unit variance.
    Karras et al. (NeurIPS 2022), table 1, about the CXR instead of 0, at the noise variance v = (1 - alpha_bar) / alpha_bar.
    """
    v = (1 - alpha_bar) / alpha_bar
    return variance / (variance + v), (variance + v).rsqrt(), (variance * v / (variance + v)).sqrt()


def predict_z_0(z_t: torch.Tensor, eps: torch.Tensor, step: Step, bound: float) -> torch.Tensor:
    """z_0 = (z_t - sqrt(1 - alpha_bar) eps) / sqrt(alpha_bar), clipped to [-bound, bound]."""
    return ((z_t - (1 - step.alpha_bar) ** 0.5 * eps) / step.alpha_bar ** 0.5).clamp(-bound, bound)


Before = tuple[Step, torch.Tensor]  # the step before and its z_0, for samplers of second order


def ddpm_step(z_t: torch.Tensor, z_0: torch.Tensor, step: Step, noise: torch.Tensor | None, before: Before | None = None) -> torch.Tensor:
    """Ancestral step with the posterior's mean and variance (Ho 2020, eq. 6 and 7; "fixed small"), no noise in the last."""
    alpha = step.alpha_bar / step.alpha_bar_prev
    beta, beta_bar, beta_bar_prev = 1 - alpha, 1 - step.alpha_bar, 1 - step.alpha_bar_prev
    mean = step.alpha_bar_prev ** 0.5 * beta / beta_bar * z_0 + alpha ** 0.5 * beta_bar_prev / beta_bar * z_t
    return mean if step.last else mean + (beta * beta_bar_prev / beta_bar) ** 0.5 * noise


def ddim_step(z_t: torch.Tensor, z_0: torch.Tensor, step: Step, noise: torch.Tensor | None, before: Before | None = None) -> torch.Tensor:
    """Deterministic step (Song 2021, eq. 12 with sigma 0), with the noise that agrees with the thresholded z_0."""
    eps = (z_t - step.alpha_bar ** 0.5 * z_0) / (1 - step.alpha_bar) ** 0.5
    return step.alpha_bar_prev ** 0.5 * z_0 + (1 - step.alpha_bar_prev) ** 0.5 * eps


def dpmpp_step(z_t: torch.Tensor, z_0: torch.Tensor, step: Step, noise: torch.Tensor | None, before: Before | None = None) -> torch.Tensor:
    """DPM-Solver++(2M), deterministic, second order, for few steps (Lu 2022, algorithm 2); first order in the first and last step.

    lambda = log(sqrt(alpha_bar) / sqrt(1 - alpha_bar)); z_0 is extrapolated over the two last steps in lambda.
    """
    if step.last:
        return z_0
    h = _half_log_snr(step.alpha_bar_prev) - _half_log_snr(step.alpha_bar)
    if before is not None:
        r = (_half_log_snr(step.alpha_bar) - _half_log_snr(before[0].alpha_bar)) / h
        z_0 = (1 + 1 / (2 * r)) * z_0 - 1 / (2 * r) * before[1]
    ratio = ((1 - step.alpha_bar_prev) / (1 - step.alpha_bar)) ** 0.5
    return ratio * z_t - step.alpha_bar_prev ** 0.5 * torch.expm1(-h) * z_0


def _half_log_snr(alpha_bar: torch.Tensor) -> torch.Tensor:
    return (alpha_bar.log() - (1 - alpha_bar).log()) / 2


def lcm_step(z_t: torch.Tensor, z_0: torch.Tensor, step: Step, noise: torch.Tensor | None) -> torch.Tensor:
    """Consistency step: d = c_out z_0 + c_skip z_t, noised again to the next timestep; d itself at the last (Luo 2023)."""
    scaled = LCM_SCALE * step.t
    c_skip = LCM_SIGMA ** 2 / (scaled ** 2 + LCM_SIGMA ** 2)
    c_out = scaled / (scaled ** 2 + LCM_SIGMA ** 2) ** 0.5
    d = c_out * z_0 + c_skip * z_t
    return d if step.last else step.alpha_bar_prev ** 0.5 * d + (1 - step.alpha_bar_prev) ** 0.5 * noise


# name: (step, whether it draws noise); all walk down the squared-cosine schedule of BS-LDM
DIFFUSION_SAMPLERS = {"ddpm": (ddpm_step, True), "ddim": (ddim_step, False), "dpmpp": (dpmpp_step, False)}


def _check_steps(steps: int, most: int) -> None:
    if not 1 <= steps <= most:
        raise ValueError(f"the number of sampling steps must be 1 to {most}, got {steps}")
