"""The loss terms against the published implementation's numbers (golden/), NumPy definitions and their invariants."""

import json
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.signal import convolve2d

from models import losses
from models.runtime.files import UserError

GOLDEN = Path(__file__).parent / "golden"
EXPECTED = json.loads((GOLDEN / "losses.json").read_text())


def draw(name: str, shape: tuple) -> np.ndarray:
    """Standard normal noise that golden/README.md defines by name."""
    return np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape, dtype=np.float32)


@pytest.fixture(scope="module")
def images():
    """(prediction, target), each (2, 1, 192, 192) in [-1, 1]."""
    shape = (2, 1, 192, 192)
    target = np.tanh(draw("losses/target", shape))
    prediction = np.clip(target + 0.2 * draw("losses/error", shape), -1, 1)
    return torch.from_numpy(prediction), torch.from_numpy(target)


@pytest.fixture(scope="module")
def logits():
    with np.load(GOLDEN / "discriminator.npz") as file:
        return torch.from_numpy(file["logits_fake"]), torch.from_numpy(file["logits_real"])


@pytest.fixture(scope="module")
def perceptual():
    try:
        return losses.Perceptual("vgg")
    except UserError as error:
        pytest.skip(str(error))


def smooth(name: str, side: int) -> torch.Tensor:
    """One (1, 1, side, side) image in [-1, 1] with structure at every scale."""
    coarse = torch.from_numpy(draw(name, (1, 1, 6, 6)))
    fine = torch.from_numpy(draw(name + "/fine", (1, 1, side, side)))
    return torch.tanh(torch.nn.functional.interpolate(coarse, size=(side, side), mode="bicubic") + 0.3 * fine)


def reference_ms_ssim(x: np.ndarray, y: np.ndarray, data_range: float) -> float:
    """Wang et al. 2003 written out for one image, in float64, with a two-dimensional window."""
    grid = np.arange(-5, 6)
    window = np.exp(-(grid[:, None] ** 2 + grid[None, :] ** 2) / (2 * 1.5**2))
    window /= window.sum()

    def mean(image):
        return convolve2d(image, window, mode="valid")

    x, y, value = x.astype(float), y.astype(float), 1.0
    for scale, weight in enumerate((0.0448, 0.2856, 0.3001, 0.2363, 0.1333)):
        if scale > 0:
            x, y = (image.reshape(image.shape[0] // 2, 2, image.shape[1] // 2, 2).mean(axis=(1, 3)) for image in (x, y))
        m_x, m_y = mean(x), mean(y)
        s_xx, s_yy, s_xy = mean(x * x) - m_x**2, mean(y * y) - m_y**2, mean(x * y) - m_x * m_y
        terms = (2 * s_xy + (0.03 * data_range) ** 2) / (s_xx + s_yy + (0.03 * data_range) ** 2)
        if scale == 4:
            terms = terms * (2 * m_x * m_y + (0.01 * data_range) ** 2) / (m_x**2 + m_y**2 + (0.01 * data_range) ** 2)
        value *= max(terms.mean(), 0) ** weight
    return value


@pytest.mark.slow
def test_ms_ssim_is_the_definition(images):
    prediction, target = images
    expected = [reference_ms_ssim(p, t, 2.0) for p, t in zip(prediction[:, 0].numpy(), target[:, 0].numpy())]
    assert float(losses.ms_ssim(prediction, target, as_published=False)) == pytest.approx(np.mean(expected), rel=1e-5)
    x, other = (smooth("losses/x", 192) + 1) / 2, (smooth("losses/y", 192) + 1) / 2  # in [0, 1]
    y = 0.7 * x + 0.3 * other
    expected = reference_ms_ssim(x[0, 0].numpy(), y[0, 0].numpy(), 1.0)
    assert 0.1 < expected < 0.95 and float(losses.ms_ssim(x, y, data_range=1.0)) == pytest.approx(expected, rel=1e-4)


def test_ms_ssim_with_the_published_range_gives_the_published_number(images):
    assert float(losses.ms_ssim(*images)) == pytest.approx(EXPECTED["ms_ssim"], rel=1e-4)
    # the guess is right where every scale reaches below -0.5, as X-rays do
    dark = smooth("losses/x", 192).clamp(max=-0.6)
    other = (dark + 0.1 * torch.from_numpy(draw("losses/y", (1, 1, 192, 192)))).clamp(-1, 1)
    assert losses.ms_ssim(dark, other, as_published=False) == losses.ms_ssim(dark, other)


def test_ms_ssim_of_equal_opposite_and_constant_images():
    image = smooth("losses/x", 177).requires_grad_()  # odd at two scales
    assert float(losses.ms_ssim(image, image).detach()) == pytest.approx(1, abs=1e-6)
    flat = torch.full((1, 1, 192, 192), 0.3)
    assert float(losses.ms_ssim(flat, flat)) == pytest.approx(1, abs=1e-6)
    opposite = losses.ms_ssim(image, -image.detach())
    opposite.backward()
    assert float(opposite.detach()) == 0 and bool(torch.isfinite(image.grad).all())


def test_ms_ssim_gradient_is_the_slope():
    x, y = smooth("losses/x", 161).double(), smooth("losses/x", 161).double().roll(3, dims=-1)
    direction = torch.from_numpy(draw("losses/error", (1, 1, 161, 161))).double()
    x.requires_grad_()
    losses.ms_ssim(x, y).backward()
    with torch.no_grad():
        slope = (losses.ms_ssim(x + 1e-6 * direction, y) - losses.ms_ssim(x - 1e-6 * direction, y)) / 2e-6
    assert float((x.grad * direction).sum()) == pytest.approx(float(slope), rel=1e-5)


def test_ms_ssim_keeps_float32_under_autocast(images):
    with torch.autocast("cpu", torch.bfloat16):
        inside = losses.ms_ssim(*images)
    assert inside == losses.ms_ssim(*images) and inside.dtype == torch.float32
    assert losses.ms_ssim(images[0].bfloat16(), images[1].bfloat16()).dtype == torch.float32


def test_ms_ssim_refuses_small_and_unequal_images():
    small = torch.zeros(1, 1, 160, 192)
    with pytest.raises(ValueError, match="160 x 192 are too small for MS-SSIM: both sides must be at least 161"):
        losses.ms_ssim(small, small)
    with pytest.raises(ValueError, match="one shape"):
        losses.ms_ssim(torch.zeros(1, 1, 192, 192), torch.zeros(2, 1, 192, 192))


@pytest.mark.slow
def test_perceptual_gives_the_published_number_and_never_trains(perceptual, images):
    assert float(perceptual(*images)) == pytest.approx(EXPECTED["perceptual_lpips_vgg"], rel=1e-4)
    small = [image[:, :, :64, :64] for image in images]
    singles = [float(perceptual(prediction[None], target[None])) for prediction, target in zip(*small)]
    assert float(perceptual.train()(*small)) == pytest.approx(np.mean(singles), rel=1e-5)
    assert not any(module.training for module in perceptual.modules())
    assert not any(parameter.requires_grad for parameter in perceptual.parameters())
    prediction = small[0].clone().requires_grad_()
    perceptual(prediction, small[1]).backward()
    assert float(prediction.grad.abs().max()) > 0


def test_adversarial_terms_give_the_published_numbers(logits):
    fake, real = logits
    generator, discriminator = losses.generator_adversarial(fake), losses.discriminator_adversarial(fake, real)
    assert float(generator) == pytest.approx(EXPECTED["adversarial_generator"], rel=1e-4)
    both = EXPECTED["adversarial_discriminator_fake"] + EXPECTED["adversarial_discriminator_real"]
    assert float(discriminator) == pytest.approx(0.5 * both, rel=1e-4)
    assert float(losses.least_squares(torch.tensor([-2.0, 3.0]), 1)) == pytest.approx(
        ((-0.1 - 1) ** 2 + (3 - 1) ** 2) / 2
    )


def hybrid(monkeypatch=None, **weights) -> losses.HybridLoss:
    if monkeypatch:  # VGG16 takes seconds; its value is held to golden/ above
        monkeypatch.setattr(losses, "Perceptual", lambda net, features: lambda x, y: (x - y).abs().max())
    return losses.HybridLoss(**{"pixel": "mse", "perceptual": 0.0, "adversarial": 0.0, "ms_ssim": 0.0} | weights)


def test_hybrid_loss_is_the_weighted_sum_of_its_terms(images, logits, monkeypatch):
    prediction, target = images[0].clone().requires_grad_(), images[1]
    loss = hybrid(monkeypatch, perceptual=0.001, adversarial=0.01, ms_ssim=0.5)
    total, terms = loss(prediction, target, torch.tensor(0.25), lambda image: logits[0])
    expected = {
        "pixel": EXPECTED["mse"],
        "commitment": 0.25,
        "perceptual": float((images[0] - target).abs().max()),
        "adversarial": EXPECTED["adversarial_generator"],
        "ms_ssim": 1 - float(losses.ms_ssim(*images)),
    }
    assert {name: float(term) for name, term in terms.items()} == pytest.approx(expected, rel=1e-4)
    weighted = (
        expected["pixel"]
        + 0.25
        + 0.001 * expected["perceptual"]
        + 0.01 * expected["adversarial"]
        + 0.5 * expected["ms_ssim"]
    )
    assert float(total.detach()) == pytest.approx(weighted, rel=1e-4) and not any(
        term.requires_grad for term in terms.values()
    )
    total.backward()
    assert float(prediction.grad.abs().max()) > 0
    halves = EXPECTED["adversarial_discriminator_fake"] + EXPECTED["adversarial_discriminator_real"]
    assert float(loss.discriminator_loss(*logits)) == pytest.approx(0.01 * 0.5 * halves, rel=1e-4)


def test_hybrid_loss_skips_what_weighs_nothing(images, monkeypatch):
    def never(*arguments):
        raise AssertionError("a term of weight 0 was computed")

    monkeypatch.setattr(losses, "ms_ssim", never)
    monkeypatch.setattr(losses, "Perceptual", never)
    total, terms = hybrid(pixel="l1")(*images, torch.tensor(0.5), never)
    assert set(terms) == {"pixel", "commitment"} and float(total) == pytest.approx(EXPECTED["l1"] + 0.5, rel=1e-4)


@pytest.mark.parametrize("weight", [0.5, 0.0])
def test_autoencoder_objective_updates_each_network_by_its_own_loss(weight):
    """Two parameters as networks: reconstruction g x, logits d x; every gradient is worked out by hand."""
    g = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    d = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    image = torch.full((3, 1, 4, 4), 0.6, dtype=torch.float64)
    commitment = 0.25 * g
    networks = {"vqgan": lambda x: (g * x, commitment), "discriminator": lambda x: d * x}
    minimised, logged = losses.autoencoder_objective(hybrid(adversarial=weight))(networks, {"image": image}, None)
    # pixel (0.3 - 0.6)^2, commitment 0.125, adversarial (0.6 - 1)^2 with fake logits of 0.6; computed in float32
    assert float(logged["loss"].detach()) == pytest.approx(0.09 + 0.125 + weight * 0.16, rel=1e-6)
    assert minimised["vqgan"] is logged["loss"]
    (slope,) = torch.autograd.grad(minimised["vqgan"], g, retain_graph=True)
    assert float(slope) == pytest.approx(2 * (0.3 - 0.6) * 0.6 + 0.25 + weight * 2 * (0.6 - 1) * 2 * 0.6, rel=1e-6)
    if not weight:
        assert set(minimised) == {"vqgan"} and set(logged) == {"loss", "pixel", "commitment"}
        return
    # discriminator: half of fake 0.6 against 0 and real 1.2 against 1, and nothing of it reaches the generator
    assert (
        float(minimised["discriminator"])
        == pytest.approx(weight * 0.5 * (0.36 + 0.04), rel=1e-6)
        == float(logged["discriminator"])
    )
    slopes = torch.autograd.grad(minimised["discriminator"], (g, d), allow_unused=True)
    assert slopes[0] is None and float(slopes[1]) == pytest.approx(weight * (0.6 * 0.3 + 0.2 * 0.6), rel=1e-6)


def test_noise_loss_counts_the_noises_channels_only():
    predicted, noise = (
        torch.from_numpy(draw("losses/predicted", (3, 8, 5, 6))),
        torch.from_numpy(draw("losses/noise", (3, 4, 5, 6))),
    )
    expected = np.mean((predicted.numpy()[:, :4].astype(float) - noise.numpy()) ** 2)
    assert float(losses.noise_loss(predicted, noise)) == pytest.approx(expected, rel=1e-6)
    weighted = np.mean(
        [
            w * np.mean((p - n) ** 2)
            for w, p, n in zip((2, 0, 0.5), predicted.numpy()[:, :4].astype(float), noise.numpy())
        ]
    )
    assert float(losses.noise_loss(predicted, noise, torch.tensor([2.0, 0.0, 0.5]))) == pytest.approx(
        weighted, rel=1e-6
    )
    assert losses.noise_loss(predicted.bfloat16(), noise).dtype == torch.float32
    for wrong in (predicted[:, :3], predicted[:1], predicted[..., :1]):
        with pytest.raises(ValueError, match="at least the noise's channels"):
            losses.noise_loss(wrong, noise)
