"""Latent consistency distillation: a student that answers in one to four calls what its teacher does in fifty.

    python lcm_train.py lcm.teacher=runs/lcm/weights.safetensors         GL-LCM, both paths, guidance included
    python ldm_train.py ldm.teacher=runs/ldm/weights.safetensors         BS-LDM, sampled with ldm.sampler=lcm

Luo et al., "Latent consistency models" (2023): along a path of the teacher's, from noise to a clean latent, the student
is to give the same clean latent everywhere. At a timestep t it is taught by its own weight average at t - skip, which
the frozen teacher reaches in one DDIM step; at the path's end the clean latent is known. Of GL-LCM the guided estimate
is distilled, so the student needs no guidance: two estimates a step instead of three.

With distill.path=data nobody is asked on the way (Geng et al., "Consistency models made easy", 2024, with steps of
equal length): the point at t - skip is the true latent with the same noise.
"""

import copy
import math
from dataclasses import fields
from pathlib import Path

import torch
from torch import nn

from .. import config, layers, losses, schedulers, weights
from ..data import datasets
from ..pipelines import GLLCM, Pipeline
from ..runtime import checkpoint, compiling, processes
from ..runtime.device import pick_device, pick_precision
from ..runtime.files import UserError
from . import interfaces, noise_estimator, ownership

GUIDANCES = ("leg", "vanilla")  # whose estimates are functions of the noisy latent and the X-rays alone
# settings of the noise estimators' own trainings, which a distillation does not read
UNREAD = ("qkv_by_head", "offset_noise", "epsilon", *(field.name for field in fields(config.Course)))


class GuidedSource(datasets.LatentSource):
    """Pairs of latents, each with what guidance needs: batches {"cxr", "soft", "whole": (B, C, h, w), "masked": (B,)}.

    whole: the latent of the whole CXR of the same patient. masked: whether cxr and soft are of the lungs alone.
    """

    def batches(self, index_lists: list[list[int]], epoch: int = 0) -> datasets.Batches:
        # LatentSource has all patients' whole pairs first, then, in the same order, their masked ones.
        patients = sum(name.endswith(f"({datasets.WHOLE[0]})") for name in self.names)
        stacks = self.stacks["cxr"]
        for indices, batch in zip(index_lists, super().batches(index_lists, epoch)):
            patient = [index % patients for index in indices]
            batch["whole"] = stacks[epoch % len(stacks)][patient]
            batch["masked"] = torch.tensor([index >= patients for index in indices])
            yield batch


class Distillation:
    """The update of a student, an objective of interfaces.py for networks {"unet"} and the batches of GuidedSource.

    teacher: its noise estimator, frozen. method, sampling: whose schedule is used, and the keywords of its sampler; the
    teacher is distilled as this sampler would walk with it. skip: timesteps of the teacher's one step. huber: constant
    of the loss. least_timestep: below it the teacher knows nothing; the step that would lead there ends at z_0.
    path: "data": the teacher is never asked; the path's points are the true latent with less and less of one noise.
    target: the student's weight average; None: the student itself teaches, without gradient. Set by `train`, since the
    loop owns it.
    """

    def __init__(
        self,
        teacher: nn.Module,
        method: type[Pipeline],
        sampling: dict,
        *,
        skip: int,
        huber: float,
        least_timestep: int = 0,
        path: str = "teacher",
    ):
        device = next(teacher.parameters()).device
        self.teacher = teacher
        self.skip = skip
        self.huber = huber
        self.least_timestep = least_timestep
        self.path = path
        self.condition = sampling["condition"]
        self.target: nn.Module | None = None

        # the timesteps at which the student learns
        self.alpha_bar = schedulers.SCHEDULES[method.schedule]().to(device)  # (1000,)
        grid = schedulers.consistency_timesteps(self.alpha_bar, skip)
        self.timesteps = torch.tensor([t for t in grid if t >= least_timestep], device=device)
        if len(self.timesteps) == 0:
            raise UserError(
                f"distill.skip={skip} with train.least_timestep={least_timestep} leaves no timestep to distil at"
            )

        # alpha: how far the masked X-ray's estimate is guided. bounds: on |z_0|, of whole and of masked X-rays.
        self.alpha = 1.0
        if method is GLLCM:
            self.alpha = sampling["alpha"] if sampling["guidance"] == "leg" else 1.0
            starts = (sampling["clip_global"], sampling["clip_local"])
            lag = 0
        else:
            starts = (sampling["clip"], sampling["clip"])
            lag = sampling["clip_lag"]
        walk = schedulers.walk(self.alpha_bar, list(range(schedulers.TRAIN_STEPS)), method.full_steps)
        bounds = []
        for start in starts:
            bounds.append([schedulers.threshold(step.position, start, sampling["clip_rate"], lag) for step in walk])
        self.bounds = torch.tensor(bounds, device=device)  # (2, 1000)

    def __call__(self, networks: dict, batch: dict[str, torch.Tensor], noise: interfaces.Noise) -> tuple[dict, dict]:
        student = networks["unet"]
        cxr = batch["cxr"]
        masked = batch["masked"]

        # a point of a path: the true soft tissue, noised
        t = self.timesteps[noise.integers("timestep", len(self.timesteps))]  # (B,)
        eps = noise.normal("noise", *cxr.shape[1:])
        z_t = schedulers.add_noise(batch["soft"], eps, self.alpha_bar[t])

        # the path goes on from there, and the target says where it ends
        with torch.no_grad():
            t_next, alpha_bar_next = self.next_timestep(t)
            if self.path == "data":
                z_next = schedulers.add_noise(batch["soft"], eps, alpha_bar_next)
            else:
                z_next = self.follow(z_t, t, alpha_bar_next, cxr, batch["whole"], masked)
            z_0 = self.clip(self.answer(self.target or student, z_next, t_next, cxr), t_next, masked)
            target = schedulers.consistent(z_next, z_0, t_next.view(-1, 1, 1, 1))

        # the student says it from the point before; its estimate is not clipped, which would stop the gradient
        found = schedulers.consistent(z_t, self.answer(student, z_t, t, cxr), t.view(-1, 1, 1, 1))
        loss = losses.pseudo_huber(found, target, self.huber)
        return {"unet": loss}, {"loss": loss}

    def next_timestep(self, t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(a path's next timestep, its alpha_bar), (B,) each. Behind the grid's last lies z_0 itself, at timestep 0."""
        t_next = t - self.skip
        ends = t_next < self.least_timestep
        t_next = torch.where(ends, 0, t_next)
        return t_next, torch.where(ends, 1.0, self.alpha_bar[t_next])

    def follow(
        self,
        z_t: torch.Tensor,
        t: torch.Tensor,
        alpha_bar_next: torch.Tensor,
        cxr: torch.Tensor,
        whole: torch.Tensor,
        masked: torch.Tensor,
    ) -> torch.Tensor:
        """One DDIM step of the teacher's guided estimate -> the cleaner latent (B, C, h, w)."""
        eps = self.estimate(self.teacher, z_t, t, cxr)
        # guidance pushes the masked X-rays' estimate away from the whole ones' (sampling.leg)
        if self.alpha != 1 and masked.any():
            of_whole = self.estimate(self.teacher, z_t[masked], t[masked], whole[masked])
            eps[masked] = (1 - self.alpha) * of_whole + self.alpha * eps[masked]

        step = self.step(t, alpha_bar_next)
        z_0 = self.clip(schedulers.predict_z_0(z_t, eps, step, math.inf), t, masked)
        return schedulers.ddim_step(z_t, z_0, step, None)

    def answer(self, network: nn.Module, z_t: torch.Tensor, t: torch.Tensor, cxr: torch.Tensor) -> torch.Tensor:
        """The network's z_0 (B, C, h, w), the clean latent at the end of the path through z_t; not clipped."""
        eps = self.estimate(network, z_t, t, cxr)
        return schedulers.predict_z_0(z_t, eps, self.step(t, self.alpha_bar[t]), math.inf)

    def estimate(self, network: nn.Module, z_t: torch.Tensor, t: torch.Tensor, cxr: torch.Tensor) -> torch.Tensor:
        """The network's noise (B, C, h, w) in float32."""
        seen = schedulers.scale_condition(cxr, self.alpha_bar[t], self.condition)
        return network(torch.cat([z_t, seen], 1), t)[:, : z_t.shape[1]].float()

    def step(self, t: torch.Tensor, alpha_bar_next: torch.Tensor) -> schedulers.Step:
        """A step for each image: alpha_bar as (B, 1, 1, 1), which is all that the functions called here read of it."""
        return schedulers.Step(
            0, self.alpha_bar[t].view(-1, 1, 1, 1), alpha_bar_next.view(-1, 1, 1, 1), position=0.0, last=False
        )

    def clip(self, z_0: torch.Tensor, t: torch.Tensor, masked: torch.Tensor) -> torch.Tensor:
        """z_0 (B, C, h, w) within the threshold at each image's timestep, as the sampler has it."""
        bound = self.bounds[masked.long(), t].view(-1, 1, 1, 1)  # (B, 1, 1, 1)
        return z_0.clamp(-bound, bound)


def train(
    settings: config.Settings,
    section: config.Ldm | config.Lcm,
    method: type[Pipeline],
    *,
    masked: bool,
    reads: tuple[str, ...],
) -> int:
    """Distil section.teacher into <runs>/<method.section>_student. Returns the exit status of the script.

    section: settings.ldm or settings.lcm. masked: the student answers for the lungs alone, too. reads: as of
    noise_estimator.train. Raises UserError for data, a teacher or a folder that do not fit the settings.
    """
    # teacher, which must belong to the autoencoder and to the method, before anything is trained
    distill = settings.distill
    settings = weights.prefer_own(settings, "vqgan")
    device = pick_device(settings.device)
    precision = pick_precision(settings.precision, device)
    sampling = method.sampling_keywords(settings)
    loaded = load_teacher(settings, section, method, device)
    if processes.rank() == 0:
        print(weights.describe_autoencoder(settings, f"a student of {section.teacher}"), flush=True)

    # run folder, images, and how the student will have to be sampled
    asked = student_sampling(settings, section, method)
    folder = Path(settings.runs) / f"{method.section}_student"
    pairs = noise_estimator.Pairs.of(settings)
    with processes.joined(), ownership.owned(folder, "distill.start"):
        # data: the latents that the teacher's training has left, if there are any
        vqgan_digest = checkpoint.digest(settings.vqgan.weights)
        encoder = noise_estimator.Encoder(loaded.vqgan, vqgan_digest, settings, distill.batch_size, masked, device)
        data = noise_estimator.sources(encoder, pairs, settings, GuidedSource)

        # student: the teacher's copy; the teacher itself needs no gradients and, in bf16, no float32
        student = copy.deepcopy(loaded.unet).requires_grad_(True)
        checkpoint.init_from(student, distill.start)
        teacher = compiling.prepare_for_inference(loaded.unet, device, precision, compiled=False)
        teacher_digest = checkpoint.digest(str(section.teacher))
        student.notes = method.notes(settings, loaded.vqgan)
        student.notes["works_with"].update(asked)
        origin = {"teacher": teacher_digest, "skip": distill.skip, "path": distill.path}
        student.notes["student"] = {**origin, "sampling": asked}
        # what the student does not keep of its activations makes room for the teacher's weights
        layers.checkpoint_activations(student, distill.checkpointing or settings.train.checkpointing)
        side = settings.data.image_size // loaded.vqgan.factor
        shape = (1, student.settings["in_channels"], side, side)
        compiled = noise_estimator.compile_network(student, settings, distill.batch_size, shape, device, precision)
        optimizer = torch.optim.AdamW(student.parameters(), distill.learning_rate, fused=device.type == "cuda")
        objective = Distillation(
            teacher,
            method,
            sampling,
            skip=distill.skip,
            huber=distill.huber,
            least_timestep=settings.train.least_timestep,
            path=distill.path,
        )

        # run: the loop owns the weight average, by which the student is taught
        trainer = noise_estimator.latent_trainer(
            folder,
            student,
            optimizer,
            objective,
            data,
            pairs,
            settings,
            course=distill,
            precision=precision,
            picture=noise_estimator.picture_of(method, loaded.vqgan, {**sampling, **asked}, pairs, settings),
            read={**read_settings(settings, method, reads), "precision": precision, "compile": compiled},
            fixed=fixed_settings(method),
            facts={"digest of vqgan.weights": vqgan_digest, f"digest of {method.section}.teacher": teacher_digest},
        )
        objective.target = trainer.ema
        return trainer.run()


def student_sampling(
    settings: config.Settings, section: config.Ldm | config.Lcm, method: type[Pipeline]
) -> dict[str, object]:
    """How a student's weights say that they are to be sampled: keywords of the method."""
    asked: dict[str, object] = {"steps": settings.distill.steps, "condition": section.condition}
    if method is GLLCM:
        asked["guidance"] = "vanilla"  # the estimates that it has learnt are guided
    else:
        asked["sampler"] = "lcm"
    return asked


def read_settings(settings: config.Settings, method: type[Pipeline], reads: tuple[str, ...]) -> dict[str, object]:
    """{key: value} of what a distillation reads: what its script reads, less the teacher's own training."""
    unread = ("unet", *(f"{method.section}.{name}" for name in UNREAD), "train.lesion_weight")
    return {key: value for key, value in config.values(settings, reads).items() if not key.startswith(unread)}


def fixed_settings(method: type[Pipeline]) -> tuple[str, ...]:
    """The settings that a distillation that goes on must have as they were."""
    learnt = ("alpha", "guidance", "condition", "clip", "clip_global", "clip_local", "clip_rate", "clip_lag")
    of_method = (f"{method.section}.{name}" for name in learnt)
    return (*of_method, "distill.skip", "distill.path", "distill.huber", "train.least_timestep")


def load_teacher(
    settings: config.Settings, section: config.Ldm | config.Lcm, method: type[Pipeline], device: torch.device
) -> Pipeline:
    """The method with the teacher's weights, in float32. Raises UserError for weights that cannot teach."""
    if isinstance(section, config.Lcm) and section.guidance not in GUIDANCES:
        raise UserError(
            f"lcm.guidance={section.guidance} cannot be distilled, as its estimates are no function of the noisy "
            f"latent and the X-ray alone; say lcm.guidance={GUIDANCES[0]} or {GUIDANCES[1]}"
        )
    if isinstance(section, config.Lcm) and settings.distill.path == "data" and section.guidance != "vanilla":
        raise UserError(
            f"distill.path=data learns from the data alone, which no guidance has made; say lcm.guidance=vanilla, or "
            f"distill.path=teacher for the guidance {section.guidance}"
        )
    assert section.teacher is not None, "distillation needs a teacher"
    sampling = method.sampling_keywords(settings)
    loaded = method.load(settings.vqgan.weights, section.teacher, device, refiner_path=None, **sampling)
    if "student" in loaded.unet.notes:
        raise UserError(
            f"{section.teacher} is a student itself, which predicts ends of paths and not steps; name its teacher in "
            f"{method.section}.teacher="
        )
    loaded.check_size(settings.data.image_size, settings.data.image_size)
    return loaded
