"""The published way of sampling and training, with this project's networks and formulas, for speed.py to measure ours against.

float32, channels first, the estimates of a step one after the other, schedule tables made anew in each step, both images encoded at
every training step, nothing compiled.
"""
import tempfile
from collections.abc import Callable

import torch

from models import config, fusion, images, pipelines, sampling, schedulers
from models.training import loop


@torch.inference_mode()
def gllcm(vqgan, unet, cxr: torch.Tensor, mask: torch.Tensor, draw: Callable, steps: int, alpha: float = 3.0) -> torch.Tensor:
    """GL-LCM with local-enhanced guidance for one X-ray (1, 1, H, W), mask bool (1, H, W): the soft-tissue image."""
    masked_cxr = images.to_signed(images.to_unit(cxr) * mask)
    latent, masked = vqgan.latent(cxr), vqgan.latent(masked_cxr)
    z_g = z_l = draw("initial")
    for j in range(steps):
        step = schedulers.walk(schedulers.scaled_linear(), schedulers.lcm_timesteps(steps), schedulers.LCM_STEPS)[j]
        eps_g, whole, local = (sampling.estimate(unet, [z], step.t, [c])[0] for z, c in ((z_g, latent), (z_l, latent), (z_l, masked)))
        bounds = [schedulers.threshold(step.position, start, 0.025) for start in (2.0, 3.5)]
        z_0g = schedulers.predict_z_0(z_g, eps_g, step, bounds[0])
        z_0l = schedulers.predict_z_0(z_l, (1 - alpha) * whole + alpha * local, step, bounds[1])
        z_g = schedulers.lcm_step(z_g, z_0g, step, None if step.last else draw(f"global/{j}"))
        z_l = schedulers.lcm_step(z_l, z_0l, step, None if step.last else draw(f"local/{j}"))
    whole, local = (images.to_unit(vqgan.decode(z)).clamp(0, 1) for z in (z_g, z_l))
    local = pipelines.match_brightness(whole, local, mask[None])
    parts = [part[0].cpu().numpy() for part in ((whole * (cxr > -1))[0], (local * (cxr > -1))[0], mask)]
    return images.to_signed(torch.from_numpy(fusion.fuse(*parts, method="poisson")))[None, None]


@torch.inference_mode()
def bsldm(vqgan, unet, cxr: torch.Tensor, draw: Callable, steps: int) -> torch.Tensor:
    """BS-LDM by DDPM for one X-ray (1, 1, H, W): the soft-tissue image."""
    latent, z = vqgan.latent(cxr), draw("initial")
    for j in range(steps):
        step = schedulers.walk(schedulers.squared_cosine(), schedulers.trailing_timesteps(steps), schedulers.TRAIN_STEPS)[j]
        eps, = sampling.estimate(unet, [z], step.t, [latent])
        z_0 = schedulers.predict_z_0(z, eps, step, schedulers.threshold(step.position, 1.4, 0.003))
        z = schedulers.ddpm_step(z, z_0, step, None if step.last else draw(f"global/{j}"))
    return vqgan.decode(z).clamp(-1, 1).cpu()


class Pairs:
    """The names of a batch, as a training asks for them."""

    def __init__(self, count: int):
        self.names = [str(i) for i in range(count)]


def trainer(networks: dict, optimizers: dict, objective, *, batch: int, average: float, precision: str) -> loop.Trainer:
    """The project's own loop around one objective, for both ways."""
    course = config.Course(epochs=1, batch_size=batch, learning_rate=1e-5, milestones=(), gamma=1, average=average, start=None)
    train = config.Train(seed=0, workers=0, accumulate=1, checkpointing=False, validate_every=1, sample_every=9, save_every=1e9)
    return loop.Trainer(tempfile.gettempdir(), networks, optimizers, objective, Pairs(batch), None, course=course, train=train,
                        learning_rates=dict.fromkeys(optimizers, course.learning_rate), precision=precision)


def encoding_step(vqgan, trained: loop.Trainer, image: torch.Tensor) -> Callable:
    """A training step that encodes X-ray and soft-tissue image first. image: (B, 1, H, W), for both."""

    def step() -> None:
        with torch.no_grad():
            latents = {name: vqgan.latent(image) for name in ("cxr", "soft")}
        trained.update(latents, trained.data.names)

    return step
