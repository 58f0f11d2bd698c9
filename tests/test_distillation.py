"""Students of few steps: what they learn, that they resume to the bit, what is refused, and how they are sampled."""

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import run
from golden_draws import draw, fill

from models import config, images, schedulers, weights
from models.pipelines import BSLDM, GLLCM
from models.runtime import checkpoint
from models.runtime.files import UserError
from models.training import distillation, interfaces, loop
from models.unet import ConditionalUNet
from models.vqgan import MLVQGAN

SPREAD = 0.3  # standard deviation of z_0 about its mean
UNET = {"width": 32, "multipliers": (1, 1), "blocks": 1, "heads": 4, "attention": (2,)}
SAMPLING = {
    BSLDM: {"condition": "plain", "clip": 1e3, "clip_rate": 0.0, "clip_lag": 0},
    GLLCM: {"condition": "plain", "clip_global": 1e3, "clip_local": 1e3, "clip_rate": 0.0, "guidance": "leg"},
}


class Gaussian(torch.nn.Module):
    """The noise estimator of z_0 ~ N(CXR's latent, SPREAD^2), which is known: E[z_0 | z_t] = c + k (x_t - c), with
    x_t = z_t / sqrt(alpha_bar), k = SPREAD^2 / (SPREAD^2 + v) and v = (1 - alpha_bar) / alpha_bar."""

    def __init__(self, alpha_bar: torch.Tensor):
        super().__init__()
        self.alpha_bar = alpha_bar.double()
        self.scale = torch.nn.Parameter(torch.ones(()))  # so that it has a device, and a gradient

    def mean(self, cxr):
        return cxr

    def end(self, x, mean, t):
        """The clean latent that is answered for x at t."""
        v = (1 - self.alpha_bar[t]) / self.alpha_bar[t]
        return mean + SPREAD**2 / (SPREAD**2 + v) * (x - mean)

    def forward(self, latents, t):
        z_t, cxr = latents.double().chunk(2, 1)
        ends = []
        for z, mean, time in zip(z_t, self.mean(cxr), t.tolist()):
            ends.append(self.end(z / self.alpha_bar[time].sqrt(), mean, time))
        z_0 = torch.stack(ends) * self.scale
        alpha_bar = self.alpha_bar[t].view(-1, 1, 1, 1)
        eps = (z_t - alpha_bar.sqrt() * z_0) / (1 - alpha_bar).sqrt()
        return torch.cat([eps, eps], 1)


class Consistent(Gaussian):
    """Its student: the DDIM steps along the grid are linear in x - mean, so the end of a path is a product of factors.

    guided: the mean that guidance makes of a CXR.
    """

    def __init__(self, alpha_bar, skip, guided=1.0):
        super().__init__(alpha_bar)
        self.skip = skip
        self.guided = guided

    def mean(self, cxr):
        return self.guided * cxr

    def end(self, x, mean, t):
        factor = 1.0
        while t >= 0:
            sigma = ((1 - self.alpha_bar[t]) / self.alpha_bar[t]).sqrt()
            following = t - self.skip
            sigma_next = 0.0
            if following >= 0:
                sigma_next = ((1 - self.alpha_bar[following]) / self.alpha_bar[following]).sqrt()
            k = SPREAD**2 / (SPREAD**2 + sigma**2)
            factor = factor * (k + sigma_next / sigma * (1 - k))
            t = following
        return mean + factor * (x - mean)


@pytest.mark.parametrize("method, alpha", [(BSLDM, 1.0), (GLLCM, 1.0), (GLLCM, 3.0)])
def test_the_loss_is_zero_for_the_student_that_is_consistent_along_the_teachers_paths(method, alpha):
    """The whole X-ray's latent is half the masked one's here, so that the guided mean is a multiple of it."""
    alpha_bar = schedulers.SCHEDULES[method.schedule]()
    teacher = Gaussian(alpha_bar)
    sampling = {**SAMPLING[method], "alpha": alpha}
    objective = distillation.Distillation(teacher, method, sampling, skip=20, huber=1e-3)
    # all of them at once: every timestep of the grid, and first those next to its ends
    shape = (32, 4, 4, 4)
    cxr = draw("cxr", shape)
    noise = interfaces.Noise(0, 0, len(cxr), list(range(len(cxr))), torch.device("cpu"))
    masked = torch.full((len(cxr),), alpha != 1)
    batch = {"cxr": cxr, "soft": cxr + SPREAD * draw("deviation", shape), "whole": cxr / 2, "masked": masked}

    guided = (1 - alpha) / 2 + alpha
    student = Consistent(alpha_bar, 20, guided)
    losses, _ = objective({"unet": student}, batch, noise)
    of_teacher, _ = objective({"unet": teacher}, batch, noise)
    assert losses["unet"] < 1e-6 < 1e-3 < of_teacher["unet"]
    losses["unet"].backward()
    assert teacher.scale.grad is None and student.scale.grad is not None


def test_without_a_teacher_the_next_point_is_the_true_latent_with_the_same_noise():
    alpha_bar = schedulers.SCHEDULES[BSLDM.schedule]()
    cxr = draw("cxr", (32, 4, 4, 4))
    noise = interfaces.Noise(0, 0, len(cxr), list(range(len(cxr))), torch.device("cpu"))
    batch = {"cxr": cxr, "soft": cxr, "whole": cxr, "masked": torch.zeros(len(cxr), dtype=torch.bool)}
    calls = []

    class Student(Consistent):
        def forward(self, latents, t):
            alpha = alpha_bar[t].view(-1, 1, 1, 1)
            calls.append((latents[:, :4] - alpha.sqrt() * cxr, t))
            return super().forward(latents, t)

    student = Student(alpha_bar, 20)
    objective = distillation.Distillation(student, BSLDM, SAMPLING[BSLDM], skip=20, huber=1e-3, path="data")
    objective({"unet": student}, batch, noise)

    # the average's point, then the student's own; where the path ends, the point is the latent itself
    (next_noise, t_next), (first_noise, t) = calls
    eps = noise.normal("noise", 4, 4, 4)
    inside = t_next > 0
    assert inside.any() and torch.equal(t[inside] - t_next[inside], torch.full_like(t[inside], 20))
    for found, times in ((next_noise[inside], t_next[inside]), (first_noise, t)):
        expected = (1 - alpha_bar[times]).sqrt().view(-1, 1, 1, 1) * eps[inside if len(found) < len(t) else slice(None)]
        assert torch.allclose(found, expected, atol=1e-5)


def test_the_timesteps_are_those_at_which_one_estimate_is_enough():
    """BS-LDM's schedule ends with hardly any signal: at t = 999 an error in eps is 20,291 times as large in z_0."""
    grid = schedulers.consistency_timesteps(schedulers.squared_cosine())
    assert grid == list(range(939, 0, -20))
    assert schedulers.consistency_timesteps(schedulers.scaled_linear()) == schedulers.lcm_timesteps(50)
    assert schedulers.bsldm_consistency_timesteps(4) == [939, 719, 479, 239]
    with pytest.raises(ValueError, match="1 to 47"):
        schedulers.bsldm_consistency_timesteps(48)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Six pairs of images, an autoencoder and a teacher for each method."""
    folder = tmp_path_factory.mktemp("distillation")
    random = np.random.default_rng(0)
    for kind in ("CXR", "BS", "Mask"):
        (folder / "data" / kind).mkdir(parents=True)
    for number in range(6):
        soft = random.uniform(0.2, 0.7, (64, 64))
        for kind, pixels in (("BS", soft), ("CXR", soft + 0.2)):
            images.write(folder / "data" / kind / f"{number}.png", pixels)
        mask = np.zeros((64, 64))
        mask[16:48, 8:56] = 1
        images.write(folder / "data" / "Mask" / f"{number}.png", mask)
    run("dataSegmentation.py", "data.root=data", "data.split=[0.67,0.33,0]", folder=folder)

    vqgan = fill(MLVQGAN(channels=(8, 16), residual_channels=8, residual_layers=1, codes=32))
    vqgan.save(folder / "vqgan.safetensors")
    MLVQGAN(channels=(8, 16), residual_channels=8, residual_layers=1, codes=32).save(folder / "other.safetensors")
    settings = config.parse("", (), ["--profile", "demo"])
    for method in (BSLDM, GLLCM):
        unet = fill(ConditionalUNet(**UNET, prior=SPREAD, condition="plain", schedule=method.schedule))
        unet.notes = method.notes(settings, vqgan)
        unet.save(folder / f"{method.section}.safetensors")
    ConditionalUNet(in_channels=4, out_channels=4, **UNET).save(folder / "narrow.safetensors")
    return folder


DISTIL = [
    "data.root=data",
    "data.lists=runs/demo/lists",
    "vqgan.weights=vqgan.safetensors",
    "augment.versions=1",
    "augment.rotate=0",
    "distill.epochs=2",
    "distill.batch_size=3",
    "distill.learning_rate=1e-3",
    "train.sample_every=100",
]


def resumed(script, arguments, folder, monkeypatch):
    """The weights of a student that was trained in one go, which are, to the bit, those of one that was killed in its
    fourth step, with the state of the third, and went on."""
    monkeypatch.setattr(loop, "draw_curves", lambda *_: None)  # takes longer than the training
    run(script, *arguments, "runs=whole", folder=folder)

    update = loop.Trainer.update
    with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
        patch.setattr(loop.Trainer, "update", lambda self, *a: update(self, *a) if self.progress.step < 3 else 1 / 0)
        run(script, *arguments, "runs=killed", "train.save_every=0", folder=folder)
    assert "going on from" in run(script, *arguments, "runs=killed", folder=folder)
    path = Path(f"{script.removesuffix('_train.py')}_student") / "weights.safetensors"
    assert (folder / "whole" / path).read_bytes() == (folder / "killed" / path).read_bytes()
    return folder / "whole" / path


def test_a_student_resumes_to_the_bit_and_says_what_it_is(folder, monkeypatch):
    path = resumed("lcm_train.py", ["lcm.teacher=lcm.safetensors", *DISTIL], folder, monkeypatch)

    # it has moved from its teacher, and its header says whose student it is and how it is sampled
    student = ConditionalUNet.load(path)
    teacher = ConditionalUNet.load(folder / "lcm.safetensors")
    assert any(not torch.equal(a, b) for a, b in zip(student.parameters(), teacher.parameters()))
    assert student.notes["student"]["teacher"] == checkpoint.digest(folder / "lcm.safetensors")
    assert student.notes["works_with"]["steps"] == 4

    # so the evaluation samples it in four steps without guidance, unless the command line says otherwise
    monkeypatch.chdir(folder)
    asked_for = partial(weights.student_settings, section="lcm")
    for typed, steps in (((), 4), (("lcm.steps=2",), 2)):
        argv = ["--profile", "demo", f"lcm.weights={path}", *typed]
        settings = config.parse_variants("", ("lcm",), argv, asked_for)[""]
        assert (settings.lcm.steps, settings.lcm.guidance) == (steps, "vanilla")
    assert "a student, in 2 steps" in weights.describe(settings, "GL-LCM", "lcm")
    # a student's estimates are no steps of a walk
    said = run("lcm_train.py", f"lcm.teacher={path}", *DISTIL, "runs=twice", folder=folder, status=2)
    assert "is a student itself" in said.splitlines()[-1]


def test_a_student_of_bsldm_resumes_to_the_bit(folder, monkeypatch):
    settings = ["ldm.teacher=ldm.safetensors", *DISTIL, "distill.epochs=1", "distill.batch_size=1"]
    path = resumed("ldm_train.py", settings, folder, monkeypatch)
    student = ConditionalUNet.load(path)
    teacher = ConditionalUNet.load(folder / "ldm.safetensors")
    assert any(not torch.equal(a, b) for a, b in zip(student.parameters(), teacher.parameters()))


def test_bsldm_has_students_too_which_may_learn_from_the_data_alone(folder):
    arguments = ("ldm.teacher=ldm.safetensors", *DISTIL, "distill.epochs=1", "distill.path=data")
    said = run("ldm_train.py", *arguments, folder=folder)
    assert "Traceback" not in said
    path = folder / "runs" / "demo" / "ldm_student" / "weights.safetensors"
    pipeline = BSLDM.load(folder / "vqgan.safetensors", path)
    assert (pipeline.options["sampler"], pipeline.steps) == ("lcm", 4)
    assert pipeline.unet.notes["student"]["path"] == "data"
    assert torch.isfinite(pipeline(torch.zeros(1, 1, 64, 64), ["one"])).all()
    with pytest.raises(UserError, match="at most 47 steps"):
        BSLDM.load(folder / "vqgan.safetensors", path, steps=48)


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["lcm.teacher=missing.safetensors"], "missing.safetensors"),
        (["lcm.teacher=ldm.safetensors"], "weights of BS-LDM, not of GL-LCM"),
        (["lcm.teacher=vqgan.safetensors"], "holds the weights of MLVQGAN"),
        (["lcm.teacher=lcm.safetensors", "vqgan.weights=other.safetensors"], "the latents of another autoencoder"),
        (["lcm.teacher=lcm.safetensors", "lcm.guidance=cfg"], "lcm.guidance=cfg cannot be distilled"),
        (["lcm.teacher=lcm.safetensors", "distill.path=data"], "distill.path=data learns from the data alone"),
        (["lcm.teacher=narrow.safetensors"], "narrow.safetensors takes 4 channels"),
    ],
)
def test_a_wrong_teacher_is_refused_in_one_line(folder, arguments, words):
    said = run("lcm_train.py", *DISTIL, *arguments, "runs=refused", folder=folder, status=2)
    assert words in said.splitlines()[-1] and "Traceback" not in said
    assert not (folder / "refused").exists()
