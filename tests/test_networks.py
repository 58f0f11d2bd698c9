"""The networks against the reference figures, and what their code promises."""

import json

import numpy as np
import pytest
import torch
from golden_draws import GOLDEN, draw, figures, fill

from models import schedulers
from models.layers import checkpoint_activations
from models.unet import AttentionBlock, ConditionalUNet, time_embedding
from models.vqgan import MLVQGAN, Codebook, PatchDiscriminator

RELEASED = json.loads((GOLDEN / "released_checkpoints.json").read_text())
SMALL_VQGAN = dict(channels=(8, 16, 32), residual_channels=16, residual_layers=2, codes=64)
SMALL_UNET = dict(width=32, multipliers=(1, 2), blocks=1, heads=4, attention=(2, 64))


def close(found, expected, relative=1e-4):
    found, expected = torch.as_tensor(found).detach(), torch.as_tensor(expected)
    return float((found - expected).abs().max()) <= relative * float(expected.abs().max())


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, build",
    [
        ("bsldm_unet", lambda: ConditionalUNet(qkv_by_head=True)),
        ("gllcm_unet", ConditionalUNet),
        ("bsldm_vqgan", lambda: MLVQGAN(codes=256)),
        ("gllcm_vqgan", MLVQGAN),
    ],
)
def test_full_size_names_shapes_and_counts_are_the_released_ones(name, build):
    with torch.device("meta"):
        network = build()
    assert {key: list(tensor.shape) for key, tensor in network.state_dict().items()} == RELEASED[name]["state_dict"]
    assert sum(parameter.numel() for parameter in network.parameters()) == RELEASED[name]["parameters"]


@pytest.mark.slow
@pytest.mark.parametrize("name, by_head", [("unet_bsldm", True), ("unet_gllcm", False)])
def test_unet_output(name, by_head):
    expected = figures(f"{name}.npz")
    unet = fill(ConditionalUNet(**SMALL_UNET, qkv_by_head=by_head))
    assert close(unet(draw("unet/x", (2, 8, 8, 8)), torch.from_numpy(expected["t"])), expected["y"])
    other = fill(ConditionalUNet(**SMALL_UNET, qkv_by_head=not by_head))
    assert not close(other(draw("unet/x", (2, 8, 8, 8)), torch.from_numpy(expected["t"])), expected["y"])


def test_vqgan_parts_and_one_step_of_the_codebook():
    expected = figures("vqgan.npz")
    vqgan = fill(MLVQGAN(**SMALL_VQGAN))
    image = draw("vqgan/image", (2, 1, 64, 64)).tanh()
    z_e = vqgan.encode(image)
    z_q, loss, indices = vqgan.quantize(z_e)
    assert (
        close(z_e, expected["z_e"]) and close(z_q, expected["z_q"]) and (indices.numpy() == expected["indices"]).all()
    )
    assert close(vqgan.decode(z_q), expected["decode_z_q"]) and close(vqgan.decode(z_e), expected["decode_z_e"])
    assert close(loss, expected["quantization_loss"]) and torch.equal(vqgan.latent(image), z_q)
    _, train_loss = vqgan.train()(image)
    assert close(train_loss, expected["train_quantization_loss"])
    codebook = vqgan.quantizer.quantizer
    for key, tensor in (
        ("ema_cluster_size", codebook.ema_cluster_size),
        ("ema_w", codebook.ema_w),
        ("embedding", codebook.embedding.weight),
    ):
        assert close(tensor, expected[f"after_one_training_forward/{key}"]), key


def test_discriminator_logits():
    target = draw("losses/target", (2, 1, 192, 192)).tanh()
    prediction = (target + 0.2 * draw("losses/error", (2, 1, 192, 192))).clamp(-1, 1)
    critic = PatchDiscriminator(channels=8)
    names = json.loads((GOLDEN / "discriminator_keys.json").read_text())
    assert {key: list(tensor.shape) for key, tensor in critic.state_dict().items()} == names
    fill(critic)
    expected = np.load(GOLDEN / "discriminator.npz")
    found = [critic(target), critic(prediction)]
    assert sorted(expected.files) and all(
        any(close(logits, expected[key]) for logits in found) for key in expected.files
    )


def test_quantisation_is_float32_and_straight_through():
    codebook = Codebook(16, 4, decay=0.9, commitment=0.25, restart=False).eval()
    z_e = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0), requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        z_q, loss, indices = codebook(z_e)
    distances = torch.cdist(
        z_e.detach().permute(0, 2, 3, 1).reshape(-1, 4).double(), codebook.embedding.weight.double()
    )
    assert z_q.dtype == loss.dtype == torch.float32 and torch.equal(indices.flatten(), distances.argmin(1))
    z_q.sum().backward()
    assert torch.equal(z_e.grad, torch.ones_like(z_e))


def test_restart_brings_unused_codes_into_use():
    z_e = torch.randn(4, 4, 16, 16, generator=torch.Generator().manual_seed(1)) * 0.01 + 3  # far from the first codes
    used = {}
    for restart in (False, True):
        torch.manual_seed(0)
        codebook = Codebook(64, 4, decay=0.9, commitment=0.25, restart=restart)
        for _ in range(5):
            _, loss, indices = codebook(z_e)
        used[restart] = len(indices.unique())
    assert used[True] > 60 > 5 > used[False] > 0


def test_unit_latent_changes_the_latents_and_not_the_images():
    vqgan = fill(MLVQGAN(**SMALL_VQGAN)).train()
    image = draw("vqgan/image", (2, 1, 64, 64)).tanh()
    for _ in range(3):
        vqgan(image)
    before, z_before = vqgan.eval()(image)[0], vqgan.latent(image)
    vqgan.unit_latent()
    after, z_after = vqgan(image)[0], vqgan.latent(image)
    assert close(after, before, 1e-4) and not close(z_after, z_before, 0.1)
    assert z_after.square().mean().item() == pytest.approx(1, abs=0.2)


def test_activation_checkpointing_gives_the_same_gradients():
    unet = fill(ConditionalUNet(**SMALL_UNET)).requires_grad_(True)
    gradients = []
    for enabled in (False, True):
        checkpoint_activations(unet, enabled)
        unet.zero_grad()
        unet(draw("unet/x", (2, 8, 8, 8)), torch.tensor([5, 900])).square().mean().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in unet.parameters()]))
    assert unet.checkpointing and torch.equal(*gradients)


def test_time_embedding_is_cosines_then_sines():
    found = time_embedding(torch.tensor([0, 7]), 128)
    i = np.arange(64)
    assert np.allclose(
        found[1], np.concatenate([np.cos(7 * 10000 ** (-i / 64)), np.sin(7 * 10000 ** (-i / 64))]), atol=1e-6
    )


def test_attention_is_softmax_attention():
    torch.manual_seed(0)
    block = AttentionBlock(32, 4, qkv_by_head=True)
    torch.nn.init.normal_(block.proj_out.weight)
    x = torch.randn(2, 32, 4, 4)
    qkv = block.qkv(block.norm(x.flatten(2))).reshape(8, 24, 16)
    q, k, v = qkv.split(8, 1)  # (B heads, C / heads, N)
    weights = torch.softmax(torch.einsum("bct,bcs->bts", q, k) / 8**0.5, -1)
    expected = x + block.proj_out(torch.einsum("bts,bcs->bct", weights, v).reshape(2, 32, 16)).view_as(x)
    assert close(block(x), expected, 1e-5)


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: MLVQGAN(**SMALL_VQGAN).encode(torch.zeros(1, 1, 60, 64)), "multiples of 8"),
        (lambda: ConditionalUNet(**SMALL_UNET)(torch.zeros(1, 8, 7, 8), torch.zeros(1)), "multiples of 2"),
        (lambda: ConditionalUNet(width=48), "multiple of 32"),
        (lambda: AttentionBlock(32, 5, False), "5 attention heads"),
    ],
)
def test_shapes_that_cannot_be_are_refused(call, words):
    with pytest.raises(ValueError, match=words):
        call()


@pytest.mark.parametrize("t", [5, 100, 400, 950])
def test_preconditioning_is_the_posterior_of_a_gaussian(t):
    """Latents that differ from the CXR's by N(0, 0.3^2): k d is the regression of z_0 - CXR on d, and what is left has
    unit variance.
    """
    alpha_bar = schedulers.scaled_linear()[t].double()
    k, c_in, c_out = (float(value) for value in schedulers.precondition(0.09, alpha_bar))
    random = np.random.default_rng(0)
    difference, noise = 0.3 * random.standard_normal(400_000), random.standard_normal(400_000)
    d = difference + noise * float(((1 - alpha_bar) / alpha_bar).sqrt())
    assert k == pytest.approx(np.cov(d, difference)[0, 1] / d.var(), rel=0.03, abs=2e-4)
    assert (c_in * d).std() == pytest.approx(1, rel=0.01) and ((difference - k * d) / c_out).std() == pytest.approx(
        1, rel=0.01
    )


def test_a_network_with_a_prior_starts_at_the_cxr_and_is_judged_by_what_its_layers_get_wrong():
    torch.manual_seed(0)
    unet = ConditionalUNet(**SMALL_UNET, prior=0.3, schedule="squared_cosine")
    cxr, soft, eps = (draw(f"prior/{name}", (3, 4, 8, 8)) for name in ("cxr", "soft", "eps"))
    soft, t = cxr + 0.3 * soft, torch.tensor([3, 500, 998])
    alpha_bar = unet.alpha_bar[t].view(-1, 1, 1, 1)
    z_t = schedulers.add_noise(soft, eps, alpha_bar.flatten())
    z_0 = (z_t - (1 - alpha_bar).sqrt() * unet(torch.cat([z_t, cxr], 1), t)[:, :4]) / alpha_bar.sqrt()
    k, c_in, c_out = schedulers.precondition(0.09, alpha_bar)
    assert torch.allclose(z_0[:2], (cxr + k * (z_t / alpha_bar.sqrt() - cxr))[:2], atol=1e-4)  # the layers give 0
    assert torch.allclose(
        unet(torch.cat([z_t, cxr], 1), t)[2, :4],
        ((z_t - alpha_bar.sqrt() * cxr) / (1 - alpha_bar).sqrt())[2],
        atol=1e-4,
    )
    torch.nn.init.normal_(unet.out[2].weight, std=0.05)
    predicted = unet(torch.cat([z_t, cxr], 1), t)
    layers = unet.layers(torch.cat([c_in * (z_t / alpha_bar.sqrt() - cxr), cxr], 1), t)
    wanted = (soft - cxr - k * (z_t / alpha_bar.sqrt() - cxr)) / c_out
    for i in range(2):
        error = unet.loss_weight(t)[i] * (predicted[i, :4] - eps[i]).square().mean()
        assert float(error) == pytest.approx(float((layers[i, :4] - wanted[i]).square().mean()), rel=1e-2)


def test_a_prior_is_kept_with_the_weights(tmp_path):
    unet = fill(ConditionalUNet(**SMALL_UNET, prior=0.2, schedule="squared_cosine"))
    unet.save(tmp_path / "unet.safetensors")
    again, x, t = (
        ConditionalUNet.load(tmp_path / "unet.safetensors"),
        draw("unet/x", (2, 8, 8, 8)),
        torch.tensor([10, 990]),
    )
    assert torch.equal(again(x, t), unet(x, t)) and again.settings["prior"] == 0.2
    assert not torch.allclose(fill(ConditionalUNet(**SMALL_UNET))(x, t), unet(x, t), atol=0.1)


def test_latents_between_two_codes_get_the_nearer_one():
    """Nearer than float32 can tell; and neither equal codes nor numbers whose squares overflow stop the search."""
    codebook = Codebook(300, 4, 0.9, 0.25, False).eval()
    rng = np.random.default_rng(1)
    codes = torch.from_numpy(rng.standard_normal((300, 4)).astype(np.float32))
    codes[7] = codes[3]
    codebook.embedding.weight.data.copy_(codes)
    one, other = rng.integers(10, 300, (2, 2000))
    middle = (codes[one] + codes[other]) / 2
    flat = torch.cat([middle, codes, torch.full((1, 4), 3e30)])
    # by the differences themselves, which |z|^2 - 2 z e + |e|^2 would round away
    squares = (flat[:, None].double() - codes[None].double()).square().sum(2)
    found = squares.gather(1, codebook.nearest(flat)[:, None])[:, 0]
    torch.testing.assert_close(found, squares.amin(1), rtol=1e-13, atol=1e-13)
    assert (squares.sort(1).values[:, :2].diff(dim=1)[:2000] < 1e-7).sum() > 50  # there are such latents


@pytest.mark.parametrize("channels", [3, 4, 12])
def test_the_nearest_code_is_the_nearest(channels):
    """By a tree or by all distances; latents that are not finite get some code, and training goes on."""
    codebook = Codebook(300, channels, 0.9, 0.25, False)
    flat = torch.from_numpy(np.random.default_rng(0).standard_normal((500, channels)).astype(np.float32))
    distances = torch.cdist(flat.double(), codebook.embedding.weight.double())
    assert torch.equal(codebook.nearest(flat), distances.argmin(1))
    codebook.eval()
    assert torch.equal(codebook.nearest(flat), distances.argmin(1))
    codebook.train()
    flat[3, 0] = torch.nan
    assert codebook.nearest(flat).shape == (500,) and torch.equal(codebook.nearest(flat)[4:], distances.argmin(1)[4:])
