"""The training loop: what is learned, skipped, averaged, logged; its order and noise. On a line fitted to points."""

import copy
import csv
import math
from pathlib import Path

import pytest
import torch
from line_training import Line, Points, make, objective, same

from models import config, losses, schedulers
from models.runtime import checkpoint
from models.runtime.files import UserError
from models.training import autoencoder, batches, interfaces, rates
from models.unet import ConditionalUNet
from models.vqgan import MLVQGAN


def logged_rows(folder: Path) -> list[dict[str, str]]:
    """The lines of a training's log, an epoch each."""
    with open(folder / "log.csv") as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
def test_it_learns_and_writes_what_it_promises(tmp_path):
    trainer = make(tmp_path, epochs=40, milestones=(), validate_every=4)
    assert trainer.run() == 0
    assert trainer.networks["line"].a.item() == pytest.approx(2, abs=0.1)
    written = {path.name for path in tmp_path.iterdir()}
    assert {"log.csv", "curves.png", "samples", "weights.safetensors", "best.safetensors"} <= written

    rows = logged_rows(tmp_path)
    assert len(rows) == 40
    assert float(rows[-1]["loss"]) < 0.1 * float(rows[0]["loss"])
    assert rows[3]["validation_loss"]
    assert not rows[2]["validation_loss"]

    assert Line.load(tmp_path / "weights.safetensors").a == trainer.ema.a
    samples = sorted(path.name for path in (tmp_path / "samples").iterdir())
    assert samples[:2] == ["epoch_0003.png", "epoch_0006.png"]


def test_the_order_is_a_function_of_seed_and_epoch():
    first = batches.data_order(14, seed=0, epoch=1)
    assert sorted(first) == list(range(14))
    assert batches.data_order(14, seed=0, epoch=1) == first
    assert batches.data_order(14, seed=0, epoch=2) != first
    assert batches.data_order(14, seed=1, epoch=1) != first


def test_noise_is_a_function_of_seed_step_and_name_and_of_the_place_in_the_batch():
    cpu = torch.device("cpu")
    everywhere = list(range(6))
    places = [1, 3, 5]
    whole = interfaces.Noise(0, 5, 6, everywhere, cpu)
    shard = interfaces.Noise(0, 5, 6, places, cpu)
    next_step = interfaces.Noise(0, 6, 6, everywhere, cpu)
    assert torch.equal(shard.normal("a", 2, 3), whole.normal("a", 2, 3)[places])
    assert torch.equal(shard.integers("t", 1000), whole.integers("t", 1000)[places])
    assert not torch.equal(whole.normal("a"), whole.normal("b"))
    assert not torch.equal(whole.normal("a"), next_step.normal("a"))


@pytest.mark.slow
def test_a_bad_batch_changes_nothing_and_is_counted(tmp_path, capsys):
    trainer = make(tmp_path, source=Points(bad=7), epochs=4)
    assert trainer.run() == 0
    assert trainer.progress.skipped == 4  # once an epoch
    assert torch.isfinite(trainer.networks["line"].a)
    assert torch.isfinite(trainer.ema.a)
    assert "point7" in capsys.readouterr().err
    assert logged_rows(tmp_path)[-1]["skipped"] == "4"


def test_a_bad_batch_does_not_reach_the_codebook(tmp_path):
    torch.manual_seed(0)
    vqgan = MLVQGAN(channels=(8,), residual_channels=8, residual_layers=1, codes=16)

    def explode(networks, batch, noise):
        reconstruction, commitment = networks["line"](batch["x"])
        loss = reconstruction.square().mean() / 0 + commitment
        return {"line": loss}, {"loss": loss}

    trainer = make(tmp_path, network=vqgan, objective=explode, average=0.0)
    before = copy.deepcopy(vqgan.state_dict())
    assert trainer.update({"x": torch.rand(2, 1, 8, 8)}, ["a", "b"]) is None
    assert same(before, vqgan.state_dict())


def test_ten_bad_batches_in_a_row_stop_the_training_with_their_names(tmp_path, capsys):
    class Bad(Points):
        def __init__(self):
            super().__init__()
            self.y = self.y * torch.nan

    trainer = make(tmp_path, source=Bad())
    assert trainer.run() == 1
    assert trainer.progress.step == 10
    assert "point" in capsys.readouterr().err


@pytest.mark.slow
def test_micro_batches_add_up_to_the_whole(tmp_path):
    slopes = []
    for count in (1, 3, 4):
        trainer = make(tmp_path / str(count), accumulate=count, epochs=2)
        trainer.run()
        slopes.append(trainer.networks["line"].a.item())
    assert slopes == pytest.approx([slopes[0]] * 3, abs=1e-5)


@pytest.mark.slow
def test_learning_rate_falls_at_its_milestones(tmp_path):
    computed = [rates.learning_rate(1.0, epoch, (2, 4), 0.1) for epoch in (0, 1, 2, 4)]
    assert computed == pytest.approx([1, 1, 0.1, 0.01])
    make(tmp_path).run()
    logged = [float(row["learning_rate"]) for row in logged_rows(tmp_path)]
    assert logged == pytest.approx([0.1] * 4 + [0.01] * 2)


@pytest.mark.slow
def test_average_is_the_exponential_moving_average(tmp_path):
    before_steps = []

    def watch(networks, batch, noise):
        before_steps.append(networks["line"].a.item())
        return objective(networks, batch, noise)

    trainer = make(tmp_path, epochs=3, objective=watch, average=0.7, validate_every=99)
    trainer.run()
    steps = 3 * 4  # four batches an epoch; what is called later is the last validation
    after_steps = [*before_steps[1:steps], trainer.networks["line"].a.item()]
    expected = 0.0
    for step, slope in enumerate(after_steps):
        decay = min(0.7, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * slope
    assert trainer.ema.a.item() == pytest.approx(expected, rel=1e-4)


def test_the_denoising_objective_is_the_mean_squared_error_of_the_offset_noise():
    alpha_bar = schedulers.squared_cosine()
    generator = torch.Generator().manual_seed(0)
    batch = {name: torch.randn(3, 4, 8, 8, generator=generator) for name in ("soft", "cxr")}
    noise = interfaces.Noise(0, 0, 3, [0, 1, 2], torch.device("cpu"))
    seen = {}

    def unet(x, t):
        """An estimate of 0, whose error is the noise itself."""
        seen.update(x=x, t=t)
        return torch.zeros_like(x)

    offset_noise = 0.1
    objective = losses.denoising_objective(alpha_bar, offset_noise)
    phases, logged = objective({"unet": unet}, batch, noise)

    # z_t = sqrt(alpha_bar) z_0 + sqrt(1 - alpha_bar) eps, beside the CXR's latent, scaled alike
    eps = noise.normal("noise", 4, 8, 8) + offset_noise * noise.normal("offset", 4, 1, 1)
    alpha_bar_t = alpha_bar[seen["t"]][:, None, None, None]  # (B, 1, 1, 1)
    signal = alpha_bar_t.sqrt()
    z_t = signal * batch["soft"] + (1 - alpha_bar_t).sqrt() * eps
    assert torch.allclose(seen["x"][:, :4], z_t)
    assert torch.equal(seen["x"][:, 4:], signal * batch["cxr"])
    assert phases["unet"].item() == pytest.approx(eps.square().mean().item())
    assert logged["loss"] is phases["unet"]


def test_the_first_weights_must_be_finite(tmp_path):
    line = Line(3.0)
    line.save(tmp_path / "good.safetensors")
    assert checkpoint.init_from(Line(), str(tmp_path / "good.safetensors")).a == 3
    Line(math.nan).save(tmp_path / "bad.safetensors")
    with pytest.raises(UserError, match="bad.safetensors holds numbers that are not finite, in a"):
        checkpoint.init_from(Line(), str(tmp_path / "bad.safetensors"))


@pytest.mark.parametrize(
    "changes, words",
    [
        (
            ["data.image_size=96"],
            "data.image_size=96 is too small for MS-SSIM, which needs 161 pixels; set vqgan.loss.ms_ssim=0",
        ),
        (["data.image_size=256", "vqgan.crop=96"], "vqgan.crop=96 is too small for MS-SSIM"),
        (["data.image_size=96", "vqgan.loss.ms_ssim=0"], "no folder"),
        (["data.image_size=168"], "no folder"),
    ],
)
def test_images_too_small_for_ms_ssim_are_refused_before_anything_is_built(tmp_path, changes, words):
    places = [f"data.root={tmp_path / 'nowhere'}", f"runs={tmp_path}"]
    settings = config.parse("", ("runs", "data", "vqgan"), [*places, *changes])
    with pytest.raises(UserError, match=words):
        autoencoder.train(settings, ("vqgan",))
    assert not list(tmp_path.iterdir())


def test_a_training_can_start_from_weights(tmp_path):
    def unet(width: int) -> ConditionalUNet:
        return ConditionalUNet(width=width, multipliers=(1,), blocks=1, heads=4, attention=())

    path = tmp_path / "unet.safetensors"
    trained = unet(32)
    torch.nn.init.ones_(trained.out[2].weight)
    trained.save(path)

    untrained = unet(32)
    assert checkpoint.init_from(untrained, None) is untrained
    assert not untrained.out[2].weight.any()
    started = checkpoint.init_from(untrained, str(path))
    for expected, parameter in zip(trained.parameters(), started.parameters(), strict=True):
        assert torch.equal(parameter, expected)
        assert parameter.requires_grad

    wider = unet(64)
    with pytest.raises(UserError, match="unet.safetensors holds weights of another architecture"):
        checkpoint.init_from(wider, str(path))
    with pytest.raises(UserError, match="no weights at"):
        checkpoint.init_from(wider, str(tmp_path / "none.safetensors"))
