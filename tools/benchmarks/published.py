"""The published way of sampling and training, with this project's networks and formulas: what speed.py compares with.

float32, channels first, the estimates of a step one after the other, schedule tables made anew in each step, both
images encoded at every training step, nothing compiled.
"""

import tempfile
from collections.abc import Callable

import torch

from models import config, fusion, images, pipelines, sampling, schedulers
from models.training import loop


@torch.inference_mode()
def gllcm(
    vqgan, unet, cxr: torch.Tensor, mask: torch.Tensor, draw: Callable, steps: int, alpha: float = 3.0
) -> torch.Tensor:
    """GL-LCM with local-enhanced guidance for one X-ray (1, 1, H, W), mask bool (1, H, W): the soft-tissue image."""
    masked_cxr = images.to_signed(images.to_unit(cxr) * mask)
    latent = vqgan.latent(cxr)  # (1, C, h, w)
    masked = vqgan.latent(masked_cxr)  # (1, C, h, w)
    z_g = draw("initial")
    z_l = z_g
    for j in range(steps):
        walk = schedulers.walk(schedulers.scaled_linear(), schedulers.lcm_timesteps(steps), schedulers.LCM_STEPS)
        step = walk[j]
        noise_g = None if step.last else draw(f"global/{j}")
        noise_l = None if step.last else draw(f"local/{j}")

        # global path
        eps_g = sampling.estimate(unet, [z_g], step.t, [latent])[0]
        z_0g = schedulers.predict_z_0(z_g, eps_g, step, schedulers.threshold(step.position, 2.0, 0.025))

        # local path: the masked X-ray's estimate beyond the whole one's
        eps_whole = sampling.estimate(unet, [z_l], step.t, [latent])[0]
        eps_local = sampling.estimate(unet, [z_l], step.t, [masked])[0]
        eps_l = (1 - alpha) * eps_whole + alpha * eps_local
        z_0l = schedulers.predict_z_0(z_l, eps_l, step, schedulers.threshold(step.position, 3.5, 0.025))

        z_g = schedulers.lcm_step(z_g, z_0g, step, noise_g)
        z_l = schedulers.lcm_step(z_l, z_0l, step, noise_l)

    # fused in pixels; what is black in the X-ray stays black
    whole = images.to_unit(vqgan.decode(z_g)).clamp(0, 1)
    local = images.to_unit(vqgan.decode(z_l)).clamp(0, 1)
    local = pipelines.match_brightness(whole, local, mask[None])
    exposed = cxr > -1
    arrays = [(image * exposed)[0, 0].cpu().numpy() for image in (whole, local)]
    fused = fusion.fuse(*arrays, mask[0].cpu().numpy(), method="poisson")
    return images.to_signed(torch.from_numpy(fused))[None, None]


@torch.inference_mode()
def bsldm(vqgan, unet, cxr: torch.Tensor, draw: Callable, steps: int) -> torch.Tensor:
    """BS-LDM by DDPM for one X-ray (1, 1, H, W): the soft-tissue image."""
    latent = vqgan.latent(cxr)  # (1, C, h, w)
    z = draw("initial")
    for j in range(steps):
        timesteps = schedulers.trailing_timesteps(steps)
        step = schedulers.walk(schedulers.squared_cosine(), timesteps, schedulers.TRAIN_STEPS)[j]
        eps = sampling.estimate(unet, [z], step.t, [latent])[0]
        z_0 = schedulers.predict_z_0(z, eps, step, schedulers.threshold(step.position, 1.4, 0.003))
        z = schedulers.ddpm_step(z, z_0, step, None if step.last else draw(f"global/{j}"))
    return vqgan.decode(z).clamp(-1, 1).cpu()


class Pairs:
    """The names of a batch, as a training asks for them."""

    def __init__(self, count: int):
        self.names = [str(i) for i in range(count)]


def trainer(networks: dict, optimizers: dict, objective, *, batch: int, average: float, precision: str) -> loop.Trainer:
    """The project's own loop around one objective, for both ways."""
    course = config.Course(
        epochs=1, batch_size=batch, learning_rate=1e-5, milestones=(), gamma=1, average=average, start=None
    )
    train = config.AnyTraining(
        seed=0, workers=0, accumulate=1, checkpointing=False, validate_every=1, sample_every=9, save_every=1e9
    )
    return loop.Trainer(
        tempfile.gettempdir(),
        networks,
        optimizers,
        objective,
        Pairs(batch),
        None,
        course=course,
        train=train,
        learning_rates=dict.fromkeys(optimizers, course.learning_rate),
        precision=precision,
    )


def encoding_step(vqgan, trained: loop.Trainer, image: torch.Tensor) -> Callable:
    """A training step that encodes X-ray and soft-tissue image first. image: (B, 1, H, W), for both."""

    def step() -> None:
        with torch.no_grad():
            latents = {name: vqgan.latent(image) for name in ("cxr", "soft")}
        trained.update(latents, trained.data.names)

    return step
