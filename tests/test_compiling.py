"""The fast paths give the images of the plain one: compiled, channels last, bf16; for every sampler and guidance."""
import copy

import numpy as np
import pytest
import torch
from golden_draws import fill

from models import images, pipelines, scores
from models.layers import GroupNorm32
from models.runtime import compiling
from models.runtime.device import autocast
from models.simulate import phantom
from models.unet import ConditionalUNet
from models.vqgan import MLVQGAN

SIZE, CALL = 64, 6  # images in a call of the U-Net, the same for all methods, so that it is compiled once
WAYS = [*((pipelines.BSLDM, {"sampler": name}, 1) for name in ("ddpm", "ddim", "dpmpp")), (pipelines.GLLCM, {"guidance": "leg"}, 3),
        *((pipelines.GLLCM, {"guidance": name}, 2) for name in ("leg_shared", "cfg", "vanilla"))]  # the last: estimates a step
IDS = [next(iter(options.values())) for _, options, _ in WAYS]


@pytest.fixture(scope="module")
def networks():
    """Small ones, for a compiler's sake, with a tenth of the estimate: random estimates amplify rounding where trained ones correct it."""
    vqgan = fill(MLVQGAN(channels=(8, 16), residual_channels=8, residual_layers=1, codes=32))
    unet = fill(ConditionalUNet(width=32, multipliers=(1,), blocks=1, heads=4, attention=(1,)))
    unet.out[2].weight.mul_(0.1)
    return vqgan, unet


@pytest.fixture(scope="module")
def saved(networks, tmp_path_factory):
    """The files of the two networks."""
    folder = tmp_path_factory.mktemp("weights")
    paths = [folder / "vqgan.safetensors", folder / "unet.safetensors"]
    for network, path in zip(networks, paths):
        network.save(path)
    return paths


@pytest.fixture(scope="module")
def compiled_parts(saved):
    return pipelines.BSLDM.load(*saved, compiled=True).parts


def result(method, estimates: int) -> torch.Tensor:
    patients = [phantom.simulate(seed, SIZE) for seed in range(CALL // estimates)]
    return method(torch.stack([images.to_network(p.cxr, SIZE) for p in patients]), [str(i) for i in range(len(patients))],
                  np.stack([p.mask for p in patients]))


@pytest.mark.parametrize("kind, options, estimates", WAYS, ids=IDS)
def test_compiled_and_plain_give_the_same_image(networks, saved, compiled_parts, kind, options, estimates):
    """The plain pipeline holds the networks as they are, channels first."""
    fast = kind.load(*saved, compiled=True, steps=4, **options)
    fast.parts = fast.estimator, fast.encoder, fast.decoder = compiled_parts
    plain, found = result(kind(*networks, steps=4, **options), estimates), result(fast, estimates)
    assert fast.compiled and all(part.shapes for part in fast.parts)
    assert (plain - found).abs().mean() < 1e-4  # sums of another order; single codes or clipped pixels may differ by more


@pytest.mark.parametrize("kind, options, estimates", WAYS, ids=IDS)
def test_bf16_gives_the_same_image_at_36_db(networks, saved, kind, options, estimates):
    low = kind.load(*saved, precision="bf16", steps=4, **options)
    assert low.unet.input_blocks[0][0].weight.dtype == torch.bfloat16 and low.unet.out[0].weight.dtype == torch.float32
    plain, found = result(kind(*networks, steps=4, **options), estimates), result(low, estimates)
    assert found.dtype == torch.float32
    assert scores.psnr(*(images.to_unit(image.double()).flatten(0, 2).numpy() for image in (plain, found))) > 36


def test_bf16_calls_are_within_45_db(networks):
    vqgan, unet = networks
    torch.manual_seed(0)
    x, z, t = torch.rand(2, 1, SIZE, SIZE) * 2 - 1, torch.randn(2, 4, 16, 16), torch.tensor([3, 800])
    for call in (lambda: unet(torch.cat([z, z], 1), t), lambda: vqgan.encode(x), lambda: vqgan.decode(z)):
        with torch.no_grad():
            plain = call()
            with autocast(torch.device("cpu"), "bf16"):
                low = call()
        error = (low.double() - plain).square().mean() / (plain.max() - plain.min()) ** 2  # as PSNR has it
        assert low.dtype == torch.bfloat16 and 1e-8 < error < 10 ** -4.5  # and it is not float32 in disguise


def test_weights_cast_once_are_those_that_autocast_casts(networks):
    unet, z = networks[1], torch.randn(1, 8, 16, 16)
    settled = compiling.prepare_for_inference(copy.deepcopy(unet), torch.device("cuda"), "bf16", compiled=False)  # leaves the layout of the U-Net
    with torch.no_grad(), autocast(torch.device("cpu"), "bf16"):
        assert torch.equal(settled(z, torch.tensor([5])), unet(z, torch.tensor([5])))


def test_quantisation_and_group_normalisation_stay_in_float32(networks):
    vqgan = networks[0]
    torch.manual_seed(0)
    z_e, x = torch.randn(1, 4, 16, 16), 100 + torch.randn(2, 32, 8, 8)
    with autocast(torch.device("cpu"), "bf16"):
        assert torch.equal(vqgan.quantize(z_e)[2], vqgan.quantize(z_e.clone())[2]) and vqgan.quantize(z_e.bfloat16())[0].dtype == torch.float32
        codes = vqgan.quantize(z_e)[2]
        normalised = GroupNorm32(32).requires_grad_(False)(x)  # a mean of 100 leaves bf16 statistics nothing of a deviation of 1
    assert torch.equal(codes, vqgan.quantize(z_e)[2])
    assert torch.allclose(normalised, GroupNorm32(32).requires_grad_(False)(x))


def test_other_shapes_run_plain_and_a_failing_compiler_is_told_once(networks, monkeypatch):
    told, unet = [], networks[1]
    one, two = torch.randn(1, 8, 16, 16), torch.randn(2, 8, 16, 16)

    def broken(*_):
        raise RuntimeError("no compiler\nhere")

    monkeypatch.setattr(torch, "compile", lambda network, **_: network if not told else broken)
    part = compiling.Compiled(unet, told.append)
    with torch.no_grad():
        assert torch.equal(part(one, torch.tensor([5])), unet(one, torch.tensor([5]))) and part.shapes[0] == one.shape
        part.fast = None if part.shapes is None else broken
        assert torch.equal(part(two, torch.tensor([5, 6])), unet(two, torch.tensor([5, 6]))) and part.works and not told
        assert torch.equal(part(one, torch.tensor([5])), unet(one, torch.tensor([5]))) and not part.works
        part(one, torch.tensor([5]))
    assert told == ["warning: not compiled, slower: RuntimeError: no compiler here"]


def test_a_network_compiled_for_training_keeps_its_names_and_gradients():
    build = lambda: fill(MLVQGAN(channels=(8,), residual_channels=8, residual_layers=1, codes=8)).requires_grad_(True)  # noqa: E731
    plain, fast = build(), build()
    x, gradients = torch.rand(2, 1, 16, 16), []
    assert compiling.compile_for_training([fast.encoder], fast.encoder, (x,), "float32", pytest.fail)
    for network in (plain, fast, copy.deepcopy(fast)):
        network.encode(x).square().mean().backward()
        gradients.append(network.encoder.blocks[0].conv.weight.grad)
        assert network.state_dict().keys() == plain.state_dict().keys()
    assert all(torch.allclose(gradients[0], other, atol=1e-6) for other in gradients[1:])


class Unruly(torch.autograd.Function):
    """Fails in its backward pass, where a compiler does its second half."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        raise RuntimeError("no compiler")


def test_a_training_whose_compiler_fails_in_the_backward_pass_runs_plain(networks, monkeypatch):
    unet, told, z = copy.deepcopy(networks[1]).requires_grad_(True), [], torch.randn(1, 8, 16, 16)
    monkeypatch.setattr(torch, "compile", lambda call, **_: lambda *inputs: Unruly.apply(call(*inputs)))
    assert not compiling.compile_for_training([unet], unet, (z, torch.tensor([5])), "float32", told.append)
    assert told == ["warning: not compiled, slower: RuntimeError: no compiler"] and all(p.grad is None for p in unet.parameters())
    unet(z, torch.tensor([5])).mean().backward()
    assert unet.out[2].weight.grad is not None


@pytest.mark.parametrize("asked, device, expected", [("auto", "cpu", False), ("auto", "cuda", True), (True, "cpu", True), (False, "cuda", False)])
def test_automatic_compilation_is_for_gpus(asked, device, expected):
    assert compiling.should_compile(asked, torch.device(device)) is expected


def test_layouts():
    unet = ConditionalUNet(width=32, multipliers=(1, 1), blocks=1, heads=4, attention=(2,))

    def last(network) -> bool:
        return all(p.is_contiguous(memory_format=torch.channels_last) for p in network.parameters() if p.dim() == 4)

    for device, compiled, expected in (("cuda", False, False), ("cuda", True, True), ("cpu", False, True)):
        assert last(compiling.prepare_for_inference(copy.deepcopy(unet), torch.device(device), "float32", compiled)) is expected
    assert last(compiling.prepare_for_inference(MLVQGAN(channels=(8,), residual_channels=8), torch.device("cuda"), "float32", False))
