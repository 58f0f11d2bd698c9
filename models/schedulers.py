"""Noise schedules, offset noise, thresholds, and the sampler steps of both methods, all pure functions.

Symbols: alpha_bar_t is the fraction of the signal's variance that is left at timestep t (0 = cleanest, 999 = noisiest),
z_t the noisy latent, z_0 the clean latent, eps the noise:
z_t = sqrt(alpha_bar_t) z_0 + sqrt(1 - alpha_bar_t) eps (Ho 2020, eq. 4).

Tables and coefficients are float32 scalars on the CPU, as in the published scripts: near t = 0 the rounding of
1 - alpha_bar moves a whole BS-LDM walk by 3e-4, and the published numbers include it. No step waits for the device.
To add a sampler to BS-LDM, write its step here and name it in DIFFUSION_SAMPLERS.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

TRAIN_STEPS = 1000  # timesteps of both schedules
LCM_STEPS = 50  # steps of the full consistency walk
LCM_SIGMA = 0.5  # sigma_data of the consistency model's boundary condition (Luo 2023)
CONDITIONS = ("scaled", "plain")  # how a noise estimator sees the CXR's latent, see `scale_condition`
LCM_SCALE = 10.0  # timestep scaling of the boundary condition (Luo 2023)
# Most that an error in eps may grow by in z_0, sqrt((1 - alpha_bar) / alpha_bar), where one estimate has to be enough.
# GL-LCM's schedule ends just below it, at 14.6; BS-LDM's exceeds it above t = 955 and ends at 20,291.
LARGEST_AMPLIFICATION = 15.0


@dataclass(frozen=True)
class Step:
    """One step of a walk from noise to a clean latent: from timestep t to the next, cleaner one."""

    t: int  # the timestep, an input of the network
    alpha_bar: torch.Tensor  # alpha_bar_t, a scalar
    alpha_bar_prev: torch.Tensor  # at the cleaner timestep that follows; 1 in the last step, which reaches z_0 itself
    position: float  # how many steps of the full walk lie behind, 0 at the noisiest timestep
    last: bool  # whether the walk ends with this step


def squared_cosine(offset: float = 0.008, beta_max: float = 0.999) -> torch.Tensor:
    """alpha_bar (1000,) of BS-LDM: beta_t = min(1 - f(t + 1) / f(t), 0.999) (Nichol & Dhariwal 2021, eq. 17)."""
    # In float64: the ratio of neighbours is near 1, and its difference from 1 is what counts. beta_max keeps the last
    # step, where f reaches 0, from erasing everything.
    time = np.arange(TRAIN_STEPS + 1) / TRAIN_STEPS  # (1001,), from 0 to 1
    angle = (time + offset) / (1 + offset) * np.pi / 2
    f = np.cos(angle) ** 2
    betas = 1 - f[1:] / f[:-1]  # (1000,)
    betas = np.minimum(betas, beta_max)
    return _accumulate(torch.from_numpy(betas).float())


def scaled_linear(beta_start: float = 0.00085, beta_end: float = 0.012) -> torch.Tensor:
    """alpha_bar (1000,) of GL-LCM: betas whose square roots are evenly spaced (Rombach 2022)."""
    roots = torch.linspace(beta_start**0.5, beta_end**0.5, TRAIN_STEPS)
    return _accumulate(roots**2)


def _accumulate(betas: torch.Tensor) -> torch.Tensor:
    """alpha_bar_t = product of (1 - beta_s) over s <= t, in float32, as the published trainings had it to the bit."""
    return torch.cumprod(1 - betas, 0)


SCHEDULES = {"squared_cosine": squared_cosine, "scaled_linear": scaled_linear}


def trailing_timesteps(steps: int) -> list[int]:
    """`steps` of the 1000 timesteps, evenly spaced from 999 down ("trailing", Lin 2024). ValueError outside 1..1000."""
    _check_steps(steps, TRAIN_STEPS)
    timesteps = []
    for i in range(steps):
        left = TRAIN_STEPS - i * TRAIN_STEPS / steps  # timesteps that are still to go, from 1000 down
        timesteps.append(round(left) - 1)
    return timesteps


def lcm_timesteps(steps: int) -> list[int]:
    """`steps` of the 50 timesteps 999, 979, ..., 19 of the consistency walk (Luo 2023). ValueError outside 1..50."""
    _check_steps(steps, LCM_STEPS)
    stride = TRAIN_STEPS // LCM_STEPS
    full_walk = range(TRAIN_STEPS - 1, 0, -stride)  # 999, 979, ..., 19
    return _evenly_spaced(full_walk, steps)


def consistency_timesteps(alpha_bar: torch.Tensor, skip: int = TRAIN_STEPS // LCM_STEPS) -> list[int]:
    """The timesteps of a consistency model, every `skip` from 999 down, but for those where one estimate cannot do.

    alpha_bar: (1000,). Above LARGEST_AMPLIFICATION an estimate of eps says nothing of z_0. A walk of 1000 steps gets
    over that, one of four does not.
    """
    amplification = ((1 - alpha_bar) / alpha_bar).sqrt()  # (1000,), of an error in eps when it becomes one in z_0
    grid = range(TRAIN_STEPS - 1, -1, -skip)
    return [t for t in grid if amplification[t] <= LARGEST_AMPLIFICATION]


def bsldm_consistency_timesteps(steps: int) -> list[int]:
    """`steps` of BS-LDM's consistency timesteps, evenly spaced from the noisiest. ValueError outside 1..47."""
    grid = consistency_timesteps(squared_cosine())
    _check_steps(steps, len(grid))
    return _evenly_spaced(grid, steps)


def _evenly_spaced(timesteps: Sequence[int], steps: int) -> list[int]:
    """`steps` of the timesteps of a walk, evenly spaced from its first."""
    places = [i * len(timesteps) // steps for i in range(steps)]
    return [timesteps[place] for place in places]


def _check_steps(steps: int, most: int) -> None:
    if not 1 <= steps <= most:
        raise ValueError(f"the number of sampling steps must be 1 to {most}, got {steps}")


def walk(alpha_bar: torch.Tensor, timesteps: list[int], full: int) -> list[Step]:
    """The steps of a walk through `timesteps`.

    alpha_bar: (1000,). timesteps: descending. full: number of steps of the full walk, the unit of `Step.position`.
    """
    steps = []
    for i, t in enumerate(timesteps):
        last = i == len(timesteps) - 1
        if last:
            alpha_bar_prev = torch.ones(())  # a walk ends at z_0 itself, where no noise is left
        else:
            cleaner_t = timesteps[i + 1]
            alpha_bar_prev = alpha_bar[cleaner_t]

        # The timesteps that lie behind, in steps of the full walk.
        behind = TRAIN_STEPS - 1 - t
        position = behind * full / TRAIN_STEPS
        steps.append(Step(t, alpha_bar[t], alpha_bar_prev, position, last))
    return steps


def threshold(position: float, start: float, rate: float, lag: int = 0) -> float:
    """Temporal adaptive thresholding (BS-LDM): the bound c_j = start + rate * j on |z_0| at position j.

    j counts steps of the full walk, so a walk of fewer steps applies the same bound at the same noise level. With lag 1
    the first two steps use c_0, as the published loop does.
    """
    return start + rate * max(position - lag, 0)


def add_noise(z_0: torch.Tensor, noise: torch.Tensor, alpha_bar: torch.Tensor) -> torch.Tensor:
    """z_t of each image (Ho 2020, eq. 4). z_0, noise: (B, C, h, w). alpha_bar: (B,), at each image's timestep."""
    alpha_bar = alpha_bar.view(-1, 1, 1, 1)  # (B, 1, 1, 1)
    return alpha_bar.sqrt() * z_0 + (1 - alpha_bar).sqrt() * noise


def scale_condition(cxr: torch.Tensor, alpha_bar: torch.Tensor, condition: str) -> torch.Tensor:
    """The CXR's latent as a noise estimator sees it beside z_t: cxr (B, C, h, w) if `condition` is "plain",
    sqrt(alpha_bar_t) cxr if it is "scaled".

    alpha_bar: (B,), at each image's timestep, or a scalar for all. The published trainings noise the concatenation
    (soft, CXR) with (eps, 0), so eq. 4 of Ho 2020 scales the CXR's half too; their samplings put it in as it is [S].
    Raises ValueError for another word.
    """
    if condition == "plain":
        return cxr
    if condition == "scaled":
        return alpha_bar.view(-1, 1, 1, 1).sqrt() * cxr
    raise ValueError(f"condition={condition!r} is not one of: {', '.join(CONDITIONS)}")


def offset_noise(noise: torch.Tensor, offset: torch.Tensor, coefficient: float) -> torch.Tensor:
    """Offset noise (BS-LDM): noise (B, C, h, w) + coefficient * offset (B, C, 1, 1), all standard normal."""
    return noise + coefficient * offset


def precondition(variance: float, alpha_bar: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """EDM preconditioning about the CXR latent: (k, c_in, c_out), each of alpha_bar's shape.

    Karras et al. (NeurIPS 2022), table 1: k = c_skip, c_in and c_out with sigma_data^2 = variance and sigma^2 = v,
    where v = (1 - alpha_bar) / alpha_bar is the noise variance of z_t / sqrt(alpha_bar). EDM's data vary about 0; here
    the clean latent z_0 varies about the CXR's latent: z_0 - CXR ~ N(0, variance).
    With d = z_t / sqrt(alpha_bar) - CXR the mean of z_0 given z_t is CXR + k d, and both c_in d and
    (z_0 - mean) / c_out have unit variance.
    """
    # EDM's variables are z_t / sqrt(alpha_bar) and its noise variance v; the rest is table 1.
    v = (1 - alpha_bar) / alpha_bar
    total = variance + v
    k = variance / total
    c_in = total.rsqrt()
    c_out = (variance * v / total).sqrt()
    return k, c_in, c_out


def predict_z_0(z_t: torch.Tensor, eps: torch.Tensor, step: Step, bound: float) -> torch.Tensor:
    """z_0 = (z_t - sqrt(1 - alpha_bar) eps) / sqrt(alpha_bar), clipped to [-bound, bound]. z_t, eps: (B, C, h, w)."""
    signal_scale = step.alpha_bar**0.5
    noise_scale = (1 - step.alpha_bar) ** 0.5
    z_0 = (z_t - noise_scale * eps) / signal_scale
    return z_0.clamp(-bound, bound)


# The sampler steps: from z_t and the predicted z_0, each (B, C, h, w), to the latent at the next, cleaner timestep.
# noise: standard normal, for samplers that draw noise; None in the last step. previous: for samplers of second order.

Previous = tuple[Step, torch.Tensor]  # the step taken before, and the z_0 that was predicted in it


def ddpm_step(
    z_t: torch.Tensor, z_0: torch.Tensor, step: Step, noise: torch.Tensor | None, previous: Previous | None = None
) -> torch.Tensor:
    """Ancestral step with the posterior's mean and variance (Ho 2020, eq. 6 and 7; "fixed small").

    The last step adds no noise.
    """
    # Over several timesteps at once, alpha is the quotient of the two alpha_bar, so a shortened walk needs no other
    # formula.
    alpha = step.alpha_bar / step.alpha_bar_prev
    beta = 1 - alpha
    beta_bar = 1 - step.alpha_bar
    beta_bar_prev = 1 - step.alpha_bar_prev

    # eq. 7: mu~_t = sqrt(alpha_bar_prev) beta / (1 - alpha_bar) z_0
    #              + sqrt(alpha) (1 - alpha_bar_prev) / (1 - alpha_bar) z_t
    weight_z_0 = step.alpha_bar_prev**0.5 * beta / beta_bar
    weight_z_t = alpha**0.5 * beta_bar_prev / beta_bar
    mean = weight_z_0 * z_0 + weight_z_t * z_t
    if step.last:
        return mean

    # eq. 7: beta~_t = (1 - alpha_bar_prev) / (1 - alpha_bar) beta, the smaller of the paper's two variances.
    assert noise is not None, "all steps but the last need noise"
    variance = beta * beta_bar_prev / beta_bar
    return mean + variance**0.5 * noise


def ddim_step(
    z_t: torch.Tensor, z_0: torch.Tensor, step: Step, noise: torch.Tensor | None, previous: Previous | None = None
) -> torch.Tensor:
    """Deterministic step (Song 2021, eq. 12 with sigma = 0), with the noise that agrees with the thresholded z_0."""
    signal_scale = step.alpha_bar**0.5
    noise_scale = (1 - step.alpha_bar) ** 0.5
    eps = (z_t - signal_scale * z_0) / noise_scale

    # z_prev = sqrt(alpha_bar_prev) z_0 + sqrt(1 - alpha_bar_prev) eps
    signal_scale_prev = step.alpha_bar_prev**0.5
    noise_scale_prev = (1 - step.alpha_bar_prev) ** 0.5
    return signal_scale_prev * z_0 + noise_scale_prev * eps


def dpmpp_step(
    z_t: torch.Tensor, z_0: torch.Tensor, step: Step, noise: torch.Tensor | None, previous: Previous | None = None
) -> torch.Tensor:
    """DPM-Solver++(2M): deterministic, second order, for few steps (Lu 2022, algorithm 2).

    lambda = log(sqrt(alpha_bar) / sqrt(1 - alpha_bar)); z_0 is extrapolated over the last two steps in lambda. The
    first step and the last are of first order.
    """
    # At the end lambda is infinite; the formula's limit is z_0 itself.
    if step.last:
        return z_0

    # h: the step in lambda.
    lambda_now = _half_log_snr(step.alpha_bar)
    lambda_next = _half_log_snr(step.alpha_bar_prev)
    h = lambda_next - lambda_now

    # Algorithm 2: D = (1 + 1 / 2 r) z_0 - 1 / 2 r z_0 of the step before; r is that step in units of this one.
    if previous is not None:
        previous_step, previous_z_0 = previous
        lambda_before = _half_log_snr(previous_step.alpha_bar)
        r = (lambda_now - lambda_before) / h
        z_0 = (1 + 1 / (2 * r)) * z_0 - 1 / (2 * r) * previous_z_0

    # z_prev = sigma_prev / sigma z_t - sqrt(alpha_bar_prev) (exp(-h) - 1) D, with sigma^2 = 1 - alpha_bar
    sigma_ratio = ((1 - step.alpha_bar_prev) / (1 - step.alpha_bar)) ** 0.5
    signal_scale_prev = step.alpha_bar_prev**0.5
    return sigma_ratio * z_t - signal_scale_prev * torch.expm1(-h) * z_0


def _half_log_snr(alpha_bar: torch.Tensor) -> torch.Tensor:
    """lambda of Lu 2022: half the logarithm of the signal-to-noise ratio."""
    return (alpha_bar.log() - (1 - alpha_bar).log()) / 2


def consistent(z_t: torch.Tensor, z_0: torch.Tensor, t: int | torch.Tensor) -> torch.Tensor:
    """The consistency function f = c_out z_0 + c_skip z_t (Luo 2023) of an estimate z_0 at timestep t.

    z_t, z_0: (B, C, h, w). t: a number, or (B, 1, 1, 1).
    """
    # c_skip falls to 0 with the timestep and is 1 at t = 0, where f has to be z_t itself: the boundary condition.
    # c_skip = sigma^2 / (s^2 + sigma^2), c_out = s / sqrt(s^2 + sigma^2), with the scaled timestep s = 10 t.
    s = LCM_SCALE * t
    total = s**2 + LCM_SIGMA**2
    c_skip = LCM_SIGMA**2 / total
    c_out = s / total**0.5
    return c_out * z_0 + c_skip * z_t


def lcm_step(
    z_t: torch.Tensor, z_0: torch.Tensor, step: Step, noise: torch.Tensor | None, previous: Previous | None = None
) -> torch.Tensor:
    """Consistency step (Luo 2023): the consistency function, noised again to the next timestep.

    The last step returns the function itself.
    """
    denoised = consistent(z_t, z_0, step.t)
    if step.last:
        return denoised

    # Ho 2020, eq. 4, at the next timestep.
    assert noise is not None, "all steps but the last need noise"
    signal_scale_prev = step.alpha_bar_prev**0.5
    noise_scale_prev = (1 - step.alpha_bar_prev) ** 0.5
    return signal_scale_prev * denoised + noise_scale_prev * noise


class Sampler(NamedTuple):
    """A sampler of BS-LDM, on the squared-cosine schedule."""

    step: Callable[..., torch.Tensor]  # (z_t, z_0, step, noise, previous) -> the next latent
    draws_noise: bool  # whether its steps, but for the last, need noise
    timesteps: Callable[[int], list[int]] = trailing_timesteps  # number of steps -> their timesteps


DIFFUSION_SAMPLERS = {
    "ddpm": Sampler(ddpm_step, draws_noise=True),
    "ddim": Sampler(ddim_step, draws_noise=False),
    "dpmpp": Sampler(dpmpp_step, draws_noise=False),
    "lcm": Sampler(lcm_step, draws_noise=True, timesteps=bsldm_consistency_timesteps),  # for students of distillation
}
